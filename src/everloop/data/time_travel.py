"""Up to when the present code may know: how a replay keeps the future out of what is read.

`read` with an `arrival_time` or `event_time` hides the rows behind the horizon. The horizon is what `as_of` says
around the code, else the time of the current run where that run's store has a simulated clock, else there is none.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Json

_horizon: ContextVar[datetime | None] = ContextVar("everloop_horizon", default=None)


@contextmanager
def as_of(moment: datetime) -> Iterator[None]:
    """Hide, inside the block, what became known after `moment`. An inner block never sees further than an outer.

    Raises:
        UsageError: the moment has no timezone.
    """
    if moment.tzinfo is None:
        raise UsageError(f"The time {moment.isoformat()} has no timezone.", help="Use times in UTC: tzinfo=UTC.")
    outer = _horizon.get()
    token = _horizon.set(moment if outer is None else min(moment, outer))
    try:
        yield
    finally:
        _horizon.reset(token)


def find_horizon() -> datetime | None:
    """The moment behind which nothing is known yet, or None where time is the world's own."""
    from everloop.tracking import current_run

    around = _horizon.get()
    run = current_run()
    if run is None or not run.store.clock.simulated:
        return around
    return run.store.now() if around is None else min(run.store.now(), around)


def horizon_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The horizon as outside state that a step has read."""
    moment = find_horizon()
    return "none" if moment is None else moment.astimezone(UTC).isoformat()
