"""One tick of a loop: fold the logs, check the watches, move the rollout, and see whether a run is due.

All state is in the store, so a tick may be skipped, repeated or run by another process. Each tick continues from the
records of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.loop.releases.release_steps import move_rollout
from everloop.loop.triggers.trigger_checks import find_due
from everloop.loop.watches.watch_runs import watch, watch_views
from everloop.loop.worker.run_queue import active_runs

if TYPE_CHECKING:
    from everloop.errors import EverloopError
    from everloop.loop.loop_definition import Loop
    from everloop.loop.triggers.trigger_declarations import Due
    from everloop.records import Finding, Incident, Release
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one tick found and did."""

    folded: int
    """How many predictions were moved from journals into the table."""
    findings: list[Finding]
    release: Release | None
    """The rollout, if this tick made a decision about it."""
    due: Due | None
    """Why a run is due; None if none is."""
    errors: list[EverloopError] = field(default_factory=list)
    """Errors of watches that could not check their windows. They did not stop the rest of the tick."""
    incidents: list[Incident] = field(default_factory=list)
    """Incidents that were opened, joined, escalated or resolved."""


def reconcile(loop: Loop, store: Store) -> Reconciliation:
    """Do one tick of a loop. Two processes may do so at the same time: the second finds the work done."""
    if loop.serve is None:
        return Reconciliation(0, [], None, _find_due(loop, store))
    from everloop.prediction_log import fold_labels, fold_predictions
    from everloop.prediction_log.aggregates import fold_aggregates
    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    with store.lock(f"tick-{loop.name}"):
        folded = fold_predictions(store, loop.serve.name)
        if folded + fold_labels(store, loop.serve.name):
            for log in (PREDICTIONS, LABELS):
                store.tables.tidy(table_name(store, log, loop.serve.name))
            fold_aggregates(store, loop.serve.name)
        findings, incidents, errors = watch(loop, store)
        stale, changed = watch_views(store)
        release = move_rollout(loop, loop.serve, store)
        due = _find_due(loop, store)
        return Reconciliation(folded, findings + stale, release, due, errors, incidents + changed)


def _find_due(loop: Loop, store: Store) -> Due | None:
    """Why a run is due. None also if one is queued or running: triggers are checked again after it has ended."""
    return None if active_runs(store, loop.name) else find_due(loop, store)
