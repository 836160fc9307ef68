"""The process of one queued run: imports the project, runs its loop, and records the end of the request."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, LeaseLostError
from everloop.loop.triggers.trigger_protocol import ANY_RUN, Due
from everloop.loop.worker.run_queue import QUEUED_TAG, end_run
from everloop.records import QueuedRun
from everloop.stores.leases import fenced_by

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

GRACE_S = 10.0
"""How long the run may take to stop after its runner has died. Then the process ends itself."""


def execute_queued(store: Store, folder: Path, request: str, lease: str, fence: int) -> int:
    """Run the loop of a request and record its end.

    Every write is fenced: it fails if another runner has taken the request over.

    Args:
        request: id of the request.
        lease: name of the runner's lease.
        fence: its fencing number.

    Returns:
        The exit code: 0 if the end of the request is recorded, whether it succeeded or not.
    """
    from everloop.loop.loop_run import run_loop
    from everloop.loop.project import load_project

    fenced = fenced_by(store, lease, fence)
    queued = fenced.records.get(QueuedRun, request)
    try:
        loop = load_project(folder).loop(queued.loop)
        run_loop(loop, fenced, trigger=_cause(queued), params=queued.params, tags={QUEUED_TAG: queued.id})
    except LeaseLostError as error:
        sys.stderr.write(f"LeaseLostError: {error}\n")
        return error.exit_code
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        end_run(fenced, queued, "failed", str(error))
        fenced.records.append_event("run_failed", "loop", queued.loop, queued.loop, {"error": str(error)})
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        end_run(fenced, queued, "failed", text)
        fenced.records.append_event("run_failed", "loop", queued.loop, queued.loop, {"error": text})
    else:
        end_run(fenced, queued, "done")
    return 0


def _cause(queued: QueuedRun) -> Due:
    """What the run was requested for. The queue already makes sure that there is one run for it."""
    trigger, _, reason = queued.trigger.partition(": ")
    evidence = queued.cause.get("evidence")
    return Due(trigger, reason, dict(evidence) if isinstance(evidence, dict) else {}, after=ANY_RUN)


def end_with_parent(parent: int, *, every_s: float = 0.5) -> None:
    """Interrupt this process, in a thread, as soon as its parent has died. User code that does not react is ended."""

    def watch() -> None:
        waiting = threading.Event()
        while os.getppid() == parent:
            waiting.wait(every_s)
        os.kill(os.getpid(), signal.SIGTERM)
        waiting.wait(GRACE_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="everloop-parent", daemon=True).start()
