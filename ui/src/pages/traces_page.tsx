// Traces of programs that call language models, from MLflow's and OpenTelemetry's clients, and one with its spans.
import { useApi } from "../api/client";
import type { TraceDetail, TraceSpan } from "../api/schema";
import { Badge, Card, Empty, Head, Loaded, Time, useTitle } from "../components/basics";
import { RunLink } from "../components/record_links";
import { Facts, Table } from "../components/table";
import { counted, duration } from "../format";
import { href } from "../router";

type Trace = TraceDetail["trace"];

export function TracesPage() {
  useTitle("Traces");
  const found = useApi<Trace[]>("trace?limit=200", ["trace"]);
  return (
    <>
      <Head title="Traces" sub="Requests through programs, as trees of spans." />
      <Card>
        <Loaded of={found}>
          {(traces) => (
            <Table
              rows={traces}
              label="Traces"
              rowKey={(one) => one.id}
              empty={<Empty title="No traces yet">Point MLflow's or OpenTelemetry's client at this server: its traces appear here.</Empty>}
              columns={[
                {
                  title: "Trace",
                  cell: (one) => (
                    <a className="mono small" href={href(["traces", one.trace_id])}>
                      {one.trace_id.slice(0, 16)}
                    </a>
                  ),
                },
                { title: "State", cell: (one) => <Badge state={one.state ?? "unset"} /> },
                { title: "When", cell: (one) => <Time at={one.requested_at} /> },
                { title: "Took", number: true, cell: (one) => duration(one.seconds) },
                { title: "Request", className: "small", cell: (one) => one.request_preview?.slice(0, 160) },
                { title: "Response", className: "small", cell: (one) => one.response_preview?.slice(0, 160) },
              ]}
            />
          )}
        </Loaded>
      </Card>
    </>
  );
}

export function TracePage({ id }: { id: string }) {
  useTitle("Trace");
  const found = useApi<TraceDetail>(`views/traces/${encodeURIComponent(id)}`, ["trace"]);
  return (
    <>
      <Head crumbs={<a href={href("traces")}>Traces</a>} title="Trace" sub={<span className="mono small">{id}</span>} />
      <Loaded of={found}>{(detail) => <Detail detail={detail} />}</Loaded>
    </>
  );
}

function Detail({ detail }: { detail: TraceDetail }) {
  const { trace } = detail;
  return (
    <div className="grid">
      <Card title="Request and response" span="c12">
        <Facts
          of={[
            ["State", <Badge state={trace.state ?? "unset"} />],
            ["When", <Time at={trace.requested_at} precise />],
            ["Took", duration(trace.seconds)],
            ["Request", trace.request_preview],
            ["Response", trace.response_preview],
            ["Runs", (trace.runs ?? []).length > 0 ? (trace.runs ?? []).map((run) => <RunLink key={run} id={run} />) : null],
            ...Object.entries(trace.tags ?? {}).map(([name, value]) => [name, value] as const),
          ]}
        />
      </Card>
      <Card title="Spans" span="c12">
        {detail.spans.length === 0 ? <Empty title="No spans have arrived" /> : <Spans spans={detail.spans} />}
        {detail.left_out > 0 && <p className="soft small">{counted(detail.left_out, "more span")} not shown.</p>}
      </Card>
    </div>
  );
}

function Spans({ spans }: { spans: TraceSpan[] }) {
  const end = Math.max(1e-6, ...spans.map((span) => span.starts + (span.seconds ?? 0)));
  return (
    <div className="gantt">
      {spans.map((span) => (
        <div key={span.id} style={{ display: "contents" }}>
          <span className="name" style={{ paddingLeft: `${Math.min(span.depth, 12) * 0.9}rem` }}>
            <b>{span.name}</b> {span.status === "error" && <Badge state="error" />}
          </span>
          <span className="lane">
            <i className={span.status === "error" ? "failed" : "ran"} style={{ left: `${(100 * span.starts) / end}%`, width: `${(100 * (span.seconds ?? 0)) / end}%` }} />
          </span>
          <span className="soft small">{span.seconds === null ? "not ended" : duration(span.seconds)}</span>
          <div className="note soft small">
            {span.message && <p>{span.message}</p>}
            {Object.keys(span.attributes).length > 0 && (
              <details>
                <summary>{counted(Object.keys(span.attributes).length, "attribute")}</summary>
                <Facts of={Object.entries(span.attributes).map(([name, value]) => [name, <span className="mono pre">{value}</span>] as const)} />
              </details>
            )}
          </div>
        </div>
      ))}
    </div>
  );
}
