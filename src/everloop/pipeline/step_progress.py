"""Progress of a running step: reported by the step, shown by the listener of the run.

    @el.step
    def embed(rows: pl.DataFrame) -> pl.DataFrame:
        for number, batch in enumerate(rows.iter_slices(1000)):
            el.progress(number * 1000, rows.height, note="embedding")
            ...

Without a listener, and outside of a step, a call costs two look-ups and does nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from everloop.pipeline.context import current_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress of one step."""

    done: float
    total: float | None = None
    """None if not known."""
    note: str = ""
    unit: str = ""
    """Such as `rows`; `s` for a time budget."""

    def text(self) -> str:
        """The progress as text: `31 of 60 s · 7 trials, best roc_auc 0.731`."""
        amount = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f} of {self.total:,.0f}"
        amount = f"{amount} {self.unit}" if self.unit else amount
        return f"{amount} · {self.note}" if self.note else amount


_watcher: ContextVar[Callable[[str, StepProgress], None] | None] = ContextVar("everloop_step_progress", default=None)


def progress(done: float, total: float | None = None, *, note: str = "", unit: str = "") -> None:
    """Report the progress of the running step. Call it as often as you like.

    `everloop run` shows it in the terminal, and an event `run.progress` is written at most every ten seconds. For a
    step in a worker process (`--on pool`, or with `timeout_s`), only the seconds that it has run are shown.

    Args:
        done: how much is done, in any unit.
        total: how much there is to do, if known.
        note: anything else worth showing, such as the best score so far.
        unit: of `done` and `total`, such as `rows`.
    """
    watcher = _watcher.get()
    step = current_step()
    if watcher is not None and step is not None:
        finite_total = float(total) if total is not None and isfinite(total) else None
        watcher(step.name, StepProgress(float(done) if isfinite(done) else 0.0, finite_total, note, unit))


@contextmanager
def watch_steps(watcher: Callable[[str, StepProgress], None]) -> Iterator[None]:
    """Inside the block, call `watcher` with a step's name and its progress, in the thread that runs the step."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


__all__ = ["StepProgress", "progress", "watch_steps"]
