// Monitoring: incidents, the heat map of features by time, what labels say, and one incident with what is behind it.
import { useMemo } from "react";
import { url, useApi, useSend } from "../api/client";
import type { Distribution, EndpointRecord, Finding, HeatMap as HeatMapData, Incident, IncidentDetail, LabelDetail, PredictionRows } from "../api/schema";
import { HeatMap } from "../charts/heat_map";
import type { Series } from "../charts/align";
import { ShareBars } from "../charts/share_bars";
import { LineChart } from "../charts/line_chart";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { EndpointLink, PredictionLink, VersionLink } from "../components/record_links";
import { Choose, Table, Timeline } from "../components/table";
import { count, number, percent, text, words } from "../format";
import { go, href, useRoute } from "../router";

const KINDS = ["incident", "finding"];
const CLOSED = new Set(["resolved", "accepted"]);

export function MonitorPage() {
  useTitle("Monitor");
  const { query } = useRoute();
  const endpoints = useApi<EndpointRecord[]>("endpoint", ["endpoint"]);
  const chosen = query.get("endpoint") ?? "";
  const endpoint = chosen || (endpoints.data?.[0]?.name ?? null);
  const incidents = useApi<Incident[]>(url("views/incidents", { endpoint: chosen }), KINDS);
  const heat = useApi<HeatMapData>(endpoint ? `views/endpoints/${encodeURIComponent(endpoint)}/heat-map` : null, KINDS);
  return (
    <>
      <Head title="Monitor" sub="Incidents are opened only when something has changed more than it usually does.">
        {(endpoints.data?.length ?? 0) > 1 && <Choose label="Endpoint" value={chosen} options={[["", "All"], ...(endpoints.data ?? []).map((one) => one.name)]} choose={(next) => go(href("monitor", { endpoint: next || undefined }))} />}
        <Command>{`everloop monitor ls${chosen ? ` ${shell(chosen)}` : ""}`}</Command>
      </Head>
      <div className="grid">
        <Card title="Incidents" span="c12">
          <Loaded of={incidents}>{(found) => <Incidents incidents={found} />}</Loaded>
        </Card>
        {endpoint && (
          <>
            <Card title={`Drift of features at '${endpoint}'`} span="c12" side={<span className="soft small">Darker is further from the training data, orange is an alarm, blank is nothing unusual.</span>}>
              <Loaded of={heat}>{(data) => (data.cells.length === 0 ? <Empty title="No window has been checked yet">A Drift watch fills this map, one column for each window.</Empty> : <HeatMap data={data} link={incidentOf(incidents.data ?? [], endpoint)} />)}</Loaded>
            </Card>
            <Labels endpoint={endpoint} />
          </>
        )}
      </div>
    </>
  );
}

/** The incident that a cell of the heat map belongs to: the newest one of the endpoint that was going on then. */
function incidentOf(incidents: Incident[], endpoint: string): (since: string) => string | undefined {
  const drift = incidents.filter((one) => one.endpoint === endpoint && one.kind === "drift");
  return (since) => {
    const found = drift.find((one) => one.began_at <= since && since <= one.seen_at);
    return found ? href(["monitor", found.id]) : undefined;
  };
}

function Incidents({ incidents }: { incidents: Incident[] }) {
  return (
    <Table
      rows={incidents}
      label="Incidents"
      rowKey={(one) => one.id}
      height="28rem"
      empty={<Empty title="No incidents">Watches compare every window of live predictions with the training data. What deserves your attention appears here.</Empty>}
      columns={[
        { title: "State", cell: (one) => <IncidentState incident={one} /> },
        {
          title: "What",
          className: "why",
          cell: (one) => (
            <>
              <span className="tag">{one.kind}</span> <a href={href(["monitor", one.id])}>{one.title}</a>
            </>
          ),
        },
        { title: "Endpoint", cell: (one) => <EndpointLink name={one.endpoint} /> },
        { title: "Since", cell: (one) => <Time at={one.began_at} /> },
        { title: "Last seen", cell: (one) => <Time at={one.seen_at} /> },
      ]}
    />
  );
}

function IncidentState({ incident }: { incident: Incident }) {
  const closed = CLOSED.has(incident.state);
  const more = incident.state === "open" ? "" : `${words(incident.state)}, `;
  return <Badge state={closed ? incident.state : incident.severity}>{closed ? incident.state : `${more}${incident.severity}`}</Badge>;
}

