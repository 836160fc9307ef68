// The table of runs: any number of them, a filter with completion, columns on demand.
import { useInfiniteQuery } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { memo, useCallback, useEffect, useMemo, useRef, useState, type CSSProperties } from "react";
import { request, url, useApi } from "../api/client";
import type { RunColumns, RunGroups, RunTable } from "../api/schema";
import { Badge, Command, Empty, Head, Loaded, Problem, shell, Time, useTitle } from "../components/basics";
import { FilterInput } from "../components/filter_input";
import { count, counted, duration, number, text } from "../format";
import { go, href, useRoute } from "../router";

const PAGE = 200;
const ROW = 34;
const BASE = ["name", "state", "started_at", "seconds", "trigger"];
const WIDTHS: Record<string, string> = { name: "minmax(7.5rem,1.2fr)", state: "6.6rem", started_at: "9.2rem", seconds: "4.8rem", trigger: "minmax(9rem,2.6fr)", loop: "minmax(6rem,1fr)" };
const TITLES: Record<string, string> = { name: "Run", state: "State", started_at: "Started", seconds: "Took", trigger: "Cause", loop: "Loop" };

export function RunsPage() {
  useTitle("Runs");
  const { query } = useRoute();
  const filter = query.get("filter") ?? "";
  const order = query.get("order") ?? "-started_at";
  const names = useApi<RunColumns>("views/run-columns", ["run"]);
  const given = query.get("columns");
  const [picked, setPicked] = useState<ReadonlySet<string>>(new Set());
  const show = (changes: Record<string, string | undefined>) =>
    go(href("runs", { filter, order: order === "-started_at" ? undefined : order, columns: query.get("columns") ?? undefined, group: query.get("group") ?? undefined, ...changes } as Record<string, string | undefined>), true);

  const found = useInfiniteQuery<RunTable, Error>({
    queryKey: ["run", "table", filter, order, given],
    // Without columns the server chooses the first metrics, so that one request is enough for the first rows.
    queryFn: ({ pageParam, signal }) => request<RunTable>(url("views/runs", { filter, order, columns: given === null ? undefined : given || ",", limit: PAGE, after: (pageParam as string | null) ?? undefined }), { signal }),
    initialPageParam: null,
    getNextPageParam: (page) => page.next,
  });
  const answered = found.data?.pages[0]?.columns;
  const extra = useMemo(() => (given !== null ? given.split(",").filter(Boolean) : (answered ?? []).filter((name) => /^(metrics|params|tags)\./.test(name))), [given, answered]);
  const rows = useMemo(() => found.data?.pages.flatMap((page) => page.rows) ?? [], [found.data]);
  const total = found.data?.pages[0]?.total ?? null;
  const columns = useMemo(() => [...BASE, ...extra], [extra]);
  const toggle = useCallback(
    (id: string) =>
      setPicked((before) => {
        const next = new Set(before);
        if (!next.delete(id)) next.add(id);
        return next;
      }),
    [],
  );

  return (
    <>
      <Head title="Runs" sub={total === null ? " " : `${counted(total, "run")}${filter ? (total === 1 ? " matches" : " match") : ""}`}>
        {picked.size > 1 && (
          <a className="button primary" href={href("compare", { runs: [...picked].join(",") })}>
            Compare {picked.size} runs
          </a>
        )}
        <GroupBy known={names.data} by={query.get("group") ?? ""} choose={(next) => show({ group: next || undefined })} />
        <Columns known={names.data} chosen={extra} choose={(next) => show({ columns: next.join(",") || "," })} />
      </Head>
      <div className="row" style={{ marginBottom: "0.8rem" }}>
        <FilterInput value={filter} names={names.data} error={found.error} apply={(next) => show({ filter: next || undefined })} />
        <Command>{`everloop runs ls${filter ? ` --where ${shell(filter)}` : ""}`}</Command>
      </div>
      {query.get("group") && <Groups by={query.get("group") as string} metric={extra.find((name) => name.startsWith("metrics.")) ?? null} filter={filter} take={(condition) => show({ filter: filter ? `(${filter}) and ${condition}` : condition, group: undefined })} />}
      {found.error && rows.length === 0 ? (
        <Problem error={found.error} />
      ) : found.isSuccess && rows.length === 0 ? (
        <div className="card">
          {filter ? <Empty title="No run matches this filter">Remove a condition, or look at all runs.</Empty> : <Empty title="No runs yet" command="everloop run">Runs of loops and tracked scripts appear here while they run.</Empty>}
        </div>
      ) : (
        <Table rows={rows} columns={columns} order={order} sort={(next) => show({ order: next })} picked={picked} toggle={toggle} loading={found.isFetchingNextPage || found.isPending} more={found.hasNextPage ? () => void found.fetchNextPage() : null} />
      )}
    </>
  );
}

