"""Reading the logs: predictions, predictions with the labels that have come, one prediction by its id.

Only what has been folded is read, but for `find_prediction`, which also looks into the journals.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.models.signature import Signature, polars_type
from everloop.records import Endpoint, Json, ModelVersion, Prediction
from everloop.serving.prediction_log import (
    LABELS,
    PREDICTIONS,
    answer_id,
    decode_entry,
    input_column,
    label_text,
    stream_name,
    table_name,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.stores import Store

ANSWERED = ("champion", "canary")
"""The roles whose predictions clients have seen."""


def read_predictions(
    store: Store,
    endpoint: str,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
    *,
    roles: Sequence[str] | None = None,
) -> pl.LazyFrame:
    """The folded predictions with `since <= event_at < until`, of one version or all, in no particular order.

    The columns are those of `prediction_log`; an endpoint that has not answered yet gives no rows.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    import polars as pl

    table = table_name(store, PREDICTIONS, endpoint)
    if not store.tables.exists(table):
        store.records.get(Endpoint, endpoint)
        return pl.LazyFrame(schema=_prediction_schema())
    frame = store.tables.scan(table, since=since, until=until)
    if version is not None:
        frame = frame.filter(pl.col("version") == version)
    if roles is not None:
        frame = frame.filter(pl.col("role").is_in(list(roles)))
    return frame


def read_labels(store: Store, endpoint: str) -> pl.LazyFrame:
    """The folded labels: entity, value, text, event_at, arrived_at; of several for one entity and time, the newest."""
    import polars as pl

    table = table_name(store, LABELS, endpoint)
    if not store.tables.exists(table):
        return pl.LazyFrame(schema=_label_schema())
    newest_last = store.tables.scan(table).sort("arrived_at", maintain_order=True)
    return newest_last.unique(["entity", "event_at"], keep="last", maintain_order=True)


def read_labelled(
    store: Store,
    endpoint: str,
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
    *,
    roles: Sequence[str] | None = ANSWERED,
) -> pl.LazyFrame:
    """The predictions of `read_predictions` whose labels have arrived, ordered by event_at.

    Adds `actual`: 0 or 1 (binary: 1 is the positive class), the index of the class, or the value; null where the
    label is a class that the version does not know. And `actual_text`, `label_event_at`, `label_arrived_at`.

    Where an entity has several labels, a prediction gets the first at or after its own event_at, or else the last
    before it.
    """
    import polars as pl

    predictions = read_predictions(store, endpoint, since, until, version, roles=roles).filter(
        pl.col("entity").is_not_null()
    )
    labels = read_labels(store, endpoint).select(
        "entity",
        pl.col("event_at").alias("label_event_at"),
        pl.col("value").alias("_value"),
        pl.col("text").alias("actual_text"),
        pl.col("arrived_at").alias("label_arrived_at"),
    )
    labels = labels.sort("label_event_at")
    ordered = predictions.sort("event_at")
    parts = [
        ordered.join_asof(
            labels,
            left_on="event_at",
            right_on="label_event_at",
            by="entity",
            strategy=strategy,
            coalesce=False,
            check_sortedness=False,
        )
        for strategy in ("forward", "backward")
    ]
    found = pl.col("label_arrived_at").is_not_null()
    later = parts[0].filter(found)
    # What the first join has found is kept; the second only fills its gaps.
    earlier = parts[1].filter(found).join(later.select("id"), on="id", how="anti")
    joined = pl.concat([later, earlier], how="vertical").sort("event_at")
    return joined.with_columns(_actual(store, predictions).alias("actual")).drop("_value")


def read_inputs(frame: pl.DataFrame, signature: Signature) -> pl.DataFrame:
    """The logged inputs of predictions as the columns that a model of this signature takes.

    An input that was not logged, because the version that answered had none of that name, is null.
    """
    import polars as pl

    columns = []
    for item in signature.inputs:
        name = input_column(item.name)
        wanted = polars_type(item.type)
        # Times and durations are kept as numbers: a Delta table has no such types.
        kept = pl.Int64() if item.type in ("time", "duration") else wanted
        there = [
            column
            for column in dict.fromkeys((name, f"{name}@{item.type}", f"{name}@int", f"{name}@float"))
            if column in frame.columns and _fits(frame.schema[column], kept)
        ]
        value = pl.coalesce([pl.col(column).cast(kept, strict=False) for column in there]) if there else pl.lit(None)
        if item.type == "time":
            value = value.cast(pl.Int64) * 1000
        columns.append(value.cast(wanted, strict=False).alias(item.name))
    return frame.select(columns)


def find_prediction(store: Store, id: str) -> Prediction | None:
    """One prediction by its id, folded or not, its inputs as JSON has them; None where there is none."""
    arrived = _moment_of(id)
    if arrived is None:
        return None
    for endpoint in store.records.find(Endpoint):
        found = _find_folded(store, endpoint.name, id, arrived) or _find_journaled(store, endpoint.name, id)
        if found is not None:
            return found
    return None


def _find_folded(store: Store, endpoint: str, id: str, arrived: datetime) -> Prediction | None:
    import msgspec
    import polars as pl

    table = table_name(store, PREDICTIONS, endpoint)
    if not store.tables.exists(table):
        return None
    # An id carries its moment, so that files of other times are not opened; it may run ahead of the clock a little.
    near = timedelta(seconds=2)
    at = pl.col("arrived_at")
    rows = store.tables.scan(table).filter(at >= arrived - near, at <= arrived + near, pl.col("id") == id).collect()
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
            for group in decode_entry(payload).groups:
                places = group.places if group.places is not None else range(len(group.rows))
                for at, place in enumerate(places):
                    if answer_id(group, place) != id:
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
                    )
    return None


def _actual(store: Store, predictions: pl.LazyFrame) -> pl.Expr:
    """The label as the number that the version's scores are about."""
    import polars as pl

    versions = predictions.select(pl.col("version").unique()).collect()["version"].to_list()
    actual = pl.lit(None, dtype=pl.Float64)
    for key in versions:
        signature = Signature.from_json(store.records.get(ModelVersion, key).signature)
        if signature.task == "regression":
            number = pl.col("_value")
        else:
            codes = _codes(signature.classes)
            number = pl.col("actual_text").replace_strict(codes, default=None, return_dtype=pl.Float64)
        actual = pl.when(pl.col("version") == key).then(number).otherwise(actual)
    return actual


def _codes(classes: Sequence[Json]) -> Mapping[str, float]:
    """Every text that means one of the classes: labels come from other systems, as 1, true or "1"."""
    codes: dict[str, float] = {}
    for index, value in enumerate(classes):
        codes[label_text(value)] = float(index)
    for index, value in enumerate(classes):
        if value in (0, 1) and not isinstance(value, str):
            for same in (str(int(value)), "true" if value else "false", "True" if value else "False"):
                codes.setdefault(same, float(index))
    return codes


def _fits(kept: pl.DataType, wanted: pl.DataType) -> bool:
    return kept == wanted or (kept.is_numeric() and wanted.is_numeric())


def _moment_of(id: str) -> datetime | None:
    """The moment in a UUIDv7, None for anything else."""
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
