"""`everloop status` and `everloop runner`: what runs now, and one more process that takes runs from the queue."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, Home, ProjectFolder, cell, console, count, emit, messages, opened

if TYPE_CHECKING:
    from everloop.loop.project import Project
    from everloop.loop.worker.overview import LoopOutlook, WorkingProcess, WorkOverview
    from everloop.records import QueuedRun


def status(
    check: Annotated[
        str | None,
        typer.Option(help="Fail unless a process of this role runs on this machine: reconciler, runner or endpoint."),
    ] = None,
    project: ProjectFolder = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show what runs now: processes, queued runs, endpoints, and when each loop runs next."""
    from everloop.errors import EverloopError, UnavailableError, UsageError
    from everloop.loop.project import load_project
    from everloop.loop.project_folder import find_folder
    from everloop.loop.worker.overview import ROLES, overview

    if check is not None and check not in ROLES.values():
        raise UsageError(f"--check '{check}' is not a role.", help=f"Roles: {', '.join(ROLES.values())}")
    if project is not None and home is None:
        os.chdir(find_folder(project))
    loaded: Project | None = None
    problem = ""
    if check is None:
        try:
            loaded = load_project(project)
        except EverloopError as error:
            problem = error.message
    with opened(home) as store:
        found = overview(store, loaded)
    if check is not None and not found.has_live(check, os.uname().nodename):
        raise UnavailableError(f"No {check} runs on this machine.", help="Start everloop: everloop up")
    emit(found, json, lambda: _draw(found, problem))


def runner(project: ProjectFolder = None, home: Home = None, json: AsJson = False) -> None:
    """Take runs from the queue until Ctrl-C.

    `everloop up` starts one runner. Start more on this machine or on others that use the same store.
    """
    from everloop.cli.loop import store_of
    from everloop.loop.project_folder import find_folder
    from everloop.loop.worker.runner import Runner, stop_on_signal

    folder = find_folder(project)
    with store_of(folder, home) as store:
        one = Runner(store, folder)
        facts = {"host": os.uname().nodename, "pid": os.getpid(), "folder": str(folder), "home": str(store.home)}
        emit(facts, json, lambda: messages().print(f"Waiting for runs of {cell(folder)}  (Ctrl-C stops the runner)"))
        stop_on_signal(one.stop)
        one.work()


def _draw(found: WorkOverview, problem: str) -> None:
    line = console().print
    if not found.processes:
        line("Nothing runs. Start with: everloop up")
    for process in found.processes:
        line(_process_line(process), soft_wrap=True, markup=False)
    for name, state in found.endpoints.items():
        line(f"The endpoint '{name}' is {state}.", soft_wrap=True, markup=False)
    if not found.queue:
        line("No run is queued.")
    for queued in found.queue:
        line(_queue_line(queued), soft_wrap=True, markup=False)
    for loop in found.loops:
        line(_loop_line(loop), soft_wrap=True, markup=False)
    if problem:
        messages().print(f"When the loops run next is unknown: {cell(problem)}", soft_wrap=True)


def _process_line(process: WorkingProcess) -> str:
    what = {
        "reconciler": f"The loop '{process.subject}' is watched",
        "run": f"The loop '{process.subject}' is run",
        "runner": "Runs are taken",
        "endpoint": f"The endpoint '{process.subject}' is kept running",
    }[process.role]
    by = f"by process {process.pid} on {process.host}"
    if process.state == "gone":
        return f"{what} by no process: {process.pid} on {process.host} has ended, and another takes over."
    heartbeat = f"its last heartbeat was {process.silent_s:.0f} s ago"
    warning = " Its lease has expired, and another may take over." if process.state == "silent" else ""
    return f"{what} {by}; {heartbeat}.{warning}"


def _queue_line(queued: QueuedRun) -> str:
    if queued.state == "waiting":
        joined = f" It serves {count(len(queued.joined), 'further trigger')}." if queued.joined else ""
        return f"A run of '{queued.loop}' waits for a runner. {queued.trigger}.{joined}"
    if not queued.runner:
        return f"A run of '{queued.loop}' was interrupted and waits for a runner. {queued.trigger}."
    attempt = f", attempt {queued.attempts} of {queued.most_attempts}" if queued.attempts > 1 else ""
    ending = " It is being cancelled." if queued.cancel_requested_by else ""
    since = f" since {queued.started_at:%Y-%m-%d %H:%M:%S}" if queued.started_at else ""
    return f"A run of '{queued.loop}' is in progress{since}{attempt}. {queued.trigger}.{ending}"


def _loop_line(loop: LoopOutlook) -> str:
    last = (
        "has not run yet"
        if loop.last is None
        else f"last ran {loop.last.started_at:%Y-%m-%d %H:%M} ({loop.last.state})"
    )
    waits = [f"at {loop.next_at:%Y-%m-%d %H:%M} UTC"] if loop.next_at is not None else []
    waits += [f"when {name} fires" for name in loop.other_triggers]
    nothing = "at once" if loop.last is None else "only by hand"
    return f"The loop '{loop.loop}' {last}; it runs next {' or '.join(waits) if waits else nothing}."
