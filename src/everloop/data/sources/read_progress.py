"""Progress of long operations, for a progress bar.

The code that reads and stores data calls `report_progress`, and a command line or a notebook watches. Neither depends
on the other. Without a watcher, a report costs one variable lookup.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """One progress report."""

    what: str
    """The operation: `download`, `snapshot`, `files` or `source`."""
    done: int
    total: int | None
    """None if not known yet."""
    unit: str
    """`bytes`, `rows` or `files`."""
    name: str = ""
    """The file, folder or table being processed."""


_watcher: ContextVar[Callable[[ReadProgress], None] | None] = ContextVar("everloop_progress", default=None)


@contextmanager
def watch_progress(watcher: Callable[[ReadProgress], None]) -> Iterator[None]:
    """Inside the block, call `watcher` with each report, in the thread that does the work."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def report_progress(what: str, done: int, total: int | None, unit: str, name: str = "") -> None:
    """Send a report to the watcher, if there is one."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(ReadProgress(what, done, total, unit, name))
