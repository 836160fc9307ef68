"""What a running step can know about itself."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from everloop.stores import Store

LogCall = tuple[dict[str, Any], int | None]


@dataclass(frozen=True)
class StepContext:
    """What a running step is part of: its run, its name, its attempt and its store."""

    run: str
    """Id of the run."""
    name: str
    store: Store
    attempt: int = 1
    _write: Callable[[dict[str, Any], int | None], None] = field(default=lambda metrics, step: None, repr=False)

    def log(self, metrics: Mapping[str, Any] | None = None, /, *, step: int | None = None, **more: Any) -> None:
        """Log metrics to the run, from any process that the step runs in.

        An inline step writes them at once. A worker process passes them on when the step ends.
        """
        self._write({**(metrics or {}), **more}, step)


_current: ContextVar[StepContext | None] = ContextVar("everloop_step", default=None)


def current_step() -> StepContext | None:
    """The step that is running in this thread, or None. Threads that a step starts do not inherit it."""
    return _current.get()


@contextmanager
def running_step(context: StepContext) -> Iterator[None]:
    """Inside the block, `current_step` returns this context."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
