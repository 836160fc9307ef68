// One run: its curves, steps in time with the reasons of the cache, artifacts, parameters and environment.
import { useMemo, useState } from "react";
import { url, useApi, useText } from "../api/client";
import type { Artifact, Curve, RunDetail, StepBar } from "../api/schema";
import { Graph } from "../charts/graph";
import type { Series } from "../charts/align";
import { LineChart } from "../charts/line_chart";
import { Badge, Card, Command, Empty, Head, Loaded, LoadedPage, Time, useTitle } from "../components/basics";
import { VersionLink } from "../components/record_links";
import { Facts, Table } from "../components/table";
import { bytes, count, duration, number, text, words } from "../format";
import { href } from "../router";

const LIVE_MS = 2_000;
const MOST_CURVES = 24;
const MOST_VALUES = 2000;

export function RunPage({ id }: { id: string }) {
  const found = useApi<RunDetail>(`views/runs/${encodeURIComponent(id)}`, ["run", "step", "artifact"]);
  useTitle(found.data ? `Run ${found.data.run.name}` : "Run");
  return (
    <LoadedPage of={found} title="Run" crumbs={<a href={href("runs")}>Runs</a>}>
      {(detail) => <Detail detail={detail} />}
    </LoadedPage>
  );
}

function Detail({ detail }: { detail: RunDetail }) {
  const { run } = detail;
  return (
    <>
      <Head
        crumbs={<a href={href("runs")}>Runs</a>}
        title={run.name}
        sub={
          <>
            <Badge state={run.state} /> <Time at={run.started_at} precise /> · {duration(run.seconds)} {run.trigger && <>· {run.trigger}</>}
          </>
        }
      >
        <Command>{detail.reproduce}</Command>
      </Head>
      <div className="grid">
        {run.error && (
          <div className="error c12" role="alert">
            <b>The run failed</b>
            <pre>{run.error}</pre>
          </div>
        )}
        {detail.metric_keys.length > 0 && <Curves detail={detail} />}
        {detail.steps.length > 0 && <Steps steps={detail.steps} />}
        <Card title="Metrics" span="c6">
          <Values values={run.metrics ?? {}} none="This run has logged no metric." numbers />
        </Card>
        <div className="stack c6">
          <Card title="Parameters">
            <Values values={run.params ?? {}} none="This run has no parameters." />
          </Card>
          {detail.versions.length > 0 && (
            <Card title="Model versions">
              {detail.versions.map((version) => (
                <div className="row" key={version.id}>
                  <VersionLink name={`${version.model}@${version.version}`} />
                  <Badge state={version.state} />
                </div>
              ))}
            </Card>
          )}
        </div>
        <Card title="Artifacts" span="c12">
          <Artifacts artifacts={detail.artifacts} />
        </Card>
        <Environment detail={detail} />
      </div>
    </>
  );
}

function Curves({ detail }: { detail: RunDetail }) {
  const { run } = detail;
  const keys = detail.metric_keys.slice(0, MOST_CURVES);
  const live = run.state === "running";
  const found = useApi<Curve[]>(url("views/curves", { runs: run.id, keys, points: 600 }), [], live ? { every: LIVE_MS, keep: true } : {});
  return (
    <Card title="Curves" span="c12" side={live && <Badge state="running">live</Badge>}>
      <Loaded of={found}>
        {(curves) => (
          <div className="grid">
            {curves.map((curve) => (
              <div className="c4" key={curve.key}>
                <h3>{curve.key}</h3>
                <OneCurve curve={curve} />
              </div>
            ))}
          </div>
        )}
      </Loaded>
      {detail.metric_keys.length > keys.length && <p className="soft small">{count(detail.metric_keys.length - keys.length)} more metrics have curves. Compare this run with another to choose them.</p>}
    </Card>
  );
}

function OneCurve({ curve }: { curve: Curve }) {
  const series = useMemo<Series[]>(() => [{ name: curve.key, x: curve.steps, y: curve.values, points: curve.steps.length < 30 }], [curve]);
  return <LineChart series={series} height={180} label={`${curve.key} by step`} />;
}

