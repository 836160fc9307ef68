"""Decide from a loop's triggers whether a new run is due.

Triggers read records only: incidents since the last run, the time, and whether the sources of the steps have changed.
While a candidate is being rolled out no run is due, because its evidence is still coming in.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import singledispatch
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.loop.releases.rollout import champion_of, find_rolling
from everloop.loop.triggers.trigger_declarations import Due, Every, OnDrift, OnNewData, OnPerformance, Trigger
from everloop.monitoring.incidents.incident_actions import is_muted
from everloop.monitoring.incidents.incident_engine import ongoing_incidents
from everloop.records import Run
from everloop.stores.durations import format_duration, parse_duration
from everloop.stores.verify import mark_lost

if TYPE_CHECKING:
    from everloop.loop.loop_definition import Loop
    from everloop.records import FindingKind
    from everloop.stores import Store

MOST_LOST = 3
"""After this many runs in a row whose process died, the last of them counts as the last run, so cooldowns apply."""


def find_due(loop: Loop, store: Store) -> Due | None:
    """Return the first trigger of the loop that fires now; None if no run is due."""
    if loop.serve is not None and find_rolling(store, loop.serve.name) is not None:
        return None
    mark_lost(store)
    last = last_run(loop, store)
    if last is None:
        return Due("first", "the loop has not run yet")
    for trigger in loop.retrain:
        due = check_trigger(trigger, loop, store, last)
        if due is not None:
            return due
    return None


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


@singledispatch
def check_trigger(trigger: Trigger, loop: Loop, store: Store, last: Run) -> Due | None:
    """Return why one trigger fires; None if it does not.

    Args:
        last: the last run of the loop.
    """
    raise UsageError(
        f"{trigger!r} is not a trigger.", help="Use el.OnDrift, el.OnPerformance, el.Every or el.OnNewData."
    )


@check_trigger.register(OnDrift)
def _(trigger: OnDrift, loop: Loop, store: Store, last: Run) -> Due | None:
    return _on_incident("OnDrift", "drift", trigger, loop, store, last)


@check_trigger.register(OnPerformance)
def _(trigger: OnPerformance, loop: Loop, store: Store, last: Run) -> Due | None:
    return _on_incident("OnPerformance", "performance", trigger, loop, store, last)


@check_trigger.register(Every)
def _(trigger: Every, loop: Loop, store: Store, last: Run) -> Due | None:
    # Cron expressions are in UTC, and croniter counts in the zone of the time that it is given.
    began = last.started_at.astimezone(UTC)
    if trigger.is_cron:
        from croniter import croniter

        next_at = croniter(trigger.interval, began).get_next(datetime)
    else:
        next_at = began + parse_duration(trigger.interval)
    if store.now() < next_at:
        return None
    return Due("Every", f"{trigger.interval}: the last run began {began:%Y-%m-%d %H:%M}")


@check_trigger.register(OnNewData)
def _(trigger: OnNewData, loop: Loop, store: Store, last: Run) -> Due | None:
    if store.now() - last.started_at < parse_duration(trigger.cooldown):
        return None
    from everloop.loop.loop_run import explain_run

    changed = [step for step in explain_run(loop, store) if step.reason.startswith("source changed")]
    if not changed:
        return None
    return Due("OnNewData", "; ".join(step.reason for step in changed), {"steps": [step.name for step in changed]})


def _on_incident(
    name: str, kind: FindingKind, trigger: OnDrift | OnPerformance, loop: Loop, store: Store, last: Run
) -> Due | None:
    if loop.serve is None or store.now() - last.started_at < parse_duration(trigger.cooldown):
        return None
    champion = champion_of(store, loop.model)
    incident = next(
        (
            one
            for one in ongoing_incidents(store, loop.serve.name, kind)
            # What was seen before the last run began is answered by that run.
            if one.seen_at > last.started_at
            and not is_muted(one, store.now())
            and (one.severity == "alarm" or trigger.at_least == "notice")
            # An incident of a version that has been replaced needs no further run.
            and (not one.versions or champion in one.versions)
        ),
        None,
    )
    if incident is None:
        return None
    waited = format_duration(max(timedelta(0), store.now() - incident.seen_at))
    return Due(
        name,
        incident.title.rstrip("."),
        {"incident": incident.id, "subjects": list(incident.subjects), "waited": waited},
    )
