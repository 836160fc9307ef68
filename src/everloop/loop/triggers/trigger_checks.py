"""Decide from a loop's triggers whether a new run is due, and explain the decision.

Triggers read records only: incidents since the last run, the time, and whether the sources of the steps have changed.
While a run is in progress or a candidate is being rolled out no run is due, because evidence is still coming in.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from everloop.errors import AlreadyExistsError, ConflictError, ReadOnlyError
from everloop.loop.releases.rollout import find_rolling
from everloop.loop.triggers.retrain_limits import RetrainLimits, counts_for_budget
from everloop.loop.triggers.trigger_calls import OnCall, open_calls
from everloop.loop.triggers.trigger_contexts import make_context, named_triggers, newest_runs
from everloop.loop.triggers.trigger_protocol import Due
from everloop.records import Json, Run, TriggerState
from everloop.stores.durations import parse_duration
from everloop.stores.verify import mark_lost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.loop.loop_definition import Loop
    from everloop.loop.triggers.trigger_protocol import Trigger, TriggerContext
    from everloop.stores import Store

MOST_LOST = 3
"""After this many runs in a row whose process died, the last of them counts as the last run, so cooldowns apply."""
RECENT_RUNS = 20
"""How many runs are looked at for one in progress, and for failures in a row."""
_LOOP = "the loop"
_COOLDOWN = "cool-down"


@dataclass(frozen=True, slots=True)
class TriggerReport:
    """What one trigger says now.

    Attributes:
        trigger: name of the trigger.
        state: `due` if it starts a run now; `held` if it fires, but a limit holds it back; `waiting` if it does not
            fire; `failed` if it raised.
        reason: why, in a sentence.
        due: what it fires for; None if it does not fire.
        next_at: when it will be considered next, if that is known.
    """

    trigger: str
    state: str
    reason: str
    due: Due | None = None
    next_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Noted:
    """What is to be remembered about a trigger: the changing part of `TriggerState`."""

    token: str = ""
    since: datetime | None = None
    note: str = ""


def find_due(loop: Loop, store: Store) -> Due | None:
    """Return why a run of the loop is due now; None if none is. The first trigger that fires decides.

    What a limit holds back, and a trigger that fails, is recorded as an event once. `run_loop(trigger=due)` starts the
    run.
    """
    mark_lost(store)
    newest, blocked = _newest_run(loop, store)
    if blocked is not None:
        return None
    newest_id = newest.id if newest is not None else None
    last = last_run(loop, store)
    if last is None:
        return Due("first", "the loop has not run yet", after=newest_id)
    due = None
    states = _stored_states(loop, store)
    for report, state in _reports(loop, store, last, states):
        _remember(loop, store, report.trigger, states.get(report.trigger), state)
        if report.state == "due" and report.due is not None:
            due = replace(report.due, after=newest_id)
            break
    else:
        _note_unanswered_calls(loop, store, last, states)
    return due


def explain_due(loop: Loop, store: Store) -> list[TriggerReport]:
    """Return for each trigger whether it fires, why, and when it will be considered next. Writes nothing."""
    _, blocked = _newest_run(loop, store)
    last = last_run(loop, store)
    if blocked is None and last is None:
        return [TriggerReport("first", "due", "the loop has not run yet", Due("first", "the loop has not run yet"))]
    if last is None or blocked is not None:
        return [TriggerReport(name, "waiting", str(blocked)) for name in named_triggers(loop)]
    return [report for report, _ in _reports(loop, store, last, _stored_states(loop, store), explain=True)]


def last_run(loop: Loop, store: Store) -> Run | None:
    """Return the newest run that ended by itself, finished or failed.

    A run that was interrupted or whose process died does not count: its trigger fires again, and the next run resumes
    after the steps that finished. But if `MOST_LOST` runs in a row died, the next one would probably die as well, so
    then the newest of them is returned.
    """
    runs = store.records.find(
        Run, ("loop", "=", loop.name), ("state", "!=", "interrupted"), order="-started_at", limit=MOST_LOST
    )
    ended = next((run for run in runs if run.state != "lost"), None)
    return runs[0] if ended is None and len(runs) == MOST_LOST else ended


def _newest_run(loop: Loop, store: Store) -> tuple[Run | None, str | None]:
    """Return the loop's newest run, and why no run can be due now, if so."""
    runs = newest_runs(store, loop.name, RECENT_RUNS)
    newest = runs[0] if runs else None
    running = next((run for run in runs if run.state == "running"), None)
    if running is not None:
        return newest, f"the run {running.id} is in progress"
    if loop.serve is not None and find_rolling(store, loop.serve.name) is not None:
        return newest, f"a candidate is being rolled out at '{loop.serve.name}'"
    return newest, None


