// Models, one model with its versions, and one version with its evidence.
import { useMemo } from "react";
import { useAction, useApi } from "../api/client";
import type { GateResult, ModelDetail, ModelSummary, VersionDetail } from "../api/schema";
import { Graph } from "../charts/graph";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
import { bytes, count, number, words } from "../format";
import { href } from "../router";

const KINDS = ["model_version", "alias", "alias_request", "release", "gate_result"];

export function ModelsPage() {
  useTitle("Models");
  const found = useApi<ModelSummary[]>("views/models", KINDS);
  return (
    <>
      <Head title="Models" sub="Every registered model, and the version that answers now.">
        <Command>everloop models ls</Command>
      </Head>
      <Card>
        <Loaded of={found}>
          {(models) =>
            models.length === 0 ? (
              <Empty title="No models yet" command="everloop run">
                A run that passes its stages registers a version here.
              </Empty>
            ) : (
              <div className="scroll">
                <table>
                  <thead>
                    <tr>
                      <th>Model</th>
                      <th>Champion</th>
                      <th className="number">Metric</th>
                      <th>Endpoint</th>
                      <th className="number">Versions</th>
                      <th>Newest</th>
                    </tr>
                  </thead>
                  <tbody>
                    {models.map((model) => (
                      <tr key={model.name}>
                        <td>
                          <a href={href(["models", model.name])}>{model.name}</a>
                        </td>
                        <td>{model.champion ? <VersionLink name={model.champion} /> : <span className="soft">none</span>}</td>
                        <td className="number">
                          {model.metric && <span className="soft">{model.metric} </span>}
                          {number(model.value)}
                        </td>
                        <td>{model.endpoint ? <a href={href(["endpoints", model.endpoint])}>{model.endpoint}</a> : <span className="soft">–</span>}</td>
                        <td className="number">{count(model.versions)}</td>
                        <td>
                          <VersionLink name={model.newest} /> <Time at={model.newest_at} />
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

export function VersionLink({ name }: { name: string }) {
  const at = name.lastIndexOf("@");
  return <a href={href(["models", name.slice(0, at), name.slice(at + 1)])}>{name}</a>;
}

export function ModelPage({ name }: { name: string }) {
  useTitle(name);
  const found = useApi<ModelDetail>(`views/models/${encodeURIComponent(name)}`, KINDS);
  return (
    <>
      <Head title={name} crumbs={<a href={href("models")}>Models</a>}>
        <Command>{`everloop models show ${shell(name)}`}</Command>
      </Head>
      <Loaded of={found}>{(model) => <Versions model={model} />}</Loaded>
    </>
  );
}

function Versions({ model }: { model: ModelDetail }) {
  const aliases = new Map<string, string[]>();
  for (const alias of model.aliases) aliases.set(alias.version, [...(aliases.get(alias.version) ?? []), alias.name]);
  return (
    <div className="grid">
      <Card title="Versions" span="c7">
        <div className="scroll">
          <table>
            <thead>
              <tr>
                <th>Version</th>
                <th>State</th>
                <th className="number">Metric</th>
                <th>Data</th>
                <th>Registered</th>
              </tr>
            </thead>
            <tbody>
              {model.versions.map((version) => {
                const metric = typeof version.evaluation?.["metric"] === "string" ? (version.evaluation["metric"] as string) : null;
                const key = `${version.model}@${version.version}`;
                return (
                  <tr key={version.id}>
                    <td>
                      <VersionLink name={key} />{" "}
                      {(aliases.get(key) ?? []).map((alias) => (
                        <span className="tag accent" key={alias}>
                          {alias}
                        </span>
                      ))}
                    </td>
                    <td>
                      <Badge state={version.state} />
                    </td>
                    <td className="number">
                      {metric && <span className="soft">{metric} </span>}
                      {metric ? number(version.metrics?.[metric]) : "–"}
                    </td>
                    <td>{version.snapshot ? <a href={href(["data", version.snapshot])}>{version.snapshot}</a> : "–"}</td>
                    <td>
                      <Time at={version.created_at} />
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        </div>
      </Card>
      <div className="stack c5">
        <Requests requests={model.requests} />
        <Card title="Who was champion">
          {model.champions.length === 0 && <Empty title="No version has been champion yet" />}
          <ul className="timeline">
            {[...model.champions].reverse().map((one) => (
              <li key={one.since}>
                <Time at={one.since} />
                <span>
                  <VersionLink name={one.version} /> {one.until ? <>until <Time at={one.until} /></> : <span className="tag accent">now</span>}
                  {one.reason && <span className="soft small"> {one.reason}</span>}
                </span>
              </li>
            ))}
          </ul>
        </Card>
      </div>
    </div>
  );
}

function Requests({ requests }: { requests: ModelDetail["requests"] }) {
  const open = requests.filter((one) => one.state === "open");
  const decide = useAction<{ id: string; verb: string; reason: string }>(({ id, verb }) => `alias-requests/${id}/${verb}`);
  if (open.length === 0) return null;
  return (
    <Card title="Waiting for approval">
      {open.map((one) => (
        <div className="attention" key={one.id}>
          <span>
            <b>{one.version}</b> to become <span className="tag accent">{one.alias}</span>, requested by {one.asked_by}
          </span>
          {one.reason && <p>{one.reason}</p>}
          <div className="row">
            {(["approve", "reject"] as const).map((verb) => (
              <Confirm key={verb} role="approver" label={verb === "approve" ? "Approve" : "Reject"} primary={verb === "approve"} danger={verb === "reject"} title={`${verb === "approve" ? "Approve" : "Reject"} ${one.version} as ${one.alias}?`} explain="Your vote and your reason are kept in the history of the version." command={(reason) => `everloop approvals ${verb} ${one.id}${reason ? ` --reason ${shell(reason)}` : ""}`} act={(reason) => decide.mutateAsync({ id: one.id, verb, reason })} />
            ))}
          </div>
        </div>
      ))}
    </Card>
  );
}

export function VersionPage({ model, number: version }: { model: string; number: string }) {
  const ref = `${model}@${version}`;
  useTitle(ref);
  const found = useApi<VersionDetail>(`views/versions/${encodeURIComponent(ref)}`, KINDS);
  return <Loaded of={found}>{(detail) => <Version detail={detail} />}</Loaded>;
}

type Measured = { value: number | null; low: number | null; high: number | null };

function Version({ detail }: { detail: VersionDetail }) {
  const { version } = detail;
  const key = `${version.model}@${version.version}`;
  const evaluation = (version.evaluation ?? {}) as { metric?: string; rows?: number; metrics?: Record<string, Measured> };
  const nodes = useMemo(() => detail.lineage.map((node) => ({ ...node, tone: node.kind === "version" ? "var(--accent)" : "var(--line)" })), [detail]);
  return (
    <>
      <Head
        crumbs={
          <>
            <a href={href("models")}>Models</a> / <a href={href(["models", version.model])}>{version.model}</a>
          </>
        }
        title={
          <>
            {key}{" "}
            {detail.aliases.map((alias) => (
              <span className="tag accent" key={alias}>
                {alias}
              </span>
            ))}
          </>
        }
        sub={
          <>
            <Badge state={version.state} /> registered <Time at={version.created_at} />
          </>
        }
      >
        <Command>{`everloop models show ${shell(key)}`}</Command>
      </Head>
      <div className="grid">
        {version.description && (
          <Card span="c12">
            <p>{version.description}</p>
          </Card>
        )}
        <Card title="From data and code to answers" span="c12" side={<Command>{`everloop lineage ${shell(key)}`}</Command>}>
          <Graph nodes={nodes} label={`Lineage of ${key}`} />
        </Card>
        <Card title="Evaluation" span="c6" side={evaluation.rows !== undefined && <span className="soft small">{count(evaluation.rows)} held-out rows</span>}>
          <table>
            <thead>
              <tr>
                <th>Metric</th>
                <th className="number">Value</th>
                <th className="number">95 % interval</th>
              </tr>
            </thead>
            <tbody>
              {Object.entries(evaluation.metrics ?? {}).map(([name, one]) => (
                <tr key={name}>
                  <td>
                    {name} {name === evaluation.metric && <span className="tag accent">decides</span>}
                  </td>
                  <td className="number">{number(one.value)}</td>
                  <td className="number soft">{one.low === null ? "–" : `${number(one.low)} to ${number(one.high)}`}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Card>
        <Card title="Gates" span="c6">
          <Gates gates={detail.gates} />
        </Card>
        <Card title="Package" span="c6">
          {detail.package ? (
            <dl className="facts">
              <dt>Format</dt>
              <dd>
                {detail.package.format} {detail.package.compiled && <span className="tag accent">compiled</span>}
              </dd>
              <dt>Size</dt>
              <dd>{bytes(detail.package.size_bytes)}</dd>
              <dt>Digest</dt>
              <dd className="mono small">{detail.package.digest}</dd>
              <dt>Proved equal on</dt>
              <dd>
                {count(Number(detail.package.parity?.["sample_rows"] ?? 0))} rows and {count(Number(detail.package.parity?.["edge_rows"] ?? 0))} edge cases, largest difference {number(detail.package.parity?.["largest_difference"])}
              </dd>
              <dt>Signed by</dt>
              <dd className="mono small">{detail.package.trust?.["key"] ?? "nothing"}</dd>
            </dl>
          ) : (
            <Empty title="This version has no package" command={`everloop models adopt ${shell(key)}`} />
          )}
        </Card>
        <Card title="History" span="c6">
          <ul className="timeline">
            {detail.events
              .slice(-20)
              .reverse()
              .map((event) => (
                <li key={event.seq}>
                  <Time at={event.at} />
                  <span>
                    {words(event.verb)} {typeof event.data?.["reason"] === "string" && <span className="soft">{event.data["reason"]}</span>} <span className="soft small">{event.actor}</span>
                  </span>
                </li>
              ))}
          </ul>
        </Card>
      </div>
    </>
  );
}

export function Gates({ gates }: { gates: GateResult[] }) {
  if (gates.length === 0) return <Empty title="No gate has judged this version" />;
  return (
    <table>
      <tbody>
        {gates.map((gate) => (
          <tr key={gate.id}>
            <td>
              <Badge state={gate.outcome} />
            </td>
            <td>
              <b>{gate.gate}</b>
              <div className="soft small">{gate.message}</div>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
