"""Where something came from, as a graph that can be drawn: sources and code → snapshot → run → version → answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError
from everloop.records import Package

if TYPE_CHECKING:
    from everloop.loop.lineage import Lineage
    from everloop.records import ModelVersion, Release
    from everloop.stores import Store

_MOST_SOURCES = 12
_MOST_RELEASES = 3


@dataclass(frozen=True, slots=True)
class LineageNode:
    """A record in the graph from data and code to the answers of a version."""

    id: str
    kind: str
    title: str
    detail: str
    link: str
    """Address of a page inside the web page; empty if there is none."""
    parents: list[str]


def lineage_nodes(store: Store, thing: str, releases: list[Release] | None = None) -> list[LineageNode]:
    """Return the graph of a version or an answer; empty if the store does not know it.

    Args:
        thing: as for `trace_lineage`.
        releases: of the version, newest first. Default: the newest one.
    """
    from everloop.loop.lineage import trace_lineage

    try:
        traced = trace_lineage(store, thing)
    except NotFoundError:
        return []
    nodes = _origins(traced)
    before = [nodes[-1].id] if traced.run is not None else [node.id for node in nodes if node.id == "snapshot"]
    if traced.version is None:
        return nodes
    nodes += _packaged(store, traced.version, before)
    last = nodes[-1].id
    shown = releases if releases is not None else [traced.release] if traced.release is not None else []
    for release in shown[:_MOST_RELEASES]:
        state = release.state.replace("_", " ")
        link = f"endpoints/{release.endpoint}"
        nodes.append(LineageNode(release.id, "release", release.endpoint, state, link, [last]))
    if traced.prediction is not None:
        answer = traced.prediction
        parents = [node.id for node in nodes if node.kind == "release"] or [last]
        detail = f"{answer.event_at:%Y-%m-%d %H:%M} UTC"
        nodes.append(LineageNode(answer.id, "answer", answer.id[:8], detail, f"predictions/{answer.id}", parents))
    return nodes


def _origins(traced: Lineage) -> list[LineageNode]:
    nodes: list[LineageNode] = []
    for number, source in enumerate(traced.sources[:_MOST_SOURCES]):
        spec = source.get("spec")
        kind = str(source.get("kind"))
        title = _words(next(iter(spec.values()), kind)) if isinstance(spec, dict) else kind
        nodes.append(LineageNode(f"source{number}", "source", title[-80:], f"read by {source.get('step')}", "", []))
    sources = [node.id for node in nodes]
    run = traced.run
    if traced.code:
        link = f"runs/{run.id}" if run is not None else ""
        nodes.append(LineageNode("code", "code", traced.code[7:19], f"{len(traced.steps)} steps", link, []))
    if traced.snapshot is not None:
        snapshot = traced.snapshot
        link = f"data/{snapshot.key}"
        nodes.append(LineageNode("snapshot", "snapshot", snapshot.key, f"{snapshot.rows:,} rows", link, sources))
    if run is not None:
        parents = [node.id for node in nodes if node.id in ("snapshot", "code")] or sources
        nodes.append(LineageNode("run", "run", run.name, run.trigger or "", f"runs/{run.id}", parents))
    return nodes


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _packaged(store: Store, version: ModelVersion, before: list[str]) -> list[LineageNode]:
    """Return the version, and its package in front of it."""
    nodes = []
    found = store.records.find(Package, ("digest", "=", version.package), limit=1) if version.package else []
    if found:
        nodes.append(LineageNode("package", "package", found[0].digest[7:19], found[0].format, "", before))
        before = ["package"]
    link = f"models/{version.model}/{version.version}"
    nodes.append(LineageNode("version", "version", version.key, version.state, link, before))
    return nodes
