"""The processes of a running loop: `python -m everloop.loop reconcile|run FOLDER`.

reconcile   folds logs, watches, decides releases and requests runs, until a signal arrives or its parent has died
run         a runner: takes requested runs and starts a process for each
queued      the process of one requested run; a runner starts it
describe    writes the declaration as JSON, to compare it with an earlier one; the reconciler starts it
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from types import FrameType

    from everloop.stores import Store


def main(arguments: list[str] | None = None) -> int:
    """Run one of the processes; returns its exit code."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.function
    try:
        return run(options)
    except KeyboardInterrupt:
        return 0
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m everloop.loop")
    commands = parser.add_subparsers(required=True)
    for name, function in (("reconcile", _reconcile), ("run", _run), ("queued", _queued), ("describe", _describe)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("folder", type=Path)
        command.add_argument("--home", type=Path)
        command.add_argument("--project")
        if name in ("reconcile", "run"):
            # The parent passes its own id, because it may have died before this process could look.
            command.add_argument("--parent", type=int, help="id of the parent process; stop when it has died")
            command.add_argument("--ttl", type=float, default=None, help="seconds that a lease lasts")
        if name == "reconcile":
            command.add_argument("--every", type=float, default=10.0, help="seconds between two ticks of a loop")
        if name == "queued":
            command.add_argument("--request", required=True)
            command.add_argument("--lease", required=True)
            command.add_argument("--fence", type=int, required=True)
            command.add_argument("--parent", type=int, required=True)
        if name == "describe":
            command.add_argument("--to", type=Path, required=True)
    return parser


def _open(options: argparse.Namespace, actor: str) -> Store:
    from everloop.stores import open_store

    return open_store(options.home, project=options.project, actor=actor)


def _reconcile(options: argparse.Namespace) -> int:
    from everloop.loop.project import load_project
    from everloop.loop.releases.guards import check_guards
    from everloop.loop.worker.reconciler_process import ReconcilerProcess
    from everloop.loop.worker.runner import stop_on_signal
    from everloop.stores.leases import TTL_S

    project = load_project(options.folder)
    with _open(options, "everloop:reconciler") as store:
        process = ReconcilerProcess(
            store, project, every_s=options.every, ttl_s=options.ttl or TTL_S, guard=check_guards
        )
        process.parent = options.parent
        stop_on_signal(process.stop)
        reload = process.work()
    if reload and not process.stop.is_set():
        # The new code needs a process without the old modules. Its parent sees the same process.
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, "-m", "everloop.loop", *sys.argv[1:]])  # noqa: S606
    return 0


def _run(options: argparse.Namespace) -> int:
    import threading

    from everloop.loop.project_folder import find_folder
    from everloop.loop.worker.runner import Runner, stop_on_signal
    from everloop.stores.leases import TTL_S

    with _open(options, "everloop:runner") as store:
        runner = Runner(store, find_folder(options.folder), ttl_s=options.ttl or TTL_S)
        stop_on_signal(runner.stop)
        if options.parent is not None:
            threading.Thread(
                target=_follow, args=(options.parent, runner.stop), name="everloop-parent", daemon=True
            ).start()
        runner.work()
    return 0


def _queued(options: argparse.Namespace) -> int:
    from everloop.loop.worker.queued_execution import end_with_parent, execute_queued

    _interrupt_on_signal()
    end_with_parent(options.parent)
    with _open(options, "everloop:runner") as store:
        return execute_queued(store, options.folder, options.request, options.lease, options.fence)


def _describe(options: argparse.Namespace) -> int:
    from everloop.loop.project import load_project
    from everloop.loop.worker.reloading import describe_project

    project = load_project(options.folder)
    with _open(options, "everloop:reconciler") as store:
        options.to.write_text(json.dumps(describe_project(project, store)), encoding="utf-8")
    return 0


def _interrupt_on_signal() -> None:
    """Raise KeyboardInterrupt in the main thread at the first SIGTERM or SIGINT, and ignore further ones."""

    def handle(signum: int, frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _follow(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent and not stop.wait(0.5):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
