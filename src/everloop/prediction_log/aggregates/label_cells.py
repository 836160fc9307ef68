"""Sketches of scores and labels by version, role and hour of the prediction.

A new label changes only the hour of the prediction that it belongs to. A new prediction may take labels from the one
before it with the same key, so it changes its own hour and that of the earlier one. These hours are matched again from
the rows, and the new sketches replace the old ones. So it makes no difference in which order labels and predictions
come, how often, or whether they contradict each other.
"""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from everloop.data.sketches.score_sketches import LabelSketch, label_sketch_from_plain, sketch_labels
from everloop.prediction_log.aggregates.aggregate_rows import AGGREGATES
from everloop.prediction_log.aggregates.hour_matching import HOUR, match_hours
from everloop.prediction_log.aggregates.hourly_cells import CellKey
from everloop.prediction_log.label_matching import ANSWERED, SHADOW, label_horizon
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import polars as pl

    from everloop.prediction_log.aggregates.version_bins import VersionBins
    from everloop.stores import Store

MOST_ROWS = 100_000
"""Predictions whose labels are matched at once, unless a single hour has more."""
FEW_ROWS = 1_000
"""Predictions between two hours that are read along with them. Matching twice would take longer."""
_LONGEST_LOOK = timedelta(days=365 * 20)
_FIRST_YEAR = 1000
"""Of earlier times nothing is subtracted, because the difference may not exist."""
_FIRST_LOOK = timedelta(days=1)
"""How far back of the earliest label its predictions are first looked for, if labels may take any time."""


def hours_of_labels(store: Store, endpoint: str, labels: pl.DataFrame) -> set[datetime]:
    """The hours of the predictions to which labels belong.

    Args:
        labels: columns `entity` and `event_at`.
    """
    return _hours_before(store, endpoint, labels, or_at=True)


def hours_of_predictions(
    store: Store, endpoint: str, predictions: pl.DataFrame, *, matched: bool = True
) -> set[datetime]:
    """The hours whose labels may have changed because of new predictions.

    Args:
        predictions: columns `entity`, `event_at`.
        matched: labels have been matched before. Otherwise all labels are pending, and most hours will be matched
            because of them, so that it is not worthwhile to look for those with labels.
    """
    import polars as pl

    known = predictions.filter(pl.col("entity").is_not_null()).select("entity", "event_at").unique()
    table = table_name(store, LABELS, endpoint)
    if known.is_empty() or not store.tables.exists(table):
        return set()
    if not matched:
        return set(known["event_at"].dt.truncate("1h").unique().to_list())
    later = store.tables.scan(table, since=known["event_at"].min())  # type: ignore[arg-type]
    # Filtered before anything is collected: there may be far more labels than these rows have keys.
    labelled = later.select("entity").join(known.lazy().select("entity").unique(), on="entity", how="semi")
    keys = labelled.unique().collect(engine="streaming")
    if keys.is_empty():
        return set()
    changed = known.join(keys, on="entity", how="semi")
    own = set(changed["event_at"].dt.truncate("1h").unique().to_list())
    return own | _hours_before(store, endpoint, changed, or_at=False)


def label_cells(
    store: Store, endpoint: str, hours: Iterable[datetime], bins_of: Callable[[str], VersionBins]
) -> Iterator[dict[CellKey, tuple[LabelSketch | None, datetime | None]]]:
    """Match the labels of some hours.

    Args:
        bins_of: returns how the predictions of a version are counted.

    Returns:
        For each version and role with predictions in these hours, the sketch of the labels (None if there are none),
        and when the last of its labels and labelled predictions arrived. A few hours at a time.
    """
    for chunk, made in chunks_of_hours(store, endpoint, hours):
        cells: dict[CellKey, tuple[LabelSketch | None, datetime | None]] = dict.fromkeys(made, (None, None))
        bins = {version: bins_of(version) for version in {key.version for key in made}}
        rows = match_hours(store, endpoint, chunk)
        for key, (sketch, last) in sketch_labelled(rows, bins).items() if rows is not None else ():
            cells[key] = (sketch, last)
        yield cells


