"""`python -m everloop.loop FOLDER`: the worker process, which reconciles a project's loops and starts due runs."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from types import FrameType

    from everloop.loop.loop_definition import Loop
    from everloop.stores import Store


def main(arguments: list[str] | None = None) -> int:
    """Reconcile every loop until a signal arrives or the parent process is gone; returns the exit code.

    A run in progress is interrupted; the next worker process resumes it.
    """
    parser = argparse.ArgumentParser(prog="python -m everloop.loop", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--project")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two checks of a loop")
    options = parser.parse_args(arguments)
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    parent = os.getppid()
    from everloop.loop.project import load_project
    from everloop.stores import open_store

    try:
        project = load_project(options.folder)
        with open_store(options.home, project=options.project, actor="everloop:worker") as store:
            last_errors: dict[str, set[str]] = {}
            while not stopping.is_set() and os.getppid() == parent:
                for loop in project.loops.values():
                    _tick(loop, store, last_errors)
                _notify(project.folder, store, last_errors)
                stopping.wait(options.every)
    except KeyboardInterrupt:
        return 0
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def _tick(loop: Loop, store: Store, last_errors: dict[str, set[str]]) -> None:
    """Reconcile one loop, and run it if a run is due.

    Args:
        last_errors: the last errors by kind and name, so that an error that persists is reported once.
    """
    from everloop.loop.loop_run import run_loop
    from everloop.loop.worker.reconciler import reconcile

    failures: list[tuple[str, EverloopError]] = []
    due = None
    try:
        reconciliation = reconcile(loop, store)
        failures += [("tick_failed", error) for error in reconciliation.errors]
        due = reconciliation.due
        if due is not None:
            run_loop(loop, store, trigger=due)
    except EverloopError as error:
        # The run's record holds the failure. The worker carries on and checks the triggers again at the next tick.
        failures.append(("turn_failed" if due is not None else "tick_failed", error))
    _report("loop", loop.name, failures, store, last_errors)


def _notify(folder: Path, store: Store, last_errors: dict[str, set[str]]) -> None:
    """Send messages about incidents. A channel that cannot be reached does not stop the loops."""
    from everloop.monitoring.incidents.notification_channels import read_channels
    from everloop.monitoring.incidents.notifications import send_notifications

    errors: list[EverloopError] = []
    try:
        _, errors = send_notifications(store, read_channels(folder))
    except EverloopError as error:
        errors.append(error)
    _report("notification_channel", "notify", [("notify_failed", error) for error in errors], store, last_errors)


def _report(
    kind: str,
    name: str,
    failures: list[tuple[str, EverloopError]],
    store: Store,
    last_errors: dict[str, set[str]],
) -> None:
    reported = last_errors.get(f"{kind} {name}", set())
    last_errors[f"{kind} {name}"] = {str(failure) for _, failure in failures}
    for verb, failure in failures:
        if str(failure) not in reported:
            sys.stderr.write(f"{type(failure).__name__}: {failure}\n")
            store.records.append_event(verb, kind, name, name, {"error": str(failure)})


if __name__ == "__main__":
    sys.exit(main())
