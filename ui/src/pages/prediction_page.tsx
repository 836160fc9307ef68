// One answer of an endpoint: what came in, what went out, whether it was right, and everything that it came from.
import { useMemo } from "react";
import { useApi } from "../api/client";
import type { PredictionDetail } from "../api/schema";
import { Graph } from "../charts/graph";
import { Card, Command, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
import { EndpointLink, VersionLink } from "../components/record_links";
import { Facts, Table } from "../components/table";
import { text } from "../format";
import { href } from "../router";

export function PredictionPage({ id }: { id: string }) {
  useTitle("Prediction");
  const found = useApi<PredictionDetail>(`views/predictions/${encodeURIComponent(id)}`);
  return (
    <>
      <Head crumbs={<a href={href("models")}>Models</a>} title="Prediction" sub={<span className="mono small">{id}</span>}>
        <Command>{`everloop lineage ${shell(id)}`}</Command>
      </Head>
      <Loaded of={found}>{(detail) => <Detail detail={detail} />}</Loaded>
    </>
  );
}

function Detail({ detail }: { detail: PredictionDetail }) {
  const { prediction } = detail;
  const nodes = useMemo(() => detail.lineage.map((node) => ({ ...node, tone: node.kind === "answer" ? "var(--accent)" : "var(--line)" })), [detail]);
  return (
    <div className="grid">
      <Card title="From data and code to this answer" span="c12">
        {nodes.length === 0 ? <Empty title="Its version is no longer in the store" /> : <Graph nodes={nodes} label="Lineage of the prediction" />}
      </Card>
      <Card title="Answer" span="c5">
        <Facts
          of={[
            ["Endpoint", <EndpointLink name={prediction.endpoint} />],
            ["Version", <VersionLink name={prediction.version} />],
            ["Role", prediction.role],
            ["Event", <Time at={prediction.event_at} precise />],
            ["Answered", <Time at={prediction.arrived_at} precise />],
            ["Key", prediction.entity],
            ...Object.entries(prediction.outputs ?? {}).map(([name, value]) => [`Predicted ${name}`, <b>{text(value)}</b>] as const),
            ["Label", detail.actual ? <b>{detail.actual}</b> : <span className="soft">has not arrived yet</span>],
            ["Label arrived", detail.labelled_at ? <Time at={detail.labelled_at} precise /> : null],
            ["Process", <span className="mono small">{prediction.instance}</span>],
          ]}
        />
      </Card>
      <Card title="Inputs" span="c7">
        <Table
          bare
          rows={Object.entries(prediction.inputs ?? {})}
          label="Inputs"
          rowKey={([name]) => name}
          height="30rem"
          columns={[
            { title: "Input", cell: ([name]) => name },
            { title: "Value", cell: ([, value]) => (value === null ? <span className="soft">missing</span> : text(value)) },
          ]}
        />
      </Card>
    </div>
  );
}
