// Data: datasets and feature views, and one snapshot with its columns, contract and the versions trained on it.
import { useState } from "react";
import { url, useApi } from "../api/client";
import type { DataPage as Data, SnapshotDetail } from "../api/schema";
import { Card, Command, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
import { bytes, count, number, text } from "../format";
import { href } from "../router";
import { VersionLink } from "./models_page";

export function DataPage() {
  useTitle("Data");
  const found = useApi<Data>("views/data", ["snapshot", "feature_view"]);
  return (
    <>
      <Head title="Data" sub="Immutable snapshots of tables, and feature views.">
        <Command>everloop data ls</Command>
      </Head>
      <Loaded of={found}>
        {(data) => (
          <div className="stack">
            <Card title="Datasets">
              {data.datasets.length === 0 ? (
                <Empty title="No snapshots yet" command="everloop data add table.csv">
                  A run takes one of the table that it learns from.
                </Empty>
              ) : (
                <div className="scroll">
                  <table>
                    <thead>
                      <tr>
                        <th>Dataset</th>
                        <th>Newest</th>
                        <th className="number">Rows</th>
                        <th className="number">Columns</th>
                        <th className="number">Size</th>
                        <th className="number">Snapshots</th>
                        <th>Taken</th>
                      </tr>
                    </thead>
                    <tbody>
                      {data.datasets.map((one) => (
                        <tr key={one.name}>
                          <td>{one.name}</td>
                          <td>
                            <a href={href(["data", one.newest])}>{one.newest}</a>
                          </td>
                          <td className="number">{count(one.rows)}</td>
                          <td className="number">{count(one.columns)}</td>
                          <td className="number">{bytes(one.size_bytes)}</td>
                          <td className="number">{count(one.snapshots)}</td>
                          <td>
                            <Time at={one.at} />
                          </td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
              )}
            </Card>
            {data.views.length > 0 && (
              <Card title="Feature views">
                <table>
                  <thead>
                    <tr>
                      <th>View</th>
                      <th>Entity</th>
                      <th>Features</th>
                    </tr>
                  </thead>
                  <tbody>
                    {data.views.map((view) => (
                      <tr key={view.id}>
                        <td>
                          {view.name}@{view.version}
                        </td>
                        <td>{view.entity.join(", ")}</td>
                        <td>{(view.features ?? []).join(", ")}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </Card>
            )}
          </div>
        )}
      </Loaded>
    </>
  );
}

export function SnapshotPage({ name }: { name: string }) {
  useTitle(name);
  const found = useApi<SnapshotDetail>(`views/snapshots/${encodeURIComponent(name)}`, ["snapshot", "contract"]);
  return <Loaded of={found}>{(detail) => <Detail detail={detail} />}</Loaded>;
}

function Detail({ detail }: { detail: SnapshotDetail }) {
  const { snapshot } = detail;
  const key = `${snapshot.dataset}@${snapshot.version}`;
  const before = detail.others.find((one) => one.version === snapshot.version - 1);
  const rules = new Map((detail.contract?.columns ?? []).map((one) => [String(one["name"]), one]));
  return (
    <>
      <Head
        crumbs={<a href={href("data")}>Data</a>}
        title={key}
        sub={
          <>
            {count(snapshot.rows)} rows · {bytes(snapshot.size_bytes)} {snapshot.starts_at && <>· <Time at={snapshot.starts_at} /> to <Time at={snapshot.ends_at} /></>}
          </>
        }
      >
        <Command>{before ? `everloop data diff ${shell(`${before.dataset}@${before.version}`)} ${shell(key)}` : `everloop data show ${shell(key)}`}</Command>
      </Head>
      <div className="grid">
        <Card title="Columns" span="c8">
          <div className="scroll" style={{ maxHeight: "40rem", overflowY: "auto" }}>
            <table>
              <thead>
                <tr>
                  <th>Column</th>
                  <th>Type</th>
                  <th className="number">Missing</th>
                  <th className="number">Smallest</th>
                  <th className="number">Mean</th>
                  <th className="number">Largest</th>
                  <th>Contract</th>
                </tr>
              </thead>
              <tbody>
                {Object.entries(snapshot.columns).slice(0, 1000).map(([name, type]) => {
                  const stats = snapshot.stats?.[name] ?? {};
                  const role = name === snapshot.target ? "target" : name === snapshot.time ? "time" : name === snapshot.entity ? "key" : null;
                  return (
                    <tr key={name}>
                      <td>
                        {name} {role && <span className="tag accent">{role}</span>}
                      </td>
                      <td className="soft">{type}</td>
                      <td className="number">{count(Number(stats["nulls"] ?? stats["null_count"] ?? 0))}</td>
                      <td className="number">{short(stats["min"])}</td>
                      <td className="number">{short(stats["mean"])}</td>
                      <td className="number">{short(stats["max"])}</td>
                      <td className="small soft">{rule(rules.get(name))}</td>
                    </tr>
                  );
                })}
              </tbody>
            </table>
          </div>
        </Card>
        <Diff key={key} after={key} others={detail.others.map((one) => `${one.dataset}@${one.version}`).filter((one) => one !== key)} />
        <div className="stack c4">
          <Card title="Trained on it">
            {detail.versions.length === 0 ? <Empty title="No version yet" /> : detail.versions.map((version) => <div key={version.id}><VersionLink name={`${version.model}@${version.version}`} /></div>)}
          </Card>
          <Card title="Where it came from">
            <dl className="facts">
              {snapshot.run && (
                <>
                  <dt>Run</dt>
                  <dd>
                    <a href={href(["runs", snapshot.run])}>{snapshot.run.slice(-12)}</a>
                  </dd>
                </>
              )}
              <dt>Contract</dt>
              <dd>{snapshot.contract ?? "none"}</dd>
              <dt>Digest</dt>
              <dd className="mono small">{snapshot.digest.slice(7, 27)}</dd>
            </dl>
          </Card>
          <Card title="Snapshots of this dataset">
            {detail.others.slice(0, 20).map((one) => (
              <div className="row" key={one.id}>
                <a href={href(["data", `${one.dataset}@${one.version}`])} aria-current={one.id === snapshot.id ? "true" : undefined}>
                  {one.dataset}@{one.version}
                </a>
                <span className="soft small">{count(one.rows)} rows</span>
              </div>
            ))}
          </Card>
        </div>
      </div>
    </>
  );
}

type Shift = { distance: number; kind: string; before: number | null; after: number | null };
type Changes = {
  before: string;
  after: string;
  rows_before: number;
  rows_after: number;
  rows_added: number;
  rows_removed: number;
  rows_changed: number;
  columns_added: string[];
  columns_removed: string[];
  columns_retyped: Record<string, [string, string]>;
  values_changed: Record<string, number>;
  shifts: Record<string, Shift>;
};

/** What has changed since another snapshot. It reads both tables, so it is done only when asked for. */
function Diff({ after, others }: { after: string; others: string[] }) {
  const [before, choose] = useState("");
  const found = useApi<Changes>(before ? url("views/snapshot-diff", { before, after }) : null);
  if (others.length === 0) return null;
  return (
    <Card
      title="Compare with another snapshot"
      span="c12"
      side={
        <label className="row small">
          Snapshot
          <select className="input" style={{ width: "auto" }} value={before} onChange={(event) => choose(event.target.value)}>
            <option value="">Choose…</option>
            {others.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
      }
    >
      {before ? <Loaded of={found}>{(changes) => <ChangesOf changes={changes} />}</Loaded> : <p className="soft">Choose a snapshot to see which rows, columns and distributions have changed since. Both tables are read for it.</p>}
    </Card>
  );
}

function ChangesOf({ changes }: { changes: Changes }) {
  const shifts = Object.entries(changes.shifts).sort((one, other) => other[1].distance - one[1].distance);
  return (
    <div className="stack">
      <p>
        <b>{count(changes.rows_added)}</b> rows added, <b>{count(changes.rows_removed)}</b> removed, <b>{count(changes.rows_changed)}</b> changed: from {count(changes.rows_before)} to {count(changes.rows_after)}.
      </p>
      {changes.columns_added.length > 0 && <p>New columns: {changes.columns_added.slice(0, 50).join(", ")}</p>}
      {changes.columns_removed.length > 0 && <p>Columns that are gone: {changes.columns_removed.slice(0, 50).join(", ")}</p>}
      {Object.entries(changes.columns_retyped).map(([name, [from, to]]) => (
        <p key={name}>
          {name}: from {from} to {to}
        </p>
      ))}
      {shifts.length > 0 && (
        <div className="scroll">
          <table>
            <thead>
              <tr>
                <th>Distribution of</th>
                <th className="number">Distance</th>
                <th>Measured by</th>
                <th className="number">Mean before</th>
                <th className="number">Mean after</th>
              </tr>
            </thead>
            <tbody>
              {shifts.slice(0, 100).map(([name, one]) => (
                <tr key={name}>
                  <td>{name}</td>
                  <td className="number">{number(one.distance)}</td>
                  <td>{one.kind === "ks" ? "Kolmogorov-Smirnov" : one.kind}</td>
                  <td className="number">{number(one.before)}</td>
                  <td className="number">{number(one.after)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Command>{`everloop data diff ${shell(changes.before)} ${shell(changes.after)}`}</Command>
    </div>
  );
}

function short(value: unknown): string {
  return typeof value === "number" ? number(value) : text(value).slice(0, 24);
}

function rule(column: Record<string, unknown> | undefined): string {
  if (!column) return "";
  const parts: string[] = [];
  if (column["nullable"] === false) parts.push("never missing");
  if (column["min"] !== undefined && column["min"] !== null) parts.push(`from ${short(column["min"])}`);
  if (column["max"] !== undefined && column["max"] !== null) parts.push(`to ${short(column["max"])}`);
  const categories = column["categories"];
  if (Array.isArray(categories)) parts.push(`one of ${categories.length}`);
  if (column["unique"] === true) parts.push("unique");
  return parts.join(", ");
}
