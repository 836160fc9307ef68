// Home: the ring of stages with their live state, what needs a person, and what has happened.
import { useApi, useSend } from "../api/client";
import type { Attention, LoopState, Overview, Stage } from "../api/schema";
import { Badge, Card, Command, Confirm, Empty, Head, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { glyph } from "../components/icons";
import { Timeline } from "../components/table";
import { ago, words } from "../format";

export const HOME_KINDS = ["run", "alias", "release", "snapshot", "model_version", "incident", "alias_request", "endpoint", "gate_result"];

const NAMES: Record<string, string> = { data: "Data", train: "Train", gates: "Gates", release: "Release", serve: "Serve", watch: "Watch", retrain: "Retrain" };
const EXPLAIN: Record<string, string> = {
  data: "The newest snapshot that a run has taken and checked against its contract.",
  train: "The last run of the loop, and the metric of the version that it made.",
  gates: "What a candidate must pass before it gets traffic.",
  release: "How the newest candidate takes over the traffic, or gives it back.",
  serve: "The endpoint and the versions that answer there.",
  watch: "Incidents that monitoring has opened about live data and predictions.",
  retrain: "What caused the last run.",
};

export function LoopPage() {
  useTitle("Loop");
  const found = useApi<Overview>("views/loops", HOME_KINDS);
  return (
    <LoadedPage of={found} title="Loop">
      {(overview) => (
        <>
          <Head
            title={overview.project}
            sub={
              <>
                {overview.simulated ? <span className="tag accent">simulated time</span> : "As of"} <Time at={overview.now} />
              </>
            }
          />
          {overview.loops.length === 0 ? <FirstVisit /> : <Loops overview={overview} />}
        </>
      )}
    </LoadedPage>
  );
}

function Loops({ overview }: { overview: Overview }) {
  return (
    <div className="grid">
      {overview.loops.map((loop) => (
        <LoopCard key={loop.name} loop={loop} now={overview.now} />
      ))}
      <Card title="Needs a person" span="c5" side={overview.attention.length > 0 && <span className="soft small">{overview.attention.length} open</span>}>
        {overview.attention.length === 0 ? <Empty title="Nothing waits for you">Incidents, approvals and failed runs appear here.</Empty> : overview.attention.slice(0, 12).map((one) => <AttentionItem key={`${one.kind} ${one.link} ${one.title}`} one={one} now={overview.now} />)}
      </Card>
      <Card title="What happened" span="c7">
        <Timeline of={overview.happenings} limit={16} at={(one) => <time dateTime={one.at} title={one.at}>{ago(one.at, overview.now)}</time>}>
          {(one) => (
            <>
              {one.kind === "incident" && <span className="tag">incident {words(one.verb)}</span>} {one.link ? <a href={`#/${one.link}`}>{one.subject}</a> : <b>{one.subject}</b>}
              {one.kind !== "incident" && ` ${VERBS[`${one.kind}.${one.verb}`] ?? words(one.verb)}`}
              {one.reason && <span className="soft">: {one.reason}</span>}
            </>
          )}
        </Timeline>
      </Card>
    </div>
  );
}

function LoopCard({ loop, now }: { loop: LoopState; now: string }) {
  return (
    <section className="card c12" aria-label={`Loop ${loop.name}`}>
      <header>
        <h2>{loop.name}</h2>
        <Call name={loop.name} />
      </header>
      <div className="grid">
        <div className="c5" style={{ alignSelf: "center" }}>
          <Ring loop={loop} />
        </div>
        <div className="c7">
          <div className="stages">
            {loop.stages.map((stage) => (
              <div className="stage" key={stage.name}>
                <b title={EXPLAIN[stage.name]}>{NAMES[stage.name]}</b>
                <div>
                  {stage.link ? <a href={`#/${stage.link}`}>{stage.headline}</a> : <span className="soft">{stage.headline}</span>}
                  {stage.detail && <p>{stage.detail}</p>}
                </div>
                <StageState stage={stage} now={now} />
              </div>
            ))}
          </div>
        </div>
      </div>
    </section>
  );
}

function Call({ name }: { name: string }) {
  const send = useSend();
  return (
    <Confirm role="editor" label="Call this loop" title={`Call the loop '${name}'?`} explain="If the loop declares el.OnCall(), the worker of everloop up starts a run. Calls that arrive meanwhile share that run." command={(reason) => `everloop trigger ${shell(name)}${reason ? ` --reason ${shell(reason)}` : ""}`} act={(reason) => send(`loops/${encodeURIComponent(name)}/trigger`, "POST", { reason })} />
  );
}

function StageState({ stage, now }: { stage: Stage; now: string }) {
  if (stage.state === "none") return <span className="soft small">–</span>;
  const label = { ok: ago(stage.at, now) || "ok", busy: "working", attention: "look here", failed: "failed" }[stage.state];
  return <Badge state={stage.state}>{label}</Badge>;
}

const SIZE = 380;
const RADIUS = 122;

function Ring({ loop }: { loop: LoopState }) {
  const centre = SIZE / 2;
  const angle = (index: number) => (index / loop.stages.length) * 2 * Math.PI - Math.PI / 2;
  const point = (at: number, radius: number) => ({ x: centre + radius * Math.cos(at), y: centre + radius * Math.sin(at) });
  return (
    <svg className="ring" viewBox={`-34 6 ${SIZE + 68} ${SIZE - 26}`} role="group" aria-label={`The stages of ${loop.name}`}>
      <defs>
        <marker id="ring-arrow" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="5" markerHeight="5" orient="auto">
          <path d="M0 0L8 4L0 8z" fill="var(--faint)" />
        </marker>
      </defs>
      {loop.stages.map((stage, index) => {
        const from = point(angle(index) + 0.24, RADIUS);
        const to = point(angle(index + 1) - 0.26, RADIUS);
        return <path key={stage.name} className="track" d={`M${from.x} ${from.y}A${RADIUS} ${RADIUS} 0 0 1 ${to.x} ${to.y}`} markerEnd="url(#ring-arrow)" />;
      })}
      <text className="middle" x={centre} y={centre - 4}>
        {shorten(loop.champion ?? loop.name, 20)}
      </text>
      <text className="below" x={centre} y={centre + 16}>
        {loop.champion ? "answers now" : "no champion yet"}
      </text>
      {loop.stages.map((stage, index) => {
        const at = point(angle(index), RADIUS);
        const outside = point(angle(index), RADIUS + 33);
        const side = outside.x > centre + 30 ? "start" : outside.x < centre - 30 ? "end" : "middle";
        const node = (
          <g className={stage.state === "attention" ? "attention-needed" : stage.state}>
            <title>{`${NAMES[stage.name]}: ${stage.headline}`}</title>
            <circle cx={at.x} cy={at.y} r="23" />
            <path className="glyph" d={glyph(stage.name)} transform={`translate(${at.x - 11} ${at.y - 11}) scale(0.92)`} />
            <text className="label" x={outside.x} y={outside.y + 4} textAnchor={side}>
              {NAMES[stage.name]}
            </text>
          </g>
        );
        return stage.link ? (
          <a key={stage.name} href={`#/${stage.link}`} aria-label={`${NAMES[stage.name]}: ${stage.headline}`}>
            {node}
          </a>
        ) : (
          <g key={stage.name}>{node}</g>
        );
      })}
    </svg>
  );
}

function AttentionItem({ one, now }: { one: Attention; now: string }) {
  return (
    <div className="attention">
      <div className="row">
        <Badge state={one.severity}>{one.kind === "incident" ? one.severity : one.kind}</Badge>
        <span className="soft small">{ago(one.at, now)}</span>
      </div>
      <a href={`#/${one.link}`}>{one.title}</a>
      {one.detail && <p className="small">{one.detail}</p>}
    </div>
  );
}

const shorten = (text: string, most: number): string => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

const VERBS: Record<string, string> = {
  "run.created": "started",
  "alias.alias_set": "moved",
  "snapshot.created": "was taken",
  "model_version.created": "was registered",
  "model_version.released": "was released",
  "model_version.rolled_back": "was rolled back",
  "model_version.rejected": "was rejected",
  "release.created": "started",
  "release.held": "held",
  "release.rejected": "rejected",
};

function FirstVisit() {
  return (
    <Card>
      <Empty title="No loop has run here yet">
        A loop is one Python file that declares a model's whole life: data, training, gates, release, serving, monitoring, retraining. This page shows where each loop stands.
      </Empty>
      <div className="stack" style={{ justifyItems: "center", paddingBottom: "1rem" }}>
        <span className="soft">Look at a finished example, on real flights:</span>
        <Command>everloop demo</Command>
        <span className="soft">Start from a table of your own:</span>
        <Command>everloop init my-project --data table.csv --target column</Command>
        <span className="soft">Or point a tracking client at this server; its runs appear under Runs.</span>
      </div>
    </Card>
  );
}
