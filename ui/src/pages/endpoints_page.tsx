// Endpoints: who answers, how much and how fast, how a release goes, and a form to try a request.
import { useMemo } from "react";
import { useApi, useSend } from "../api/client";
import type { EndpointDetail, EndpointRecord, MetricWindow, Release, TrafficPoint } from "../api/schema";
import type { Series } from "../charts/align";
import { LineChart, colour } from "../charts/line_chart";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { EndpointLink, VersionLink } from "../components/record_links";
import { Facts, Table, Timeline } from "../components/table";
import { count, number, percent, text, words } from "../format";
import { href } from "../router";
import { TryRequest } from "./try_request";

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
          {(endpoints) => (
            <Table
              rows={endpoints}
              label="Endpoints"
              rowKey={(one) => one.id}
              empty={
                <Empty title="No endpoints yet" command="everloop serve MODEL@champion">
                  A loop with serve=el.Endpoint("name") gets one with its first champion.
                </Empty>
              }
              columns={[
                { title: "Endpoint", cell: (one) => <EndpointLink name={one.name} /> },
                { title: "State", cell: (one) => <Badge state={one.state} /> },
                { title: "Traffic", cell: (one) => <Split endpoint={one} /> },
                { title: "URL", className: "mono small", cell: (one) => one.url ?? "–" },
              ]}
            />
          )}
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
            <i style={{ color: colour(index) }} />
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
  return (
    <LoadedPage of={found} title={name} crumbs={<a href={href("endpoints")}>Endpoints</a>}>
      {(detail) => <Detail detail={detail} />}
    </LoadedPage>
  );
}

function Detail({ detail }: { detail: EndpointDetail }) {
  const { endpoint } = detail;
  const send = useSend();
  const failed = Object.entries(detail.failures);
  const errors = failed.reduce((sum, [, requests]) => sum + requests, 0);
  const total = detail.traffic.filter((one) => one.role !== "shadow").reduce((sum, one) => sum + one.rows, 0);
  return (
    <>
      <Head
        crumbs={<a href={href("endpoints")}>Endpoints</a>}
        title={endpoint.name}
        sub={
          <>
            <Badge state={endpoint.state} /> {endpoint.url && <span className="mono small">{endpoint.url}</span>} · {count(total)} predictions
            {failed.length > 0 && (
              <>
                {" "}
                · {percent(errors / Math.max(1, errors + total))} of the requests failed: {failed.map(([status, requests]) => `${count(requests)} with ${status}`).join(", ")}
              </>
            )}
          </>
        }
      >
        <a className="button" href={href("monitor", { endpoint: endpoint.name })}>
          Monitor
        </a>
        {detail.releases.length > 0 && (
          <Confirm role="approver" label="Roll back" danger required title={`Roll back '${endpoint.name}'?`} explain="A rollout in progress ends, and the champion gets all the traffic. Without one, the previous champion takes over again." command={(reason) => `everloop release rollback ${shell(endpoint.name)} --reason ${shell(reason || "…")}`} act={(reason) => send(`endpoints/${encodeURIComponent(endpoint.name)}/rollback`, "POST", { reason })} />
        )}
        <Command>{`everloop endpoints show ${shell(endpoint.name)}`}</Command>
      </Head>
      <div className="grid">
        <div className="c5">
          <Card title="Who answers">
            <Split endpoint={endpoint} />
            {detail.releases[0] && <LatestRelease release={detail.releases[0]} />}
          </Card>
        </div>
        <div className="stack c7">
          <Card title="Live metric" side={<span className="soft small">with 95 % intervals, once labels are there</span>}>
            <Performance windows={detail.performance} />
          </Card>
          <Card title={`Predictions per ${detail.every}`}>
            <TrafficChart traffic={detail.traffic} />
          </Card>
          <Card title="Latency, milliseconds" side={<span className="soft small">median and 99th percentile</span>}>
            <LatencyChart traffic={detail.traffic} />
          </Card>
        </div>
        <Card title="Try a request" span="c6">
          <TryRequest endpoint={endpoint} champion={detail.champion ?? null} />
        </Card>
        <Card title="Releases" span="c6">
          <Releases releases={detail.releases} />
        </Card>
      </div>
    </>
  );
}

type Verb = { verb: string; label: string; explain: string; primary?: boolean; danger?: boolean };

const VERBS: Verb[] = [
  { verb: "approve", label: "Approve", explain: "The candidate may take all the traffic, as soon as the evidence suffices. The worker of everloop up completes the release.", primary: true },
  { verb: "advance", label: "Advance", explain: "The candidate gets the next share of the traffic now, without waiting for evidence." },
  { verb: "pause", label: "Pause", explain: "The candidate keeps its share and takes no step forward. It is still rolled back if it does harm." },
  { verb: "resume", label: "Resume", explain: "The release goes forward again when the evidence allows it." },
  { verb: "reject", label: "Reject", explain: "All traffic goes to the champion, and the release ends.", danger: true },
];

