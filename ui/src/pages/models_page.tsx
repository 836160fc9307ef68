// Models, one model with its versions, and one version with its evidence and what can be decided about it.
import { useMemo, useState } from "react";
import { url, useApi, useSend, useText } from "../api/client";
import type { GateResult, ModelDetail, ModelSummary, ModelVersion, VersionDetail } from "../api/schema";
import { Graph } from "../charts/graph";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, LoadedPage, shell, Time, useTitle } from "../components/basics";
import { Markdown } from "../components/markdown";
import { EndpointLink, SnapshotLink, VersionLink } from "../components/record_links";
import { Choose, Facts, Table, Timeline } from "../components/table";
import { bytes, count, number, text, words } from "../format";
import { go, href, useRoute } from "../router";

const KINDS = ["model_version", "alias", "alias_request", "release", "gate_result"];

export function ModelsPage() {
  useTitle("Models");
  const found = useApi<ModelSummary[]>("views/models", KINDS);
  return (
    <>
      <Head title="Models" sub="Every registered model, and the version that answers now.">
        <FindPrediction />
        <Command>everloop models ls</Command>
      </Head>
      <Card>
        <Loaded of={found}>
          {(models) => (
            <Table
              rows={models}
              label="Models"
              rowKey={(model) => model.name}
              empty={
                <Empty title="No models yet" command="everloop run">
                  A run that passes its stages registers a version here.
                </Empty>
              }
              columns={[
                { title: "Model", cell: (model) => <a href={href(["models", model.name])}>{model.name}</a> },
                { title: "Champion", cell: (model) => (model.champion ? <VersionLink name={model.champion} /> : <span className="soft">none</span>) },
                { title: "Metric", number: true, cell: (model) => <Metric name={model.metric ?? null} value={model.value} /> },
                { title: "Endpoint", cell: (model) => <EndpointLink name={model.endpoint} /> },
                { title: "Versions", number: true, cell: (model) => count(model.versions) },
                {
                  title: "Newest",
                  cell: (model) => (
                    <>
                      <VersionLink name={model.newest} /> <Time at={model.newest_at} />
                    </>
                  ),
                },
              ]}
            />
          )}
        </Loaded>
      </Card>
    </>
  );
}

function Metric({ name, value }: { name: string | null; value: number | null | undefined }) {
  return (
    <>
      {name && <span className="soft">{name} </span>}
      {number(value)}
    </>
  );
}

/** From the id of an answer to everything that it came from. */
function FindPrediction() {
  const [id, setId] = useState("");
  return (
    <form
      className="row"
      role="search"
      onSubmit={(event) => {
        event.preventDefault();
        if (id.trim()) go(href(["predictions", id.trim()]));
      }}
    >
      <input className="input" style={{ width: "15rem" }} aria-label="Find a prediction by its id" placeholder="Id of a prediction" value={id} onChange={(event) => setId(event.target.value)} />
      <button type="submit" className="button">
        Find
      </button>
    </form>
  );
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
  const keyOf = (version: ModelVersion) => `${version.model}@${version.version}`;
  return (
    <div className="grid">
      <Card title="Versions" span="c7">
        <Table
          rows={model.versions}
          label="Versions"
          rowKey={(version) => version.id}
          height="34rem"
          columns={[
            {
              title: "Version",
              cell: (version) => (
                <>
                  <VersionLink name={keyOf(version)} />{" "}
                  {(aliases.get(keyOf(version)) ?? []).map((alias) => (
                    <span className="tag accent" key={alias}>
                      {alias}
                    </span>
                  ))}
                </>
              ),
            },
            { title: "State", cell: (version) => <Badge state={version.state} /> },
            {
              title: "Metric",
              number: true,
              cell: (version) => {
                const metric = typeof version.evaluation?.["metric"] === "string" ? (version.evaluation["metric"] as string) : null;
                return metric ? <Metric name={metric} value={version.metrics?.[metric]} /> : "–";
              },
            },
            { title: "Data", className: "nowrap", cell: (version) => <SnapshotLink name={version.snapshot} /> },
            { title: "Registered", cell: (version) => <Time at={version.created_at} /> },
          ]}
        />
      </Card>
      <div className="stack c5">
        <Requests requests={model.requests} />
        <Card title="Who was champion" side={<Command>{`everloop models history ${shell(model.name)}`}</Command>}>
          {model.champions.length === 0 && <Empty title="No version has been champion yet" />}
          <Timeline of={[...model.champions].reverse()} at={(one) => <Time at={one.since} />}>
            {(one) => (
              <>
                <VersionLink name={one.version} /> {one.until ? <>until <Time at={one.until} /></> : <span className="tag accent">now</span>}
                {one.approved_by.length > 0 && <span className="tag">approved by {one.approved_by.join(", ")}</span>}
                {one.reason && <span className="soft small"> {one.reason}</span>}
              </>
            )}
          </Timeline>
        </Card>
      </div>
    </div>
  );
}

