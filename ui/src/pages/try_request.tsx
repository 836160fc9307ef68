// A form with the model's real fields: send a row to a running endpoint, and see the answer and its explanation.
import { useState } from "react";
import { ApiError } from "../api/client";
import type { EndpointRecord, ModelVersion } from "../api/schema";
import { Command, Empty, Problem } from "../components/basics";
import { PredictionLink, VersionLink } from "../components/record_links";
import { Table } from "../components/table";
import { number, text } from "../format";

export type Input = { name: string; type: string; nullable?: boolean; categories?: unknown[] | null };
type Explanation = { bias: number; contributions: Record<string, number> };
type Answer = { model?: string; ids?: string[]; predictions?: unknown[]; version?: number; versions?: number[]; explanations?: Explanation[] } & Record<string, unknown>;

const MOST_FIELDS = 200;

/** A value as the model's signature has it; an empty field is null, which the endpoint refuses if the input needs a value. */
export function typed(input: Input, value: string): unknown {
  if (value === "") return null;
  if (input.type === "float" || input.type === "int") {
    const converted = Number(value);
    // What is no number is sent as it is: the endpoint's own message names the field.
    return Number.isNaN(converted) || value.trim() === "" ? value : converted;
  }
  if (input.type === "bool") return value === "true" ? true : value === "false" ? false : value;
  const category = input.categories?.find((one) => String(one) === value);
  return category ?? value;
}

async function predict(endpoint: string, body: unknown): Promise<Answer> {
  let response: Response;
  try {
    response = await fetch(`endpoints/${encodeURIComponent(endpoint)}/predict`, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal: AbortSignal.timeout(60_000) });
  } catch {
    throw new ApiError(0, "The endpoint does not answer.", "Is it still running? Start it with: everloop up");
  }
  const found = (await response.json().catch(() => ({}))) as Answer & { error?: { message?: string; help?: string } };
  if (!response.ok) throw new ApiError(response.status, found.error?.message ?? `The endpoint answered ${response.status}.`, found.error?.help ?? null);
  return found;
}