const column = (group: string, name: string): string => `${group}.${/^[A-Za-z_][A-Za-z0-9_]*$/.test(name) ? name : JSON.stringify(name)}`;

type Row = Record<string, unknown>;

function Table(props: { rows: Row[]; columns: string[]; order: string; sort: (next: string) => void; picked: ReadonlySet<string>; toggle: (id: string) => void; loading: boolean; more: (() => void) | null }) {
  const { rows, columns, order } = props;
  const viewport = useRef<HTMLDivElement>(null);
  const virtual = useVirtualizer({ count: rows.length + (props.more ? 1 : 0), getScrollElement: () => viewport.current, estimateSize: () => ROW, overscan: 12 });
  const template = `1.4rem ${columns.map((name) => WIDTHS[name] ?? "minmax(6.5rem,0.9fr)").join(" ")}`;
  const minimum = `${12 + columns.length * 7.2}rem`;
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  const { more, loading } = props;
  useEffect(() => {
    if (more && !loading && last >= rows.length - 30) more();
  }, [last, rows.length, more, loading]);
  return (
    <div className="runs" style={{ height: ROW * (rows.length + 1) + 4 }}>
      <div className="viewport" ref={viewport} tabIndex={0} role="table" aria-label="Runs" aria-busy={loading} aria-rowcount={props.more ? -1 : rows.length} style={{ gridRow: "1 / span 2" }}>
        <div style={{ minWidth: minimum }}>
          <div className="tr th" role="row" style={{ gridTemplateColumns: template }}>
            <span role="columnheader" aria-label="Chosen for comparison" />
            {columns.map((name) => {
              const down = order === `-${name}`;
              const up = order === name;
              return (
                <span role="columnheader" key={name} aria-sort={down ? "descending" : up ? "ascending" : "none"} className={isNumber(name) ? "td number" : "td"}>
                  <button type="button" title={`Sort by ${name}`} onClick={() => props.sort(down ? name : `-${name}`)}>
                    {TITLES[name] ?? name.replace(/^(metrics|params|tags)\./, "")}
                    {down ? " ↓" : up ? " ↑" : ""}
                  </button>
                </span>
              );
            })}
          </div>
          <div style={{ height: virtual.getTotalSize(), position: "relative" }} role="rowgroup">
            {items.map((item) => {
              const row = rows[item.index];
              const place = { position: "absolute" as const, top: 0, left: 0, right: 0, height: ROW, transform: `translateY(${item.start}px)`, gridTemplateColumns: template };
              if (!row)
                return (
                  <div className="tr" role="row" key={item.key} style={place}>
                    <span role="cell" />
                    <span role="cell" className="soft">
                      Loading more…
                    </span>
                  </div>
                );
              const id = String(row["id"]);
              return <RunRow key={id} row={row} id={id} index={item.index} start={item.start} columns={columns} template={template} picked={props.picked.has(id)} toggle={props.toggle} />;
            })}
          </div>
        </div>
      </div>
    </div>
  );
}

type RowProps = { row: Row; id: string; index: number; start: number; columns: string[]; template: string; picked: boolean; toggle: (id: string) => void };

/** One row. While the table is scrolled, the rows that stay are not drawn again. */
const RunRow = memo(function RunRow({ row, id, index, start, columns, template, picked, toggle }: RowProps) {
  const place: CSSProperties = { position: "absolute", top: 0, left: 0, right: 0, height: ROW, transform: `translateY(${start}px)`, gridTemplateColumns: template };
  return (
    <div className="tr" role="row" style={place} aria-rowindex={index + 1}>
      <span role="cell">
        <input type="checkbox" aria-label={`Choose ${text(row["name"])} for comparison`} checked={picked} onChange={() => toggle(id)} />
      </span>
      {columns.map((name) => (
        <span role="cell" key={name} className={isNumber(name) ? "td number" : "td"} title={typeof row[name] === "string" ? (row[name] as string) : undefined}>
          <Cell name={name} row={row} />
        </span>
      ))}
    </div>
  );
});

const isNumber = (name: string): boolean => name.startsWith("metrics.") || name === "seconds";

