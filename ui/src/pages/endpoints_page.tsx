// Endpoints: who answers, how much and how fast, how a release goes, and a form to try a request.
import { useMemo, useState } from "react";
import { ApiError, useAction, useApi } from "../api/client";
import type { EndpointDetail, EndpointRecord, MetricWindow, ModelVersion, Release, TrafficPoint } from "../api/schema";
import type { Series } from "../charts/align";
import { LineChart, colour } from "../charts/line_chart";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, Problem, shell, Time, useTitle } from "../components/basics";
import { count, words } from "../format";
import { href } from "../router";
import { VersionLink } from "./models_page";

const KINDS = ["endpoint", "release", "incident", "finding"];

export function EndpointsPage() {
  useTitle("Endpoints");
  const found = useApi<EndpointRecord[]>("endpoint", KINDS);
  return (
    <>
      <Head title="Endpoints" sub="Where models answer, and which versions share the traffic.">
        <Command>everloop endpoints ls</Command>
      </Head>
      <Card>
        <Loaded of={found}>
          {(endpoints) =>
            endpoints.length === 0 ? (
              <Empty title="No endpoints yet" command="everloop serve MODEL@champion">
                A loop with serve=el.Endpoint("name") gets one with its first champion.
              </Empty>
            ) : (
              <div className="scroll">
                <table>
                  <thead>
                    <tr>
                      <th>Endpoint</th>
                      <th>State</th>
                      <th>Traffic</th>
                      <th>URL</th>
                    </tr>
                  </thead>
                  <tbody>
                    {endpoints.map((one) => (
                      <tr key={one.id}>
                        <td>
                          <a href={href(["endpoints", one.name])}>{one.name}</a>
                        </td>
                        <td>
                          <Badge state={one.state} />
                        </td>
                        <td>
                          <Split endpoint={one} />
                        </td>
                        <td className="mono small">{one.url ?? "–"}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            )
          }
        </Loaded>
      </Card>
    </>
  );
}

function Split({ endpoint }: { endpoint: EndpointRecord }) {
  const routes = endpoint.routes ?? [];
  if (routes.length === 0) return <span className="soft">No version answers yet</span>;
  return (
    <div style={{ minWidth: "12rem" }}>
      <div className="bar" aria-hidden="true">
        {routes.map((route, index) => (
          <i key={route.version} style={{ width: `${route.percent}%`, background: colour(index) }} />
        ))}
      </div>
      <div className="legend" style={{ marginTop: "0.2rem" }}>
        {routes.map((route, index) => (
          <span key={route.version}>
            <i style={{ background: colour(index) }} />
            <VersionLink name={route.version} /> {route.role === "shadow" ? "shadow" : `${route.percent} %`}
          </span>
        ))}
      </div>
    </div>
  );
}

export function EndpointPage({ name }: { name: string }) {
  useTitle(name);
  const found = useApi<EndpointDetail>(`views/endpoints/${encodeURIComponent(name)}`, KINDS, { keep: true });
  return <Loaded of={found}>{(detail) => <Detail detail={detail} />}</Loaded>;
}

function Detail({ detail }: { detail: EndpointDetail }) {
  const { endpoint } = detail;
  const rollback = useAction<{ reason: string }>(() => `endpoints/${encodeURIComponent(endpoint.name)}/rollback`);
  const failed = Object.entries(detail.failures);
  const total = detail.traffic.filter((one) => one.role !== "shadow").reduce((sum, one) => sum + one.rows, 0);
  return (
    <>
      <Head
        crumbs={<a href={href("endpoints")}>Endpoints</a>}
        title={endpoint.name}
        sub={
          <>
            <Badge state={endpoint.state} /> {endpoint.url && <span className="mono small">{endpoint.url}</span>} · {count(total)} predictions{" "}
            {failed.length > 0 && <>· {failed.map(([status, requests]) => `${count(requests)} answered ${status}`).join(", ")}</>}
          </>
        }
      >
        <a className="button" href={href("monitor", { endpoint: endpoint.name })}>
          Monitor
        </a>
        {detail.releases.length > 0 && (
          <Confirm role="approver" label="Roll back" danger required title={`Roll back '${endpoint.name}'?`} explain="A rollout in progress ends, and the champion gets all the traffic. Without one, the previous champion takes over again." command={(reason) => `everloop release rollback ${shell(endpoint.name)} --reason ${shell(reason || "…")}`} act={(reason) => rollback.mutateAsync({ reason })} />
        )}
      </Head>
      <div className="grid">
        <Card title="Who answers" span="c5">
          <Split endpoint={endpoint} />
          {detail.releases[0] && <LatestRelease release={detail.releases[0]} />}
        </Card>
        <Card title="Live metric" span="c7" side={<span className="soft small">with 95 % intervals, once labels are there</span>}>
          <Performance windows={detail.performance} />
        </Card>
        <Card title={`Predictions per ${detail.every}`} span="c6">
          <TrafficChart traffic={detail.traffic} field="rows" label="Predictions" />
        </Card>
        <Card title="Latency, milliseconds" span="c6" side={<span className="soft small">median and 99th percentile</span>}>
          <LatencyChart traffic={detail.traffic} />
        </Card>
        <Card title="Try a request" span="c6">
          <TryRequest endpoint={endpoint} champion={detail.champion} />
        </Card>
        <Card title="Releases" span="c6">
          <Releases releases={detail.releases} />
        </Card>
      </div>
    </>
  );
}

function LatestRelease({ release }: { release: Release }) {
  const decisions = [...(release.decisions ?? [])].reverse().slice(0, 6);
  return (
    <div style={{ marginTop: "1rem" }}>
      <h3>
        Release of <VersionLink name={release.candidate} /> <Badge state={release.state} />
      </h3>
      <ul className="timeline">
        {decisions.map((decision) => (
          <li key={decision.at + decision.action}>
            <Time at={decision.at} />
            <span>
              <b>{words(decision.action)}</b> at {decision.percent} %<div className="soft small">{decision.reason}</div>
            </span>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Performance({ windows }: { windows: MetricWindow[] }) {
  const metric = windows.at(-1)?.metric;
  const shown = useMemo(() => windows.filter((one) => one.metric === metric && one.value !== null), [windows, metric]);
  const series = useMemo<Series[]>(
    () => [{ name: metric ?? "", x: shown.map((one) => Date.parse(one.until) / 1000), y: shown.map((one) => one.value), low: shown.map((one) => one.low), high: shown.map((one) => one.high), points: true }],
    [shown, metric],
  );
  if (shown.length === 0) return <Empty title="No live metric yet">It appears when labels have arrived and the loop has a Performance watch.</Empty>;
  return <LineChart series={series} times label={`${metric} of live predictions`} height={230} />;
}

function byVersion(traffic: TrafficPoint[]): Map<string, TrafficPoint[]> {
  const found = new Map<string, TrafficPoint[]>();
  for (const one of traffic) {
    const name = one.role === "shadow" ? `${one.version} (shadow)` : one.version;
    found.set(name, [...(found.get(name) ?? []), one]);
  }
  return found;
}

function merged(rows: TrafficPoint[]): [number, number][] {
  const sums = new Map<number, number>();
  for (const one of rows) {
    const at = Date.parse(one.at) / 1000;
    sums.set(at, (sums.get(at) ?? 0) + one.rows);
  }
  return [...sums].sort((a, b) => a[0] - b[0]);
}

function TrafficChart({ traffic, label }: { traffic: TrafficPoint[]; field: "rows"; label: string }) {
  const series = useMemo<Series[]>(
    () =>
      [...byVersion(traffic)].map(([name, rows]) => {
        const points = merged(rows);
        return { name, x: points.map(([at]) => at), y: points.map(([, sum]) => sum) };
      }),
    [traffic],
  );
  if (traffic.length === 0) return <Empty title="No predictions yet" />;
  return <LineChart series={series} times label={label} height={210} />;
}

function LatencyChart({ traffic }: { traffic: TrafficPoint[] }) {
  const series = useMemo<Series[]>(() => {
    const rows = traffic.filter((one) => one.role === "champion");
    const at = rows.map((one) => Date.parse(one.at) / 1000);
    return [
      { name: "median", x: at, y: rows.map((one) => one.p50_ms) },
      { name: "99th percentile", x: at, y: rows.map((one) => one.p99_ms) },
    ];
  }, [traffic]);
  if (traffic.length === 0) return <Empty title="No predictions yet" />;
  return <LineChart series={series} times label="Latency of the champion" height={210} />;
}

function Releases({ releases }: { releases: Release[] }) {
  if (releases.length === 0) return <Empty title="Nothing has been released yet" />;
  return (
    <div className="scroll">
      <table>
        <thead>
          <tr>
            <th>Candidate</th>
            <th>Outcome</th>
            <th>Why</th>
          </tr>
        </thead>
        <tbody>
          {releases.map((release) => (
            <tr key={release.id}>
              <td>
                <VersionLink name={release.candidate} />
                <div className="small">
                  <Time at={release.created_at} />
                </div>
              </td>
              <td>
                <Badge state={release.state} />
              </td>
              <td className="small why">{release.decisions?.at(-1)?.reason}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

type Input = { name: string; type: string; nullable?: boolean; categories?: unknown[] };

/** A value as the model's signature has it; an empty field of a nullable input is null. */
export function typed(input: Input, value: string): unknown {
  if (value === "") return null;
  if (input.type === "float" || input.type === "int") {
    const converted = Number(value);
    return Number.isNaN(converted) ? value : converted;
  }
  if (input.type === "bool") return value === "true";
  return value;
}

function TryRequest({ endpoint, champion }: { endpoint: EndpointRecord; champion: ModelVersion | null }) {
  const inputs = ((champion?.signature?.["inputs"] ?? []) as Input[]).slice(0, 200);
  const [values, setValues] = useState<Record<string, string>>({});
  const [answer, setAnswer] = useState<unknown>(null);
  const [error, setError] = useState<Error | null>(null);
  const row = Object.fromEntries(inputs.map((input) => [input.name, typed(input, values[input.name] ?? "")]));
  const send = async () => {
    setError(null);
    try {
      const response = await fetch(`endpoints/${encodeURIComponent(endpoint.name)}/predict`, { method: "POST", body: JSON.stringify({ rows: [row] }), headers: { "content-type": "application/json" } });
      const body = (await response.json()) as { error?: { message?: string; help?: string } };
      if (response.ok) setAnswer(body);
      else throw new ApiError(response.status, body.error?.message ?? `The endpoint answered ${response.status}.`, body.error?.help ?? null);
    } catch (failure) {
      setAnswer(null);
      setError(failure as Error);
    }
  };
  if (inputs.length === 0) return <Empty title="The champion has no signature to fill in" />;
  return (
    <form
      className="stack"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <div style={{ display: "grid", gridTemplateColumns: "repeat(auto-fill, minmax(9.5rem, 1fr))", gap: "0.6rem", maxHeight: "19rem", overflowY: "auto" }}>
        {inputs.map((input) => (
          <label className="field" key={input.name}>
            <span>
              {input.name} <span className="soft">{input.type}</span>
            </span>
            {input.categories && input.categories.length <= 200 ? (
              <select className="input" value={values[input.name] ?? ""} onChange={(event) => setValues({ ...values, [input.name]: event.target.value })}>
                <option value="">missing</option>
                {input.categories.map((one) => (
                  <option key={String(one)}>{String(one)}</option>
                ))}
              </select>
            ) : (
              <input className="input" placeholder="missing" value={values[input.name] ?? ""} onChange={(event) => setValues({ ...values, [input.name]: event.target.value })} />
            )}
          </label>
        ))}
      </div>
      <div className="row">
        <button type="submit" className="button primary">
          Predict
        </button>
        {endpoint.state !== "ready" && <span className="soft small">The endpoint is {endpoint.state}: start it with everloop up.</span>}
      </div>
      {error && <Problem error={error} />}
      {answer !== null && <pre className="mono small">{JSON.stringify(answer, null, 2)}</pre>}
      <Command>{`curl -d '${JSON.stringify({ rows: [row] }).replaceAll("'", "'\\''")}' -H 'content-type: application/json' ${window.location.origin}/endpoints/${encodeURIComponent(endpoint.name)}/predict`}</Command>
    </form>
  );
}