def _reports(
    loop: Loop, store: Store, last: Run, states: dict[str, TriggerState], *, explain: bool = False
) -> Iterator[tuple[TriggerReport, _Noted]]:
    """Check the triggers one by one, with the state to remember for each."""
    from everloop.loop.loop_run import explain_run

    for name, trigger in named_triggers(loop).items():
        context = make_context(loop, store, last, name, partial(explain_run, loop, store))
        before = states.get(name)
        try:
            due = trigger.check(context)
            if due is not None and not isinstance(due, Due):
                raise TypeError(f"check returned {due!r} instead of el.Due or None")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            yield TriggerReport(name, "failed", reason), _Noted(note=reason)
            continue
        if due is None:
            next_at = _next_at(trigger, context) if explain else None
            report = TriggerReport(name, "waiting", "nothing has happened", None, next_at)
            yield report, _Noted()
            continue
        token = due.token or due.reason
        since = before.since if before is not None and before.token == token else None
        since = since or store.now()
        held, until = _held_back(loop, store, trigger, name, last, since)
        # A cool-down is normal, so it is not worth an event.
        note = "" if held.startswith(_COOLDOWN) else held
        if not _debounces(loop, trigger):
            token, since = "", None
        state = _Noted(token, since, note)
        if held:
            yield TriggerReport(name, "held", held, due, until), state
        else:
            yield TriggerReport(name, "due", due.reason, due, store.now()), state


def _held_back(
    loop: Loop, store: Store, trigger: Trigger, name: str, last: Run, since: datetime
) -> tuple[str, datetime | None]:
    """Return which limit holds a trigger back, and until when; empty if none does."""
    now = store.now()
    own: RetrainLimits | None = getattr(trigger, "limits", None)
    urgent, scheduled = (bool(getattr(trigger, flag, False)) for flag in ("urgent", "scheduled"))
    runs: Sequence[Run] = ()
    spans = [limits.budget_span for limits in (loop.limits, own) if limits is not None]
    if max(spans):
        recent_runs = store.records.find(
            Run, ("loop", "=", loop.name), ("started_at", ">", now - max(spans)), order="-started_at"
        )
        runs = [run for run in recent_runs if counts_for_budget(run)]
    for limits, whose in ((loop.limits, _LOOP), (own, name)):
        if limits is None:
            continue
        if not urgent:
            if now < (until := limits.next_after_cooldown(last)):
                return f"{_COOLDOWN} of {limits.cooldown} of {whose}, until {_minute(until)}", until
            failures, until_ = limits.next_after_failures(newest_runs(store, loop.name, RECENT_RUNS))
            if until_ is not None and now < until_:
                count = "the last run" if failures == 1 else f"the last {failures} runs"
                return f"{count} failed, next attempt at {_minute(until_)}", until_
            quiet = parse_duration(limits.debounce)
            if not scheduled and now < since + quiet:
                return f"debounce of {limits.debounce}: waits until nothing new has happened", since + quiet
        counted = runs if whose is _LOOP else [run for run in runs if run.cause.get("trigger") == name]
        if (free := limits.next_within_budget(counted, now)) is not None:
            return f"the budget of {limits.budget} of {whose} is used up until {_minute(free)}", free
    return "", None


def _debounces(loop: Loop, trigger: Trigger) -> bool:
    limits = (loop.limits, getattr(trigger, "limits", None))
    return any(one is not None and parse_duration(one.debounce) for one in limits)


def _next_at(trigger: Trigger, context: TriggerContext) -> datetime | None:
    next_at = getattr(trigger, "next_at", None)
    if not callable(next_at):
        return None
    try:
        found = next_at(context)
    except Exception:
        return None
    return found if isinstance(found, datetime) else None


def _stored_states(loop: Loop, store: Store) -> dict[str, TriggerState]:
    return {state.trigger: state for state in store.records.find(TriggerState, ("loop", "=", loop.name))}


def _remember(loop: Loop, store: Store, name: str, before: TriggerState | None, noted: _Noted) -> None:
    """Store a trigger's state if it has changed. The write is an event, which explains what was held back or failed."""
    known = _Noted() if before is None else _Noted(before.token, before.since, before.note)
    if (known.token, known.note) == (noted.token, noted.note):
        return
    verb = "explained" if noted.note and noted.note != known.note else "observed"
    data: dict[str, Json] = {"reason": noted.note, "loop": loop.name, "trigger": name}
    fields: dict[str, Any] = {"token": noted.token, "since": noted.since, "note": noted.note}
    # Another process may have stored the same in the meantime.
    with suppress(ConflictError, AlreadyExistsError, ReadOnlyError):
        if before is None:
            store.records.put(store.new(TriggerState, loop=loop.name, trigger=name, **fields), verb=verb, data=data)
        else:
            store.records.update(replace(before, **fields), verb=verb, data=data)


def _note_unanswered_calls(loop: Loop, store: Store, last: Run, states: dict[str, TriggerState]) -> None:
    """Record once that calls wait for a trigger that the loop does not have."""
    if any(isinstance(trigger, OnCall) for trigger in loop.retrain):
        return
    name = OnCall.__name__
    calls = [call for call in open_calls(store, loop.name, last) if call.commit is None]
    note = f"a call waits, but loop '{loop.name}' has no el.OnCall() in retrain=" if calls else ""
    _remember(loop, store, name, states.get(name), _Noted(calls[-1].id if calls else "", None, note))


def _minute(moment: datetime) -> str:
    return f"{(moment + timedelta(seconds=59)):%Y-%m-%d %H:%M} UTC"
