"""Runs whose versions are never watched, such as those of a replayed policy without watches: they need no baseline.

Building the baseline of a version takes about as long as packaging it, and only watches and reports read it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_wanted: ContextVar[bool] = ContextVar("everloop_baselines_wanted", default=True)


@contextmanager
def without_baselines() -> Iterator[None]:
    """Let the runs in this block register their versions without a monitoring baseline."""
    before = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(before)


def baselines_wanted() -> bool:
    """Whether a version that is registered now gets a baseline."""
    return _wanted.get()