export function TryRequest({ endpoint, champion }: { endpoint: EndpointRecord; champion: ModelVersion | null }) {
  const inputs = ((champion?.signature?.["inputs"] ?? []) as Input[]).slice(0, MOST_FIELDS);
  const [values, setValues] = useState<Record<string, string>>({});
  const [explain, setExplain] = useState(true);
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const body = { rows: [Object.fromEntries(inputs.map((input) => [input.name, typed(input, values[input.name] ?? "")]))], ...(explain ? { explain: true } : {}) };
  const send = async () => {
    setBusy(true);
    setError(null);
    try {
      setAnswer(await predict(endpoint.name, body));
    } catch (failure) {
      setAnswer(null);
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  if (inputs.length === 0) return <Empty title="The champion has no signature to fill in" />;
  return (
    <form
      className="stack"
      onSubmit={(event) => {
        event.preventDefault();
        void send();
      }}
    >
      <div style={{ display: "grid", gridTemplateColumns: "repeat(auto-fill, minmax(9.5rem, 1fr))", gap: "0.6rem", maxHeight: "28rem", overflowY: "auto" }}>
        {inputs.map((input) => (
          <Field key={input.name} input={input} value={values[input.name] ?? ""} change={(next) => setValues({ ...values, [input.name]: next })} />
        ))}
      </div>
      <div className="row">
        <button type="submit" className="button primary" disabled={busy}>
          {busy ? "Waiting…" : "Predict"}
        </button>
        <label className="row small">
          <input type="checkbox" checked={explain} onChange={(event) => setExplain(event.target.checked)} /> Explain it
        </label>
        {endpoint.state !== "ready" && <span className="soft small">The endpoint is {endpoint.state}: start it with everloop up.</span>}
      </div>
      {error && <Problem error={error} />}
      {answer !== null && <Shown answer={answer} />}
      <Command>{`curl -d '${JSON.stringify(body).replaceAll("'", "'\\''")}' -H 'content-type: application/json' ${window.location.origin}/endpoints/${encodeURIComponent(endpoint.name)}/predict`}</Command>
    </form>
  );
}

function Field({ input, value, change }: { input: Input; value: string; change: (next: string) => void }) {
  const choices = input.type === "bool" ? ["true", "false"] : input.categories && input.categories.length <= 200 ? input.categories.map(String) : null;
  return (
    <label className="field">
      <span>
        {input.name} <span style={{ fontWeight: 400 }}>{input.type}</span>
      </span>
      {choices ? (
        <select className="input" value={value} onChange={(event) => change(event.target.value)}>
          <option value="">missing</option>
          {choices.map((one) => (
            <option key={one}>{one}</option>
          ))}
        </select>
      ) : (
        <input className="input" placeholder="missing" inputMode={input.type === "float" || input.type === "int" ? "decimal" : "text"} value={value} onChange={(event) => change(event.target.value)} />
      )}
    </label>
  );
}

/** One row was asked about. */
const SINGULAR: Record<string, string> = { predictions: "prediction", probabilities: "probability" };

const shown = (value: unknown) => (typeof value === "number" ? number(value) : text(value));

function Shown({ answer }: { answer: Answer }) {
  const id = answer.ids?.[0];
  const number_ = answer.versions?.[0] ?? answer.version;
  const version = answer.model !== undefined && number_ !== undefined ? `${answer.model}@${number_}` : null;
  const explanation = answer.explanations?.[0];
  return (
    <div className="stack" role="status" style={{ gap: "0.6rem" }}>
      <p>
        {Object.entries(answer)
          .filter(([name, value]) => !["ids", "versions", "version", "model", "explanations"].includes(name) && Array.isArray(value))
          .map(([name, value]) => (
            <span key={name}>
              {SINGULAR[name] ?? name}: <b>{shown((value as unknown[])[0])}</b>{" "}
            </span>
          ))}
        {version && (
          <>
            from <VersionLink name={version} />{" "}
          </>
        )}
        {id && (
          <>
            as <PredictionLink id={id} />
          </>
        )}
      </p>
      {explanation && <Contributions of={explanation} probability={(answer["probabilities"] as unknown[] | undefined)?.[0]} />}
      <details>
        <summary className="small">The whole answer</summary>
        <pre className="source mono small" tabIndex={0}>
          {JSON.stringify(answer, null, 2)}
        </pre>
      </details>
    </div>
  );
}

/** What each input added to the score, the largest first. */
function Contributions({ of, probability }: { of: Explanation; probability: unknown }) {
  const sorted = Object.entries(of.contributions).sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]));
  // Contributions to a forest add up to the probability itself.
  const sum = sorted.reduce((total, [, value]) => total + value, of.bias);
  const logOdds = typeof probability === "number" && Math.abs(sum - probability) > 1e-6;
  const most = Math.max(1e-12, ...sorted.map(([, value]) => Math.abs(value)));
  return (
    <div>
      <h3>
        What each input added, starting from {number(of.bias)} {logOdds && <span className="soft small">in log-odds</span>}
      </h3>
      <Table
        bare
        rows={sorted.slice(0, 12)}
        label="Contributions"
        rowKey={([name]) => name}
        columns={[
          { title: "Input", cell: ([name]) => name },
          { title: "", cell: ([, value]) => <span className="bar" aria-hidden="true" style={{ minWidth: "7rem", marginTop: "0.45rem" }}><i style={{ width: `${(100 * Math.abs(value)) / most}%`, background: value < 0 ? "var(--s2)" : "var(--s1)" }} /></span> },
          { title: "Contribution", number: true, cell: ([, value]) => `${value < 0 ? "−" : "+"}${number(Math.abs(value))}` },
        ]}
      />
    </div>
  );
}
