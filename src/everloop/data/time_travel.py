"""As-of cut-off for reads: how a replay keeps future rows out of what is read.

`read` with an `arrival_time` or `event_time` hides the rows after the horizon. The horizon is set by an enclosing
`as_of`, or else by the simulated clock of the current run's store. Otherwise there is none.
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
    """Hide rows that became known after `moment` from reads inside the block. A nested block never sees more.

    Raises:
        UsageError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise UsageError(f"The time {moment.isoformat()} has no time zone.", help="Use times in UTC: tzinfo=UTC.")
    outer = _horizon.get()
    token = _horizon.set(moment if outer is None else min(moment, outer))
    try:
        yield
    finally:
        _horizon.reset(token)


def find_horizon() -> datetime | None:
    """The time after which nothing is known yet; None if reads are not cut off."""
    from everloop.tracking import current_run

    enclosing = _horizon.get()
    run = current_run()
    if run is None or not run.store.clock.simulated:
        return enclosing
    return run.store.now() if enclosing is None else min(run.store.now(), enclosing)


def horizon_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The horizon as a text, recorded as outside state of a step."""
    moment = find_horizon()
    return "none" if moment is None else moment.astimezone(UTC).isoformat()
