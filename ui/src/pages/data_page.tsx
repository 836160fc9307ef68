// Data: datasets and feature views, and one snapshot with its columns, contract and the versions trained on it.
import { useState } from "react";
import { url, useApi, useSend } from "../api/client";
import type { DataPage as Data, FeatureViewDetail, SavedContract, SnapshotDetail } from "../api/schema";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { RunLink, SnapshotLink, VersionLink } from "../components/record_links";
import { Choose, Facts, Table } from "../components/table";
import { bytes, count, counted, number, text } from "../format";
import { go, href, useRoute } from "../router";

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
              <Table
                rows={data.datasets}
                label="Datasets"
                rowKey={(one) => one.name}
                empty={
                  <Empty title="No snapshots yet" command="everloop data add table.csv NAME">
                    A run takes one of the table that it learns from.
                  </Empty>
                }
                columns={[
                  { title: "Dataset", className: "nowrap", cell: (one) => one.name },
                  { title: "Newest", className: "nowrap", cell: (one) => <SnapshotLink name={one.newest} /> },
                  { title: "Rows", number: true, cell: (one) => count(one.rows) },
                  { title: "Columns", number: true, cell: (one) => count(one.columns) },
                  { title: "Size", number: true, cell: (one) => bytes(one.size_bytes) },
                  { title: "Snapshots", number: true, cell: (one) => count(one.snapshots) },
                  { title: "Taken", cell: (one) => <Time at={one.at} /> },
                ]}
              />
            </Card>
            <Card title="Feature views" side={<Command>everloop features ls</Command>}>
              <Table
                rows={data.views}
                label="Feature views"
                rowKey={(view) => view.id}
                empty={
                  <Empty title="No feature view is materialized" command="everloop features materialize">
                    A feature view keeps features of an entity over time, for training and for serving.
                  </Empty>
                }
                columns={[
                  { title: "View", cell: (view) => <a href={href(["features", view.name])}>{`${view.name}@${view.version}`}</a> },
                  { title: "Entity", cell: (view) => view.entity.join(", ") },
                  { title: "Features", cell: (view) => (view.features ?? []).join(", ") },
                ]}
              />
            </Card>
          </div>
        )}
      </Loaded>
    </>
  );
}

export function FeatureViewPage({ name }: { name: string }) {
  useTitle(name);
  const found = useApi<FeatureViewDetail>(`views/features/${encodeURIComponent(name)}`, ["feature_view"]);
  return (
    <LoadedPage of={found} title={name} crumbs={<a href={href("data")}>Data</a>}>
      {(detail) => (
        <>
          <Head crumbs={<a href={href("data")}>Data</a>} title={`${detail.view.name}@${detail.view.version}`} sub={<Badge state={detail.stale ? "attention" : "ok"}>{detail.stale ? "stale" : "fresh"}</Badge>}>
            <Command>{`everloop features show ${shell(`${detail.view.name}@${detail.view.version}`)}`}</Command>
          </Head>
          <div className="grid">
            <Card title="Declaration" span="c5">
              <Facts
                of={[
                  ["Entity", detail.view.entity.join(", ")],
                  ["Time of an event", detail.view.time],
                  ["Time of arrival", detail.view.arrival],
                  ["Valid for", detail.view.ttl],
                  ["Rows", count(detail.rows)],
                  ["Newest event", <Time at={detail.event_at} />],
                  ["Newest arrival", <Time at={detail.arrived_at} />],
                  ["Versions", detail.versions.join(", ")],
                ]}
              />
            </Card>
            <Card title="Columns" span="c7">
              <Table rows={Object.entries(detail.view.columns ?? {})} label="Columns" rowKey={([column]) => column} height="20rem" columns={[{ title: "Column", cell: ([column]) => column }, { title: "Type", className: "soft", cell: ([, type]) => type }]} />
            </Card>
            <Card title="Newest rows" span="c12">
              <Table rows={detail.newest} label="Newest rows" rowKey={(_, index) => String(index)} height="26rem" empty={<Empty title="The view has no rows" />} columns={detail.names.map((column, index) => ({ title: column, className: "nowrap small", cell: (row: (string | null)[]) => row[index] ?? <span className="soft">missing</span> }))} />
            </Card>
          </div>
        </>
      )}
    </LoadedPage>
  );
}

export function SnapshotPage({ name }: { name: string }) {
  useTitle(name);
  const found = useApi<SnapshotDetail>(`views/snapshots/${encodeURIComponent(name)}`, ["snapshot", "contract"]);
  return (
    <LoadedPage of={found} title={name} crumbs={<a href={href("data")}>Data</a>}>
      {(detail) => <Detail detail={detail} />}
    </LoadedPage>
  );
}

