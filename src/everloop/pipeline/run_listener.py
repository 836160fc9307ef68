"""The listener of a graph's run: the interface for showing its progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.pipeline.step_progress import StepProgress
    from everloop.records import StepRun


class Listener:
    """Receives the events of a graph's run, in order, in the thread that runs it. Override the methods you need."""

    def on_begin(self, names: Sequence[str]) -> None:
        """The run starts, with these steps in this order."""

    def on_start(self, name: str, reason: str) -> None:
        """A step starts to run. Cached and skipped steps only finish."""

    def on_progress(self, name: str, progress: StepProgress) -> None:
        """A running step has reported its progress. This may happen very often."""

    def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
        """An attempt failed; the next one starts in `wait_s` seconds."""

    def on_finish(self, step: StepRun) -> None:
        """A step has ended, with any status. A step that fans out ends after each of its elements has ended."""

    def on_end(self) -> None:
        """The run has ended, successfully or not."""
