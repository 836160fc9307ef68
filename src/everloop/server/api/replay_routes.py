"""HTTP routes that start a replay of a loop in the project that `everloop up` keeps up.

GET  /api/v1/replays     whether a replay can be started here, the loops, and the newest attempts
POST /api/v1/replays     {loop, policies?, every?}; needs the role `editor`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import get, post

from everloop.errors import UsageError
from everloop.records import Run
from everloop.replay.policies import NAMES
from everloop.server.replay_process import ReplayAttempt, ReplayProcess
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.request_values import Name
from everloop.stores.durations import parse_duration

_RUNS_READ = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """Which loop is replayed. Without `policies`, the usual ones are compared. `every`: the length of a period."""

    loop: Name
    policies: Annotated[tuple[Name, ...], msgspec.Meta(max_length=20)] = ()
    every: Annotated[str, msgspec.Meta(max_length=20)] = "1w"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayState:
    """`can_start`: this server knows the project's files. `loops` have run in this project."""

    can_start: bool
    loops: list[str]
    policies: list[str]
    attempts: list[ReplayAttempt]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedReplay:
    id: str


def routes(replays: ReplayProcess) -> list[Any]:
    """Return the routes of a server that starts replays with this object."""

    @get("/api/v1/replays", sync_to_thread=True, opt={NEEDS: "viewer"})
    def state(request: ApiRequest) -> ReplayState:
        """Return what can be replayed, and the newest replays that were started here."""
        store = store_of(request)
        return ReplayState(
            can_start=replays.folder is not None,
            loops=_loops(request),
            policies=list(NAMES),
            attempts=replays.attempts(store),
        )

    @post("/api/v1/replays", sync_to_thread=True, opt={NEEDS: "editor"})
    def start(request: ApiRequest, data: JsonBody[ReplayRequest]) -> StartedReplay:
        """Start a replay in a process of its own. Its result is kept when it ends."""
        known = _loops(request)
        if data.loop not in known:
            raise UsageError(
                f"No loop '{data.loop[:80]}' has run in this project.", help=f"Loops: {', '.join(known) or 'none'}"
            )
        if wrong := [name for name in data.policies if name not in NAMES]:
            raise UsageError(f"Unknown policy '{wrong[0][:80]}'.", help=f"Policies: {', '.join(NAMES)}")
        if parse_duration(data.every).total_seconds() <= 0:
            raise UsageError(f"every={data.every} is not a duration above zero.", help="For example: every=1w")
        return StartedReplay(id=replays.start(store_of(request), data.loop, data.policies, data.every))

    return [state, start]


def _loops(request: ApiRequest) -> list[str]:
    runs = store_of(request).records.find(Run, order="-created_at", limit=_RUNS_READ)
    return sorted({run.loop for run in runs if run.loop})
