"""The pages about replays: those that runs have kept, and one with its policies side by side."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from everloop.errors import DataError, NotFoundError
from everloop.records import Artifact, Run
from everloop.replay.replay_records import REPLAY, find_replays
from everloop.server.views.artifact_views import json_value

if TYPE_CHECKING:
    from everloop.stores import Store

_MOST = 200


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """A replay in the list."""

    id: str
    """Id of the artifact that holds its result."""
    run: str
    title: str
    at: datetime
    metric: str
    policies: int
    recommended: str | None


@dataclass(frozen=True, slots=True)
class ReplayDetail:
    """A replay and its run. `result` is what `everloop replay --json` prints."""

    id: str
    run: Run
    result: dict[str, Any]


def list_replays(store: Store) -> list[ReplaySummary]:
    """Return the replays that were kept, newest first."""
    return [
        ReplaySummary(
            id=one.id,
            run=one.run,
            title=str(one.meta.get("title", "")),
            at=one.created_at,
            metric=str(one.meta.get("metric", "")),
            policies=int(cast("int", one.meta.get("policies", 0))),
            recommended=cast("str | None", one.meta.get("recommended")),
        )
        for one in find_replays(store, _MOST)
    ]


def read_replay(store: Store, ref: str) -> ReplayDetail:
    """Return one replay by the id of its artifact.

    Raises:
        NotFoundError: there is no such replay.
        DataError: its artifact is not the result of a replay.
    """
    artifact = store.records.get(Artifact, ref)
    if artifact.name != REPLAY:
        raise NotFoundError(f"The artifact '{artifact.name}' is not a replay.", help="Keep one with: everloop replay")
    result = json_value(store, artifact)
    if not isinstance(result, dict) or not isinstance(result.get("policies"), dict):
        raise DataError(f"The artifact '{ref}' is not the result of a replay.", help="Keep one with: everloop replay")
    return ReplayDetail(artifact.id, store.records.get(Run, artifact.run), result)
