"""`python -m everloop.loop FOLDER`: the process that ticks a project's loops and takes their turns."""

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
    """Tick until a signal or until the parent is gone. A turn under way is stopped; the next process resumes it."""
    parser = argparse.ArgumentParser(prog="python -m everloop.loop", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--project")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two ticks")
    given = parser.parse_args(arguments)
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    parent = os.getppid()
    from everloop.loop.project import load_project
    from everloop.stores import open_store

    try:
        project = load_project(given.folder)
        with open_store(given.home, project=given.project, actor="everloop:worker") as store:
            troubles: dict[str, str] = {}
            while not stopping.is_set() and os.getppid() == parent:
                for loop in project.loops.values():
                    _beat(loop, store, troubles)
                stopping.wait(given.every)
    except KeyboardInterrupt:
        return 0
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


def _beat(loop: Loop, store: Store, troubles: dict[str, str]) -> None:
    """One beat of one loop. `troubles`: the last error by loop, so that one that stays is told once."""
    from everloop.loop.loop_run import run_loop
    from everloop.loop.reconciler import reconcile

    due = None
    try:
        due = reconcile(loop, store).due
        if due is not None:
            run_loop(loop, store, trigger=f"{due.trigger}: {due.reason}")
        troubles.pop(loop.name, None)
    except EverloopError as error:
        # The run says what failed; the loop lives on and asks its triggers again at the next beat.
        if troubles.get(loop.name) == str(error):
            return
        troubles[loop.name] = str(error)
        what = "turn_failed" if due is not None else "tick_failed"
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        store.records.append_event(what, "loop", loop.name, loop.name, {"error": str(error)})


if __name__ == "__main__":
    sys.exit(main())
