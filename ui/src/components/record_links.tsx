// Links to the pages of records, with the name under which people know them.
import { href } from "../router";

export function VersionLink({ name }: { name: string }) {
  const at = name.lastIndexOf("@");
  return <a href={href(["models", name.slice(0, at), name.slice(at + 1)])}>{name}</a>;
}

export function SnapshotLink({ name }: { name: string | null | undefined }) {
  return name ? <a href={href(["data", name])}>{name}</a> : <span className="soft">–</span>;
}

export function EndpointLink({ name }: { name: string | null | undefined }) {
  return name ? <a href={href(["endpoints", name])}>{name}</a> : <span className="soft">–</span>;
}

export function RunLink({ id, length = 8 }: { id: string; length?: number }) {
  return (
    <a className="mono small" href={href(["runs", id])}>
      {id.slice(-length)}
    </a>
  );
}

export function PredictionLink({ id }: { id: string }) {
  return (
    <a className="mono small" href={href(["predictions", id])} title={id}>
      {id.slice(0, 8)}…{id.slice(36)}
    </a>
  );
}