/** Requests that wait: for the vote of another person, or, once they are approved, for the move of the alias. */
function Requests({ requests }: { requests: ModelDetail["requests"] }) {
  const waiting = requests.filter((one) => one.state === "open" || one.state === "approved");
  if (waiting.length === 0) return null;
  return (
    <Card title="Waiting for approval">
      {waiting.map((one) => (
        <div className="attention" key={one.id}>
          <span>
            <VersionLink name={one.version} /> {one.state === "open" ? "to become" : "is approved to become"} <span className="tag accent">{one.alias}</span>, requested by {one.asked_by}
          </span>
          {one.reason && <p>{one.reason}</p>}
          <div className="row">{one.state === "open" ? <Votes of={one} /> : <Move of={one} />}</div>
        </div>
      ))}
    </Card>
  );
}

type Request = ModelDetail["requests"][number];

function Votes({ of: request }: { of: Request }) {
  const send = useSend();
  return (["approve", "reject"] as const).map((verb) => (
    <Confirm key={verb} role="approver" small label={verb === "approve" ? "Approve" : "Reject"} primary={verb === "approve"} danger={verb === "reject"} title={`${verb === "approve" ? "Approve" : "Reject"} ${request.version} as ${request.alias}?`} explain="Your vote and your reason are kept in the history of the version." command={(reason) => `everloop models ${verb} ${request.id}${because(reason)}`} act={(reason) => send(`alias-requests/${request.id}/${verb}`, "POST", { reason })} />
  ));
}

function Move({ of: request }: { of: Request }) {
  const send = useSend();
  const model = request.version.slice(0, request.version.lastIndexOf("@"));
  return (
    <Confirm role="editor" small primary label="Move the alias" title={`Make ${request.version} the ${request.alias}?`} explain="The request is approved. If the alias is the champion of an endpoint, its traffic moves as well." command={(reason) => promotion(request.version, request.alias, reason)} act={(reason) => send(`models/${encodeURIComponent(model)}/aliases/${encodeURIComponent(request.alias)}`, "PUT", { version: request.version, reason })} />
  );
}

const because = (reason: string) => (reason ? ` --reason ${shell(reason)}` : "");

/** The command that moves an alias to a version. */
const promotion = (version: string, alias: string, reason: string) => `everloop models promote ${shell(version)}${alias === "champion" ? "" : ` --alias ${shell(alias || "ALIAS")}`}${because(reason)}`;

