"""How far a long piece of work has come, for whoever wants to draw it.

Reading and keeping call `tell`; a command line or a notebook watches. Neither knows the other, and where nobody
watches, telling costs a look.
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
    """One piece of news."""

    what: str
    """Such as `download`, `snapshot`, `files`."""
    done: int
    total: int | None
    """None where nobody knows it yet."""
    unit: str
    """`bytes`, `rows`, `files`."""
    name: str = ""
    """Of the file or table that it is about."""


_watcher: ContextVar[Callable[[ReadProgress], None] | None] = ContextVar("everloop_progress", default=None)


@contextmanager
def watch_progress(watcher: Callable[[ReadProgress], None]) -> Iterator[None]:
    """Inside the block, call `watcher` with each piece of news, in the thread that does the work."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(what: str, done: int, total: int | None, unit: str, name: str = "") -> None:
    """Say how far it has come."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(ReadProgress(what, done, total, unit, name))
