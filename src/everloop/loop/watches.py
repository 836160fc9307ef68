"""Check every time window of an endpoint's prediction log once, after it has closed.

Windows follow each other from the moment the endpoint was created. The findings in the store show which windows have
been checked, so a process that was down for a month checks that month when it comes back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import singledispatch
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, EverloopError, UsageError
from everloop.loop.declarations import Drift, Performance, Watch
from everloop.loop.rollout import champion_of
from everloop.records import EndpointRecord, Finding
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.loop_definition import Loop
    from everloop.records import FindingKind
    from everloop.stores import Store

MOST_WINDOWS = 60
"""At most this many windows of a watch are checked at a time. After a long absence, older ones are skipped."""
EMPTY = "window"
"""Subject of the finding about a window without predictions."""


def watch(loop: Loop, store: Store) -> tuple[list[Finding], list[EverloopError]]:
    """Check every closed window that has not been checked yet.

    Returns:
        The new findings, oldest window of each watch first, and the errors of the watches that failed. A watch that
        fails does not stop the others; it tries again next time.
    """
    found: list[Finding] = []
    errors: list[EverloopError] = []
    if loop.serve is not None:
        for part in loop.watch:
            try:
                found += check_windows(part, loop.model, loop.serve.name, store)
            except EverloopError as error:
                errors.append(error)
    return found, errors


@singledispatch
def check_windows(part: Watch, model: str, endpoint: str, store: Store) -> list[Finding]:
    """Check the windows that are due for one watch."""
    raise UsageError(f"{part!r} is not a watch.", help="Use el.Drift or el.Performance.")


@check_windows.register(Drift)
def _(part: Drift, model: str, endpoint: str, store: Store) -> list[Finding]:
    from everloop.monitoring import check_drift

    champion = champion_of(store, model)
    if champion is None:
        return []
    found: list[Finding] = []
    for since, until in due_windows(store, endpoint, "drift", parse_duration(part.window), timedelta(0)):
        try:
            found += check_drift(store, endpoint, champion, since, until, alarms_per_month=part.alarms_per_month)
        except EmptySampleError as error:
            found.append(_empty_window(store, endpoint, champion, "drift", since, until, error))
    return found


@check_windows.register(Performance)
def _(part: Performance, model: str, endpoint: str, store: Store) -> list[Finding]:
    from everloop.monitoring import check_performance

    champion = champion_of(store, model)
    if champion is None:
        return []
    found: list[Finding] = []
    windows = due_windows(
        store, endpoint, "performance", parse_duration(part.window), parse_duration(part.labels_after)
    )
    for since, until in windows:
        try:
            found += check_performance(
                store,
                endpoint,
                part.metric,
                since,
                until,
                version=champion,
                labels_after=part.labels_after,
                alarms_per_month=part.alarms_per_month,
            )
        except EmptySampleError as error:
            found.append(_empty_window(store, endpoint, champion, "performance", since, until, error))
    return found


def due_windows(
    store: Store, endpoint: str, kind: FindingKind, span: timedelta, delay: timedelta
) -> list[tuple[datetime, datetime]]:
    """Return the closed windows that have no finding of this kind yet, oldest first.

    Args:
        span: length of a window.
        delay: how long after its end a window counts as closed.
    """
    last = store.records.find(Finding, ("endpoint", "=", endpoint), ("kind", "=", kind), order="-window_to", limit=1)
    start = last[0].window_to if last else store.records.get(EndpointRecord, endpoint).created_at
    closed = int((store.now() - delay - start) / span)
    first = max(0, closed - MOST_WINDOWS)
    return [(start + index * span, start + (index + 1) * span) for index in range(first, closed)]


def _empty_window(
    store: Store,
    endpoint: str,
    version: str,
    kind: FindingKind,
    since: datetime,
    until: datetime,
    error: EmptySampleError,
) -> Finding:
    finding = store.new(
        Finding,
        endpoint=endpoint,
        version=version,
        kind=kind,
        severity="info",
        subject=EMPTY,
        window_from=since,
        window_to=until,
        message=error.message,
    )
    store.records.put(finding)
    return finding
