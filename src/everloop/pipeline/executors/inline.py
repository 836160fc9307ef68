"""Steps in this process, one after the other."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from everloop.pipeline.job import Job, Outcome, perform

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from everloop.pipeline.executors.protocol import LogWriter
    from everloop.stores import Store


class InlineExecutor:
    """The cheapest place, and the one to debug in. `submit` returns when the step has ended."""

    slots = 1
    capacity: Mapping[str, float] = {}
    isolates = False

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(perform(job, store, log=log, held=held))
        except Exception as error:
            # The future carries it to whoever waits, as it would from another process. KeyboardInterrupt and
            # SystemExit are not the step's and go through.
            future.set_exception(error)
        return future

    def close(self, *, kill: bool = False) -> None:
        """Nothing runs between two calls of `submit`."""
