"""The loop: declared once, turned again and again, watched, and decided by evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.loop.declaration import Loop as Loop
    from everloop.loop.parts import (
        AtLeast as AtLeast,
        Canary as Canary,
        Drift as Drift,
        Due as Due,
        Endpoint as Endpoint,
        Every as Every,
        Latency as Latency,
        NotWorseThan as NotWorseThan,
        OnDrift as OnDrift,
        OnNewData as OnNewData,
        OnPerformance as OnPerformance,
        Performance as Performance,
        Slices as Slices,
    )
    from everloop.loop.project import Project as Project, load_project as load_project
    from everloop.loop.rollout import (
        abort_release as abort_release,
        advance_release as advance_release,
        move_alias as move_alias,
        promote as promote,
        roll_back as roll_back,
    )
    from everloop.loop.ticking import Tick as Tick, tick as tick
    from everloop.loop.turn import Turn as Turn, explain_turn as explain_turn, take_turn as take_turn
    from everloop.loop.views import backfill as backfill, materialize as materialize

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "declaration": ["Loop"],
        "parts": [
            "AtLeast",
            "Canary",
            "Drift",
            "Due",
            "Endpoint",
            "Every",
            "Latency",
            "NotWorseThan",
            "OnDrift",
            "OnNewData",
            "OnPerformance",
            "Performance",
            "Slices",
        ],
        "project": ["Project", "load_project"],
        "rollout": ["abort_release", "advance_release", "move_alias", "promote", "roll_back"],
        "ticking": ["Tick", "tick"],
        "turn": ["Turn", "explain_turn", "take_turn"],
        "views": ["backfill", "materialize"],
    },
)