function Labels({ endpoint }: { endpoint: string }) {
  const path = `views/endpoints/${encodeURIComponent(endpoint)}/labels`;
  const measured = useApi<LabelDetail>(path, ["finding"]);
  const estimated = useApi<LabelDetail>(measured.data?.metric ? url(path, { estimate: "true" }) : null, ["finding"]);
  return (
    <>
      <Card title={`Performance at '${endpoint}'`} span="c7" side={<Command>{`everloop monitor performance ${shell(endpoint)} --estimate`}</Command>}>
        <Loaded of={measured}>{(found) => <Performance found={estimated.data ?? found} waiting={estimated.isLoading} />}</Loaded>
      </Card>
      <Card title="How late labels arrive" span="c5" side={<Command>{`everloop monitor coverage ${shell(endpoint)}`}</Command>}>
        <Loaded of={measured}>{(found) => <Delay found={found} />}</Loaded>
      </Card>
    </>
  );
}

const at = (moment: string): number => Date.parse(moment) / 1000;

function Performance({ found, waiting }: { found: LabelDetail; waiting: boolean }) {
  const series = useMemo<Series[]>(() => {
    const realised = found.periods.filter((one) => one.value !== null);
    const estimated = found.periods.filter((one) => one.estimate !== null && one.estimate !== undefined);
    const lines: Series[] = [{ name: `${found.metric}, realised`, x: realised.map((one) => at(one.until)), y: realised.map((one) => one.value), low: realised.map((one) => one.low), high: realised.map((one) => one.high), points: true }];
    if (estimated.length > 0) lines.push({ name: "estimated without labels", x: estimated.map((one) => at(one.until)), y: estimated.map((one) => one.estimate ?? null), low: estimated.map((one) => one.estimate_low ?? null), high: estimated.map((one) => one.estimate_high ?? null), points: true, dashed: true });
    return lines;
  }, [found]);
  const distrust = found.periods.findLast((one) => one.distrust)?.distrust;
  if (!found.metric || (series[0]?.x.length ?? 0) === 0) return <Empty title="Nothing has been measured yet">{found.note ?? "The metric appears when labels have arrived: POST /endpoints/NAME/labels."}</Empty>;
  return (
    <>
      <LineChart series={series} times label={`${found.metric} by period, realised and estimated`} height={230} />
      <p className="soft small" style={{ marginTop: "0.4rem" }}>
        {waiting ? "The estimate is being computed…" : found.note} {distrust && <b>Do not trust the newest estimates: {distrust}</b>}
      </p>
    </>
  );
}

function Delay({ found }: { found: LabelDetail }) {
  const series = useMemo<Series[]>(() => {
    const known = found.labels.filter((one) => one.delay_p50_s !== null);
    const x = known.map((one) => at(one.since));
    return [
      { name: "median delay, hours", x, y: known.map((one) => (one.delay_p50_s as number) / 3600), points: true },
      { name: "nine of ten arrive within, hours", x, y: known.map((one) => (one.delay_p90_s ?? 0) / 3600), points: true },
    ];
  }, [found]);
  if ((series[0]?.x.length ?? 0) === 0) return <Empty title="No label has arrived yet" />;
  const total = found.labels.reduce((sum, one) => sum + one.predictions, 0);
  const labelled = found.labels.reduce((sum, one) => sum + one.labelled, 0);
  return (
    <>
      <LineChart series={series} times label="Delay of labels by period" height={180} />
      <p className="small" style={{ marginTop: "0.4rem" }}>
        {count(labelled)} of {count(total)} predictions have a label ({percent(labelled / Math.max(1, total))}).
      </p>
      <p className="soft small">{found.ages.map((one) => `${percent(one.coverage ?? 0)} after ${one.age}`).join(" · ")}</p>
    </>
  );
}

const ACTIONS: { verb: string; command: string; label: string; explain: string; primary?: boolean }[] = [
  { verb: "acknowledge", command: "ack", label: "Acknowledge", explain: "You have seen it. It stays open, and no more reminders are sent.", primary: true },
  { verb: "mute", command: "mute", label: "Mute", explain: "It stays open in silence, and does not start a training." },
  { verb: "unmute", command: "unmute", label: "Unmute", explain: "It is shown and reported again." },
  { verb: "accept", command: "accept", label: "Accept as normal", explain: "What has changed becomes the new reference. Later windows are compared with it." },
  { verb: "resolve", command: "resolve", label: "Resolve", explain: "It is over. If the deviation is still there, a new incident opens." },
];

const CHANGES: Record<string, string> = { open: "Opened", join: "More:", reopen: "Opened again", escalate: "Now an alarm:", acknowledge: "Acknowledged", mute: "Muted", unmute: "Unmuted", accept: "Accepted", resolve: "Resolved" };

