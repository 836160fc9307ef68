"""Compare two versions: what differs, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.packages.package import get_package
from everloop.records import Json, ModelVersion, Run, Snapshot, Source, StepRun
from everloop.registry.model_versions import get_version

if TYPE_CHECKING:
    from everloop.stores import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """A metric of two versions; None if a version does not have it. `change` is b minus a."""

    a: float | None
    b: float | None
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A value of two versions; None if a version does not have it."""

    a: Json
    b: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDiff:
    """What differs between two versions. `metrics` holds every metric, the other fields only differences."""

    a: str
    b: str
    metrics: dict[str, MetricChange] = field(default_factory=dict)
    data: dict[str, Change] = field(default_factory=dict)
    """Snapshot, digest, rows, time range, and each column that was added or removed or has another type."""
    params: dict[str, Change] = field(default_factory=dict)
    signature: dict[str, Change] = field(default_factory=dict)
    """By name of an input or output; also `task` and `classes`."""
    packages: dict[str, Change] = field(default_factory=dict)
    """Versions of Python and of distributions in the environments of the two runs."""
    code: dict[str, Change] = field(default_factory=dict)
    """Digest of each step's code, and the git commit."""
    tags: dict[str, Change] = field(default_factory=dict)
    facts: dict[str, Change] = field(default_factory=dict)
    """Run, package, format, size, state and the like."""

    @property
    def same_package(self) -> bool:
        return "package" not in self.facts


def diff_versions(store: Store, a: str, b: str) -> VersionDiff:
    """Compare two versions, each given as `get_version` takes it.

    Raises:
        NotFoundError: one of them does not exist.
    """
    left, right = get_version(store, a), get_version(store, b)
    runs = _run(store, left), _run(store, right)
    sources = [run.source if run else None for run in runs]
    return VersionDiff(
        a=left.key,
        b=right.key,
        metrics={
            name: _metric(left.metrics.get(name), right.metrics.get(name))
            for name in sorted({*left.metrics, *right.metrics})
        },
        data=_changes(_data(store, left), _data(store, right)),
        params=_changes(*(run.params if run else {} for run in runs)),
        signature=_changes(_signature(left.signature), _signature(right.signature)),
        packages=_changes(*(_environment(source) for source in sources)),
        code=_changes(_code(store, left, runs[0]), _code(store, right, runs[1])),
        tags=_changes(left.tags, right.tags),
        facts=_changes(_facts(store, left), _facts(store, right)),
    )


def _metric(a: float | None, b: float | None) -> MetricChange:
    return MetricChange(a=a, b=b, change=None if a is None or b is None else b - a)


def _changes(a: Mapping[str, Json], b: Mapping[str, Json]) -> dict[str, Change]:
    return {name: Change(a=a.get(name), b=b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)}


def _signature(signature: Mapping[str, Json]) -> dict[str, Json]:
    flat: dict[str, Any] = {name: signature.get(name) for name in ("task", "classes")}
    for side in ("inputs", "outputs"):
        for index, column in enumerate(signature.get(side) or ()):
            if isinstance(column, Mapping):
                name = column.get("name", index)
                flat[f"{side}.{name}"] = {key: value for key, value in column.items() if key != "name"}
    return flat


def _facts(store: Store, version: ModelVersion) -> dict[str, Json]:
    facts: dict[str, Json] = {
        "state": version.state,
        "package": version.package,
        "code": version.code,
        "run": version.run,
    }
    try:
        package = get_package(store, version.package)
    except NotFoundError:
        return facts
    return {**facts, "format": package.format, "size_bytes": package.size_bytes, "compiled": package.compiled}


def _data(store: Store, version: ModelVersion) -> dict[str, Json]:
    found = store.records.find(Snapshot, ("key", "=", version.snapshot), limit=1) if version.snapshot else []
    if not found:
        return {"snapshot": version.snapshot}
    data = found[0]
    times = {name: at.isoformat() if at else None for name, at in (("from", data.starts_at), ("to", data.ends_at))}
    columns: dict[str, Json] = {f"column {name}": kind for name, kind in data.columns.items()}
    return {"snapshot": data.key, "digest": data.digest, "rows": data.rows, **times, "target": data.target, **columns}


def _environment(source: Source | None) -> dict[str, Json]:
    return {"python": source.python, **source.packages} if source else {}


def _run(store: Store, version: ModelVersion) -> Run | None:
    found = store.records.find(Run, ("id", "=", version.run), limit=1) if version.run else []
    return found[0] if found else None


def _code(store: Store, version: ModelVersion, run: Run | None) -> dict[str, Json]:
    if run is None:
        return {}
    steps: dict[str, Json] = {step.name: step.code for step in store.records.find(StepRun, ("run", "=", run.id))}
    return {**steps, "git commit": run.source.git_commit} if run.source.git_commit else steps
