"""Notes about how values were read, such as `'TotalCharges': 11 blank values read as null`.

Reading never prints. `collect_notes` collects the notes. They are also stored with the source of a step or a snapshot,
and logged to `everloop.data` at level INFO.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("everloop.data")
_collector: ContextVar[list[ReadingNote] | None] = ContextVar("everloop_reading_notes", default=None)


@dataclass(frozen=True)
class ReadingNote:
    """One decision that was made while reading a source, and that the user should know about."""

    source: str
    column: str
    message: str
    help: str = ""
    """What to pass to `read` for another result."""
    option_help: str = ""
    """What to type on the command line for another result."""

    def __str__(self) -> str:
        return f"'{self.column}': {self.message}"


def note(source: str, column: str, message: str, help: str = "", option_help: str = "") -> None:
    """Record and log what was decided about a column."""
    found = ReadingNote(source, column, message, help, option_help)
    _log.info("%s: %s", source, found)
    notes = _collector.get()
    if notes is not None and found not in notes:
        notes.append(found)


@contextmanager
def collect_notes() -> Iterator[list[ReadingNote]]:
    """Collect the notes of what is read inside the block, without duplicates. Enclosing collectors get them too."""
    outer = _collector.get()
    notes: list[ReadingNote] = []
    token = _collector.set(notes)
    try:
        yield notes
    finally:
        _collector.reset(token)
        if outer is not None:
            outer.extend(found for found in notes if found not in outer)