/** The actions that make sense in a state. */
function possible(state: string) {
  if (CLOSED.has(state)) return [];
  return ACTIONS.filter((one) => (one.verb === "unmute") === (state === "muted") || !["mute", "unmute"].includes(one.verb)).filter((one) => !(one.verb === "acknowledge" && state !== "open"));
}

export function IncidentPage({ id }: { id: string }) {
  const found = useApi<IncidentDetail>(`views/incidents/${encodeURIComponent(id)}`, KINDS);
  useTitle(found.data?.incident.title ?? "Incident");
  return (
    <LoadedPage of={found} title="Incident" crumbs={<a href={href("monitor")}>Monitor</a>}>
      {(detail) => <Detail detail={detail} />}
    </LoadedPage>
  );
}

/** A heading is one sentence. What follows it in a long title is read below. */
function heading(title: string): [string, string] {
  const found = title.length > 80 ? /^(.{20,}?)\.\s+(?=[A-Z0-9'])(.+)$/s.exec(title) : null;
  return found ? [found[1] ?? title, found[2] ?? ""] : [title, ""];
}

function Detail({ detail }: { detail: IncidentDetail }) {
  const { incident } = detail;
  const [title, rest] = heading(incident.title);
  const text = [rest, incident.message].filter(Boolean).join(" ");
  const send = useSend();
  return (
    <>
      <Head
        crumbs={<a href={href("monitor")}>Monitor</a>}
        title={title}
        sub={
          <>
            <Badge state={CLOSED.has(incident.state) ? incident.state : incident.severity}>
              {words(incident.state)}, {incident.severity}
            </Badge>{" "}
            <span className="tag">{incident.kind}</span> at <EndpointLink name={incident.endpoint} /> since <Time at={incident.began_at} />
          </>
        }
      >
        {possible(incident.state).map((one) => (
          <Confirm key={one.verb} role="editor" label={one.label} primary={one.primary ?? false} title={`${one.label}?`} explain={one.explain} command={(reason) => `everloop monitor ${one.command} ${incident.id}${reason ? ` --reason ${shell(reason)}` : ""}`} act={(reason) => send(`incidents/${incident.id}/${one.verb}`, "POST", { reason })} />
        ))}
        <Command>{`everloop monitor show ${incident.id}`}</Command>
      </Head>
      <div className="grid">
        <Card title="What has changed" span="c7">
          <p style={{ whiteSpace: "pre-wrap" }}>{text || `${title}.`}</p>
          <p className="soft small" style={{ marginTop: "0.7rem" }}>
            Versions that answered meanwhile:{" "}
            {(incident.versions ?? []).map((one) => (
              <span key={one}>
                <VersionLink name={one} />{" "}
              </span>
            ))}
          </p>
        </Card>
        <Card title="History" span="c5">
          <Timeline of={[...(incident.history ?? [])].reverse()} at={(change) => <Time at={change.at} />}>
            {(change) => (
              <>
                <b>{CHANGES[change.action] ?? words(change.action)}</b> {change.text} {change.actor && <span className="soft small">{change.actor}</span>}
              </>
            )}
          </Timeline>
        </Card>
        {incident.kind === "drift" && <Distributions id={incident.id} />}
        <Subjects findings={detail.findings} drift={incident.kind === "drift"} />
        {detail.findings.some((one) => one.version) && <Rows id={incident.id} />}
        <Card title="Findings" span="c12">
          <Table
            rows={[...detail.findings].reverse()}
            most={100}
            label="Findings"
            rowKey={(one) => one.id}
            height="26rem"
            empty={<Empty title="No findings are kept for this incident" />}
            columns={[
              { title: "Window", cell: (one) => <Time at={one.window_from} /> },
              { title: "Subject", wide: true, cell: (one) => one.subject },
              { title: "Value", number: true, wide: true, cell: (one) => (one.subject.includes(" × ") ? "–" : number(one.value)) },
              { title: "What was found", className: "small why", cell: (one) => one.message },
            ]}
          />
        </Card>
      </div>
    </>
  );
}

function Distributions({ id }: { id: string }) {
  const found = useApi<Distribution[]>(`views/incidents/${encodeURIComponent(id)}/distributions`);
  const key = (
    <span className="legend" style={{ margin: 0 }}>
      <span>
        <i style={{ color: "var(--faint)" }} />
        training data
      </span>
      <span>
        <i style={{ color: "var(--s2)" }} />
        last unusual window
      </span>
    </span>
  );
  return (
    <Card title="Distributions" span="c12" side={key}>
      <Loaded of={found}>
        {(all) =>
          all.length === 0 ? (
            <Empty title="There is no distribution to compare">How features move together has none, and a version without a baseline has no reference.</Empty>
          ) : (
            <div className="grid">
              {all.map((one) => (
                <div className="c4" key={one.subject}>
                  <h3>
                    <a href={href(["monitor", id], { subject: one.subject })}>{one.subject}</a>
                  </h3>
                  <p className="soft small">
                    {count(one.rows)} rows from <Time at={one.since} />
                  </p>
                  <ShareBars cells={one.cells} reference={one.reference} window={one.window} label={`${one.subject}: shares of rows in the training data and in the window`} />
                  {(one.left_out ?? 0) > 0 && <p className="soft small">{count(one.left_out)} rarer values are not shown.</p>}
                </div>
              ))}
            </div>
          )
        }
      </Loaded>
    </Card>
  );
}

const ORDERS: [string, string][] = [["newest", "newest first"], ["largest", "largest value first"], ["smallest", "smallest value first"], ["missing", "missing values first"]];
const MOST_INPUTS = 8;

/** The predictions of the last unusual window; each leads to the answer and where it came from. */
function Rows({ id }: { id: string }) {
  const { query } = useRoute();
  const subject = query.get("subject") ?? "";
  const order = query.get("order") ?? "newest";
  const found = useApi<PredictionRows>(url(`views/incidents/${encodeURIComponent(id)}/rows`, { subject, order }), [], { keep: true });
  const show = (changes: { subject?: string; order?: string }) => go(href(["monitor", id], { subject: subject || undefined, order: order === "newest" ? undefined : order, ...changes }), true);
  return (
    <Card
      title="Rows"
      span="c12"
      side={
        found.data && (
          <span className="row">
            {found.data.subjects.length > 1 && <Choose label="Feature" value={found.data.subject} options={found.data.subjects} choose={(next) => show({ subject: next })} />}
            <Choose label="Order" value={order} options={ORDERS} choose={(next) => show({ order: next })} />
          </span>
        )
      }
    >
      <Loaded of={found}>
        {(data) => (
          <>
            <p className="soft small">
              {count(data.rows.length)} of {count(data.total)} predictions of <VersionLink name={data.version} /> from <Time at={data.since} /> to <Time at={data.until} />
            </p>
            <Table
              rows={data.rows}
              label={`Predictions with ${data.subject}`}
              rowKey={(one) => one.id}
              height="28rem"
              empty={<Empty title="The rows of this window are no longer kept" />}
              columns={[
                { title: "Prediction", cell: (one) => <PredictionLink id={one.id} /> },
                { title: "When", cell: (one) => <Time at={one.at} /> },
                { title: "Predicted", number: true, cell: (one) => (one.label === null ? number(one.score) : `${one.label} (${number(one.score)})`) },
                { title: "Label", className: "nowrap", cell: (one) => one.actual ?? <span className="soft">not yet</span> },
                ...data.inputs.slice(0, MOST_INPUTS).map((name, index) => ({ title: name === data.subject ? <b>{name}</b> : name, number: data.rows.every((one) => one.values[index] === null || typeof one.values[index] === "number"), className: "nowrap", cell: (one: PredictionRows["rows"][number]) => (one.values[index] === null ? <span className="soft">missing</span> : text(one.values[index]).slice(0, 60)) })),
              ]}
            />
          </>
        )}
      </Loaded>
    </Card>
  );
}

const MOST_SUBJECTS = 6;

function Subjects({ findings, drift }: { findings: Finding[]; drift: boolean }) {
  const subjects = useMemo(() => {
    const found = new Map<string, Finding[]>();
    // How two features move together has no distance that could be drawn.
    for (const one of findings) if (!one.subject.includes(" × ") && one.value !== null && one.value !== undefined) found.set(one.subject, [...(found.get(one.subject) ?? []), one]);
    return [...found].filter(([, rows]) => rows.length > 1).slice(0, MOST_SUBJECTS);
  }, [findings]);
  if (subjects.length === 0) return null;
  return (
    <Card title="How it went, window by window" span="c12" side={drift && <span className="soft small">population stability index (PSI): 0 is no change</span>}>
      <div className="grid">
        {subjects.map(([name, rows]) => (
          <div className="c4" key={name}>
            <h3>{name}</h3>
            <Course rows={rows} />
          </div>
        ))}
      </div>
    </Card>
  );
}

function Course({ rows }: { rows: Finding[] }) {
  const series = useMemo<Series[]>(() => [{ name: rows[0]?.subject ?? "", x: rows.map((one) => at(one.window_to)), y: rows.map((one) => one.value ?? null), points: true }], [rows]);
  return <LineChart series={series} times height={150} label={`${rows[0]?.subject} by window`} />;
}
