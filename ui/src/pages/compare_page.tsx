// Runs side by side: overlaid curves, parallel coordinates, and a table of what differs.
import { useMemo, useState } from "react";
import { url, useApi } from "../api/client";
import type { ComparedRuns, Curve, RunColumns } from "../api/schema";
import type { Series } from "../charts/align";
import { LineChart, colour } from "../charts/line_chart";
import { ParallelCoordinates } from "../charts/parallel_coordinates";
import { importances } from "../charts/rank_correlation";
import { Card, Command, Empty, Head, Loaded, useTitle } from "../components/basics";
import { count, duration, number, text } from "../format";
import { go, href, useRoute } from "../router";

/** Runs that a legend names. */
const FEW = 12;
/** The server draws the peaks of this many curves at once; more are an overview. */
const WITH_PEAKS = 20;
/** Metrics of an overview in one request. They lie beside each other in the store, so together they take less time; all at once would appear late. */
const TOGETHER = 5;
const NONE: Curve[] = [];
const MOST_BARS = 40;
const GROUPS: [string, string][] = [["params", "Parameters"], ["metrics", "Metrics"], ["source", "Code and environment"], ["about", "About"], ["tags", "Tags"]];

export function ComparePage() {
  useTitle("Compare runs");
  const { query } = useRoute();
  const asked = query.get("runs") ?? "";
  const runs = useMemo(() => asked.split(",").filter(Boolean), [asked]);
  const names = useApi<RunColumns>("views/run-columns", ["run"]);
  const found = useApi<ComparedRuns>(runs.length > 1 ? url("views/compare", { runs }) : null, ["run"]);
  const logged = useMemo(() => new Set(found.data?.runs.flatMap((run) => Object.keys(run.metrics ?? {})) ?? []), [found.data]);
  // Only few runs have a legend. With many, charts must not be drawn again when their names arrive.
  const titles = useMemo(() => new Map(runs.length > FEW ? [] : found.data?.runs.map((run) => [run.id, `\u2068${run.name}\u2069 ${run.id.slice(-4)}`])), [runs.length > FEW ? null : found.data]);
  const keys = query.get("keys")?.split(",").filter(Boolean) ?? (names.data?.metrics ?? []).filter((name) => logged.has(name)).slice(0, 2);
  const chosen = (next: string[]) => go(href("compare", { runs: runs.join(","), keys: next.join(",") }), true);
  if (runs.length < 2)
    return (
      <>
        <Head title="Compare runs" crumbs={<a href={href("runs")}>Runs</a>} />
        <Card>
          <Empty title="Choose two runs or more">Tick runs in the table of runs, then press Compare.</Empty>
        </Card>
      </>
    );
  return (
    <>
      <Head title={`${runs.length} runs compared`} crumbs={<a href={href("runs")}>Runs</a>}>
        <Command>{`everloop runs diff ${runs.slice(0, 2).join(" ")}`}</Command>
      </Head>
      <div className="grid">
        <Card
          title="Curves"
          span="c12"
          side={
            <label className="row small">
              Metric
              <select className="input" style={{ width: "auto" }} value="" onChange={(event) => event.target.value && chosen([...new Set([...keys, event.target.value])])}>
                <option value="">Add…</option>
                {(names.data?.metrics ?? []).filter((name) => logged.has(name) && !keys.includes(name)).map((name) => <option key={name}>{name}</option>)}
              </select>
            </label>
          }
        >
          <Curves runs={runs} titles={titles} keys={keys} drop={(key) => chosen(keys.filter((one) => one !== key))} />
        </Card>
        <div className="c12">
          <Loaded of={found}>{(compared) => <Differences compared={compared} />}</Loaded>
        </div>
      </div>
    </>
  );
}

type Titles = ReadonlyMap<string, string>;

function Curves({ runs, titles, keys, drop }: { runs: string[]; titles: Titles; keys: string[]; drop: (key: string) => void }) {
  if (keys.length === 0) return <Empty title="Add a metric to see its curves" />;
  const together = runs.length > WITH_PEAKS ? TOGETHER : 1;
  const groups = Array.from({ length: Math.ceil(keys.length / together) }, (_, index) => keys.slice(index * together, (index + 1) * together));
  return (
    <div className="grid">
      {groups.map((group, index) => (
        <Metrics key={together > 1 ? index : group[0]} runs={runs} titles={titles} keys={group} drop={drop} />
      ))}
    </div>
  );
}

/** Some metrics that are read by one request, each drawn by itself. */
function Metrics({ runs, titles, keys, drop }: { runs: string[]; titles: Titles; keys: string[]; drop: (key: string) => void }) {
  const found = useApi<Curve[]>(url("views/curves", { runs, keys, points: runs.length > WITH_PEAKS ? 200 : 500 }), ["run"], { keep: true });
  const curves = useMemo(() => new Map(keys.map((key) => [key, (found.data ?? []).filter((curve) => curve.key === key)])), [found.data, keys.join()]);
  return keys.map((key) => (
    <div className="c6" key={key}>
      <div className="row">
        <h3>{key}</h3>
        <button type="button" className="button plain small" onClick={() => drop(key)} aria-label={`Remove ${key}`}>
          Remove
        </button>
      </div>
      <Loaded of={found}>{() => <Overlay curves={curves.get(key) ?? NONE} runs={runs} titles={titles} label={key} />}</Loaded>
    </div>
  ));
}

