// Monitoring: incidents, the heat map of features by time, and one incident with what is behind it.
import { useMemo } from "react";
import { url, useAction, useApi } from "../api/client";
import type { Distribution, EndpointRecord, Finding, HeatMap as HeatMapData, Incident, IncidentDetail } from "../api/schema";
import { HeatMap } from "../charts/heat_map";
import type { Series } from "../charts/align";
import { ShareBars } from "../charts/share_bars";
import { LineChart } from "../charts/line_chart";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
import { count, number, words } from "../format";
import { go, href, useRoute } from "../router";
import { VersionLink } from "./models_page";

const KINDS = ["incident", "finding"];
const CLOSED = new Set(["resolved", "accepted"]);

export function MonitorPage() {
  useTitle("Monitor");
  const { query } = useRoute();
  const endpoints = useApi<EndpointRecord[]>("endpoint", ["endpoint"]);
  const endpoint = query.get("endpoint") ?? endpoints.data?.[0]?.name ?? null;
  const incidents = useApi<Incident[]>(url("views/incidents", { endpoint: query.get("endpoint") ?? undefined }), KINDS);
  const heat = useApi<HeatMapData>(endpoint ? `views/endpoints/${encodeURIComponent(endpoint)}/heat-map` : null, KINDS);
  return (
    <>
      <Head title="Monitor" sub="Incidents are opened only when something has changed more than it usually does.">
        {(endpoints.data?.length ?? 0) > 1 && (
          <label className="row small">
            Endpoint
            <select className="input" style={{ width: "auto" }} value={query.get("endpoint") ?? ""} onChange={(event) => go(href("monitor", { endpoint: event.target.value || undefined }))}>
              <option value="">All</option>
              {endpoints.data?.map((one) => (
                <option key={one.id}>{one.name}</option>
              ))}
            </select>
          </label>
        )}
        <Command>everloop monitor ls</Command>
      </Head>
      <div className="grid">
        <Card title="Incidents" span="c12">
          <Loaded of={incidents}>{(found) => <Incidents incidents={found} />}</Loaded>
        </Card>
        {endpoint && (
          <Card title={`Drift of features at '${endpoint}'`} span="c12" side={<span className="soft small">Darker is further from the training data; orange opened an alarm.</span>}>
            <Loaded of={heat}>{(data) => (data.cells.length === 0 ? <Empty title="No window has been checked yet">A Drift watch fills this map, one column for each window.</Empty> : <HeatMap data={data} />)}</Loaded>
          </Card>
        )}
      </div>
    </>
  );
}

