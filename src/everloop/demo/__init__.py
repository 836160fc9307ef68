"""The whole life cycle on real flights: a project, a year that passes, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.demo.flight_world import World as World, load_world as load_world
    from everloop.demo.outcome import Outcome as Outcome, read_outcome as read_outcome
    from everloop.demo.simulation import Story as Story, Telling as Telling

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "flight_world": ["World", "load_world"],
        "outcome": ["Outcome", "read_outcome"],
        "simulation": ["Story", "Telling"],
    },
)
