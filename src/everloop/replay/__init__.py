"""Replay: run a loop over history, once for each policy, and recommend one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.replay.policies import Policy as Policy
    from everloop.replay.replay_history import ReplayHistory as ReplayHistory, build_history as build_history
    from everloop.replay.replay_result import PolicyOutcome as PolicyOutcome, ReplayResult as ReplayResult
    from everloop.replay.replaying import replay as replay

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "replay_history": ["ReplayHistory", "build_history"],
        "policies": ["Policy"],
        "replay_result": ["PolicyOutcome", "ReplayResult"],
        "replaying": ["replay"],
    },
)


class _CallableRoom(ModuleType):
    """Lets `el.replay(...)` work although `everloop.replay` is also this package."""

    def __call__(self, *args: Any, **kwargs: Any) -> ReplayResult:
        from everloop.replay.replaying import replay as run_replay

        return run_replay(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
