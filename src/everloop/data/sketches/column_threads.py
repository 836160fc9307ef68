"""Run a function over the columns of a large frame in threads. NumPy and Polars release the interpreter lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST_ROWS = 50_000
"""Columns with fewer rows are handled faster than a thread is started."""


def over_columns(function: Callable[[Item], Result], items: Iterable[Item], rows: int) -> list[Result]:
    """Return `[function(item) for item in items]`; in threads if the columns have many rows.

    There are as many threads as Polars has, which `POLARS_MAX_THREADS` limits.
    """
    work = list(items)
    if rows < LEAST_ROWS or len(work) < 2:
        return [function(item) for item in work]
    from concurrent.futures import ThreadPoolExecutor

    import polars as pl

    with ThreadPoolExecutor(min(len(work), pl.thread_pool_size())) as pool:
        return list(pool.map(function, work))
