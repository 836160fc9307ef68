"""Former results: the newest record with the same fingerprint whose outside state and bytes are still there."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from everloop.stores import Condition, Store

_USABLE = ("ran", "cached")
# Candidates with one fingerprint differ in the outside state that they saw; older ones serve when it comes back.
_CANDIDATES = 5
# How many records to read beside two for each step of the graph.
_NEWEST = 200
_BATCH = 200
_UNREADABLE = "unreadable: "
_OVERLAP = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A result that can be used again."""

    outputs: dict[str, Stored]
    artifacts: dict[str, str]
    """Output name to the id of its artifact."""
    step: StepRun


@dataclass(frozen=True, slots=True)
class CacheMiss:
    """No usable result. `reason` says what became of one with this fingerprint, if there was one."""

    reason: str | None = None


@dataclass
class Cache:
    """Former results of the steps of one graph. What has been looked at is remembered for as long as it lives."""

    store: Store
    _known: dict[str, list[StepRun]] = field(default_factory=dict)
    _last: dict[str, StepRun] = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _since: datetime | None = None
    _whole: bool = False
    _states: dict[str, str] = field(default_factory=dict)

    def prefetch(self, names: Sequence[str]) -> None:
        """Read the newest records once, instead of asking for each step: a run that follows another finds all."""
        # A record is made a moment before it is written.
        self._since = self.store.now() - _OVERLAP
        limit = 2 * len(names) + _NEWEST
        newest = self.store.records.find(StepRun, order="-created_at", limit=limit)
        for step in newest:
            self._remember(step)
        self._whole = len(newest) < limit
        unknown = [] if self._whole else [name for name in names if name not in self._last]
        for batch in _batches(unknown):
            found = self.store.records.find(
                StepRun, ("name", "in", batch), ("status", "in", _USABLE), order="-created_at", limit=3 * len(batch)
            )
            for step in found:
                self._last.setdefault(step.name, step)
        wanted = [key for steps in self._known.values() for step in steps[:1] for key in step.outputs.values()]
        self._load_artifacts(wanted)

    def last(self, name: str) -> StepRun | None:
        """The last time that a step of this name had a result."""
        return self._last.get(name)

    def find(self, fingerprint: str, *, again: bool = False) -> CacheHit | CacheMiss:
        """Look for a usable result.

        Args:
            again: ask the store as well: for results from before the newest, and from other processes since.
        """
        candidates = self._known.get(fingerprint, [])
        found = self._judge(candidates)
        if isinstance(found, CacheHit) or not again:
            return found
        where: list[Condition] = [("fingerprint", "=", fingerprint), ("status", "in", _USABLE)]
        # Among equal fingerprints, the newest id first; and a store that is slow at it learns to index this order.
        order = "-fingerprint"
        if self._whole and self._since is not None:
            # All that is older has been read; what others have finished since is a short way back.
            where.append(("created_at", ">=", self._since))
            order = "-created_at"
        asked = self.store.records.find(StepRun, *where, order=order, limit=_CANDIDATES)
        fresh = [step for step in asked if all(step.id != other.id for other in candidates)]
        if not fresh:
            return found
        return self._judge(fresh)

    def _remember(self, step: StepRun) -> None:
        if step.status in _USABLE:
            self._known.setdefault(step.fingerprint, []).append(step)
            self._last.setdefault(step.name, step)

    def _judge(self, candidates: Sequence[StepRun]) -> CacheHit | CacheMiss:
        """The first candidate that holds, or why the newest does not."""
        why: str | None = None
        seen: list[object] = []
        for step in candidates:
            # A cached record repeats what an earlier one says.
            content = (step.observed, step.outputs)
            if content in seen or len(seen) == _CANDIDATES:
                continue
            seen.append(content)
            trouble = self._changed_source(step)
            if trouble is None:
                hit = self._with_artifacts(step)
                if hit is not None:
                    return hit
                trouble = MISSING
            why = why or trouble
        return CacheMiss(why)

    def _with_artifacts(self, step: StepRun) -> CacheHit | None:
        self._load_artifacts(step.outputs.values())
        outputs: dict[str, Stored] = {}
        for name, key in step.outputs.items():
            artifact = self._artifacts.get(key)
            if artifact is None or not self._is_there(stored := Stored.of(artifact)):
                return None
            outputs[name] = stored
        return CacheHit(outputs, dict(step.outputs), step)

    def _is_there(self, stored: Stored) -> bool:
        objects = self.store.objects
        if not objects.has(stored.digest):
            return False
        if stored.type == ListFormat.name:
            return all(self._is_there(element) for element in load_elements(stored, objects))
        return True

    def _load_artifacts(self, ids: Iterable[str]) -> None:
        unknown = [key for key in dict.fromkeys(ids) if key not in self._artifacts]
        for batch in _batches(unknown):
            for artifact in self.store.records.find(Artifact, ("id", "in", batch)):
                self._artifacts[artifact.id] = artifact

    def _changed_source(self, step: StepRun) -> str | None:
        """What differs outside from what the step saw; None if nothing does."""
        for observation in step.observed:
            kind, spec, state = observation["kind"], observation["spec"], observation["state"]
            key = json.dumps([kind, spec, state], sort_keys=True)
            if key not in self._states:
                try:
                    look: Callable[..., str] = plugins.load("observation", kind)
                    self._states[key] = look(spec, since=state)
                except (EverloopError, OSError) as error:
                    # What cannot be looked at any more has changed; the step itself will say so better.
                    self._states[key] = f"{_UNREADABLE}{error}"
            now = self._states[key]
            if now != state:
                return f"source changed: {_describe(kind, spec, state, now)}"
        return None


def _describe(kind: str, spec: dict[str, Json], old: str, new: str) -> str:
    """What was looked at, and how it differs where its source can say so."""
    patterns = spec.get("patterns")
    if isinstance(patterns, list) and patterns:
        what = ", ".join(map(str, patterns[:3])) + (" and more" if len(patterns) > 3 else "")
    elif kind == "environment":
        what = f"environment variable {spec['name']}"
    else:
        what = str(spec.get("query") or spec.get("path") or spec.get("url") or kind)
    if new.startswith(_UNREADABLE):
        return f"{what} (it cannot be read now)"
    if kind not in plugins.names("observation_change"):
        return what
    change: Callable[[str, str], str] = plugins.load("observation_change", kind)
    said = change(old, new)
    return f"{what} ({said})" if said else what


def _batches(values: Sequence[str]) -> Iterable[list[str]]:
    for start in range(0, len(values), _BATCH):
        yield list(values[start : start + _BATCH])