function Cell({ name, row }: { name: string; row: Row }) {
  const value = row[name];
  if (name === "name") return <a href={href(["runs", String(row["id"])])}>{text(value)}</a>;
  if (name === "state") return <Badge state={String(value)} />;
  if (name === "started_at") return <Time at={value as string} />;
  if (name === "seconds") return <>{duration(value as number | null)}</>;
  return <>{isNumber(name) ? number(value) : text(value)}</>;
}

function GroupBy({ known, by, choose }: { known: RunColumns | undefined; by: string; choose: (next: string) => void }) {
  const names = useMemo(() => ["state", "name", "loop", "trigger", ...(known?.params ?? []).slice(0, 500).map((name) => column("params", name)), ...(known?.tags ?? []).slice(0, 200).map((name) => column("tags", name))], [known]);
  return (
    <label className="row small">
      Group by
      <select className="input" style={{ width: "auto", maxWidth: "12rem" }} value={by} onChange={(event) => choose(event.target.value)}>
        <option value="">nothing</option>
        {by && !names.includes(by) && <option>{by}</option>}
        {names.map((name) => (
          <option key={name}>{name}</option>
        ))}
      </select>
    </label>
  );
}

function Groups({ by, metric, filter, take }: { by: string; metric: string | null; filter: string; take: (condition: string) => void }) {
  const found = useApi<RunGroups>(url("views/run-groups", { by, metric: metric ?? undefined, filter }), ["run"], { keep: true });
  return (
    <section className="card" style={{ marginBottom: "0.8rem" }} aria-label={`Runs by ${by}`}>
      <Loaded of={found}>
        {(data) => (
          <>
            <div className="scroll" tabIndex={0} role="region" aria-label="Groups" style={{ maxHeight: "18rem", overflowY: "auto" }}>
              <table>
                <thead>
                  <tr>
                    <th>{by}</th>
                    <th className="number">Runs</th>
                    <th className="number">Least {metric?.replace("metrics.", "")}</th>
                    <th className="number">Mean</th>
                    <th className="number">Greatest</th>
                  </tr>
                </thead>
                <tbody>
                  {data.groups.map((one) => (
                    <tr key={one.value ?? ""}>
                      <td>
                        {one.filter ? (
                          <button type="button" className="link" onClick={() => take(one.filter)}>
                            {one.value ?? "none"}
                          </button>
                        ) : (
                          (one.value ?? "none")
                        )}
                      </td>
                      <td className="number">{count(one.runs)}</td>
                      <td className="number">{number(one.least)}</td>
                      <td className="number">{number(one.mean)}</td>
                      <td className="number">{number(one.greatest)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
            {(data.read < data.total || data.left_out > 0) && (
              <p className="soft small">
                {data.read < data.total && `The newest ${count(data.read)} of ${count(data.total)} runs are grouped. `}
                {data.left_out > 0 && `${count(data.left_out)} more groups are not listed.`}
              </p>
            )}
          </>
        )}
      </Loaded>
    </section>
  );
}

function Columns({ known, chosen, choose }: { known: RunColumns | undefined; chosen: string[]; choose: (next: string[]) => void }) {
  const [open, setOpen] = useState(false);
  const [search, setSearch] = useState("");
  const all = useMemo(() => {
    if (!known) return [];
    return [...known.metrics.map((name) => column("metrics", name)), ...known.params.map((name) => column("params", name)), ...known.tags.map((name) => column("tags", name)), "loop"];
  }, [known]);
  const shown = all.filter((name) => name.toLowerCase().includes(search.toLowerCase()));
  return (
    <div
      className="picker"
      onKeyDown={(event) => {
        if (event.key === "Escape") setOpen(false);
      }}
    >
      <button type="button" className="button" aria-expanded={open} onClick={() => setOpen(!open)}>
        Columns
      </button>
      {open && (
        <div className="menu">
          <input className="input" placeholder={`Search ${count(all.length)} columns`} aria-label="Search columns" value={search} onChange={(event) => setSearch(event.target.value)} autoFocus />
          {shown.slice(0, 200).map((name) => (
            <label key={name}>
              <input type="checkbox" checked={chosen.includes(name)} onChange={() => choose(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name])} />
              <span className="mono small">{name}</span>
            </label>
          ))}
          {shown.length > 200 && <span className="soft small">{count(shown.length - 200)} more: search for them.</span>}
          {shown.length === 0 && <span className="soft">No such column.</span>}
        </div>
      )}
    </div>
  );
}
