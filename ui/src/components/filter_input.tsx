// The filter of the table of runs, with completion of fields, operators and states.
import { useEffect, useId, useState } from "react";
import type { RunColumns } from "../api/schema";
import { ApiError } from "../api/client";
import { complete } from "./completion";

export function FilterInput({ value, names, error, apply }: { value: string; names: RunColumns | undefined; error: Error | null; apply: (next: string) => void }) {
  const [typed, setTyped] = useState(value);
  const [open, setOpen] = useState(false);
  const [at, setAt] = useState(-1);
  const id = useId();
  useEffect(() => setTyped(value), [value]);
  const { begun, words } = complete(typed, names);
  const take = (word: string) => {
    setTyped(`${typed.slice(0, typed.length - begun.length)}${word} `);
    setAt(-1);
  };
  return (
    <form
      role="search"
      style={{ flex: "1 1 22rem", position: "relative" }}
      onSubmit={(event) => {
        event.preventDefault();
        setOpen(false);
        apply(typed.trim());
      }}
    >
      <input
        className="input mono"
        data-search
        role="combobox"
        aria-expanded={open && words.length > 0}
        aria-controls={id}
        aria-autocomplete="list"
        aria-label="Filter runs"
        aria-invalid={error instanceof ApiError && error.status === 400 && typed === value}
        placeholder="metrics.auc > 0.8 and state = 'finished'"
        value={typed}
        spellCheck={false}
        onChange={(event) => {
          setTyped(event.target.value);
          setOpen(true);
          setAt(-1);
        }}
        onFocus={() => setOpen(true)}
        onBlur={() => setTimeout(() => setOpen(false), 150)}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown" || event.key === "ArrowUp") {
            event.preventDefault();
            const step = event.key === "ArrowDown" ? 1 : -1;
            setAt((before) => (words.length === 0 ? -1 : (before + step + words.length) % words.length));
          } else if ((event.key === "Tab" || event.key === "Enter") && open && at >= 0 && words[at]) {
            event.preventDefault();
            take(words[at]);
          } else if (event.key === "Escape") {
            setOpen(false);
          }
        }}
      />
      {open && words.length > 0 && (
        <ul className="suggest" id={id} role="listbox">
          {words.map((word, index) => (
            <li key={word} role="option" aria-selected={index === at} onMouseDown={(event) => event.preventDefault()} onClick={() => take(word)}>
              {word}
            </li>
          ))}
        </ul>
      )}
    </form>
  );
}
