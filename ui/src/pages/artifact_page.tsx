// One artifact of a run: text, JSON, a picture, or the first rows of a table. Nothing that it contains runs here.
import { useApi } from "../api/client";
import type { ArtifactPreview } from "../api/schema";
import { Card, Empty, Head, LoadedPage, Time, useTitle } from "../components/basics";
import { bytes, count } from "../format";
import { href } from "../router";

/** The server sends no larger files. */
const MOST_SENT = 32 * 1024 * 1024;

export function ArtifactPage({ id }: { id: string }) {
  const found = useApi<ArtifactPreview>(`views/artifacts/${encodeURIComponent(id)}`);
  useTitle(found.data ? found.data.artifact.name : "Artifact");
  return (
    <LoadedPage of={found} title="Artifact" crumbs={<a href={href("runs")}>Runs</a>}>
      {(preview) => <Detail preview={preview} />}
    </LoadedPage>
  );
}

function Detail({ preview }: { preview: ArtifactPreview }) {
  const { artifact } = preview;
  return (
    <>
      <Head
        crumbs={
          <>
            <a href={href("runs")}>Runs</a> / <a href={href(["runs", artifact.run])}>{artifact.run.slice(-12)}</a>
          </>
        }
        title={<bdi>{artifact.name}</bdi>}
        sub={
          <>
            <span className="tag">{artifact.type}</span> {bytes(artifact.size_bytes)} · {artifact.step ? `step ${artifact.step} · ` : ""}
            <Time at={artifact.created_at} /> · <span className="mono small">{artifact.digest.slice(0, 19)}</span>
          </>
        }
      >
        {artifact.type !== "tree" && artifact.size_bytes <= MOST_SENT && (
          <a className="button" href={`api/v1/artifacts/${encodeURIComponent(artifact.id)}/content`} target="_blank" rel="noopener noreferrer">
            {preview.shows === "html" ? "Open without scripts" : "Open the file"}
          </a>
        )}
      </Head>
      <Card>
        <Content preview={preview} />
      </Card>
    </>
  );
}

function Content({ preview }: { preview: ArtifactPreview }) {
  const { artifact, table } = preview;
  switch (preview.shows) {
    case "image":
      return <img className="picture" src={`api/v1/artifacts/${encodeURIComponent(artifact.id)}/content`} alt={artifact.name} />;
    case "text":
    case "json":
    case "html":
      return (
        <>
          {preview.shows === "html" && <p className="soft small">This is HTML, shown as its source.</p>}
          <pre className="source mono small" tabIndex={0} aria-label={`Content of ${artifact.name}`}>
            {preview.text}
          </pre>
          {preview.cut && <p className="soft small">The rest is cut off. Open the file to see all of it.</p>}
        </>
      );
    case "table":
      return table ? <Rows table={table} /> : null;
    case "folder":
      return (
        <ul className="files mono small">
          {Object.entries(preview.files ?? {}).map(([path, size]) => (
            <li key={path}>
              {path} <span className="soft">{bytes(size)}</span>
            </li>
          ))}
          {preview.cut && <li className="soft">… and more</li>}
        </ul>
      );
    default:
      return <Empty title="It cannot be shown here">{preview.reason}</Empty>;
  }
}

function Rows({ table }: { table: NonNullable<ArtifactPreview["table"]> }) {
  return (
    <>
      <p className="soft small">
        {count(table.rows.length)} of {count(table.total_rows)} rows
        {table.total_columns > table.columns.length ? `, ${count(table.columns.length)} of ${count(table.total_columns)} columns` : ""}
      </p>
      <div className="scroll" tabIndex={0} role="region" aria-label="The first rows" style={{ maxHeight: "36rem", overflowY: "auto" }}>
        <table>
          <thead>
            <tr>
              {table.columns.map((name, index) => (
                <th key={name} title={table.types[index]}>
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {table.rows.map((row, index) => (
              <tr key={index}>
                {row.map((value, at) => (
                  <td key={at} className="nowrap small">
                    {value === null ? <span className="soft">missing</span> : value.slice(0, 80)}
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
