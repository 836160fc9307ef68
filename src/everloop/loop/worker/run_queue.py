"""The queue of runs: triggers put requests into it, and runners take them.

A request is a `QueuedRun` record. At most one waits for each loop: a second trigger joins it. A runner that takes a
request holds the lease `run:<loop>`, so each loop has one queued run at a time, and a runner that finds a request
`running` while it can get the lease knows that the runner before it is gone.

    waiting → running → done, failed, cancelled
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import AlreadyExistsError, ConflictError, NotFoundError
from everloop.records import QueuedRun, Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json, Lease, QueuedRunState
    from everloop.stores import Store

MOST_ATTEMPTS = 3
QUEUED_TAG = "everloop.queued_run"
"""Tag of a run: the id of the request that it was started for."""


def run_lease(loop: str) -> str:
    """The name of the lease that a runner holds while it runs a loop."""
    return f"run:{loop}"


def enqueue_run(
    store: Store,
    loop: str,
    trigger: str,
    *,
    folder: str,
    cause: Mapping[str, Json] | None = None,
    params: Mapping[str, Json] | None = None,
    code: str | None = None,
    timeout_s: float | None = None,
    most_attempts: int = MOST_ATTEMPTS,
) -> QueuedRun:
    """Request a run of a loop. If one is waiting already with the same parameters, join it instead.

    Returns:
        The new request, or the one that was joined.

    Raises:
        ConflictError: a request with other parameters is waiting.
    """
    given = dict(params or {})
    while True:
        waiting = find_waiting(store, loop)
        if waiting is None:
            queued = store.new(
                QueuedRun,
                loop=loop,
                trigger=trigger,
                cause=dict(cause or {}),
                params=given,
                folder=folder,
                code=code,
                timeout_s=timeout_s,
                most_attempts=most_attempts,
            )
            try:
                store.records.put(queued, verb="queued", data={"loop": loop, "trigger": trigger})
            except AlreadyExistsError:
                # Another process was faster, so this request joins that one.
                continue
            return queued
        if waiting.params != given:
            raise ConflictError(
                f"A run of the loop '{loop}' with other parameters is waiting already.",
                help=f"Wait until it starts, or cancel it: everloop runs cancel {loop}",
            )
        if trigger in (waiting.trigger, *waiting.joined):
            return waiting
        joined = replace(waiting, joined=(*waiting.joined, trigger))
        try:
            return store.records.update(joined, verb="joined", data={"loop": loop, "trigger": trigger})[0]
        except (ConflictError, NotFoundError):
            continue


def find_waiting(store: Store, loop: str) -> QueuedRun | None:
    """The request of a loop that waits for a runner."""
    found = store.records.find(QueuedRun, ("state", "=", "waiting"), ("loop", "=", loop), limit=1)
    return found[0] if found else None


def active_runs(store: Store, loop: str | None = None) -> list[QueuedRun]:
    """The requests that run or wait, of one loop or of all, in the order in which a runner takes them."""
    found = [
        queued
        for state in ("running", "waiting")
        for queued in store.records.find(QueuedRun, ("state", "=", state), order="created_at")
    ]
    return [queued for queued in found if loop in (None, queued.loop)]


def recent_runs(store: Store, *, limit: int = 20) -> list[QueuedRun]:
    """The newest requests in any state, newest first."""
    return store.records.find(QueuedRun, order="-created_at", limit=limit)


def start_attempt(store: Store, queued: QueuedRun, lease: Lease) -> QueuedRun:
    """Record that a runner begins a request, or continues it after a runner that is gone.

    The runs of earlier attempts that still count as running become `lost`, because the lease proves that their runner
    no longer works on them. If all attempts are used up, the request fails.

    Args:
        store: fenced by the lease.

    Raises:
        ConflictError: the request has ended or was changed meanwhile.
    """
    mark_attempts_lost(store, queued)
    now = store.now()
    if queued.attempts >= queued.most_attempts:
        return end_run(store, queued, "failed", _died_too_often(queued))
    started = replace(
        queued,
        state="running",
        attempts=queued.attempts + 1,
        runner=lease.owner,
        fence=lease.fence,
        started_at=now,
    )
    verb = "started" if queued.attempts == 0 else "taken_over"
    data: dict[str, Json] = {"loop": queued.loop, "attempt": started.attempts, "runner": lease.owner}
    return store.records.update(started, verb=verb, data=data)[0]


def _died_too_often(queued: QueuedRun) -> str:
    last = f" Last: {queued.error}" if queued.error else ""
    return (
        f"The process of this run died {queued.attempts} times, so it is not started again.{last}"
        " See the log: logs/runner.log in the store folder."
    )


def end_run(store: Store, queued: QueuedRun, state: QueuedRunState, error: str | None = None) -> QueuedRun:
    """Record the end of a request. A request that has ended already stays as it is.

    Raises:
        LeaseLostError: the store is fenced, and another runner has taken the request over.
    """
    while True:
        current = store.records.get(QueuedRun, queued.id)
        if current.state not in ("waiting", "running"):
            return current
        run = last_attempt(store, queued.id)
        ended = replace(
            current, state=state, error=error, ended_at=store.now(), runner="", run=run.id if run else current.run
        )
        data: dict[str, Json] = {"loop": current.loop, "attempts": current.attempts}
        if error:
            data["error"] = error
        try:
            return store.records.update(ended, verb=state, data=data)[0]
        except ConflictError:
            continue


def put_back(store: Store, queued: QueuedRun, *, attempt_counts: bool, error: str | None = None) -> QueuedRun:
    """Leave a request for the next runner, because this one stops or the process of the run has died.

    Args:
        attempt_counts: whether this attempt counts against `most_attempts`.

    Raises:
        LeaseLostError: as for `end_run`.
    """
    while True:
        current = store.records.get(QueuedRun, queued.id)
        if current.state != "running":
            return current
        attempts = current.attempts - (0 if attempt_counts else 1)
        left = replace(current, attempts=attempts, runner="", error=error or current.error)
        try:
            verb = "died" if attempt_counts else "put_back"
            return store.records.update(left, verb=verb, data={"loop": current.loop})[0]
        except ConflictError:
            continue


def cancel_run(store: Store, ref: str) -> QueuedRun:
    """Cancel a request. One that is waiting ends at once; the runner of a running one stops it within seconds.

    Args:
        ref: the id of the request, a unique prefix of it, the id of its run, or the name of a loop.

    Raises:
        NotFoundError: no waiting or running request matches.
    """
    while True:
        queued = _find_active(store, ref)
        if queued.state == "waiting" or not queued.runner:
            cancelled = replace(queued, state="cancelled", ended_at=store.now(), error=f"Cancelled by {store.actor}.")
            verb = "cancelled"
        else:
            cancelled = replace(queued, cancel_requested_by=store.actor)
            verb = "cancel_requested"
        try:
            return store.records.update(cancelled, verb=verb, data={"loop": queued.loop})[0]
        except ConflictError:
            continue


def _find_active(store: Store, ref: str) -> QueuedRun:
    active = active_runs(store)
    exact = [queued for queued in active if ref in (queued.id, queued.run)]
    # The waiting request of a loop first: it is the one that a person sees in the queue.
    named = [queued for queued in reversed(active) if queued.loop == ref]
    prefixed = [queued for queued in active if queued.id.startswith(ref) and len(ref) >= 4]
    found = exact or named[:1] or prefixed
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{queued.loop} ({queued.state})" for queued in active) or "none"
    problem = "matches several queued runs" if found else "is not a queued or running run of a loop"
    raise NotFoundError(f"'{ref}' {problem}. There are: {known}.", help="See: everloop runs queue")


def attempts_of(store: Store, request: str) -> list[Run]:
    """The runs that were started for a request, oldest first."""
    return store.records.find(Run, (("tags", QUEUED_TAG), "=", request), order="started_at")


def last_attempt(store: Store, request: str) -> Run | None:
    """The newest run that was started for a request."""
    found = store.records.find(Run, (("tags", QUEUED_TAG), "=", request), order="-started_at", limit=1)
    return found[0] if found else None


def mark_attempts_lost(store: Store, queued: QueuedRun) -> list[Run]:
    """Set the state `lost` for runs of earlier attempts that no process on this machine continues."""
    lost: list[Run] = []
    for run in attempts_of(store, queued.id):
        if run.state != "running" or store.locked(f"run-{run.id}"):
            continue
        try:
            lost += store.records.update(
                replace(run, state="lost", ended_at=store.now()), verb="lost", data={"taken_over": queued.id}
            )
        except (ConflictError, NotFoundError):
            continue
    return lost