export function VersionPage({ model, number: version }: { model: string; number: string }) {
  const ref = `${model}@${version}`;
  useTitle(ref);
  const found = useApi<VersionDetail>(`views/versions/${encodeURIComponent(ref)}`, KINDS);
  return (
    <LoadedPage of={found} title={ref} crumbs={<><a href={href("models")}>Models</a> / <a href={href(["models", model])}>{model}</a></>}>
      {(detail) => <Version detail={detail} />}
    </LoadedPage>
  );
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
        <Decisions version={version} name={key} />
        <Command>{`everloop models show ${shell(key)}`}</Command>
      </Head>
      <div className="grid">
        {version.description && (
          <Card span="c12">
            <p>{version.description}</p>
          </Card>
        )}
        <div className="c12">
          <Requests requests={detail.requests} />
        </div>
        <Card title="From data and code to answers" span="c12" side={<Command>{`everloop lineage ${shell(key)}`}</Command>}>
          <Graph nodes={nodes} label={`Lineage of ${key}`} />
        </Card>
        <Card title="Evaluation" span="c6" side={evaluation.rows !== undefined && <span className="soft small">{count(evaluation.rows)} held-out rows</span>}>
          <Table
            rows={Object.entries(evaluation.metrics ?? {})}
            label="Evaluation"
            rowKey={([name]) => name}
            empty={<Empty title="This version was not evaluated" />}
            columns={[
              {
                title: "Metric",
                cell: ([name]) => (
                  <>
                    {name} {name === evaluation.metric && <span className="tag accent">decides</span>}
                  </>
                ),
              },
              { title: "Value", number: true, cell: ([, one]) => number(one.value) },
              { title: "95 % interval", number: true, className: "soft", cell: ([, one]) => (one.low === null ? "–" : `${number(one.low)} to ${number(one.high)}`) },
            ]}
          />
        </Card>
        <Card title="Gates" span="c6">
          <Gates gates={detail.gates} />
        </Card>
        <Difference of={key} model={version.model} />
        <Card title="Package" span="c6">
          {detail.package ? (
            <Facts
              of={[
                ["Format", <>{detail.package.format} {detail.package.compiled && <span className="tag accent">compiled</span>}</>],
                ["Size", bytes(detail.package.size_bytes)],
                ["Digest", <span className="mono small">{detail.package.digest}</span>],
                Boolean(detail.package.parity?.["sample_rows"]) && ["Proved equal on", `${count(Number(detail.package.parity?.["sample_rows"]))} rows and ${count(Number(detail.package.parity?.["edge_rows"] ?? 0))} edge cases, largest difference ${number(detail.package.parity?.["largest_difference"])}`],
                ["Signed by", <span className="mono small">{detail.package.trust?.["key"] ?? "nothing"}</span>],
              ]}
            />
          ) : (
            <Empty title="This version has no package" command={`everloop models adopt ${shell(key)}`} />
          )}
        </Card>
        <Card title="History" span="c6">
          <Timeline of={[...detail.events].reverse()} limit={20} at={(event) => <Time at={event.at} />}>
            {(event) => (
              <>
                {words(event.verb)} {typeof event.data?.["reason"] === "string" && <span className="soft">{event.data["reason"]}</span>} <span className="soft small">{event.actor}</span>
              </>
            )}
          </Timeline>
        </Card>
        <ModelCard version={version} name={key} />
      </div>
    </>
  );
}

/** What a person can decide about a version: move an alias to it, request that, describe it, archive it. */
function Decisions({ version, name }: { version: ModelVersion; name: string }) {
  const send = useSend();
  const [alias, setAlias] = useState("champion");
  const [description, describe] = useState(version.description ?? "");
  const aliases = `models/${encodeURIComponent(version.model)}/aliases/${encodeURIComponent(alias)}`;
  const path = `models/${encodeURIComponent(version.model)}/versions/${version.version}`;
  const archived = version.state === "archived";
  const field = (
    <label className="field">
      <span>Alias</span>
      <input className="input" value={alias} maxLength={200} onChange={(event) => setAlias(event.target.value.trim())} />
    </label>
  );
  const promote = (reason: string) => promotion(name, alias, reason);
  return (
    <>
      <Confirm role="editor" label="Set alias" title={`Set an alias of ${name}?`} ready={alias !== ""} explain="If the alias is the champion of an endpoint, its traffic moves as well. An alias with a policy moves only with its approvals." command={promote} act={(reason) => send(aliases, "PUT", { version: name, reason })}>
        {field}
      </Confirm>
      <Confirm role="editor" label="Request approval" title={`Request approval of ${name}?`} ready={alias !== ""} explain="Others approve or reject the move of the alias. You cannot approve your own request. On the command line, promote asks for approval by itself if the alias has a policy." command={promote} act={(reason) => send(`${aliases}/requests`, "POST", { version: name, reason })}>
        {field}
      </Confirm>
      <Confirm role="editor" label="Describe" withoutReason title={`Describe ${name}`} explain="The description is part of the model card." command={() => `everloop models describe ${shell(name)} ${shell(description || "…")}`} act={() => send(path, "PATCH", { description })}>
        <label className="field">
          <span>Description</span>
          <textarea className="input" rows={4} value={description} maxLength={20000} onChange={(event) => describe(event.target.value)} />
        </label>
      </Confirm>
      <Confirm role="approver" label={archived ? "Unarchive" : "Archive"} danger={!archived} title={`${archived ? "Bring back" : "Archive"} ${name}?`} explain={archived ? "It can be released again." : "It stays readable, and cannot be released any more. A version that answers at an endpoint cannot be archived."} command={(reason) => `everloop models ${archived ? "unarchive" : "archive"} ${shell(name)}${because(reason)}`} act={(reason) => send(`${path}/archived`, "PUT", { archived: !archived, reason })} />
    </>
  );
}

