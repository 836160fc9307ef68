"""Move a loop to a later moment, as time would: requests are answered, labels arrive, and the loop is reconciled.

A replay and the demo differ in how requests are answered: in bulk, or over HTTP. Everything else is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from everloop.loop import reconcile

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.loop import Loop, Reconciliation
    from everloop.stores import Store


class TrafficSource(Protocol):
    """Sends the requests of a history to an endpoint, and delivers their labels."""

    def answer(self, since: datetime, until: datetime) -> int:
        """Have the requests with `since <= event < until` answered; returns their number."""
        ...

    def deliver(self, since: datetime, until: datetime) -> int:
        """Log the labels that became known in `(since, until]`; returns their number."""
        ...


class SettableClock(Protocol):
    """A clock that the simulation sets."""

    def set(self, moment: datetime) -> None:
        """Set the time; never back."""
        ...


def advance(
    loop: Loop,
    store: Store,
    clock: SettableClock,
    traffic: TrafficSource,
    since: datetime,
    until: datetime,
    *,
    end: datetime,
) -> Reconciliation:
    """Move from one look at the loop to the next one.

    Args:
        loop: the loop, whose endpoint has a champion.
        store: its store.
        clock: the clock of the store.
        traffic: answers the requests and delivers the labels.
        since: the moment of the look before.
        until: the moment of this look.
        end: requests from this moment on are not sent; labels still arrive.
    """
    if since < end:
        traffic.answer(since, min(until, end))
    clock.set(until)
    traffic.deliver(since, until)
    return reconcile(loop, store)