def sketch_labelled(
    labelled: pl.LazyFrame, bins: dict[str, VersionBins]
) -> dict[CellKey, tuple[LabelSketch, datetime]]:
    """Sketch the rows of `read_labelled` by version, role and hour, with the time when the last of them arrived."""
    import polars as pl

    wanted = ("event_at", "arrived_at", "label_arrived_at", "version", "role", "score", "scores", "actual", "predicted")
    present = labelled.collect_schema().names()
    rows = labelled.select(name for name in wanted if name in present).collect()
    rows = rows.with_columns(pl.col("event_at").dt.truncate("1h").alias("_hour"))
    found: dict[CellKey, tuple[LabelSketch, datetime]] = {}
    for (version, role, hour), part in rows.group_by("version", "role", "_hour", maintain_order=True):
        key = CellKey(str(version), str(role), hour)
        last: datetime = part.select(pl.max_horizontal(pl.col("arrived_at", "label_arrived_at").max())).item()
        sketch = _sketch(part, bins.get(key.version))
        if sketch is not None:
            found[key] = (sketch, last)
    return found


def encode_labels(sketch: LabelSketch | None) -> bytes:
    """The bytes of a sketch; none for None."""
    return b"" if sketch is None else zlib.compress(msgspec.msgpack.encode(sketch.to_plain()), 6)


def decode_labels(data: bytes) -> LabelSketch | None:
    """Restore what `encode_labels` returned."""
    return label_sketch_from_plain(msgspec.msgpack.decode(zlib.decompress(data))) if data else None


def chunks_of_hours(
    store: Store, endpoint: str, hours: Iterable[datetime], version: str | None = None
) -> Iterator[tuple[list[datetime], set[CellKey]]]:
    """Divide hours into runs with at most `MOST_ROWS` predictions in them, and at most `FEW_ROWS` between two of them.

    Returns:
        The hours of each run that have predictions, oldest first, and their versions and roles.
    """
    import polars as pl

    wanted = sorted(set(hours))
    if not wanted:
        return
    rows = store.tables.scan(
        table_name(store, PREDICTIONS, endpoint), since=wanted[0], until=wanted[-1] + HOUR
    ).with_columns(pl.col("event_at").dt.truncate("1h").alias("_hour"))
    if version is not None:
        rows = rows.filter(pl.col("version") == version)
    counted = (
        rows.group_by("_hour", "version", "role")
        .agg(pl.len().alias("rows"))
        .collect(engine="streaming")
        .sort("_hour", "version", "role")
        .with_columns(pl.col("rows").cum_sum().alias("upto"))
        .filter(pl.col("_hour").is_in(wanted))
    )
    chunk: list[datetime] = []
    keys: set[CellKey] = set()
    # Numbers of rows: up to the beginning and to the end of the run.
    began = ended = 0
    for (hour,), part in counted.group_by("_hour", maintain_order=True):
        assert isinstance(hour, datetime)  # noqa: S101 - for the type checker
        begins, ends = int(part["upto"][0] - part["rows"][0]), int(part["upto"][-1])
        if chunk and (ends - began > MOST_ROWS or begins - ended > FEW_ROWS):
            yield chunk, keys
            chunk, keys = [], set()
        if not chunk:
            began = begins
        ended = ends
        chunk.append(hour)
        keys |= {CellKey(one["version"], one["role"], hour) for one in part.iter_rows(named=True)}
    if chunk:
        yield chunk, keys


