"""Reads the logs: predictions, predictions with their labels, and single predictions by id.

Reading first folds what endpoints have appended. So everything that was answered or labelled before the call is
included, even if no other process folds. From instances that ship their logs, it includes what they have shipped. A
view of the past (`store.as_of`) writes nothing and shows what has been folded.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, NotFoundError
from everloop.packages.signature import Signature, polars_type
from everloop.prediction_log.label_matching import ANSWERED, base_id, label_horizon, match_labels
from everloop.prediction_log.labels import fold_labels
from everloop.prediction_log.prediction_log import (
    LABELS,
    PREDICTIONS,
    answer_id,
    decode_entry,
    fold_predictions,
    input_column,
    label_text,
    stream_name,
    table_name,
)
from everloop.prediction_log.segment_folding import has_segments
from everloop.records import EndpointRecord, Json, ModelVersion, Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.stores import Store
    from everloop.stores.tables.table_store import TableSnapshot

logger = logging.getLogger("everloop.serving")

_LAST_YEAR = 5000
"""Times after it are not added to, because the sum may not exist."""
_MATCHED = ("id", "entity", "event_at", "arrived_at", "role")
"""The columns of predictions by which labels are matched."""
_FEW_KEYS = 100_000
"""For more keys, every file is likely to have some."""
_MOST_DIGESTS = 20_000_000
"""Of this many predictions a process remembers digests of the keys, 8 bytes each."""
_digests: dict[tuple[str, str, str], pl.Series] = {}
_WHOLE = re.compile(r"-?\d+\.0+")


def fold_logs(store: Store, endpoint: str) -> int:
    """Move what the endpoint's processes have appended into its tables, exactly once, and return the number of rows.

    Safe from several processes at once. Does nothing in a view of the past. Rows after the damage in a damaged journal
    stay there, with a warning, so one damaged file does not hide everything else.
    """
    if store.read_only:
        return 0
    rows = 0
    for what, fold in ((PREDICTIONS, fold_predictions), (LABELS, fold_labels)):
        try:
            moved = fold(store, endpoint)
        except CorruptionError as error:
            logger.warning("Cannot read some rows of '%s': %s", endpoint, error)
            continue
        if moved:
            # Each fold adds a file, so reading a few answers often would create many small files.
            store.tables.tidy(table_name(store, what, endpoint))
        rows += moved
    return rows


def read_predictions(
    store: Store,
    endpoint: str,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
    *,
    roles: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """The predictions with `since <= event_at < until`, of one version or all, in no particular order.

    The columns are those of `prediction_log`. For an endpoint that has not answered yet there are no rows.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    import polars as pl

    fold_logs(store, endpoint)
    table = table_name(store, PREDICTIONS, endpoint)
    if not store.tables.exists(table):
        store.records.get(EndpointRecord, endpoint)
        return pl.LazyFrame(schema=_prediction_schema())
    return _filtered(store.tables.scan(table, since=since, until=until), None, version, roles)


def _filtered(
    frame: pl.LazyFrame, until: datetime | None, version: str | None, roles: Sequence[str] | None
) -> pl.LazyFrame:
    import polars as pl

    if until is not None:
        frame = frame.filter(pl.col("event_at") < until)
    if version is not None:
        frame = frame.filter(pl.col("version") == version)
    if roles is not None:
        frame = frame.filter(pl.col("role").is_in(list(roles)))
    return frame


def _predictions_of(store: Store, endpoint: str, since: datetime | None, keys: pl.Series) -> pl.DataFrame:
    """The predictions with these keys, of all roles.

    First only the keys of each file are read. Most files of a long log have none of the wanted ones.
    """
    import polars as pl

    snapshot = store.tables.snapshot(table_name(store, PREDICTIONS, endpoint))
    empty = pl.DataFrame(schema=_prediction_schema())
    if snapshot is None:
        return empty
    wanted = keys.unique()
    files = list(snapshot.files)
    if len(wanted) <= _FEW_KEYS:
        digests = wanted.hash()
        found = zip(files, _key_digests(store.tables.root, snapshot, files), strict=True)
        files = [path for path, present in found if present.is_in(digests.implode()).any()]
    parts = []
    for path in files:
        rows = snapshot.scan(path) if since is None else snapshot.scan(path).filter(pl.col("event_at") >= since)
        parts.append(rows.join(wanted.to_frame("entity").lazy(), on="entity", how="semi"))
    return pl.concat([empty, *pl.collect_all(parts, engine="streaming")], how="diagonal")