function Overlay({ curves, runs, titles, label }: { curves: Curve[]; runs: string[]; titles: Titles; label: string }) {
  const series = useMemo<Series[]>(() => curves.map((curve) => ({ name: titles.get(curve.run) ?? curve.run.slice(-4), x: curve.steps, y: curve.values, colour: runs.indexOf(curve.run) })), [curves, runs, titles]);
  if (series.length === 0) return <Empty title="None of these runs has logged this metric" />;
  if (series.length <= MOST_BARS && series.every((one) => one.x.length === 1)) return <Bars series={series} />;
  return (
    <>
      <LineChart series={series} label={`${label} of ${series.length} runs by step`} />
      {curves.some((curve) => curve.total === null) && <p className="soft small">Points at equal distances. With 20 runs or fewer, every peak is drawn.</p>}
    </>
  );
}

/** A metric that was logged once in each run: a bar for each. */
function Bars({ series }: { series: Series[] }) {
  const most = Math.max(1e-12, ...series.map((one) => Math.abs(one.y[0] ?? 0)));
  return (
    <div className="importance">
      {series.map((one, index) => (
        <div key={index} style={{ display: "contents" }}>
          <span className="small">{one.name}</span>
          <span className="bar" aria-hidden="true">
            <i style={{ width: `${(100 * Math.abs(one.y[0] ?? 0)) / most}%`, background: colour(one.colour ?? index) }} />
          </span>
          <span className="number">{one.y[0] === null ? "not finite" : number(one.y[0])}</span>
          <span />
        </div>
      ))}
    </div>
  );
}

function ParameterImportance({ compared }: { compared: ComparedRuns }) {
  const metrics = Object.keys(compared.groups?.["metrics"] ?? {});
  const [chosen, choose] = useState("");
  const metric = metrics.includes(chosen) ? chosen : (metrics[0] ?? "");
  const found = useMemo(() => importances(compared, metric).slice(0, 12), [compared, metric]);
  return (
    <Card
      title="Which parameters go with a metric"
      side={
        metrics.length > 0 && (
          <label className="row small">
            Metric
            <select className="input" style={{ width: "auto" }} value={metric} onChange={(event) => choose(event.target.value)}>
              {metrics.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
        )
      }
    >
      {found.length === 0 ? (
        <Empty title="No numeric parameter differs together with a metric">At least four runs must have both.</Empty>
      ) : (
        <>
          <p className="soft small">Spearman's rank correlation: how strongly the order of runs by the parameter agrees with their order by the metric. It is not proof of a cause, and it misses what only parameters together do.</p>
          <div className="importance">
            {found.map((one) => (
              <div key={one.name} style={{ display: "contents" }}>
                <span>{one.name}</span>
                <span className="bar" aria-hidden="true">
                  <i style={{ width: `${Math.abs(one.correlation) * 100}%`, background: one.correlation < 0 ? "var(--s2)" : "var(--s1)" }} />
                </span>
                <span className="number">{one.correlation < 0 ? "−" : "+"}{Math.abs(one.correlation).toFixed(2)}</span>
                <span className="soft small">{count(one.runs)} runs</span>
              </div>
            ))}
          </div>
        </>
      )}
    </Card>
  );
}

function cell(group: string, name: string, value: unknown): string {
  if (typeof value !== "number") return text(value).slice(0, 200);
  return group === "metrics" ? number(value) : name === "seconds" ? duration(value) : text(value);
}

function Differences({ compared }: { compared: ComparedRuns }) {
  const [all, setAll] = useState(false);
  const { runs } = compared;
  const groups = compared.groups ?? {};
  const shown = runs.slice(0, all ? 200 : FEW);
  return (
    <div className="stack">
      {runs.length > 2 && (
        <Card title="Parallel coordinates">
          <ParallelCoordinates compared={compared} />
        </Card>
      )}
      {runs.length > 3 && Object.keys(groups["params"] ?? {}).length > 0 && <ParameterImportance compared={compared} />}
      <Card title="What differs" side={runs.length > shown.length && <button type="button" className="button" onClick={() => setAll(true)}>Show all {count(runs.length)} runs</button>}>
        <div className="scroll">
          <table style={{ tableLayout: "fixed", minWidth: `${11 + 8.5 * shown.length}rem` }}>
            <thead>
              <tr>
                <th style={{ width: "11rem" }}>
                  <span className="visually-hidden">Value</span>
                </th>
                {shown.map((run, index) => (
                  <th key={run.id}>
                    <a href={href(["runs", run.id])}>
                      <i style={{ display: "inline-block", width: 9, height: 9, borderRadius: 5, marginRight: 5, background: colour(index) }} />
                      <bdi>{run.name}</bdi> <span className="mono">{run.id.slice(-4)}</span>
                    </a>
                  </th>
                ))}
              </tr>
            </thead>
            {GROUPS.map(([group, title]) => {
              const rows = Object.entries(groups[group] ?? {});
              const same = compared.same?.[group] ?? 0;
              return (
                <tbody key={group}>
                  <tr>
                    <th colSpan={shown.length + 1} style={{ paddingTop: "0.9rem" }}>
                      {title} {same > 0 && <span className="soft">({count(same)} the same)</span>}
                    </th>
                  </tr>
                  {rows.length === 0 && (
                    <tr>
                      <td colSpan={shown.length + 1} className="soft">
                        No differences
                      </td>
                    </tr>
                  )}
                  {rows.slice(0, 500).map(([name, values]) => (
                    <tr key={name}>
                      <td>{name}</td>
                      {shown.map((run, index) => (
                        <td key={run.id} className={typeof values[index] === "number" ? "number" : ""} style={{ textAlign: "left" }}>
                          {cell(group, name, values[index])}
                        </td>
                      ))}
                    </tr>
                  ))}
                </tbody>
              );
            })}
          </table>
        </div>
      </Card>
    </div>
  );
}