/** What differs between two versions, as the server's own comparison says it. */
function Difference({ of, model }: { of: string; model: string }) {
  const { query } = useRoute();
  const before = query.get("before") ?? "";
  const known = useApi<ModelDetail>(`views/models/${encodeURIComponent(model)}`, KINDS);
  const found = useApi<Record<string, unknown>>(before ? url("diff", { a: before, b: of }) : null);
  const others = (known.data?.versions ?? []).map((one) => `${one.model}@${one.version}`).filter((one) => one !== of);
  if (others.length === 0) return null;
  const [name, number_] = [of.slice(0, of.lastIndexOf("@")), of.slice(of.lastIndexOf("@") + 1)];
  return (
    <Card title="Compare with another version" span="c12" side={<Choose label="Version" value={before} options={[["", "Choose…"], ...others]} choose={(next) => go(href(["models", name, number_], { before: next || undefined }), true)} />}>
      {before ? (
        <Loaded of={found}>
          {(changes) => (
            <div className="stack">
              <Table
                rows={differences(changes)}
                label="Differences"
                rowKey={(one) => one.path}
                height="26rem"
                empty={<Empty title="Nothing differs" />}
                columns={[
                  { title: "What", cell: (one) => one.path },
                  { title: before, className: "small pre", cell: (one) => one.before },
                  { title: of, className: "small pre", cell: (one) => one.after },
                  { title: "Change", number: true, cell: (one) => one.change },
                ]}
              />
              <Command>{`everloop models diff ${shell(before)} ${shell(of)}`}</Command>
            </div>
          )}
        </Loaded>
      ) : (
        <p className="soft">Choose a version to see how metrics, inputs, data and code differ.</p>
      )}
    </Card>
  );
}

export type ChangedValue = { path: string; before: string; after: string; change: string };

/** Everything that differs, by its path: values before and after, or only what is new. */
export function differences(value: unknown, path = ""): ChangedValue[] {
  if (value === null || value === undefined || value === "") return [];
  if (typeof value !== "object" || Array.isArray(value)) {
    const shown = Array.isArray(value) ? value.map((one) => text(one)).join(" → ") : text(value);
    return shown && path ? [{ path, before: "", after: shown.slice(0, MOST_TEXT), change: "" }] : [];
  }
  const { a, b, ...rest } = value as Record<string, unknown>;
  const isPair = path !== "" && (a !== undefined || b !== undefined);
  if (!isPair) return Object.entries(rest).flatMap(([name, one]) => differences(one, path ? `${path}.${name}` : name)).slice(0, MOST_DIFFERENCES);
  const change = rest["change"];
  return [{ path, before: side(a), after: side(b), change: typeof change === "number" ? `${change > 0 ? "+" : ""}${number(change)}` : "" }];
}

const MOST_DIFFERENCES = 400;
const MOST_TEXT = 300;
const side = (value: unknown): string => (typeof value === "number" ? number(value) : text(value).replace(/^sha256:([0-9a-f]{12})[0-9a-f]+$/, "$1").slice(0, MOST_TEXT));

function ModelCard({ version, name }: { version: ModelVersion; name: string }) {
  const found = useText(`models/${encodeURIComponent(version.model)}/versions/${version.version}/card`, ["model_version"]);
  return (
    <Card title="Model card" span="c12" side={<Command>{`everloop models card ${shell(name)}`}</Command>}>
      <Loaded of={found}>{(source) => (
          <div className="scroll" tabIndex={0} role="region" aria-label="Model card" style={{ maxHeight: "36rem", overflowY: "auto" }}>
            <Markdown source={source} />
          </div>
        )}</Loaded>
    </Card>
  );
}

export function Gates({ gates }: { gates: GateResult[] }) {
  return (
    <Table
      bare
      rows={gates}
      label="Gates"
      rowKey={(gate) => gate.id}
      empty={<Empty title="No gate has judged this version" />}
      columns={[
        { title: "Outcome", cell: (gate) => <Badge state={gate.outcome} /> },
        {
          title: "Gate",
          cell: (gate) => (
            <>
              <b>{gate.gate}</b>
              <div className="soft small">{gate.message}</div>
            </>
          ),
        },
      ]}
    />
  );
}