def _hours_before(store: Store, endpoint: str, moments: pl.DataFrame, *, or_at: bool) -> set[datetime]:
    """The hours of the last predictions with some keys, no later than a moment for each.

    Args:
        moments: columns `entity`, `event_at`.
        or_at: a prediction at the moment itself counts.
    """
    import polars as pl

    given = moments.filter(pl.col("entity").is_not_null()).select("entity", pl.col("event_at").alias("_at")).unique()
    # Numbers are compared faster than keys.
    given = given.with_row_index("_moment")
    table = table_name(store, PREDICTIONS, endpoint)
    if given.is_empty() or not store.tables.exists(table):
        return set()
    horizon = label_horizon(store, endpoint)
    first: datetime = given["_at"].min()  # type: ignore[assignment]
    last: datetime = given["_at"].max()  # type: ignore[assignment]
    if horizon is not None and first.year >= _FIRST_YEAR:
        found = _nearest(store.tables.scan(table, since=first - horizon), given, last, horizon, or_at=or_at)
        return set(found["_hour"].unique().to_list())
    hours: set[datetime] = set()
    histories = _counted_histories(store, endpoint)
    moments, look, until = given, _FIRST_LOOK, None
    while True:
        # Most labels belong to recent predictions. So the table is read backwards, until no older one can be nearer.
        bounded = bool(histories) and first.year >= _FIRST_YEAR and look < _LONGEST_LOOK
        since = first - look if bounded else None
        found = _nearest(store.tables.scan(table, since=since, until=until), moments, last, None, or_at=or_at)
        hours |= set(found["_hour"].unique().to_list())
        histories = {name: oldest for name, oldest in histories.items() if since is not None and oldest < since}
        missing = [
            moments.join(of_one, on="_moment", how="anti")
            for of_one in (found.filter(pl.col("_history") == name) for name in histories)
            if of_one.height < moments.height
        ]
        if since is None or not missing:
            return hours
        # A moment that has been found in one history may be looked for again because of another one. This only adds
        # hours that do not change.
        moments, look, until = pl.concat(missing).unique("_moment"), 4 * look, since


def _nearest(
    rows: pl.LazyFrame, moments: pl.DataFrame, last: datetime, horizon: timedelta | None, *, or_at: bool
) -> pl.DataFrame:
    """The hours of the last predictions before some moments: columns `_moment`, `_history`, `_hour`.

    Args:
        rows: predictions.
        moments: columns `entity`, `_at`, and their number `_moment`; `last` is the latest of them.
    """
    import polars as pl

    at, limit = pl.col("event_at"), pl.col("_at")
    made = rows.filter(at <= last, pl.col("role") != SHADOW, pl.col("entity").is_not_null())
    keyed = made.select("entity", "event_at", _history().alias("_history"))
    pairs = keyed.join(moments.lazy(), on="entity", how="inner")
    earlier = pairs.filter(at <= limit if or_at else at < limit)
    if horizon is not None:
        earlier = earlier.filter(at >= limit - horizon)
    nearest = earlier.group_by("_moment", "_history").agg(at.max().dt.truncate("1h").alias("_hour"))
    return nearest.collect(engine="streaming")


def _counted_histories(store: Store, endpoint: str) -> dict[str, datetime]:
    """The histories whose predictions have been counted, and the hour of the first; empty if that is not known.

    Predictions that have not been counted do not matter here: their own hours are matched when they are.
    """
    import polars as pl

    table = table_name(store, AGGREGATES, endpoint)
    # A view of the past does not show the counts of hours to which something has been added since.
    if store.read_only or not store.tables.exists(table):
        return {}
    rows = store.tables.scan(table).filter(pl.col("kind") == "inputs", pl.col("role") != SHADOW)
    oldest = rows.group_by(_history().alias("_history")).agg(pl.col("event_at").min()).collect(engine="streaming")
    return dict(oldest.iter_rows())


def _history() -> pl.Expr:
    """The history of a prediction; see `label_matching`."""
    import polars as pl

    return pl.when(pl.col("role").is_in(list(ANSWERED))).then(pl.lit("answered")).otherwise(pl.col("role"))


def _sketch(part: pl.DataFrame, bins: VersionBins | None) -> LabelSketch | None:
    import numpy as np

    signature = bins.signature if bins is not None else None
    if signature is None:
        # Without a signature nothing is known about the labels of the version.
        return None
    nan = float("nan")
    actual = part["actual"].cast(float).fill_null(nan).to_numpy()
    predicted = None
    if signature.task != "regression" and "predicted" in part.columns:
        predicted = part["predicted"].cast(float).fill_null(nan).to_numpy()
    scores = part["score"].cast(float).fill_null(nan).to_numpy()
    if signature.task == "multiclass" and "scores" in part.columns and part["scores"].null_count() == 0:
        scores = np.asarray(part["scores"].to_list(), dtype=np.float64)
    return sketch_labels(signature.task, actual, scores, predicted, classes=len(signature.classes) or 2)


__all__ = [
    "chunks_of_hours",
    "decode_labels",
    "encode_labels",
    "hours_of_labels",
    "hours_of_predictions",
    "label_cells",
    "sketch_labelled",
]
