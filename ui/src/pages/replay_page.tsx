// Replays: what each retraining policy would have done over history, side by side.
import { useMemo, useState } from "react";
import { useApi, useSend } from "../api/client";
import type { ReplayDetail, ReplayState, ReplaySummary } from "../api/schema";
import type { Series } from "../charts/align";
import { LineChart, colour } from "../charts/line_chart";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { RunLink } from "../components/record_links";
import { Choose, Table } from "../components/table";
import { count, duration, number } from "../format";
import { href } from "../router";

type Period = { from: string; until: string; rows: number; labelled: number; value: number | null; low: number | null; high: number | null };
type Trouble = { kind: string; severity: string; title: string; from: string; verdict: string; why: string };
type Policy = {
  retrain: string[];
  trains_on: string;
  metric: number | null;
  periods: Period[];
  incidents: Trouble[];
  watched: boolean;
  retrainings: number;
  failed_trainings: number;
  promotions: number;
  rollbacks: number;
  rejections: number;
  training_seconds: number;
  error: string | null;
  notes: string[];
};
type Result = {
  title: string;
  metric: string;
  greater_is_better: boolean;
  from: string;
  to: string;
  every: string;
  labels_after: string;
  rows: number;
  policies: Record<string, Policy>;
  regret: Record<string, { value: number; low: number; high: number } | null>;
  recommended: string | null;
  why: string | null;
  suggestion: string[];
  remarks: string[];
  interrupted: boolean;
};

export function ReplaysPage() {
  useTitle("Replay");
  const found = useApi<ReplaySummary[]>("views/replays", ["artifact", "run"]);
  return (
    <>
      <Head title="Replay" sub="A loop is run over its own history, once for each retraining policy. Which would have been best?">
        <Command>everloop replay</Command>
      </Head>
      <div className="stack">
        <Started />
        <Card>
          <Loaded of={found}>
            {(replays) => (
              <Table
                rows={replays}
                label="Replays"
                rowKey={(one) => one.id}
                empty={
                  <Empty title="No replay yet" command="everloop replay LOOP">
                    A virtual clock moves through history. Each policy sees only what had arrived by then, and its labels come late. The result appears here.
                  </Empty>
                }
                columns={[
                  { title: "Replay of", cell: (one) => <a href={href(["replay", one.id])}>{one.title}</a> },
                  { title: "When", cell: (one) => <Time at={one.at} /> },
                  { title: "Metric", cell: (one) => one.metric },
                  { title: "Policies", number: true, cell: (one) => count(one.policies) },
                  { title: "Recommended", cell: (one) => (one.recommended ? <span className="tag accent">{one.recommended}</span> : <span className="soft">none</span>) },
                  { title: "Run", cell: (one) => <RunLink id={one.run} /> },
                ]}
              />
            )}
          </Loaded>
        </Card>
      </div>
    </>
  );
}

/** A form that starts a replay, where the server knows the project, and the newest attempts. */
function Started() {
  const found = useApi<ReplayState>("replays", ["replay", "run"]);
  const send = useSend();
  const [loop, setLoop] = useState("");
  const [every, setEvery] = useState("1w");
  const [policies, setPolicies] = useState<string[]>([]);
  const state = found.data;
  if (!state || (!state.can_start && state.attempts.length === 0)) return null;
  const chosen = loop || state.loops[0] || "";
  const options = `${every === "1w" ? "" : ` --every ${shell(every)}`}${policies.length > 0 ? ` --policies ${policies.join(",")}` : ""}`;
  return (
    <Card
      title="Started here"
      side={
        state.can_start &&
        chosen && (
          <Confirm role="editor" primary withoutReason label="Start a replay" title="Start a replay" ready={every !== ""} explain="It runs in a process of its own on this machine, uses all its cores and may take many minutes. The result is kept." command={() => `everloop replay ${shell(chosen)}${options}`} act={() => send("replays", "POST", { loop: chosen, policies, every })}>
            <Choose label="Loop" value={chosen} options={state.loops} choose={setLoop} />
            <Choose label="Length of a period" value={every} options={["1d", "1w", "2w", "4w"]} choose={setEvery} />
            <fieldset className="row" style={{ border: 0, margin: 0, padding: 0 }}>
              <legend className="small soft">Policies; none chosen: the usual ones</legend>
              {state.policies.map((name) => (
                <label key={name} className="row small">
                  <input type="checkbox" checked={policies.includes(name)} onChange={() => setPolicies((before) => (before.includes(name) ? before.filter((one) => one !== name) : [...before, name]))} /> {name}
                </label>
              ))}
            </fieldset>
          </Confirm>
        )
      }
    >
      <Table
        rows={state.attempts.slice(0, 8)}
        label="Replays that were started here"
        rowKey={(one) => one.id}
        empty={<p className="soft">No replay has been started from this page yet.</p>}
        columns={[
          { title: "Loop", cell: (one) => one.loop },
          { title: "State", cell: (one) => <Badge state={one.state} /> },
          { title: "Since", cell: (one) => <Time at={one.at} /> },
          { title: "By", cell: (one) => one.actor },
          { title: "Why it failed", className: "small pre", cell: (one) => one.error.slice(-400) },
        ]}
      />
    </Card>
  );
}

