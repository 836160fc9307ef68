// A table of records: what each column shows, and what to say if there is nothing.
import type { ReactNode } from "react";
import { count } from "../format";

export type Column<T> = { title: ReactNode; cell: (row: T, index: number) => ReactNode; number?: boolean; className?: string; /** Not shown on phones. */ wide?: boolean };

export function Table<T>(props: {
  rows: readonly T[];
  columns: readonly (Column<T> | null | false)[];
  /** What the table is about, for people who cannot see it. */
  label: string;
  rowKey: (row: T, index: number) => string;
  empty?: ReactNode;
  height?: string;
  /** Show at most this many rows, and say how many are left out. */
  most?: number;
  /** Without a head if the columns explain themselves. */
  bare?: boolean;
}) {
  if (props.rows.length === 0 && props.empty !== undefined) return <>{props.empty}</>;
  const columns = props.columns.filter((one): one is Column<T> => Boolean(one));
  const most = props.most ?? Infinity;
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label={props.label} style={props.height ? { maxHeight: props.height, overflowY: "auto" } : {}}>
      <table>
        {!props.bare && (
          <thead>
            <tr>
              {columns.map((column, index) => (
                <th key={index} scope="col" className={[column.number && "number", column.wide && "wide"].filter(Boolean).join(" ") || undefined}>
                  {column.title}
                </th>
              ))}
            </tr>
          </thead>
        )}
        <tbody>
          {props.rows.slice(0, most).map((row, at) => (
            <tr key={props.rowKey(row, at)}>
              {columns.map((column, index) => (
                <td key={index} className={[column.number && "number", column.wide && "wide", column.className].filter(Boolean).join(" ") || undefined}>
                  {column.cell(row, at)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {props.rows.length > most && <p className="soft small">{count(props.rows.length - most)} more are not shown.</p>}
    </div>
  );
}

/** Pairs of a name and what belongs to it. Pairs without a value are left out. */
export function Facts({ of }: { of: readonly (readonly [ReactNode, ReactNode] | null | false | undefined)[] }) {
  return (
    <dl className="facts">
      {of.map((pair, index) =>
        pair && pair[1] !== null && pair[1] !== undefined && pair[1] !== "" ? (
          <div key={index} style={{ display: "contents" }}>
            <dt>{pair[0]}</dt>
            <dd>{pair[1]}</dd>
          </div>
        ) : null,
      )}
    </dl>
  );
}

/** What happened, newest first: a time and a sentence. */
export function Timeline<T>({ of, at, children, limit = 30 }: { of: readonly T[]; at: (one: T) => ReactNode; children: (one: T) => ReactNode; limit?: number }) {
  return (
    <ul className="timeline">
      {of.slice(0, limit).map((one, index) => (
        <li key={index}>
          {at(one)}
          <span>{children(one)}</span>
        </li>
      ))}
    </ul>
  );
}

/** A choice with a label in front of it. */
export function Choose(props: { label: string; value: string; options: readonly (string | readonly [string, string])[]; choose: (next: string) => void; width?: string }) {
  return (
    <label className="row small">
      {props.label}
      <select className="input" aria-label={props.label} style={{ width: "auto", maxWidth: props.width ?? "16rem" }} value={props.value} onChange={(event) => props.choose(event.target.value)}>
        {props.options.map((one) => {
          const [value, title] = typeof one === "string" ? [one, one] : one;
          return (
            <option key={value} value={value}>
              {title}
            </option>
          );
        })}
      </select>
    </label>
  );
}
