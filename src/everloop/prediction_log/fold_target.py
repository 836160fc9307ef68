"""Describes a fold: the stream, the table, and how payloads become rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from everloop.stores import Store

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class FoldTarget(Generic[Entry]):
    """How the entries of one stream become rows of one table."""

    stream: str
    table: str
    decode: Callable[[bytes], Entry]
    """Decodes one payload."""
    frame_of: Callable[[Store, str, list[Entry]], pl.DataFrame]
    """Turns entries into rows, with the columns `event_at` and `arrived_at`."""