export function ReplayPage({ id }: { id: string }) {
  const found = useApi<ReplayDetail>(`views/replays/${encodeURIComponent(id)}`);
  useTitle(found.data ? `Replay of ${found.data.result["title"]}` : "Replay");
  return (
    <LoadedPage of={found} title="Replay" crumbs={<a href={href("replay")}>Replay</a>}>
      {(detail) => <Detail result={detail.result as unknown as Result} />}
    </LoadedPage>
  );
}

function Detail({ result }: { result: Result }) {
  const names = Object.keys(result.policies);
  const series = useMemo<Series[]>(
    () =>
      Object.entries(result.policies).map(([name, policy]) => ({
        name,
        x: policy.periods.map((one) => Date.parse(one.until) / 1000),
        y: policy.periods.map((one) => one.value),
        points: policy.periods.length < 30,
        dashed: name !== result.recommended,
      })),
    [result],
  );
  return (
    <>
      <Head
        crumbs={<a href={href("replay")}>Replay</a>}
        title={result.title}
        sub={
          <>
            <Time at={result.from} /> to <Time at={result.to} /> · every {result.every} · labels after {result.labels_after} · {count(result.rows)} rows {result.interrupted && <Badge state="interrupted" />}
          </>
        }
      >
        <Command>{`everloop replay ${shell(result.title)}`}</Command>
      </Head>
      <div className="grid">
        <Card title={result.recommended ? `${names.length > 1 ? "Recommended" : "The only policy"}: ${result.recommended}` : "No recommendation"} span="c12">
          <p>{result.why ?? "No policy could be measured."}</p>
          {result.suggestion.length > 0 && (
            <pre className="source mono small" aria-label="Lines for loop.py" tabIndex={0} style={{ marginTop: "0.7rem" }}>
              {result.suggestion.join("\n")}
            </pre>
          )}
        </Card>
        <Card title={`${result.metric} by period`} span="c12" side={<span className="soft small">{result.greater_is_better ? "Higher" : "Lower"} is better. The recommended policy has the solid line.</span>}>
          <LineChart series={series} times label={`${result.metric} of ${names.length} policies by period`} height={280} />
        </Card>
        <Card title="Policies side by side" span="c12">
          <Policies result={result} />
        </Card>
        <Card title="Incidents that a policy would have opened" span="c12">
          <Incidents result={result} />
        </Card>
        {result.remarks.length > 0 && (
          <Card title="Remarks" span="c12">
            <ul className="stack" style={{ gap: "0.4rem", margin: 0, paddingLeft: "1.1rem" }}>
              {result.remarks.map((one) => (
                <li key={one}>{one}</li>
              ))}
            </ul>
          </Card>
        )}
      </div>
    </>
  );
}

function Policies({ result }: { result: Result }) {
  return (
    <Table
      rows={Object.entries(result.policies)}
      label="Policies"
      rowKey={([name]) => name}
      columns={[
        {
          title: "Policy",
          cell: ([name, one], index) => (
            <>
              <i className="swatch" style={{ background: colour(index) }} />
              {name} {name === result.recommended && <span className="tag accent">recommended</span>}
              {one.error && <div className="small soft">{one.error}</div>}
            </>
          ),
        },
        { title: `Mean ${result.metric}`, number: true, cell: ([, one]) => number(one.metric) },
        { title: "Worse than the best by", number: true, cell: ([name]) => interval(result.regret[name]) },
        {
          title: "Retrainings",
          number: true,
          cell: ([, one]) => (
            <>
              {count(one.retrainings)}
              {one.failed_trainings > 0 && <span className="soft"> ({count(one.failed_trainings)} failed)</span>}
            </>
          ),
        },
        { title: "Training time", number: true, cell: ([, one]) => duration(one.training_seconds) },
        { title: "Promotions", number: true, cell: ([, one]) => count(one.promotions) },
        { title: "Rejected", number: true, cell: ([, one]) => count(one.rejections) },
        { title: "Rollbacks", number: true, cell: ([, one]) => count(one.rollbacks) },
        { title: "Incidents", number: true, cell: ([, one]) => (one.watched ? count(one.incidents.length) : <span className="soft">not watched</span>) },
      ]}
    />
  );
}

const interval = (regret: Result["regret"][string] | undefined): string => (!regret ? "–" : regret.low === 0 && regret.high === 0 ? "nothing" : `${number(regret.value)} [${number(regret.low)}, ${number(regret.high)}]`);

const MOST = 60;

function Incidents({ result }: { result: Result }) {
  const all = Object.entries(result.policies).flatMap(([name, policy]) => policy.incidents.map((one) => ({ name, one })));
  return (
    <>
      <Table
        rows={all}
        most={MOST}
        label="Incidents"
        rowKey={(_, index) => String(index)}
        height="26rem"
        empty={<Empty title="No policy would have opened an incident" />}
        columns={[
          { title: "Policy", cell: ({ name }) => name },
          { title: "Since", cell: ({ one }) => <Time at={one.from} /> },
          {
            title: "What",
            className: "why",
            cell: ({ one }) => (
              <>
                <Badge state={one.severity} /> {one.title}
              </>
            ),
          },
          {
            title: "In hindsight",
            className: "small why",
            cell: ({ one }) => (
              <>
                <b>{one.verdict}</b> {one.why}
              </>
            ),
          },
        ]}
      />
    </>
  );
}
