"""How far a running step has come: said by the step, drawn by whoever watches the run.

    @el.step
    def embed(rows: pl.DataFrame) -> pl.DataFrame:
        for number, batch in enumerate(rows.iter_slices(1000)):
            el.progress(number * 1000, rows.height, note="embedding")
            ...

Where nobody watches, and outside of a step, saying so costs two look-ups and does nothing.
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
    """How far one step has come."""

    done: float
    total: float | None = None
    """None where it is not known."""
    note: str = ""
    unit: str = ""
    """Such as `rows`; `s` where a time budget is used up."""

    def text(self) -> str:
        """As people read it: `31 of 60 s · 7 trials, best roc_auc 0.731`."""
        amount = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f} of {self.total:,.0f}"
        amount = f"{amount} {self.unit}" if self.unit else amount
        return f"{amount} · {self.note}" if self.note else amount


_watcher: ContextVar[Callable[[str, StepProgress], None] | None] = ContextVar("everloop_step_progress", default=None)


def progress(done: float, total: float | None = None, *, note: str = "", unit: str = "") -> None:
    """Say how far the running step has come; call it as often as you like.

    It is shown where the run is watched, as in the terminal of `everloop run`, and is an event `run.progress` at most
    every ten seconds. A step in another process (`--on pool`, or one with `timeout_s`) shows its seconds only.

    Args:
        done: how much is done, in any unit.
        total: how much there is to do, if that is known.
        note: what else is worth knowing, such as the best score so far.
        unit: of `done` and `total`, such as `rows`.
    """
    watcher = _watcher.get()
    step = current_step()
    if watcher is not None and step is not None:
        whole = float(total) if total is not None and isfinite(total) else None
        watcher(step.name, StepProgress(float(done) if isfinite(done) else 0.0, whole, note, unit))


@contextmanager
def watch_steps(watcher: Callable[[str, StepProgress], None]) -> Iterator[None]:
    """Inside the block, call `watcher` with a step's name and its news, in the thread that runs the step."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


__all__ = ["StepProgress", "progress", "watch_steps"]
