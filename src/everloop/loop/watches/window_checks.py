"""Call the watches of an endpoint: each closed window is checked once.

The findings in the store show which windows have been checked, so a process that was down for a month checks that month
when it comes back. The findings of a window and the changes of incidents that follow from them are stored in one
transaction, so a process that is killed leaves both or neither. A watch that fails does not stop the others, and opens
an incident about itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, EverloopError, StepError, StepOutputError
from everloop.loop.releases.rollout import champion_of
from everloop.loop.watches.watch_protocol import WatchContext, check_watch, watch_name
from everloop.records import EndpointRecord, Finding, FindingKind, Incident
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.watches.watch_protocol import Watch
    from everloop.stores import Condition, Store

logger = logging.getLogger("everloop.loop")

MOST_WINDOWS = 60
"""At most this many windows of a watch are checked at a time. After a long absence, older ones are skipped."""
EMPTY = "window"
"""Subject of the finding that summarises a window, and of the one about a window without predictions."""

_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


def check_windows(
    part: Watch, model: str, endpoint: str, store: Store, loop: str = ""
) -> tuple[list[Finding], list[Incident], list[EverloopError]]:
    """Check the windows of one watch that are due.

    Args:
        loop: name of the loop that has the watch. Each loop checks every window itself.

    Returns:
        The new findings, oldest window first; the incidents that they have opened, joined, escalated or resolved; and
        the error that stopped the watch, if there was one.
    """
    check_watch(part, "This object")
    champion = champion_of(store, model)
    if champion is None:
        return [], [], []
    context = WatchContext(store, endpoint, model, champion, watch_name(part), loop)
    span = parse_duration(part.window)
    delay = parse_duration(getattr(part, "labels_after", "0s"))
    windows = due_windows(store, endpoint, part, span, delay, loop)
    failures = _failures(context, windows[0][0]) if windows else {}
    found: list[Finding] = []
    incidents: list[Incident] = []
    for since, until in windows:
        failed = failures.get((since, until))
        if failed is not None and store.now() - failed.created_at >= span:
            continue
        try:
            findings, changed = _check_window(part, context, since, until)
            found += findings
            incidents += changed
        except (Exception, SystemExit) as error:
            known = error if isinstance(error, EverloopError) else _as_known(context.watch, error)
            if failed is None:
                logger.warning("The watch '%s' failed.", context.watch, exc_info=error)
                findings, changed = _store_failure(context, since, until, known)
                found += findings
                incidents += changed
            return found, incidents, [known]
    return found, incidents, []


def due_windows(
    store: Store, endpoint: str, part: Watch, span: timedelta, delay: timedelta, loop: str = ""
) -> list[tuple[datetime, datetime]]:
    """Return the closed windows that a watch has not checked yet, oldest first.

    Windows of whole days start at midnight UTC, those of whole weeks on Monday. Shorter windows start at multiples of
    their length from 1970-01-01. The first window is the one in which the endpoint was created.

    Args:
        span: length of a window.
        delay: how long after its end a window counts as closed.
        loop: name of the loop that has the watch.
    """
    last = _last_checked(store, endpoint, part, loop)
    start = window_start(last.window_to if last else store.records.get(EndpointRecord, endpoint).created_at, span)
    closed = (store.now() - delay - start) // span
    first = max(0, closed - MOST_WINDOWS)
    return [(start + index * span, start + (index + 1) * span) for index in range(first, closed)]


def window_start(moment: datetime, span: timedelta) -> datetime:
    """Return the start of the window of this length that contains a moment."""
    origin = _EPOCH if span % _DAY else _MONDAY
    return moment - (moment - origin) % span


def _check_window(
    part: Watch, context: WatchContext, since: datetime, until: datetime
) -> tuple[list[Finding], list[Incident]]:
    try:
        returned: object = part.check(context, since, until)
    except EmptySampleError as error:
        # Such a window is neither calm nor a reason for an incident.
        note = _note(part, context, since, until, error.message)
        return _store_checked(part, context, [note], since, until, judged=False)
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
    return _store_checked(part, context, findings, since, until, judged=True)


def _store_checked(
    part: Watch,
    context: WatchContext,
    findings: list[Finding],
    since: datetime,
    until: datetime,
    *,
    judged: bool,
) -> tuple[list[Finding], list[Incident]]:
    """Store the findings of a window and update the incidents, unless another process has done so meanwhile.

    Args:
        judged: whether the watch had something to check in the window.
    """
    from everloop.monitoring.incidents.incident_engine import update_incidents

    store, endpoint = context.store, context.endpoint
    changed: list[Incident] = []
    with store.records.transaction():
        stored = {item.id for item in store.records.get_many(Finding, [item.id for item in findings])}
        last = _last_checked(store, endpoint, part, context.loop)
        if last is not None and last.window_to >= until and last.id not in stored:
            return [], []
        new = [_of_loop(item, context.loop) for item in findings if item.id not in stored]
        if stored and (last is None or last.window_to < until) and not any(_is_mark(item, part) for item in new):
            # Another loop has found the same, but this one has not checked the window yet.
            new.append(_note(part, context, since, until, f"'{context.watch}' agrees with an earlier check."))
        if new:
            store.records.put(*new)
        tell = partial(update_incidents, store, endpoint, since=since, until=until, loop=context.loop)
        if judged:
            changed += tell(findings, watch=context.watch)
        # The watch works, so the window is calm for an incident about its failures.
        changed += tell([], watch=failure_subject(context.watch))
    return findings, changed


def _store_failure(
    context: WatchContext, since: datetime, until: datetime, error: EverloopError
) -> tuple[list[Finding], list[Incident]]:
    from everloop.monitoring.incidents.incident_engine import update_incidents

    subject = failure_subject(context.watch)
    with context.store.records.transaction():
        if (since, until) in _failures(context, since):
            return [], []
        failed = _failure(context, since, until, error)
        context.store.records.put(failed)
        changed = update_incidents(
            context.store, context.endpoint, [failed], watch=subject, since=since, until=until, loop=context.loop
        )
    return [failed], changed


def _last_checked(store: Store, endpoint: str, part: Watch, loop: str) -> Finding | None:
    """The mark of the last window that a loop has checked; otherwise the last mark that names no loop."""
    own: list[Condition] = [("evidence.loop", "=", loop)] if loop else []
    for owner in (own, [("evidence.loop", "is", None)]) if loop else (own,):
        marks = [("endpoint", "=", endpoint), *_marks(part), *owner]
        last = store.records.find(Finding, *marks, order="-window_to", limit=1)
        if last:
            return last[0]
    return None


def _of_loop(finding: Finding, loop: str) -> Finding:
    return replace(finding, evidence={**finding.evidence, "loop": loop}) if loop else finding


def _is_mark(finding: Finding, part: Watch) -> bool:
    return all(getattr(finding, str(name)) == value for name, _, value in _marks(part))


def _marks(part: Watch) -> list[Condition]:
    """The conditions of the findings which show that a window has been checked."""
    kind: FindingKind | None = getattr(part, "kind", None)
    if kind is not None:
        return [("kind", "=", kind), ("subject", "=", EMPTY)]
    return [("kind", "=", "quality"), ("subject", "=", failure_subject(watch_name(part))), ("severity", "=", "info")]


def _note(part: Watch, context: WatchContext, since: datetime, until: datetime, message: str) -> Finding:
    kind: FindingKind | None = getattr(part, "kind", None)
    subject = EMPTY if kind is not None else failure_subject(context.watch)
    note = context.finding(since, until, subject, message, severity="info", kind=kind or "quality")
    return _of_loop(note, context.loop)


def _failures(context: WatchContext, since: datetime) -> dict[tuple[datetime, datetime], Finding]:
    """The findings about checks of a watch that failed, by window."""
    found = context.store.records.find(
        Finding,
        ("endpoint", "=", context.endpoint),
        ("kind", "=", "quality"),
        ("subject", "=", failure_subject(context.watch)),
        ("severity", "=", "warning"),
        ("window_from", ">=", since),
    )
    own = (None, context.loop)
    return {(item.window_from, item.window_to): item for item in found if item.evidence.get("loop") in own}


def _failure(context: WatchContext, since: datetime, until: datetime, error: EverloopError) -> Finding:
    cause = error.__cause__
    return context.finding(
        since,
        until,
        failure_subject(context.watch),
        f"The watch '{context.watch}' could not check this window: {error.message}",
        evidence={
            **({"loop": context.loop} if context.loop else {}),
            "error": type(error if cause is None else cause).__name__,
            "help": error.help,
            "opens": [failure_subject(context.watch)],
        },
    )


def _as_known(name: str, error: BaseException) -> EverloopError:
    known = StepError(
        f"{type(error).__name__} in check(): {error}",
        help=f"Correct the watch '{name}'. The log of this process shows where it failed.",
    )
    known.__cause__ = error
    return known


def failure_subject(name: str) -> str:
    """The subject of what is found about a watch that fails, and the name of the watch in its incidents."""
    return f"watch:{name}"