def _key_digests(root: str, snapshot: TableSnapshot, files: Sequence[str]) -> list[pl.Series]:
    """64 bits for the key of each row of some files. This process remembers those of the last files."""
    import polars as pl

    places = [(root, snapshot.name, path) for path in files]
    known = {place: _digests.pop(place) for place in places if place in _digests}
    new = [place for place in places if place not in known]
    plans = [snapshot.scan(path).select(pl.col("entity").hash()) for _, _, path in new]
    known |= {place: rows["entity"] for place, rows in zip(new, pl.collect_all(plans), strict=True)}
    # A part of a table in memory may have other rows under the same name later.
    _digests.update({place: digests for place, digests in known.items() if place[2].endswith(".parquet")})
    while _digests and sum(map(len, _digests.values())) > _MOST_DIGESTS:
        del _digests[next(iter(_digests))]
    return [known[place] for place in places]


def read_labels(
    store: Store, endpoint: str, since: datetime | None = None, until: datetime | None = None
) -> pl.LazyFrame:
    """The labels: entity, value, text, event_at, arrived_at; only the newest for each entity and time.

    Args:
        since: only labels with `since <= event_at < until`.
    """
    fold_logs(store, endpoint)
    return newest_labels(label_rows(store, endpoint, since, until))


def label_rows(store: Store, endpoint: str, since: datetime | None, until: datetime | None) -> pl.LazyFrame:
    import polars as pl

    table = table_name(store, LABELS, endpoint)
    if not store.tables.exists(table):
        return pl.LazyFrame(schema=_label_schema())
    return store.tables.scan(table, since=since, until=until)


def newest_labels(labels: pl.LazyFrame) -> pl.LazyFrame:
    newest_last = labels.sort("arrived_at", maintain_order=True)
    return newest_last.unique(["entity", "event_at"], keep="last", maintain_order=True)


def read_labelled(
    store: Store,
    endpoint: str,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
    *,
    roles: Sequence[str] | None = ANSWERED,
    horizon: timedelta | None = None,
    keys: pl.Series | None = None,
) -> pl.LazyFrame:
    """The predictions of `read_predictions` whose labels have arrived, ordered by event_at.

    Adds `actual`: 0 or 1 (binary: 1 is the positive class), the index of the class, or the value. It is null if the
    label is a class that the version does not know, or not a number for a regression. Also adds `predicted` (the
    predicted class, encoded in the same way), `actual_text`, `label_event_at` and `label_arrived_at`.

    A label counts for one prediction, the last one before it; see `label_matching`. Only the labels and predictions of
    times that can matter are read.

    Args:
        horizon: a label with a later event time than this after a prediction does not match it; default: the
            endpoint's setting `label_horizon_days`.
        keys: only predictions with these keys.
    """
    import polars as pl

    within = horizon if horizon is not None else label_horizon(store, endpoint)
    every = None
    if keys is None or store.read_only:
        wanted = read_predictions(store, endpoint, since, until, version, roles=roles)
    else:
        fold_logs(store, endpoint)
        every = _predictions_of(store, endpoint, since, keys)
        wanted = _filtered(every.lazy(), until, version, roles)
    latest = until + within if until is not None and within is not None and until.year < _LAST_YEAR else None
    # In the order of the table, because of two labels that arrived together the last one counts.
    stored = label_rows(store, endpoint, since, latest)
    if keys is not None:
        stored = stored.join(keys.to_frame("entity").lazy(), on="entity", how="semi", maintain_order="left")
    if until is not None:
        # Only the labels with the keys of these rows concern them. Up to now, nearly all labels do.
        own = wanted.filter(pl.col("entity").is_not_null()).select("entity").unique().collect(engine="streaming")
        stored = stored.join(own.lazy(), on="entity", how="semi", maintain_order="left")
    labels = stored.collect(engine="streaming")
    # Any later prediction may be nearer to a label, of any version.
    last = pl.lit(labels["event_at"].max(), dtype=pl.Datetime("us", "UTC"))
    made = read_predictions(store, endpoint, since) if every is None else every.lazy()
    made = made.filter(pl.col("event_at") <= last).select(_MATCHED)
    labelled_keys = labels.select("entity").unique().lazy()
    of_keys = made.join(labelled_keys, on="entity", how="semi").collect(engine="streaming")
    labels_of_rows = newest_labels(labels.lazy()).select(
        "entity",
        pl.col("event_at").alias("label_event_at"),
        pl.col("value").alias("_value"),
        pl.col("text").alias("actual_text"),
        pl.col("arrived_at").alias("label_arrived_at"),
    )
    matched = match_labels(of_keys.lazy(), labels_of_rows, within).collect().lazy()
    # Most rows of a long log have no label, and are left out before their ids are looked at.
    wanted = wanted.join(labelled_keys, on="entity", how="semi")
    joined = wanted.with_columns(base_id().alias("_base")).join(matched, on="_base", how="inner").sort("event_at", "id")
    numbers = [encoded_label(store, wanted).alias("actual")]
    if "label" in joined.collect_schema().names():
        numbers.append(encoded_label(store, wanted, "label").alias("predicted"))
    return joined.with_columns(numbers).drop("_value", "_base")


