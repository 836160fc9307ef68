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
    """Where a step stands: in which run, under which name, at which attempt, over which store."""

    run: str
    """Id of the run."""
    name: str
    store: Store
    attempt: int = 1
    _write: Callable[[dict[str, Any], int | None], None] = field(default=lambda metrics, step: None, repr=False)

    def log(self, metrics: Mapping[str, Any] | None = None, /, *, step: int | None = None, **more: Any) -> None:
        """Log metrics to the run, from whichever process the step runs in.

        Inline they are written at once; a worker hands them over when the step ends.
        """
        self._write({**(metrics or {}), **more}, step)


_current: ContextVar[StepContext | None] = ContextVar("everloop_step", default=None)


def current_step() -> StepContext | None:
    """The step that is running here; None outside of one. Threads that a step starts do not inherit it."""
    return _current.get()


@contextmanager
def running_step(context: StepContext) -> Iterator[None]:
    """Inside, `current_step` is this one."""
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)
