// The part of Markdown that model cards use: headings, lists, tables, bold, code. All text stays text.
import type { ReactNode } from "react";

type Block = { kind: "heading"; level: number; text: string } | { kind: "list"; items: string[] } | { kind: "table"; rows: string[][] } | { kind: "code"; text: string } | { kind: "text"; text: string };

export function blocksOf(source: string): Block[] {
  const found: Block[] = [];
  const lines = source.split("\n");
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at] as string;
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    const last = found.at(-1);
    if (heading) found.push({ kind: "heading", level: (heading[1] as string).length, text: heading[2] as string });
    else if (line.startsWith("```")) {
      const end = lines.findIndex((one, index) => index > at && one.startsWith("```"));
      found.push({ kind: "code", text: lines.slice(at + 1, end < 0 ? undefined : end).join("\n") });
      at = end < 0 ? lines.length : end;
    } else if (/^\s*[-*]\s+/.test(line)) {
      const item = line.replace(/^\s*[-*]\s+/, "");
      if (last?.kind === "list") last.items.push(item);
      else found.push({ kind: "list", items: [item] });
    } else if (line.trimStart().startsWith("|")) {
      const cells = line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((one) => one.trim().replaceAll("\\|", "|"));
      if (cells.every((one) => /^:?-+:?$/.test(one))) continue;
      if (last?.kind === "table") last.rows.push(cells);
      else found.push({ kind: "table", rows: [cells] });
    } else if (line.trim() === "") found.push({ kind: "text", text: "" });
    else if (last?.kind === "text" && last.text) last.text += ` ${line.trim()}`;
    else found.push({ kind: "text", text: line.trim() });
  }
  return found.filter((one) => one.kind !== "text" || one.text);
}

function inline(source: string): ReactNode[] {
  return source.split(/(\*\*[^*]+\*\*|`[^`]+`)/).map((part, index) =>
    part.startsWith("**") && part.length > 4 ? <b key={index}>{part.slice(2, -2)}</b> : part.startsWith("`") && part.length > 2 ? <code key={index}>{part.slice(1, -1)}</code> : part.replace(/\\([\\`*_{}[\]()#+\-.!|<>~])/g, "$1"),
  );
}

export function Markdown({ source }: { source: string }) {
  return (
    <div className="prose">
      {blocksOf(source).map((block, index) => {
        switch (block.kind) {
          case "heading":
            return <h3 key={index}>{inline(block.text)}</h3>;
          case "list":
            return (
              <ul key={index}>
                {block.items.map((item, at) => (
                  <li key={at}>{inline(item)}</li>
                ))}
              </ul>
            );
          case "table":
            return (
              <div className="scroll" key={index} tabIndex={0} role="region" aria-label="Table">
                <table>
                  <tbody>
                    {block.rows.map((row, at) => (
                      <tr key={at}>
                        {row.map((cell, column) => (at === 0 ? <th key={column}>{inline(cell)}</th> : <td key={column}>{inline(cell)}</td>))}
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            );
          case "code":
            return (
              <pre key={index} className="source mono small" tabIndex={0}>
                {block.text}
              </pre>
            );
          default:
            return <p key={index}>{inline(block.text)}</p>;
        }
      })}
    </div>
  );
}