def read_inputs(frame: pl.DataFrame, signature: Signature) -> pl.DataFrame:
    """The logged inputs of predictions as the columns that a model with this signature expects.

    An input is null if it was not logged because the version that answered does not have it.
    """
    import polars as pl

    columns = []
    for item in signature.inputs:
        name = input_column(item.name)
        wanted = polars_type(item.type)
        # Times and durations are stored as numbers, because Delta tables have no such types.
        stored = pl.Int64() if item.type in ("time", "duration") else wanted
        present = [
            column
            for column in dict.fromkeys((name, f"{name}@{item.type}", f"{name}@int", f"{name}@float"))
            if column in frame.columns and _fits(frame.schema[column], stored)
        ]
        value = (
            pl.coalesce([pl.col(column).cast(stored, strict=False) for column in present]) if present else pl.lit(None)
        )
        if item.type == "time":
            value = value.cast(pl.Int64) * 1000
        columns.append(value.cast(wanted, strict=False).alias(item.name))
    return frame.select(columns)


def find_prediction(store: Store, id: str) -> Prediction | None:
    """One prediction by its id, folded or not, with its inputs as JSON values; None if there is none."""
    arrived = _moment_of(id)
    if arrived is None:
        return None
    endpoints = store.records.find(EndpointRecord)
    for endpoint in endpoints:
        found = _find_folded(store, endpoint.name, id, arrived) or _find_journaled(store, endpoint.name, id)
        if (
            found is None
            and not store.read_only
            and has_segments(store, stream_name(store, PREDICTIONS, endpoint.name))
        ):
            fold_logs(store, endpoint.name)
            found = _find_folded(store, endpoint.name, id, arrived)
        if found is not None:
            return found
    # The ids of a batch job contain the time when the job began. Its rows may have arrived much later.
    for endpoint in endpoints:
        found = _find_folded(store, endpoint.name, id, arrived, of_batch=True)
        if found is not None:
            return found
    return None


def _find_folded(
    store: Store, endpoint: str, id: str, arrived: datetime, *, of_batch: bool = False
) -> Prediction | None:
    """The prediction in the endpoint's table, among rows that arrived at about the time in the id.

    Args:
        of_batch: look among the rows of batch jobs instead, whenever they arrived.
    """
    import msgspec
    import polars as pl

    table = table_name(store, PREDICTIONS, endpoint)
    if not store.tables.exists(table):
        return None
    # An id contains its time, so files of other times need not be opened. It may be slightly ahead of the clock.
    at, near = pl.col("arrived_at"), timedelta(seconds=2)
    # The ids of a job share its time, so the ranges of ids in the table's log tell which few files can hold this one.
    among = [pl.col("role") == "batch"] if of_batch else [at >= arrived - near, at <= arrived + near]
    rows = store.tables.scan(table).filter(*among, pl.col("id") == id).collect()
    if rows.is_empty():
        return None
    row = rows.row(0, named=True)
    signature = Signature.from_json(store.records.get(ModelVersion, row["version"]).signature)
    inputs = read_inputs(rows.head(1), signature).row(0, named=True)
    outputs = {name: row[name] for name in ("score", "label", "scores") if row.get(name) is not None}
    return Prediction(
        id=id,
        endpoint=endpoint,
        version=row["version"],
        role=row["role"],
        event_at=row["event_at"],
        arrived_at=row["arrived_at"],
        entity=row["entity"],
        inputs=msgspec.to_builtins(inputs),
        outputs=outputs,
        package=row.get("package"),
        instance=row.get("instance"),
    )


