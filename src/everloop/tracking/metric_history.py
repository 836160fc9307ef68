"""The history of a metric over a run: all of its points, or a thinned selection for plots that keeps every peak."""

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

CACHED_FROM = 20_000
"""A metric with at least this many points is also cached as columns in the home's cache folder, for fast reading."""

_NUMBER_BITS = 40
_NUMBERS = (1 << _NUMBER_BITS) - 1
_PARITY_BITS = 23

_PER_BUCKET = 3
"""The smallest, the largest and the last point of each bucket."""


@dataclass(frozen=True, slots=True)
class History:
    """Points of one metric, ordered by step, then by arrival; three arrays of equal length."""

    key: str
    steps: np.ndarray[Any, np.dtype[np.int64]]
    at: np.ndarray[Any, np.dtype[np.int64]]
    """µs since 1970, UTC."""
    values: np.ndarray[Any, np.dtype[np.float64]]
    """NaN and infinities where they were logged."""
    total: int
    """How many points the metric has, including those that were thinned out."""

    def __len__(self) -> int:
        return len(self.steps)

    def times(self) -> list[datetime]:
        return [moment_of(int(at)) for at in self.at]

    def frame(self) -> pl.DataFrame:
        import polars as pl

        at = pl.Series("at", self.at).cast(pl.Datetime("us", "UTC"))
        return pl.DataFrame([pl.Series("step", self.steps), at, pl.Series("value", self.values)])


def read_history(store: Store, run: Run | str, key: str, max_points: int | None = None) -> History:
    """The points of one metric of a run. Journals of the run are folded first.

    Args:
        run: the run or its id.
        max_points: return at most this many points, at least 6. The points are divided into buckets of equal count,
            and the smallest, the largest and the last value of each bucket are returned, exactly as they were logged.
            The first point is returned too.

    Raises:
        UsageError: `max_points` is less than 6.
    """
    if max_points is not None and max_points < 2 * _PER_BUCKET:
        raise UsageError(f"max_points={max_points} is too small.", help="Pass max_points=6 or more.")
    identity = run.id if isinstance(run, Run) else run
    if not store.read_only:
        fold_run(store, identity)
    table = _columns(store, series_of(identity), key)
    steps, at, values = table["step"], table["at"], table["value"]
    total = len(steps)
    if total > 1 and bool((steps[1:] < steps[:-1]).any()):
        # The columns are in order of arrival. A stable sort keeps that order among equal steps.
        import numpy as np

        order = np.argsort(steps, kind="stable")
        steps, at, values = steps[order], at[order], values[order]
    if max_points is not None and total > max_points:
        selected = thin(values, max_points)
        steps, at, values = steps[selected], at[selected], values[selected]
    return History(key, steps.copy(), at.copy(), values.copy(), total)


def thin(values: np.ndarray[Any, np.dtype[np.float64]], max_points: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ascending indices of at most `max_points` values: the smallest, the largest and the last of each bucket.

    NaN is neither smallest nor largest; from a bucket that holds only NaN, the last is taken. Infinities count.
    """
    import numpy as np

    total = len(values)
    if total <= max_points:
        return np.arange(total)
    buckets = max((max_points - 1) // _PER_BUCKET, 1)
    width = -(-total // buckets)
    missing = np.isnan(values)
    any_missing = bool(missing.any())
    padded = np.full(buckets * width, np.inf)
    padded[:total] = values
    if any_missing:
        padded[:total][missing] = np.inf
    smallest = padded.reshape(buckets, width).argmin(axis=1)
    padded[total:] = -np.inf
    if any_missing:
        padded[:total][missing] = -np.inf
    largest = padded.reshape(buckets, width).argmax(axis=1)
    starts = np.arange(buckets) * width
    used = starts < total
    starts, smallest, largest = starts[used], smallest[used], largest[used]
    last = np.minimum(starts + width, total) - 1
    found = np.concatenate([[0], starts + smallest, starts + largest, last])
    return np.unique(np.minimum(found, total - 1))


def _columns(store: Store, series: str, key: str) -> Any:
    """A structured array with `step`, `at` and `value`, in the order of arrival."""
    import numpy as np

    if store.read_only:
        return np.array(store.records.read_columns(series, key), dtype=_row_type())[["step", "at", "value"]]
    path = _cache_path(store, series, key)
    cached = _read_cache(path)
    if len(cached) and not bool((cached["seq"] >> _NUMBER_BITS == _parity(cached)).all()):
        # The cache is damaged, or an earlier version wrote it. The store has all of its points.
        path.unlink(missing_ok=True)
        cached = cached[:0]
    after = int(cached[-1]["seq"]) & _NUMBERS if len(cached) else 0
    rows = store.records.read_columns(series, key, after=after)
    if not rows:
        return cached
    fresh = np.array(rows, dtype=_row_type())
    if len(cached) + len(fresh) >= CACHED_FROM:
        _extend_cache(store, path, len(cached), fresh)
    return np.concatenate([cached, fresh]) if len(cached) else fresh


def _row_type() -> Any:
    import numpy as np

    return np.dtype([("seq", "<i8"), ("step", "<i8"), ("at", "<i8"), ("value", "<f8")])


def _parity(rows: Any) -> Any:
    """A checksum of 23 bits for each row, which changes if any single bit of the row is flipped. The cache stores it in
    the upper bits of `seq`, so that a damaged cache never gives a wrong value."""
    import numpy as np

    mixed = rows["seq"] & _NUMBERS
    for name in ("step", "at", "value"):
        mixed = mixed ^ np.ascontiguousarray(rows[name]).view("<i8")
    low = (1 << _PARITY_BITS) - 1
    return (mixed ^ mixed >> _PARITY_BITS ^ mixed >> 2 * _PARITY_BITS) & low


def _cache_path(store: Store, series: str, key: str) -> Path:
    identity = "\0".join((store.urls.records, store.project, series, key))
    return store.home / "cache" / "points" / f"{hashlib.sha256(identity.encode()).hexdigest()}.points"


def _read_cache(path: Path) -> Any:
    import numpy as np

    kind = _row_type()
    try:
        complete_rows = path.stat().st_size // kind.itemsize
        if complete_rows:
            return np.memmap(path, dtype=kind, mode="r", shape=(complete_rows,))
    except OSError:
        pass
    return np.empty(0, dtype=kind)


def _extend_cache(store: Store, path: Path, cached: int, fresh: Any) -> None:
    """Append rows to the cache, unless another process has done so. Errors are ignored, since the cache is optional."""
    size = fresh.dtype.itemsize
    with suppress(OSError), store.lock("points"):
        make_folder(path.parent)
        with open(path, "ab", opener=private_opener) as file:
            if file.tell() // size != cached:
                return
            # Cut off the incomplete row of a writer that was killed.
            file.truncate(cached * size)
            rows = fresh.copy()
            rows["seq"] |= _parity(fresh) << _NUMBER_BITS
            file.write(rows.tobytes())