function Steps({ steps }: { steps: StepBar[] }) {
  const end = Math.max(0.001, ...steps.map((step) => step.starts + step.seconds));
  const nodes = useMemo(
    () => steps.map((step) => ({ id: step.name, kind: step.status, title: step.name, detail: step.reason, parents: step.depends_on, tone: step.status === "failed" ? "var(--bad)" : step.status === "ran" ? "var(--s1)" : "var(--line)" })),
    [steps],
  );
  return (
    <Card title="Steps" span="c12" side={<span className="soft small">{duration(end)} in all</span>}>
      <Graph nodes={nodes} label="The graph of steps" />
      <div className="gantt" style={{ marginTop: "1rem" }}>
        {steps.map((step) => (
          <div key={step.name} style={{ display: "contents" }}>
            <span className="name nowrap">
              <b>{step.name}</b> {step.attempts > 1 && <span className="tag">{step.attempts} attempts</span>}
            </span>
            <span className="lane" title={`${step.status}: ${step.reason}`}>
              <i className={step.status} style={{ left: `${(100 * step.starts) / end}%`, width: `${(100 * step.seconds) / end}%` }} />
            </span>
            <span className="soft small">{step.status === "cached" ? "cached" : duration(step.seconds)}</span>
            <span className="note soft small">
              {step.reason === step.status ? "" : step.reason}
              {step.error && <pre style={{ color: "var(--bad)" }}>{step.error}</pre>}
              {step.log && <StepLog id={step.log} name={step.name} />}
            </span>
          </div>
        ))}
      </div>
    </Card>
  );
}

/** What a step has printed. It is read when it is opened. */
function StepLog({ id, name }: { id: string; name: string }) {
  const [open, setOpen] = useState(false);
  const found = useText(open ? `artifacts/${encodeURIComponent(id)}/content` : null);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Log</summary>
      {open && (
        <Loaded of={found} lines={2}>
          {(printed) => (
            <pre className="source mono small" tabIndex={0} aria-label={`Log of ${name}`} style={{ maxHeight: "22rem" }}>
              {printed}
            </pre>
          )}
        </Loaded>
      )}
    </details>
  );
}

function Values({ values, none, numbers }: { values: Record<string, unknown>; none: string; numbers?: boolean }) {
  return (
    <Table
      bare
      rows={Object.entries(values)}
      most={MOST_VALUES}
      label={numbers ? "Metrics" : "Parameters"}
      rowKey={([name]) => name}
      height="24rem"
      empty={<Empty title={none} />}
      columns={[
        { title: "Name", cell: ([name]) => name },
        { title: "Value", number: numbers ?? false, cell: ([, value]) => (numbers ? value === null ? <span className="soft">not finite</span> : number(value) : text(value)) },
      ]}
    />
  );
}

function Artifacts({ artifacts }: { artifacts: Artifact[] }) {
  return (
    <Table
      rows={artifacts}
      label="Artifacts"
      rowKey={(artifact) => artifact.id}
      height="30rem"
      empty={<Empty title="This run has stored no artifacts" />}
      columns={[
        { title: "Name", cell: (artifact) => <a href={href(["artifacts", artifact.id])}>{artifact.name}</a> },
        { title: "Step", cell: (artifact) => artifact.step ?? "–" },
        { title: "Type", cell: (artifact) => <span className="tag">{artifact.type}</span> },
        { title: "Size", number: true, cell: (artifact) => bytes(artifact.size_bytes) },
        {
          title: "Digest",
          className: "mono small",
          cell: (artifact) => <span title={artifact.digest}>{artifact.digest.slice(7, 19)}</span>,
        },
      ]}
    />
  );
}

function Environment({ detail }: { detail: RunDetail }) {
  const source = detail.run.source;
  if (!source) return null;
  const packages = Object.entries(source.packages ?? {});
  return (
    <Card title="Code and environment" span="c12">
      <Facts
        of={[
          ["Command", source.launch && source.launch.length > 0 ? <span className="mono">{source.launch.join(" ")}</span> : null],
          ["Code", <span className="mono">{source.code?.slice(7, 19) ?? "–"}</span>],
          ["Commit", <span className="mono">{`${source.git_commit?.slice(0, 12) ?? "–"}${source.git_dirty ? " with changes" : ""}`}</span>],
          ["Python", source.python],
          ["Machine", `${source.host ?? "–"}${source.platform ? ` (${source.platform})` : ""}`],
          [
            "Packages",
            <details>
              <summary>{count(packages.length)} packages</summary>
              <p className="mono small">{packages.map(([name, version]) => `${name}==${version}`).join("  ")}</p>
            </details>,
          ],
          ...Object.entries(detail.run.tags ?? {}).map(([name, value]) => [words(name), value] as const),
        ]}
      />
    </Card>
  );
}
