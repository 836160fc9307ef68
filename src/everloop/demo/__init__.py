"""The whole life cycle on real flights: a project, a year that passes, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.demo.outcome import Outcome, read_outcome
    from everloop.demo.story import Story, Telling
    from everloop.demo.world import World, load_world

_HOME = {
    "Outcome": "outcome",
    "Story": "story",
    "Telling": "story",
    "World": "world",
    "load_world": "world",
    "read_outcome": "outcome",
}

__all__ = ["Outcome", "Story", "Telling", "World", "load_world", "read_outcome"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
