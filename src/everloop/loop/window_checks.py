"""Call the watches of an endpoint: each closed window is checked once.

The findings in the store show which windows have been checked, so a process that was down for a month checks that month
when it comes back. A watch that fails does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, EverloopError, StepError, StepOutputError
from everloop.loop.rollout import champion_of
from everloop.loop.watch_protocol import WatchContext, check_watch, watch_name
from everloop.records import EndpointRecord, Finding, FindingKind
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.watch_protocol import Watch
    from everloop.stores import Condition, Store

logger = logging.getLogger("everloop.loop")

MOST_WINDOWS = 60
"""At most this many windows of a watch are checked at a time. After a long absence, older ones are skipped."""
EMPTY = "window"
"""Subject of the finding that summarises a window, and of the one about a window without predictions."""

_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


def check_windows(part: Watch, model: str, endpoint: str, store: Store) -> tuple[list[Finding], list[EverloopError]]:
    """Check the windows of one watch that are due.

    Returns:
        The new findings, oldest window first, and the error that stopped the watch, if there was one.
    """
    check_watch(part, "This object")
    champion = champion_of(store, model)
    if champion is None:
        return [], []
    context = WatchContext(store, endpoint, model, champion, watch_name(part))
    span = parse_duration(part.window)
    windows = due_windows(store, endpoint, part, span, parse_duration(getattr(part, "labels_after", "0s")))
    failures = _failures(context, windows[0][0]) if windows else {}
    found: list[Finding] = []
    for since, until in windows:
        failed = failures.get((since, until))
        if failed is not None and store.now() - failed.created_at >= span:
            continue
        try:
            found += _check_window(part, context, since, until)
        except (Exception, SystemExit) as error:
            known = error if isinstance(error, EverloopError) else _as_known(context.watch, error)
            if failed is None:
                logger.warning("The watch '%s' failed.", context.watch, exc_info=error)
                failed = _failure(context, since, until, known)
                store.records.put(failed)
                found.append(failed)
            return found, [known]
    return found, []


def due_windows(
    store: Store, endpoint: str, part: Watch, span: timedelta, delay: timedelta
) -> list[tuple[datetime, datetime]]:
    """Return the closed windows that a watch has not checked yet, oldest first.

    Windows of whole days start at midnight UTC, those of whole weeks on Monday. Shorter windows start at multiples of
    their length from 1970-01-01. The first window is the one in which the endpoint was created.

    Args:
        span: length of a window.
        delay: how long after its end a window counts as closed.
    """
    last = store.records.find(Finding, ("endpoint", "=", endpoint), *_marks(part), order="-window_to", limit=1)
    start = window_start(last[0].window_to if last else store.records.get(EndpointRecord, endpoint).created_at, span)
    closed = (store.now() - delay - start) // span
    first = max(0, closed - MOST_WINDOWS)
    return [(start + index * span, start + (index + 1) * span) for index in range(first, closed)]


def window_start(moment: datetime, span: timedelta) -> datetime:
    """Return the start of the window of this length that contains a moment."""
    origin = _EPOCH if span % _DAY else _MONDAY
    return moment - (moment - origin) % span


def _check_window(part: Watch, context: WatchContext, since: datetime, until: datetime) -> list[Finding]:
    try:
        returned: object = part.check(context, since, until)
    except EmptySampleError as error:
        return _store_new(context, [_note(part, context, since, until, error.message)])
    if not isinstance(returned, Sequence) or not all(isinstance(item, Finding) for item in returned):
        raise StepOutputError(
            f"check() of the watch '{context.watch}' returned {returned!r}, not a list of findings.",
            help="Return [context.finding(...)], or [] if there is nothing to report.",
        )
    findings = list(returned)
    if getattr(part, "kind", None) is None:
        number = len(findings)
        text = f"{number} finding{'' if number == 1 else 's'} of '{context.watch}'."
        findings.append(_note(part, context, since, until, text))
    return _store_new(context, findings)


def _store_new(context: WatchContext, findings: list[Finding]) -> list[Finding]:
    records = context.store.records
    stored = {item.id for item in records.get_many(Finding, [item.id for item in findings])}
    new = [item for item in findings if item.id not in stored]
    if new:
        records.put(*new)
    return findings


def _marks(part: Watch) -> list[Condition]:
    """The conditions of the findings which show that a window has been checked."""
    kind: FindingKind | None = getattr(part, "kind", None)
    if kind is not None:
        return [("kind", "=", kind), ("subject", "=", EMPTY)]
    return [("kind", "=", "quality"), ("subject", "=", _subject(watch_name(part))), ("severity", "=", "info")]


def _note(part: Watch, context: WatchContext, since: datetime, until: datetime, message: str) -> Finding:
    kind: FindingKind | None = getattr(part, "kind", None)
    subject = EMPTY if kind is not None else _subject(context.watch)
    return context.finding(since, until, subject, message, severity="info", kind=kind or "quality")


def _failures(context: WatchContext, since: datetime) -> dict[tuple[datetime, datetime], Finding]:
    """The findings about checks of a watch that failed, by window."""
    found = context.store.records.find(
        Finding,
        ("endpoint", "=", context.endpoint),
        ("kind", "=", "quality"),
        ("subject", "=", _subject(context.watch)),
        ("severity", "=", "warning"),
        ("window_from", ">=", since),
    )
    return {(item.window_from, item.window_to): item for item in found}


def _failure(context: WatchContext, since: datetime, until: datetime, error: EverloopError) -> Finding:
    cause = error.__cause__
    return context.finding(
        since,
        until,
        _subject(context.watch),
        f"The watch '{context.watch}' could not check this window: {error.message}",
        evidence={"error": type(error if cause is None else cause).__name__, "help": error.help},
    )


def _as_known(name: str, error: BaseException) -> EverloopError:
    known = StepError(
        f"{type(error).__name__} in check(): {error}",
        help=f"Correct the watch '{name}'. The log of this process shows where it failed.",
    )
    known.__cause__ = error
    return known


def _subject(name: str) -> str:
    return f"watch:{name}"
