"""How progress is told to whoever draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.pipeline.step_progress import StepProgress
    from everloop.records import StepRun


class Listener:
    """Told of what happens in a graph's run, in order, from the thread that runs it. Override what you need."""

    def on_begin(self, names: Sequence[str]) -> None:
        """The run starts; these steps belong to it, in this order."""

    def on_start(self, name: str, reason: str) -> None:
        """A step starts to run. Cached and skipped ones only finish."""

    def on_progress(self, name: str, progress: StepProgress) -> None:
        """A running step has said how far it has come; as often as it likes."""

    def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
        """An attempt failed and another follows in so many seconds."""

    def on_finish(self, step: StepRun) -> None:
        """A step has ended, with any status; of a step that fans out, each element by itself and then the whole."""

    def on_end(self) -> None:
        """The run is over, whatever became of it."""
