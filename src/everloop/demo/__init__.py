"""The demo: a project on real flights, a simulated year of traffic, and its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.demo.flight_world import FlightWorld as FlightWorld, load_world as load_world
    from everloop.demo.outcome import YearOutcome as YearOutcome, read_outcome as read_outcome
    from everloop.demo.simulation import Simulation as Simulation, SimulationListener as SimulationListener

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "flight_world": ["FlightWorld", "load_world"],
        "outcome": ["YearOutcome", "read_outcome"],
        "simulation": ["Simulation", "SimulationListener"],
    },
)
