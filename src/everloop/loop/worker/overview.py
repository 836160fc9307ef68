"""What runs now: processes and their leases, the queue of runs, and when the loops run next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.loop.triggers.schedules import Every
from everloop.loop.triggers.trigger_contexts import named_triggers
from everloop.loop.worker.run_queue import active_runs
from everloop.records import EndpointRecord, Lease, QueuedRun
from everloop.stores.clock import system_micros
from everloop.stores.leases import Leases
from everloop.stores.processes import host_of, pid_of, process_is_gone

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.loop.loop_definition import Loop
    from everloop.loop.project import Project
    from everloop.records import EndpointState, Run
    from everloop.stores import Store

ROLES = {"reconcile": "reconciler", "run": "run", "runner": "runner", "endpoint": "endpoint"}
"""First part of a lease's name to what the process that holds it does."""


@dataclass(frozen=True, slots=True)
class WorkingProcess:
    """A process that holds a lease."""

    role: str
    """`reconciler`, `runner`, `run` or `endpoint`."""
    subject: str
    """The loop, runner or endpoint."""
    host: str
    pid: int
    fence: int
    silent_s: float
    """Seconds since its last heartbeat, by the clocks of both machines, so only roughly right across machines."""
    state: str
    """`alive`; `silent` if its lease seems to have expired; `gone` if the process has certainly ended."""


@dataclass(frozen=True, slots=True)
class LoopOutlook:
    """When a loop runs next."""

    loop: str
    last: Run | None
    next_at: datetime | None
    """The next time by its schedules; None if it has none."""
    other_triggers: tuple[str, ...] = ()
    """Triggers that wait for something other than the time."""


@dataclass(frozen=True, slots=True)
class WorkOverview:
    """What runs now, as the store shows it."""

    processes: list[WorkingProcess]
    queue: list[QueuedRun]
    endpoints: dict[str, EndpointState]
    loops: list[LoopOutlook] = field(default_factory=list)

    def has_live(self, role: str, host: str | None = None) -> bool:
        """Whether a process of this role is alive, on any machine or on one."""
        return any(one.role == role and one.state == "alive" and host in (None, one.host) for one in self.processes)


def overview(store: Store, project: Project | None = None) -> WorkOverview:
    """Read from the store what runs now. It does not need to be the machine that runs it.

    Args:
        project: the declared loops, to say when they run next.
    """
    now = system_micros()
    processes = [_process(lease, now) for lease in Leases(store).held()]
    loops = [] if project is None else [loop_outlook(loop, store) for loop in project.loops.values()]
    endpoints = {one.name: one.state for one in store.records.find(EndpointRecord, order="name")}
    return WorkOverview([one for one in processes if one is not None], active_runs(store), endpoints, loops)


def loop_outlook(loop: Loop, store: Store) -> LoopOutlook:
    """When a loop runs next by its schedules, and which other triggers it has."""
    from everloop.loop.triggers.trigger_checks import explain_due, last_run

    timed = {name for name, one in named_triggers(loop).items() if isinstance(one, Every)}
    reports = explain_due(loop, store)
    times = [one.next_at for one in reports if one.trigger in timed and one.next_at is not None]
    others = tuple(name for name in named_triggers(loop) if name not in timed)
    return LoopOutlook(loop.name, last_run(loop, store), min(times, default=None), others)


def _process(lease: Lease, now: int) -> WorkingProcess | None:
    prefix, _, subject = lease.name.partition(":")
    if prefix not in ROLES:
        return None
    from everloop.stores.clock import micros

    silent_s = max((now - micros(lease.renewed_at)) / 1e6, 0.0)
    if process_is_gone(lease.owner):
        state = "gone"
    else:
        state = "silent" if silent_s > lease.ttl_s else "alive"
    return WorkingProcess(
        ROLES[prefix], subject, host_of(lease.owner), pid_of(lease.owner), lease.fence, round(silent_s, 1), state
    )
