// Dark and light: as the system has it, until a person chooses.
import { useSyncExternalStore } from "react";
import { read, write } from "../format";

export type Theme = "light" | "dark";
const KEY = "everloop.theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set<() => void>();
let theme: Theme = start();

function start(): Theme {
  const chosen = read(KEY);
  return chosen === "light" || chosen === "dark" ? chosen : dark.matches ? "dark" : "light";
}

function apply(next: Theme): void {
  theme = next;
  document.documentElement.dataset["theme"] = next;
  for (const listener of listeners) listener();
}

apply(theme);
dark.addEventListener("change", () => {
  if (read(KEY) === null) apply(dark.matches ? "dark" : "light");
});

export function useTheme(): [Theme, (next: Theme) => void] {
  const current = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => theme,
  );
  return [
    current,
    (next) => {
      write(KEY, next);
      apply(next);
    },
  ];
}
