"""The cache of results: the newest record with the same fingerprint whose outside state and bytes are unchanged."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from everloop import plugins
from everloop.errors import EverloopError
from everloop.pipeline.artifacts import Stored
from everloop.pipeline.artifacts.lists import ListFormat, load_elements
from everloop.pipeline.fingerprint import MISSING
from everloop.records import Artifact, Json, StepRun
from everloop.stores import checked_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from everloop.stores import Condition, Store

_USABLE = ("ran", "cached")
# Records with one fingerprint differ in the outside state that they saw. An older one can be used if its state is back.
_CANDIDATES = 5
# How many records to prefetch, in addition to two for each step of the graph.
_NEWEST = 200
_BATCH = 200
_UNREADABLE = "unreadable: "
_OVERLAP = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class CacheHit:
    """An earlier result that can be used again."""

    outputs: dict[str, Stored]
    artifacts: dict[str, str]
    """Output name to the id of its artifact."""
    step: StepRun


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """No usable result. `reason` says why the newest one with this fingerprint is not usable; None if there is none."""

    reason: str | None = None


@dataclass
class Cache:
    """Earlier results of one graph's steps. Records and outside states that were read once are remembered."""

    store: Store
    _by_fingerprint: dict[str, list[StepRun]] = field(default_factory=dict)
    _last: dict[str, StepRun] = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _since: datetime | None = None
    _has_all: bool = False
    """Whether `prefetch` has read every record of the store."""
    _states: dict[str, str] = field(default_factory=dict)

    def prefetch(self, names: Sequence[str]) -> None:
        """Read the newest records in one query instead of one per step. A second run finds all of its results there."""
        # Records are created a moment before they are written.
        self._since = self.store.now() - _OVERLAP
        limit = 2 * len(names) + _NEWEST
        newest = self.store.records.find(StepRun, order="-created_at", limit=limit)
        for step in newest:
            self._remember(step)
        self._has_all = len(newest) < limit
        unknown = [] if self._has_all else [name for name in names if name not in self._last]
        for batch in _batches(unknown):
            found = self.store.records.find(
                StepRun, ("name", "in", batch), ("status", "in", _USABLE), order="-created_at", limit=3 * len(batch)
            )
            for step in found:
                self._last.setdefault(step.name, step)
        wanted = [key for steps in self._by_fingerprint.values() for step in steps[:1] for key in step.outputs.values()]
        self._load_artifacts(wanted)

    def last(self, name: str) -> StepRun | None:
        """The newest record of this step that has a result."""
        return self._last.get(name)

    def find(self, fingerprint: str, *, again: bool = False) -> CacheHit | CacheMiss:
        """Look for a usable result.

        Args:
            again: also query the store, for results that are older than the prefetched ones, and for those that
                other processes have written since.
        """
        candidates = self._by_fingerprint.get(fingerprint, [])
        found = self._check(candidates)
        if isinstance(found, CacheHit) or not again:
            return found
        where: list[Condition] = [("fingerprint", "=", fingerprint), ("status", "in", _USABLE)]
        # Equal fingerprints come with the newest id first. If the query is slow, the store adds an index for it.
        order = "-fingerprint"
        if self._has_all and self._since is not None:
            # All older records have been read, so only those that others have written since are needed.
            where.append(("created_at", ">=", self._since))
            order = "-created_at"
        stored = self.store.records.find(StepRun, *where, order=order, limit=_CANDIDATES)
        fresh = [step for step in stored if all(step.id != other.id for other in candidates)]
        if not fresh:
            return found
        return self._check(fresh)

    def _remember(self, step: StepRun) -> None:
        if step.status in _USABLE:
            self._by_fingerprint.setdefault(step.fingerprint, []).append(step)
            self._last.setdefault(step.name, step)

    def _check(self, candidates: Sequence[StepRun]) -> CacheHit | CacheMiss:
        """The first candidate that is still valid, or why the newest is not."""
        reason: str | None = None
        seen: list[object] = []
        for step in candidates:
            # The record of a cached step repeats an earlier record.
            content = (step.observed, step.outputs)
            if content in seen or len(seen) == _CANDIDATES:
                continue
            seen.append(content)
            problem = self._changed_source(step)
            if problem is None:
                hit = self._with_artifacts(step)
                if hit is not None:
                    return hit
                problem = MISSING
            reason = reason or problem
        return CacheMiss(reason)

    def _with_artifacts(self, step: StepRun) -> CacheHit | None:
        self._load_artifacts(step.outputs.values())
        outputs: dict[str, Stored] = {}
        for name, key in step.outputs.items():
            artifact = self._artifacts.get(key)
            if artifact is None or not self._exists(stored := Stored.of(artifact)):
                return None
            outputs[name] = stored
        return CacheHit(outputs, dict(step.outputs), step)

    def _exists(self, stored: Stored) -> bool:
        objects = self.store.objects
        if not objects.has(stored.digest):
            return False
        if stored.type == ListFormat.name:
            return all(self._exists(element) for element in load_elements(stored, objects))
        return True

    def _load_artifacts(self, ids: Iterable[str]) -> None:
        unknown = [key for key in dict.fromkeys(ids) if key not in self._artifacts]
        for batch in _batches(unknown):
            for artifact in self.store.records.find(Artifact, ("id", "in", batch)):
                self._artifacts[artifact.id] = artifact

    def _changed_source(self, step: StepRun) -> str | None:
        """Which outside state differs from what the step read; None if all is the same."""
        for observation in step.observed:
            kind, spec, state = observation["kind"], observation["spec"], observation["state"]
            key = json.dumps([kind, spec, state], sort_keys=True)
            if key not in self._states:
                try:
                    read_state: Callable[..., str] = plugins.load("observation", kind)
                    with checked_in(self.store):
                        self._states[key] = read_state(spec, since=state)
                except (EverloopError, OSError) as error:
                    # State that cannot be read any more counts as changed; the step itself gives the better error.
                    self._states[key] = f"{_UNREADABLE}{error}"
            now = self._states[key]
            if now != state:
                return f"source changed: {_describe(kind, spec, state, now)}"
        return None


def _describe(kind: str, spec: dict[str, Json], old: str, new: str) -> str:
    """The name of a source, and how it differs if its plugin can describe that."""
    patterns = spec.get("patterns")
    if isinstance(patterns, list) and patterns:
        source = ", ".join(map(str, patterns[:3])) + (" and more" if len(patterns) > 3 else "")
    elif kind == "environment":
        source = f"environment variable {spec['name']}"
    else:
        source = str(spec.get("query") or spec.get("path") or spec.get("url") or kind)
    if new.startswith(_UNREADABLE):
        return f"{source} (it cannot be read now)"
    if kind not in plugins.names("observation_change"):
        return source
    describe_change: Callable[[str, str], str] = plugins.load("observation_change", kind)
    change = describe_change(old, new)
    return f"{source} ({change})" if change else source


def _batches(values: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(values), _BATCH):
        yield list(values[start : start + _BATCH])