const DECISIONS: Record<string, string> = { start: "started", advance: "advanced", hold: "held", complete: "completed", roll_back: "rolled back", reject: "rejected", pause: "paused", resume: "resumed", approve: "approved" };

/** A release under way or the last one: its evidence, its decisions, and what a person may decide now. */
function LatestRelease({ release }: { release: Release }) {
  const send = useSend();
  const rolling = release.state === "rolling_out";
  const verbs = rolling ? VERBS.filter((one) => (release.paused ? one.verb !== "pause" && one.verb !== "advance" : one.verb !== "resume")) : [];
  const decisions = [...(release.decisions ?? [])].reverse();
  return (
    <div className="stack" style={{ marginTop: "1rem", gap: "0.7rem" }}>
      <h3>
        Release of <VersionLink name={release.candidate} /> <Badge state={release.state} /> {release.paused && <span className="tag">paused</span>}
      </h3>
      <Steps release={release} />
      {verbs.length > 0 && (
        <div className="row">
          {verbs.map((one) => (
            <Confirm key={one.verb} role="approver" small required label={one.label} primary={one.primary ?? false} danger={one.danger ?? false} title={`${one.label} the release of ${release.candidate}?`} explain={one.explain} command={(reason) => `everloop release ${one.verb} ${shell(release.endpoint)} --reason ${shell(reason || "…")}`} act={(reason) => send(`releases/${release.id}/${one.verb}`, "POST", { reason })} />
          ))}
        </div>
      )}
      <Evidence of={decisions.find((one) => Object.keys(one.evidence ?? {}).length > 0)?.evidence ?? {}} />
      <Timeline of={decisions} limit={6} at={(decision) => <Time at={decision.at} />}>
        {(decision) => (
          <>
            <b>{DECISIONS[decision.action] ?? words(decision.action)}</b> at {decision.percent} % <span className="soft small">{decision.actor}</span>
            <div className="soft small">{decision.reason}</div>
          </>
        )}
      </Timeline>
    </div>
  );
}

/** The declared steps of a rollout, and which of them it has reached. */
function Steps({ release }: { release: Release }) {
  return (
    <ol className="steps" aria-label="Steps of the rollout">
      {(release.steps ?? []).map((step) => {
        const reached = release.state === "completed" || (release.percent ?? 0) >= step;
        return (
          <li key={step} className={reached ? "reached" : ""}>
            {step === 0 ? "shadow" : `${step} %`}
            <span className="visually-hidden">{reached ? " reached" : " not reached"}</span>
          </li>
        );
      })}
    </ol>
  );
}

const EVIDENCE: Record<string, string> = { metric: "Metric", champion: "Champion", challenger: "Candidate", gain: "Gain", low: "Lower end of its interval", high: "Upper end", p_worse: "Probability that it is worse", rows: "Labelled rows", planned_rows: "Planned rows", deviations: "Standard errors above the limit", needed: "Needed" };

/** The numbers of the last decision that had any; what is not a number or a word is in the JSON of the release. */
function Evidence({ of }: { of: Record<string, unknown> }) {
  const shown = Object.entries(of).filter(([name, value]) => name in EVIDENCE && (typeof value === "number" || typeof value === "string"));
  if (shown.length === 0) return null;
  return (
    <details>
      <summary>Evidence of the last decision</summary>
      <Facts of={shown.map(([name, value]) => [EVIDENCE[name], typeof value === "number" ? number(value) : text(value)] as const)} />
    </details>
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

function TrafficChart({ traffic }: { traffic: TrafficPoint[] }) {
  const series = useMemo<Series[]>(
    () =>
      [...byVersion(traffic)].map(([name, rows]) => {
        const points = merged(rows);
        return { name, x: points.map(([at]) => at), y: points.map(([, sum]) => sum) };
      }),
    [traffic],
  );
  if (traffic.length === 0) return <Empty title="No predictions yet" />;
  return <LineChart series={series} times label="Predictions by version" height={210} />;
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
  return (
    <Table
      rows={releases}
      label="Releases"
      rowKey={(release) => release.id}
      height="24rem"
      empty={<Empty title="Nothing has been released yet" />}
      columns={[
        {
          title: "Candidate",
          cell: (release) => (
            <>
              <VersionLink name={release.candidate} />
              <div className="small">
                <Time at={release.created_at} />
              </div>
              <Badge state={release.state} />
            </>
          ),
        },
        { title: "Why", className: "small why", cell: (release) => release.decisions?.at(-1)?.reason },
      ]}
    />
  );
}