function Detail({ detail }: { detail: SnapshotDetail }) {
  const { snapshot } = detail;
  const key = `${snapshot.dataset}@${snapshot.version}`;
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
        <Command>{`everloop data show ${shell(key)}`}</Command>
      </Head>
      <div className="grid">
        <Card title="Columns" span="c9">
          <Table
            rows={Object.entries(snapshot.columns)}
            most={1000}
            label="Columns"
            rowKey={([name]) => name}
            height="40rem"
            columns={[
              {
                title: "Column",
                cell: ([name]) => {
                  const role = name === snapshot.target ? "target" : name === snapshot.time ? "time" : name === snapshot.entity ? "key" : null;
                  return (
                    <>
                      {name} {role && <span className="tag accent">{role}</span>}
                    </>
                  );
                },
              },
              { title: "Type", className: "soft", cell: ([, type]) => type },
              { title: "Missing", number: true, cell: ([name]) => count(Number(statOf(snapshot, name)["nulls"] ?? statOf(snapshot, name)["null_count"] ?? 0)) },
              { title: "Smallest", number: true, cell: ([name]) => short(statOf(snapshot, name)["min"]) },
              { title: "Mean", number: true, cell: ([name]) => short(rounded(statOf(snapshot, name)["mean"])) },
              { title: "Largest", number: true, cell: ([name]) => short(statOf(snapshot, name)["max"]) },
              { title: "Contract", className: "small soft why", cell: ([name]) => rule(rules.get(name)) },
            ]}
          />
        </Card>
        <div className="stack c3">
          <Card title="Trained on it">
            {detail.versions.length === 0 ? <Empty title="No version yet" /> : detail.versions.map((version) => <div key={version.id}><VersionLink name={`${version.model}@${version.version}`} /></div>)}
          </Card>
          <Card title="Where it came from">
            <Facts
              of={[
                ["Run", snapshot.run ? <RunLink id={snapshot.run} length={12} /> : null],
                ["Contract", snapshot.contract ?? "none"],
                ["Digest", <span className="mono small">{snapshot.digest.slice(7, 27)}</span>],
              ]}
            />
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
        <Diff key={key} after={key} others={detail.others.map((one) => `${one.dataset}@${one.version}`).filter((one) => one !== key)} />
        {detail.contract_toml && <ContractEditor key={detail.newest_contract} detail={detail} />}
      </div>
    </>
  );
}

const statOf = (snapshot: SnapshotDetail["snapshot"], name: string): Record<string, unknown> => snapshot.stats?.[name] ?? {};

/** The dataset's newest contract as text. If another person has saved it in the meantime, the server refuses. */
function ContractEditor({ detail }: { detail: SnapshotDetail }) {
  const [source, setSource] = useState(detail.contract_toml);
  const [saved, setSaved] = useState<SavedContract | null>(null);
  const send = useSend();
  const { dataset } = detail.snapshot;
  const path = `contracts/${encodeURIComponent(dataset)}`;
  return (
    <Card title={`Contract ${detail.newest_contract}`} span="c12" side={<Command>{`everloop data contract ${shell(dataset)}`}</Command>}>
      <label className="field">
        <span>New data, requests and windows are checked against it. Lines that begin with # are comments.</span>
        <textarea className="input mono small" rows={18} spellCheck={false} value={source} onChange={(event) => setSource(event.target.value)} />
      </label>
      <div className="row" style={{ marginTop: "0.7rem" }}>
        <Confirm
          role="editor"
          primary
          label="Save contract"
          title={`Save the contract of ${dataset}?`}
          ready={source !== detail.contract_toml}
          explain="It becomes the newest version. If this server keeps up a project, the project's own file is changed as well."
          command={() => `everloop data contract ${shell(dataset)} --save contract.toml`}
          act={async (reason) => setSaved(await send<SavedContract>(path, "PUT", { text: source, expect: detail.newest_contract, reason }))}
        />
        <button type="button" className="button" disabled={source === detail.contract_toml} onClick={() => setSource(detail.contract_toml)}>
          Undo changes
        </button>
        {saved && (
          <span role="status" className="small">
            Saved as {saved.contract.dataset}@{saved.contract.version}
            {saved.file && `, and in ${saved.file}`}.
          </span>
        )}
      </div>
    </Card>
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
  const { query } = useRoute();
  const before = query.get("before") ?? "";
  const choose = (next: string) => go(href(["data", after], { before: next || undefined }), true);
  const found = useApi<Changes>(before ? url("views/snapshot-diff", { before, after }) : null);
  if (others.length === 0) return null;
  return (
    <Card
      title="Compare with another snapshot"
      span="c12"
      side={<Choose label="Snapshot" value={before} options={[["", "Choose…"], ...others]} choose={choose} />}
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
        <b>{counted(changes.rows_added, "row")}</b> added, <b>{count(changes.rows_removed)}</b> removed, <b>{count(changes.rows_changed)}</b> changed: from {count(changes.rows_before)} to {count(changes.rows_after)}.
      </p>
      {changes.columns_added.length > 0 && <p>New columns: {changes.columns_added.slice(0, 50).join(", ")}</p>}
      {changes.columns_removed.length > 0 && <p>Columns that are gone: {changes.columns_removed.slice(0, 50).join(", ")}</p>}
      {Object.entries(changes.columns_retyped).map(([name, [from, to]]) => (
        <p key={name}>
          {name}: from {from} to {to}
        </p>
      ))}
      {shifts.length > 0 && (
        <Table
          rows={shifts}
          most={100}
          label="Shifted distributions"
          rowKey={([name]) => name}
          height="26rem"
          columns={[
            { title: "Distribution of", cell: ([name]) => name },
            { title: "Distance", number: true, cell: ([, one]) => number(one.distance) },
            { title: "Measured by", cell: ([, one]) => (one.kind === "ks" ? "Kolmogorov-Smirnov" : one.kind) },
            { title: "Mean before", number: true, cell: ([, one]) => number(one.before) },
            { title: "Mean after", number: true, cell: ([, one]) => number(one.after) },
          ]}
        />
      )}
      <Command>{`everloop data diff ${shell(changes.before)} ${shell(changes.after)}`}</Command>
    </div>
  );
}

const rounded = (value: unknown): unknown => (typeof value === "number" ? Number(value.toPrecision(4)) : value);

/** A statistic: of a moment the date and the minute, of a text its beginning. */
function short(value: unknown): string {
  const shown = text(value);
  return /^\d{4}-\d\d-\d\dT\d\d:\d\d/.test(shown) ? shown.slice(0, 16).replace("T", " ") : shown.slice(0, 24);
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
