"""Trace lineage: prediction → version → package → run → steps, snapshot, code, sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError
from everloop.records import Artifact, Json, ModelVersion, Prediction, Release, Run, Snapshot, StepRun

if TYPE_CHECKING:
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Lineage:
    """Everything that one record was made from. Fields that do not apply are None or empty."""

    thing: str
    prediction: Prediction | None = None
    version: ModelVersion | None = None
    release: Release | None = None
    run: Run | None = None
    snapshot: Snapshot | None = None
    code: str | None = None
    """Digest over the code of the run's steps."""
    steps: dict[str, str] = field(default_factory=dict)
    """Step name to the digest of its code."""
    sources: list[dict[str, Json]] = field(default_factory=list)
    """External data that the steps read, each with its state at that time."""


def trace_lineage(store: Store, thing: str) -> Lineage:
    """Trace a record back to its code and data.

    Args:
        thing: the id of a prediction, run or version, `MODEL@VERSION`, `DATASET@VERSION`, the name of a model, or the
            digest of an artifact.

    Raises:
        NotFoundError: the store has no such record.
    """
    if "@" in thing:
        snapshots = store.records.find(Snapshot, ("key", "=", thing), limit=1)
        versions = store.records.find(ModelVersion, ("key", "=", thing), limit=1)
        if snapshots and not versions:
            start = Lineage(thing, snapshot=snapshots[0], sources=[dict(source) for source in snapshots[0].sources])
            return _of_run(store, start, snapshots[0].run)
        return _of_version(store, thing, thing)
    if thing.startswith("sha256:"):
        artifacts = store.records.find(Artifact, ("digest", "=", thing), order="id", limit=1)
        if artifacts:
            return _of_run(store, Lineage(thing), artifacts[0].run)
    else:
        if store.records.find(Run, ("id", "=", thing), limit=1):
            return _of_run(store, Lineage(thing), thing)
        versions = store.records.find(ModelVersion, ("id", "=", thing), limit=1)
        if versions:
            return _of_version(store, thing, versions[0].key)
        from everloop.prediction_log import find_prediction

        prediction = find_prediction(store, thing)
        if prediction is not None:
            return _of_version(store, thing, prediction.version, prediction)
        if store.records.find(ModelVersion, ("model", "=", thing), limit=1):
            return _of_version(store, thing, thing)
    raise NotFoundError(
        f"The store has no prediction, version, snapshot, run or artifact '{thing}'.",
        help="Give a prediction's id, MODEL@VERSION, DATASET@VERSION, a run's id or an artifact's digest.",
    )


def _of_version(store: Store, thing: str, ref: str, prediction: Prediction | None = None) -> Lineage:
    from everloop.registry import get_version

    version = get_version(store, ref)
    releases = store.records.find(Release, ("candidate", "=", version.key), order="-created_at", limit=1)
    snapshots = store.records.find(Snapshot, ("key", "=", version.snapshot), limit=1) if version.snapshot else []
    start = Lineage(
        thing,
        prediction=prediction,
        version=version,
        release=releases[0] if releases else None,
        snapshot=snapshots[0] if snapshots else None,
        code=version.code,
    )
    return _of_run(store, start, version.run)


def _of_run(store: Store, start: Lineage, run_id: str | None) -> Lineage:
    runs = store.records.find(Run, ("id", "=", run_id), limit=1) if run_id is not None else []
    if run_id is None or not runs:
        return start  # a version outlives its run and its snapshot, which can be deleted
    run = runs[0]
    steps = store.records.find(StepRun, ("run", "=", run_id), order="id")
    sources: list[dict[str, Json]] = []
    for step in steps:
        for seen in step.observed:
            if seen not in sources:
                sources.append({"step": step.name, **seen})
    snapshot = start.snapshot or _snapshot_of(store, run_id)
    return Lineage(
        start.thing,
        prediction=start.prediction,
        version=start.version,
        release=start.release,
        run=run,
        snapshot=snapshot,
        code=start.code or run.source.code,
        steps={step.name: step.code for step in steps},
        sources=sources,
    )


def _snapshot_of(store: Store, run_id: str) -> Snapshot | None:
    found = store.records.find(Snapshot, ("run", "=", run_id), limit=1)
    return found[0] if found else None