function Incidents({ incidents }: { incidents: Incident[] }) {
  if (incidents.length === 0)
    return (
      <Empty title="No incidents">
        Watches compare every window of live predictions with the training data. What deserves your attention appears here.
      </Empty>
    );
  return (
    <div className="scroll">
      <table>
        <thead>
          <tr>
            <th>State</th>
            <th>What</th>
            <th>Endpoint</th>
            <th>Since</th>
            <th>Last seen</th>
          </tr>
        </thead>
        <tbody>
          {incidents.map((one) => (
            <tr key={one.id}>
              <td>
                <Badge state={CLOSED.has(one.state) ? one.state : one.severity}>{CLOSED.has(one.state) ? one.state : `${one.state === "open" ? "" : `${one.state}, `}${one.severity}`}</Badge>
              </td>
              <td>
                <span className="tag">{one.kind}</span> <a href={href(["monitor", one.id])}>{one.title}</a>
              </td>
              <td>
                <a href={href(["endpoints", one.endpoint])}>{one.endpoint}</a>
              </td>
              <td>
                <Time at={one.began_at} />
              </td>
              <td>
                <Time at={one.seen_at} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const ACTIONS: { verb: string; command: string; label: string; explain: string; primary?: boolean }[] = [
  { verb: "acknowledge", command: "ack", label: "Acknowledge", explain: "You have seen it. It stays open, and nobody is reminded again.", primary: true },
  { verb: "mute", command: "mute", label: "Mute", explain: "It stays open in silence, and does not start a training." },
  { verb: "accept", command: "accept", label: "Accept as normal", explain: "What has changed becomes the new reference. Later windows are compared with it." },
  { verb: "resolve", command: "resolve", label: "Resolve", explain: "It is over. If the deviation is still there, a new incident opens." },
];

export function IncidentPage({ id }: { id: string }) {
  const found = useApi<IncidentDetail>(`views/incidents/${encodeURIComponent(id)}`, KINDS);
  useTitle(found.data ? "Incident" : "");
  return <Loaded of={found}>{(detail) => <Detail detail={detail} />}</Loaded>;
}

function Detail({ detail }: { detail: IncidentDetail }) {
  const { incident } = detail;
  const act = useAction<{ verb: string; reason: string }>(({ verb }) => `incidents/${incident.id}/${verb}`);
  return (
    <>
      <Head
        crumbs={<a href={href("monitor")}>Monitor</a>}
        title={incident.title}
        sub={
          <>
            <Badge state={CLOSED.has(incident.state) ? incident.state : incident.severity}>
              {words(incident.state)}, {incident.severity}
            </Badge>{" "}
            <span className="tag">{incident.kind}</span> at <a href={href(["endpoints", incident.endpoint])}>{incident.endpoint}</a> since <Time at={incident.began_at} />
          </>
        }
      >
        {!CLOSED.has(incident.state) &&
          ACTIONS.filter((one) => !(one.verb === "acknowledge" && incident.state === "acknowledged")).map((one) => (
            <Confirm key={one.verb} role="editor" label={one.label} primary={one.primary ?? false} title={`${one.label}?`} explain={one.explain} command={(reason) => `everloop monitor ${one.command} ${incident.id}${reason ? ` --reason ${shell(reason)}` : ""}`} act={(reason) => act.mutateAsync({ verb: one.verb, reason })} />
          ))}
      </Head>
      <div className="grid">
        <Card title="What has changed" span="c7">
          <p style={{ whiteSpace: "pre-wrap" }}>{incident.message || "There is no further description."}</p>
          <p className="soft small" style={{ marginTop: "0.7rem" }}>
            Versions that answered meanwhile: {(incident.versions ?? []).map((one) => <VersionLink key={one} name={one} />)}
          </p>
        </Card>
        <Card title="History" span="c5">
          <ul className="timeline">
            {[...(incident.history ?? [])].reverse().slice(0, 30).map((change, index) => (
              <li key={index}>
                <Time at={change.at} />
                <span>
                  <b>{words(change.action)}</b> {change.text} {change.actor && <span className="soft small">{change.actor}</span>}
                </span>
              </li>
            ))}
          </ul>
        </Card>
        {incident.kind === "drift" && <Distributions id={incident.id} />}
        <Subjects findings={detail.findings} />
        <Card title="Findings" span="c12">
          <div className="scroll">
            <table>
              <thead>
                <tr>
                  <th>Window</th>
                  <th>Subject</th>
                  <th className="number">Value</th>
                  <th>What was found</th>
                </tr>
              </thead>
              <tbody>
                {detail.findings.slice(-100).map((one) => (
                  <tr key={one.id}>
                    <td>
                      <Time at={one.window_from} />
                    </td>
                    <td>{one.subject}</td>
                    <td className="number">{number(one.value)}</td>
                    <td className="small">{one.message}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </Card>
      </div>
    </>
  );
}

function Distributions({ id }: { id: string }) {
  const found = useApi<Distribution[]>(`views/incidents/${encodeURIComponent(id)}/distributions`);
  return (
    <Card
      title="Distributions"
      span="c12"
      side={
        <span className="legend" style={{ margin: 0 }}>
          <span>
            <i style={{ background: "var(--faint)" }} />
            training data
          </span>
          <span>
            <i style={{ background: "var(--s2)" }} />
            last unusual window
          </span>
        </span>
      }
    >
      <Loaded of={found}>
        {(all) =>
          all.length === 0 ? (
            <Empty title="There is no distribution to compare">How features move together has none, and a version without a baseline has no reference.</Empty>
          ) : (
            <div className="grid">
              {all.map((one) => (
                <div className="c4" key={one.subject}>
                  <h3>{one.subject}</h3>
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

const MOST_SUBJECTS = 6;

function Subjects({ findings }: { findings: Finding[] }) {
  const subjects = useMemo(() => {
    const found = new Map<string, Finding[]>();
    // How two features move together has no distance that could be drawn.
    for (const one of findings) if (!one.subject.includes(" × ") && one.value !== null && one.value !== undefined) found.set(one.subject, [...(found.get(one.subject) ?? []), one]);
    return [...found].filter(([, rows]) => rows.length > 1).slice(0, MOST_SUBJECTS);
  }, [findings]);
  if (subjects.length === 0) return null;
  return (
    <Card title="How it went, window by window" span="c12">
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
  const series = useMemo<Series[]>(() => [{ name: rows[0]?.subject ?? "", x: rows.map((one) => Date.parse(one.window_to) / 1000), y: rows.map((one) => one.value ?? null), points: true }], [rows]);
  return <LineChart series={series} times height={150} label={`${rows[0]?.subject} by window`} />;
}
