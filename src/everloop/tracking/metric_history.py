"""A metric's course over a run: all of its points, or as few as a plot can show without losing a peak."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.records import Run
from everloop.stores.clock import moment_of
from everloop.stores.permissions import make_folder, private_opener
from everloop.tracking.journal.last_points import series_of
from everloop.tracking.journal.run_folding import fold_run

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    import polars as pl

    from everloop.stores import Store

KEPT_FROM = 20_000
"""A metric with at least so many points is also kept as columns in the home's cache, for quick reading."""

_NUMBER_BITS = 40
_NUMBERS = (1 << _NUMBER_BITS) - 1
_PARITY_BITS = 23

_PER_BUCKET = 3
"""The least, the greatest and the last point."""


@dataclass(frozen=True, slots=True)
class History:
    """Points of one metric in the order of their steps, then of their arrival; three arrays of equal length."""

    key: str
    steps: np.ndarray[Any, np.dtype[np.int64]]
    at: np.ndarray[Any, np.dtype[np.int64]]
    """µs since 1970, UTC."""
    values: np.ndarray[Any, np.dtype[np.float64]]
    """NaN and infinities where they were logged."""
    total: int
    """How many points there are, shown or not."""

    def __len__(self) -> int:
        return len(self.steps)

    def times(self) -> list[datetime]:
        return [moment_of(int(at)) for at in self.at]

    def frame(self) -> pl.DataFrame:
        import polars as pl

        at = pl.Series("at", self.at).cast(pl.Datetime("us", "UTC"))
        return pl.DataFrame([pl.Series("step", self.steps), at, pl.Series("value", self.values)])


def read_history(store: Store, run: Run | str, key: str, max_points: int | None = None) -> History:
    """The points of one metric of a run; what journals still hold is folded first.

    Args:
        run: the run or its id.
        max_points: at most so many, at least 6. The points are cut into buckets of equal count, and of each bucket
            the least, the greatest and the last value stay, as they were logged, and NaN where a bucket has one and
            room is left. The first point stays too.

    Raises:
        UsageError: `max_points` is less than 6.
    """
    if max_points is not None and max_points < 2 * _PER_BUCKET:
        raise UsageError(f"max_points={max_points} shows nothing.", help="Ask for 6 points or more.")
    identity = run.id if isinstance(run, Run) else run
    if not store.read_only:
        fold_run(store, identity)
    table = _columns(store, series_of(identity), key)
    steps, at, values = table["step"], table["at"], table["value"]
    total = len(steps)
    if total > 1 and bool((steps[1:] < steps[:-1]).any()):
        # Arrival is the order of the columns, and this sort keeps it among equal steps.
        import numpy as np

        order = np.argsort(steps, kind="stable")
        steps, at, values = steps[order], at[order], values[order]
    if max_points is not None and total > max_points:
        kept = thin(values, max_points)
        steps, at, values = steps[kept], at[kept], values[kept]
    return History(key, steps.copy(), at.copy(), values.copy(), total)


def thin(values: np.ndarray[Any, np.dtype[np.float64]], max_points: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices, growing, of at most `max_points` of the values: of each bucket the least, the greatest and the last.

    NaN is neither least nor greatest; a bucket of NaN alone keeps its last. Infinities count.
    """
    import numpy as np

    total = len(values)
    if total <= max_points:
        return np.arange(total)
    buckets = max((max_points - 1) // _PER_BUCKET, 1)
    width = -(-total // buckets)
    missing = np.isnan(values)
    holes = bool(missing.any())
    low = np.full(buckets * width, np.inf)
    low[:total] = values
    if holes:
        low[:total][missing] = np.inf
    least = low.reshape(buckets, width).argmin(axis=1)
    low[total:] = -np.inf
    if holes:
        low[:total][missing] = -np.inf
    greatest = low.reshape(buckets, width).argmax(axis=1)
    starts = np.arange(buckets) * width
    used = starts < total
    starts, least, greatest = starts[used], least[used], greatest[used]
    last = np.minimum(starts + width, total) - 1
    found = np.concatenate([[0], starts + least, starts + greatest, last])
    return np.unique(np.minimum(found, total - 1))


def _columns(store: Store, series: str, key: str) -> Any:
    """A structured array with `step`, `at` and `value`, in the order of arrival."""
    import numpy as np

    if store.read_only:
        return np.array(store.records.read_columns(series, key), dtype=_row_type())[["step", "at", "value"]]
    path = _cache_path(store, series, key)
    known = _read_cache(path)
    if len(known) and not bool((known["seq"] >> _NUMBER_BITS == _parity(known)).all()):
        # Damaged, or of an earlier version. The store has everything that it held.
        path.unlink(missing_ok=True)
        known = known[:0]
    after = int(known[-1]["seq"]) & _NUMBERS if len(known) else 0
    rows = store.records.read_columns(series, key, after=after)
    if not rows:
        return known
    fresh = np.array(rows, dtype=_row_type())
    if len(known) + len(fresh) >= KEPT_FROM:
        _extend_cache(store, path, len(known), fresh)
    return np.concatenate([known, fresh]) if len(known) else fresh


def _row_type() -> Any:
    import numpy as np

    return np.dtype([("seq", "<i8"), ("step", "<i8"), ("at", "<i8"), ("value", "<f8")])


def _parity(rows: Any) -> Any:
    """Of each row, 23 bits that any single flipped bit of it changes. They stand above the number in the cache, so that
    damage to the cache never becomes a value."""
    import numpy as np

    mixed = rows["seq"] & _NUMBERS
    for name in ("step", "at", "value"):
        mixed = mixed ^ np.ascontiguousarray(rows[name]).view("<i8")
    low = (1 << _PARITY_BITS) - 1
    return (mixed ^ mixed >> _PARITY_BITS ^ mixed >> 2 * _PARITY_BITS) & low


def _cache_path(store: Store, series: str, key: str) -> Path:
    named = "\0".join((store.urls.records, store.project, series, key))
    return store.home / "cache" / "points" / f"{hashlib.sha256(named.encode()).hexdigest()}.points"


def _read_cache(path: Path) -> Any:
    import numpy as np

    kind = _row_type()
    try:
        whole = path.stat().st_size // kind.itemsize
        if whole:
            return np.memmap(path, dtype=kind, mode="r", shape=(whole,))
    except OSError:
        pass
    return np.empty(0, dtype=kind)


def _extend_cache(store: Store, path: Path, known: int, fresh: Any) -> None:
    """Add rows to the cache, unless another has meanwhile. A cache that cannot be written is done without."""
    size = fresh.dtype.itemsize
    with suppress(OSError), store.lock("points"):
        make_folder(path.parent)
        with open(path, "ab", opener=private_opener) as file:
            if file.tell() // size != known:
                return
            # What a killed writer left of a row.
            file.truncate(known * size)
            kept = fresh.copy()
            kept["seq"] |= _parity(fresh) << _NUMBER_BITS
            file.write(kept.tobytes())
