"""The loop: declared once, turned again and again, watched, and decided by evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.loop.declaration import Loop
    from everloop.loop.parts import (
        AtLeast,
        Canary,
        Drift,
        Due,
        Endpoint,
        Every,
        Latency,
        NotWorseThan,
        OnDrift,
        OnNewData,
        OnPerformance,
        Performance,
        Slices,
    )
    from everloop.loop.project import Project, load_project
    from everloop.loop.rollout import abort_release, advance_release, move_alias, promote, roll_back
    from everloop.loop.ticking import Tick, tick
    from everloop.loop.turn import Turn, explain_turn, take_turn
    from everloop.loop.views import backfill, materialize

_HOME = {
    "Loop": "declaration",
    "AtLeast": "parts",
    "Canary": "parts",
    "Drift": "parts",
    "Due": "parts",
    "Endpoint": "parts",
    "Every": "parts",
    "Latency": "parts",
    "NotWorseThan": "parts",
    "OnDrift": "parts",
    "OnNewData": "parts",
    "OnPerformance": "parts",
    "Performance": "parts",
    "Slices": "parts",
    "Project": "project",
    "load_project": "project",
    "abort_release": "rollout",
    "advance_release": "rollout",
    "move_alias": "rollout",
    "promote": "rollout",
    "roll_back": "rollout",
    "Tick": "ticking",
    "tick": "ticking",
    "Turn": "turn",
    "explain_turn": "turn",
    "take_turn": "turn",
    "backfill": "views",
    "materialize": "views",
}

__all__ = [
    "AtLeast",
    "Canary",
    "Drift",
    "Due",
    "Endpoint",
    "Every",
    "Latency",
    "Loop",
    "NotWorseThan",
    "OnDrift",
    "OnNewData",
    "OnPerformance",
    "Performance",
    "Project",
    "Slices",
    "Tick",
    "Turn",
    "abort_release",
    "advance_release",
    "backfill",
    "explain_turn",
    "load_project",
    "materialize",
    "move_alias",
    "promote",
    "roll_back",
    "take_turn",
    "tick",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
