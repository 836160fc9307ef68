"""The pages about single answers: the rows behind an incident, and one answer with everything that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from everloop.errors import NotFoundError, UsageError
from everloop.records import Finding, Json, ModelVersion, Prediction
from everloop.server.views.lineage_graph import LineageNode, lineage_nodes

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store

MOST_ROWS = 60
_MOST_INPUTS = 40
_MOST_FINDINGS = 300
_PREDICTION = "prediction"

Order = Literal["newest", "largest", "smallest", "missing"]


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One answer, with the values of `PredictionRows.inputs` in their order."""

    id: str
    at: datetime
    entity: str | None
    score: float | None
    label: str | None
    """The class that was predicted; None for a number."""
    actual: str | None
    """The label as text; None if none has arrived."""
    values: list[Json]


@dataclass(frozen=True, slots=True)
class PredictionRows:
    """Answers of one version in one window. `subjects`: features of the incident that can be looked at."""

    incident: str
    endpoint: str
    version: str
    since: datetime
    until: datetime
    subject: str
    subjects: list[str]
    order: Order
    inputs: list[str]
    rows: list[PredictionRow]
    total: int
    """How many answers the version gave in the window."""


@dataclass(frozen=True, slots=True)
class PredictionDetail:
    """One answer. `actual` is its label as text, None if none has arrived."""

    prediction: Prediction
    actual: str | None
    labelled_at: datetime | None
    lineage: list[LineageNode]


def read_rows(store: Store, ref: str, subject: str = "", order: str = "") -> PredictionRows:
    """Return answers of the last window in which a feature of an incident was unusual.

    Args:
        subject: a feature of the incident. Default: the one that differed most.
        order: `newest`, `largest` or `smallest` value of the feature first, or `missing` values first.

    Raises:
        NotFoundError: the incident does not exist, or it has no finding about the subject.
        UsageError: the order does not exist.
    """
    from everloop.monitoring.incidents.incident_actions import get_incident

    chosen: Any = order or "newest"
    if chosen not in get_args(Order):
        raise UsageError(f"order={order[:50]} does not exist.", help=f"Use {', '.join(get_args(Order))}.")
    incident = get_incident(store, ref)
    findings = store.records.get_many(Finding, list(incident.findings[-_MOST_FINDINGS:]))
    latest = {one.subject: one for one in sorted(findings, key=lambda one: one.window_from) if one.version}
    subjects = sorted(latest, key=lambda name: (" × " in name, -(latest[name].value or 0.0), name))
    if not subjects:
        raise NotFoundError(
            f"The incident '{incident.title[:80]}' has no finding about a version's answers.",
            help=f"See: everloop monitor show {incident.id}",
        )
    if subject and subject not in latest:
        raise NotFoundError(
            f"The incident has no finding about '{subject[:80]}'.", help=f"It has: {', '.join(subjects[:20])}"
        )
    name = subject or subjects[0]
    finding = latest[name]
    version = str(finding.version)
    total, inputs, rows = _answers(store, incident.endpoint, finding, name, chosen)
    return PredictionRows(
        incident.id, incident.endpoint, version, finding.window_from, finding.window_to, name, subjects, chosen,
        inputs, rows, total,
    )  # fmt: skip


def read_prediction(store: Store, id: str) -> PredictionDetail:
    """Return one answer by its id.

    Raises:
        NotFoundError: the answer does not exist.
    """
    from everloop.prediction_log import find_prediction

    found = find_prediction(store, id)
    if found is None:
        raise NotFoundError(f"No prediction '{id[:80]}'.", help="Endpoints return the id of each answer in `ids`.")
    labels = _labels(store, found.endpoint, found.event_at, found.event_at, found.version, [id])
    actual, at = labels.get(id, (None, None))
    return PredictionDetail(found, actual, at, lineage_nodes(store, id))


def _answers(
    store: Store, endpoint: str, finding: Finding, subject: str, order: Order
) -> tuple[int, list[str], list[PredictionRow]]:
    import msgspec
    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.prediction_log import read_inputs, read_predictions
    from everloop.prediction_log.prediction_log import input_column

    version = str(finding.version)
    frame = read_predictions(store, endpoint, finding.window_from, finding.window_to, version)
    frame = frame.filter(pl.col("role") != "shadow") if _has_answers(frame) else frame
    columns = frame.collect_schema().names()
    # How two features move together is about both; the first one is looked at.
    first = subject.partition(" × ")[0]
    at = next(
        (name for name in ("score" if subject == _PREDICTION else "", input_column(first), first) if name in columns),
        None,
    )
    total = int(frame.select(pl.len()).collect().item())
    rows = _sorted(frame, at, order).head(MOST_ROWS).collect()
    found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    signature = Signature.from_json(found[0].signature) if found else None
    given = read_inputs(rows, signature) if signature is not None else rows.select()
    names = sorted(given.columns, key=lambda name: name != first)[:_MOST_INPUTS]
    labels = _labels(store, endpoint, finding.window_from, finding.window_to, version, rows["id"].to_list())
    shown = given.select(names)
    answers = [
        PredictionRow(
            id=row["id"],
            at=row["event_at"],
            entity=row["entity"],
            score=_number(row.get("score")),
            label=row.get("label"),
            actual=labels.get(row["id"], (None, None))[0],
            values=msgspec.to_builtins([_plain(value) for value in values]),
        )
        for row, values in zip(rows.iter_rows(named=True), shown.iter_rows(), strict=True)
    ]
    return total, names, answers


def _has_answers(frame: pl.LazyFrame) -> bool:
    """Whether a version has answered clients here. One that was only a shadow is shown as such."""
    import polars as pl

    return bool(frame.select((pl.col("role") != "shadow").any()).collect().item())


def _sorted(frame: pl.LazyFrame, at: str | None, order: Order) -> pl.LazyFrame:
    import polars as pl

    if at is None or order == "newest":
        return frame.sort("event_at", "id", descending=True)
    if order == "missing":
        return frame.sort(pl.col(at).is_not_null(), pl.col("event_at"), descending=[False, True])
    return frame.sort(at, descending=order == "largest", nulls_last=True)


def _labels(
    store: Store, endpoint: str, since: datetime, until: datetime, version: str, ids: list[str]
) -> dict[str, tuple[str, datetime]]:
    from datetime import timedelta

    import polars as pl

    from everloop.prediction_log import read_labelled

    end = until if until > since else since + timedelta(microseconds=1)
    found = read_labelled(store, endpoint, since, end, version, roles=None).filter(pl.col("id").is_in(ids))
    rows = found.select("id", "actual_text", pl.col("actual").cast(pl.String).alias("number"), "label_arrived_at")
    return {one: (text if text is not None else number, at) for one, text, number, at in rows.collect().iter_rows()}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else None


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: a float that is not finite, and anything unusual, become text."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