def _find_journaled(store: Store, endpoint: str, id: str) -> Prediction | None:
    import msgspec

    from everloop.stores import read_journal
    from everloop.stores.clock import moment_of
    from everloop.stores.journals import list_journals

    request = id[:36]
    for path in list_journals(store.journals, stream_name(store, PREDICTIONS, endpoint)):
        try:
            frames = list(read_journal(path))
        except NotFoundError:
            # Folded and removed since it was listed.
            continue
        for payload, _ in frames:
            if request.encode() not in payload:
                continue
            entry = decode_entry(payload)
            for group in entry.groups:
                positions = group.positions if group.positions is not None else range(len(group.rows))
                for at, position in enumerate(positions):
                    if answer_id(group, position) != id:
                        continue
                    names = msgspec.msgpack.decode(group.inputs, type=dict[str, str])
                    event = group.events[at] if group.events else None
                    score = group.scores[at]
                    outputs: dict[str, Json] = {"score": max(score) if isinstance(score, list) else score}
                    if group.labels:
                        outputs["label"] = group.labels[at]
                    if isinstance(score, list):
                        outputs["scores"] = score
                    return Prediction(
                        id=id,
                        endpoint=endpoint,
                        version=group.version,
                        role=group.role,
                        event_at=moment_of(group.arrived if event is None else event),
                        arrived_at=moment_of(group.arrived),
                        entity=group.entities[at] if group.entities else None,
                        inputs=msgspec.to_builtins(dict(zip(names, group.rows[at], strict=True))),
                        outputs=outputs,
                        package=group.package,
                        instance=entry.instance,
                    )
    return None


def encoded_label(store: Store, predictions: pl.LazyFrame, column: str = "actual_text") -> pl.Expr:
    """The label encoded as a number like the version's scores; for the column `label`, the predicted class."""
    import polars as pl

    versions = predictions.select(pl.col("version").unique()).collect()["version"].to_list()
    actual = pl.lit(None, dtype=pl.Float64)
    for key in versions:
        signature = Signature.from_json(store.records.get(ModelVersion, key).signature)
        if signature.task == "regression" and column == "label":
            continue
        if signature.task == "regression":
            # Numbers from a CSV file may be text.
            number = pl.coalesce("_value", pl.col("actual_text").cast(pl.Float64, strict=False))
        else:
            codes = _codes(signature.classes)
            number = pl.col(column).replace_strict(codes, default=None, return_dtype=pl.Float64)
        actual = pl.when(pl.col("version") == key).then(number).otherwise(actual)
    return actual


def _codes(classes: Sequence[Json]) -> Mapping[str, float]:
    """Every text that means one of the classes. Labels come from other systems, as 1, true or "1"."""
    codes: dict[str, float] = {}
    for index, value in enumerate(classes):
        codes[label_text(value)] = float(index)
    for index, value in enumerate(classes):
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            # A label for the class "1.0" of the training data arrives as the number 1.
            codes.setdefault(value.partition(".")[0], float(index))
    for index, value in enumerate(classes):
        if value in (0, 1) and not isinstance(value, str):
            for same in (str(int(value)), "true" if value else "false", "True" if value else "False"):
                codes.setdefault(same, float(index))
    return codes


def _fits(stored: pl.DataType, wanted: pl.DataType) -> bool:
    return stored == wanted or (stored.is_numeric() and wanted.is_numeric())


def _moment_of(id: str) -> datetime | None:
    """The time in a UUIDv7; None for anything else."""
    digits = id[:36].replace("-", "")
    if len(digits) != 32 or len(id) < 38:
        return None
    try:
        return datetime.fromtimestamp(int(digits[:12], 16) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _prediction_schema() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    return {
        "id": pl.String,
        "request": pl.String,
        "event_at": moment,
        "arrived_at": moment,
        "version": pl.String,
        "role": pl.String,
        "entity": pl.String,
        "score": pl.Float64,
        "label": pl.String,
        "seconds": pl.Float64,
        "package": pl.String,
        "instance": pl.String,
    }


def _label_schema() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    return {
        "entity": pl.String,
        "value": pl.Float64,
        "text": pl.String,
        "event_at": moment,
        "arrived_at": moment,
    }
