// Replays: what each retraining policy would have done over history, side by side.
import { useMemo } from "react";
import { useApi } from "../api/client";
import type { ReplayDetail, ReplaySummary } from "../api/schema";
import type { Series } from "../charts/align";
import { LineChart, colour } from "../charts/line_chart";
import { Badge, Card, Command, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
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
      <Card>
        <Loaded of={found}>
          {(replays) =>
            replays.length === 0 ? (
              <Empty title="No replay yet" command="everloop replay LOOP">
                A virtual clock moves through history. Each policy sees only what had arrived by then, and its labels come late. The result appears here.
              </Empty>
            ) : (
              <div className="scroll">
                <table>
                  <thead>
                    <tr>
                      <th>Replay of</th>
                      <th>When</th>
                      <th>Metric</th>
                      <th className="number">Policies</th>
                      <th>Recommended</th>
                      <th>Run</th>
                    </tr>
                  </thead>
                  <tbody>
                    {replays.map((one) => (
                      <tr key={one.id}>
                        <td>
                          <a href={href(["replay", one.id])}>{one.title}</a>
                        </td>
                        <td>
                          <Time at={one.at} />
                        </td>
                        <td>{one.metric}</td>
                        <td className="number">{count(one.policies)}</td>
                        <td>{one.recommended ? <span className="tag accent">{one.recommended}</span> : <span className="soft">none</span>}</td>
                        <td>
                          <a className="mono small" href={href(["runs", one.run])}>
                            {one.run.slice(-8)}
                          </a>
                        </td>
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

export function ReplayPage({ id }: { id: string }) {
  const found = useApi<ReplayDetail>(`views/replays/${encodeURIComponent(id)}`);
  useTitle("Replay");
  return <Loaded of={found}>{(detail) => <Detail result={detail.result as unknown as Result} />}</Loaded>;
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
        <Card title={result.recommended ? `Recommended: ${result.recommended}` : "No recommendation"} span="c12">
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
            {result.remarks.map((one) => (
              <p key={one}>{one}</p>
            ))}
          </Card>
        )}
      </div>
    </>
  );
}

function Policies({ result }: { result: Result }) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label="Policies">
      <table>
        <thead>
          <tr>
            <th>Policy</th>
            <th className="number">Mean {result.metric}</th>
            <th className="number">Worse than the best by</th>
            <th className="number">Retrainings</th>
            <th className="number">Training time</th>
            <th className="number">Promotions</th>
            <th className="number">Rejected</th>
            <th className="number">Rollbacks</th>
            <th className="number">Incidents</th>
          </tr>
        </thead>
        <tbody>
          {Object.entries(result.policies).map(([name, one], index) => {
            const regret = result.regret[name];
            return (
              <tr key={name}>
                <td>
                  <i className="swatch" style={{ background: colour(index) }} />
                  {name} {name === result.recommended && <span className="tag accent">recommended</span>}
                  {one.error && <div className="small soft">{one.error}</div>}
                </td>
                <td className="number">{number(one.metric)}</td>
                <td className="number">{regret ? `${number(regret.value)} [${number(regret.low)}, ${number(regret.high)}]` : "–"}</td>
                <td className="number">
                  {count(one.retrainings)}
                  {one.failed_trainings > 0 && <span className="soft"> ({count(one.failed_trainings)} failed)</span>}
                </td>
                <td className="number">{duration(one.training_seconds)}</td>
                <td className="number">{count(one.promotions)}</td>
                <td className="number">{count(one.rejections)}</td>
                <td className="number">{count(one.rollbacks)}</td>
                <td className="number">{one.watched ? count(one.incidents.length) : <span className="soft">not watched</span>}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

const MOST = 60;

function Incidents({ result }: { result: Result }) {
  const all = Object.entries(result.policies).flatMap(([name, policy]) => policy.incidents.map((one) => ({ name, one })));
  if (all.length === 0) return <Empty title="No policy would have opened an incident" />;
  return (
    <>
      <div className="scroll" tabIndex={0} role="region" aria-label="Incidents" style={{ maxHeight: "26rem", overflowY: "auto" }}>
        <table>
          <thead>
            <tr>
              <th>Policy</th>
              <th>Since</th>
              <th>What</th>
              <th>In hindsight</th>
            </tr>
          </thead>
          <tbody>
            {all.slice(0, MOST).map(({ name, one }, index) => (
              <tr key={index}>
                <td>{name}</td>
                <td>
                  <Time at={one.from} />
                </td>
                <td>
                  <Badge state={one.severity} /> {one.title}
                </td>
                <td className="small">
                  <b>{one.verdict}</b> {one.why}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {all.length > MOST && <p className="soft small">{count(all.length - MOST)} more are in the JSON of the run.</p>}
    </>
  );
}
