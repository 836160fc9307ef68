"""Performance: does the live metric, once the labels are there, still reach the one measured before release?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.alarm_budget import AlarmBudget, budget_for
from everloop.monitoring.baseline import ReferenceMetric, answered, find_baseline, judged_array
from everloop.monitoring.findings import WINDOW, CheckedWindow, find_checked, find_suspects, new_finding
from everloop.monitoring.logged_windows import due_until, read_truths, read_window
from everloop.monitoring.tail_probabilities import normal_quantile, normal_tail
from everloop.records import EndpointRecord, Finding, Json, ModelVersion
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.stores import Store
    from everloop.training.trained_model import Task

_CONFIDENCE_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric on labelled predictions with its 95 % interval; all NaN but `rows` where it is undefined.

    `unknown`: labels that are no class of the model and were left out, with a few of their values.
    """

    value: float
    low: float
    high: float
    standard_error: float
    rows: int
    unknown: int = 0
    unknown_values: tuple[str, ...] = ()


def check_performance(
    store: Store,
    endpoint: str,
    metric: str | None,
    since: datetime,
    until: datetime,
    *,
    version: str | None = None,
    reference: ReferenceMetric | tuple[float, float, float] | None = None,
    labels_after: str | timedelta = "0s",
    alarms_per_month: float = 1.0,
    windows_per_month: float | None = None,
) -> list[Finding]:
    """Measure a metric on the window's labelled predictions and keep what was seen.

    Only labels that have arrived by the store's time count, and only predictions that are at least `labels_after`
    old: the labels that come early are rarely a fair sample. A value that is worse than the reference beyond the
    noise of both, at the level that the budget gives, is a warning; twice within three windows, an alarm. Checking a
    window again returns what was found then, unless labels have arrived meanwhile, new ones or corrections.

    Args:
        metric: a name of `everloop.training.METRICS`, such as `roc_auc`; None takes the one that the version's baseline
            holds, else the usual one of the model's task.
        since, until: the window, half-open, by `event_at` of the predictions.
        version: whose predictions; None: every answer that a client got.
        reference: value, low and high end of its 95 % interval; default: what the version's baseline holds.
        labels_after: how long after an answer its label is expected.
        alarms_per_month: how many false alarms a month are tolerated.
        windows_per_month: how many windows a month are checked; default: as many as follow each other in a month.

    Returns:
        A warning or an alarm about the metric if there is one, then a summary (subject `window`, severity `info`)
        whose value is the metric.

    Raises:
        EmptySampleError: no predictions in the window, none old enough, or none with a label.
        UsageError: no such metric, one that does not fit the model's task, no reference, or the window has no length.
    """
    budget = budget_for(alarms_per_month, until - since, windows_per_month)
    metric = metric if metric is not None else _baseline_metric(store, endpoint, version)
    _check_fits(store, metric, _versions(store, endpoint) if version is None else [version])
    expected = _reference_metric(store, metric, version, reference)
    end = due_until(store, until, _span(labels_after))
    if end <= since:
        raise EmptySampleError(
            f"Labels of predictions after {since.isoformat()} are not due yet.",
            help=f"They are expected {_span(labels_after)} after each.",
        )
    predictions = read_window(store, endpoint, since, end, version=version, columns=["version"])
    labelled = read_truths(store, endpoint, since, end, version=version)
    if labelled.height == 0:
        raise EmptySampleError(
            f"None of the {predictions.height} predictions of '{endpoint}' in the window has a label yet.",
            help="Send labels with the same key as the prediction: POST /labels.",
        )
    watched = CheckedWindow(endpoint, version, "performance", metric)
    facts = {
        "rows": labelled.height,
        # A corrected label changes what is measured and not how many rows there are.
        "newest_label": labelled["label_arrived_at"].max().isoformat(),  # type: ignore[union-attr]
        "reference": asdict(expected),
        **asdict(budget),
    }
    earlier = find_checked(store, watched, since, until, facts)
    if earlier:
        return earlier
    measured = measure_labelled(labelled, metric)
    suspects = find_suspects(store, watched, since, until)
    p_value = worse_than_reference(measured, expected, greater_is_better=_greater_is_better(metric))
    verdict = budget.judge({metric: p_value}, suspects)[metric]
    limit = _limit(expected, measured, budget, greater_is_better=_greater_is_better(metric))
    evidence = _evidence(measured, expected, p_value, labelled.height, predictions.height, end)
    evidence["newest_label"] = facts["newest_label"]
    found = []
    if verdict != "quiet":
        found.append(
            new_finding(
                store,
                endpoint=endpoint,
                version=version,
                kind="performance",
                severity=verdict,
                subject=metric,
                window_from=since,
                window_to=until,
                value=measured.value,
                threshold=limit,
                message=f"{metric} is {_interval_text(measured)}, before release it was {_interval_text(expected)}.",
                evidence=evidence,
            )
        )
    found.append(
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind="performance",
            severity="info",
            subject=WINDOW,
            window_from=since,
            window_to=until,
            value=None if math.isnan(measured.value) else measured.value,
            threshold=limit,
            message=_summary(metric, measured, predictions.height),
            evidence={
                **evidence,
                "metric": metric,
                "told": [item.id for item in found],
                **asdict(budget),
                "suspects": sorted(suspects),
                "subjects": {metric: {"value": evidence["value"], "p_value": p_value, "verdict": verdict}},
            },
        )
    )
    store.records.put(*found)
    return found


def performance_by(
    store: Store,
    endpoint: str,
    metric: str | None = None,
    every: str = "1mo",
    *,
    as_if: str | None = None,
    version: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    labels_after: str | timedelta = "0s",
) -> pl.DataFrame:
    """A metric by period: as it was, or as another version would have done on the same logged inputs.

    A version is scored on rows from before its training at its own peril: what it has learned from it knows.

    Args:
        metric: a name of `everloop.training.METRICS`; default: the usual one of the model's task, see `usual_metric`.
        every: a period in Polars' words: `1d`, `1w`, `1mo`, `1q`. Weeks start on Monday; all in UTC.
        as_if: key or alias of the version to score the inputs again with; its answers replace the logged ones.
        version: whose predictions; None: every answer that a client got.
        since, until: half-open, by `event_at`; default: all.
        labels_after: predictions younger than this are left out.

    Returns:
        One row a period that has predictions, oldest first: `from`, `to`, `version` (that answered, or `as_if`;
        several are joined by commas), `predictions`, `labelled`, `value`, `low`, `high` (null where undefined).

    Raises:
        EmptySampleError: there are no predictions.
        RequestError: the logged inputs are not what the `as_if` version takes.
        UsageError: no such metric, one that does not fit the model's task, or no such period.
    """
    import polars as pl

    metric = metric if metric is not None else usual_metric(store, endpoint, version=version)
    _greater_is_better(metric)
    end = due_until(store, until if until is not None else store.now(), _span(labels_after))
    predictions = read_window(store, endpoint, since, end, version=version, columns=["event_at", "version"])
    _check_fits(store, metric, predictions["version"].unique().sort().to_list())
    labelled = read_truths(store, endpoint, since, end, version=version)
    predictor_key = as_if
    if as_if is not None:
        labelled, predictor_key = _scored_again(store, as_if, labelled)
    try:
        periods = predictions.select(pl.col("event_at").dt.truncate(every).alias("from"), "version")
        starts = labelled.select(pl.col("event_at").dt.truncate(every))["event_at"]
        asked = periods.group_by("from").agg(pl.len().alias("predictions"), pl.col("version").unique().sort())
        asked = asked.with_columns(pl.col("from").dt.offset_by(every).alias("to")).sort("from")
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"'{every}' is no period: {error}", help="Such as 1d, 1w, 1mo or 1q.") from error
    rows = []
    for period in asked.iter_rows(named=True):
        inside = labelled.filter(starts == period["from"])
        measured = measure_labelled(inside, metric) if inside.height else None
        rows.append(
            {
                "from": period["from"],
                "to": period["to"],
                "version": predictor_key or ", ".join(period["version"]),
                "predictions": period["predictions"],
                "labelled": inside.height,
                "value": _finite(measured.value) if measured else None,
                "low": _finite(measured.low) if measured else None,
                "high": _finite(measured.high) if measured else None,
            }
        )
    moment = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        rows,
        schema={
            "from": moment,
            "to": moment,
            "version": pl.String(),
            "predictions": pl.Int64(),
            "labelled": pl.Int64(),
            "value": pl.Float64(),
            "low": pl.Float64(),
            "high": pl.Float64(),
        },
    )


def usual_metric(store: Store, endpoint: str, *, version: str | None = None) -> str:
    """The metric that fits an endpoint's task and is the usual first choice.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    from everloop.training.metric_tasks import metrics_of

    versions = [version] if version is not None else _versions(store, endpoint)
    tasks = [task for task in map(partial(_task_of, store), versions) if task is not None]
    return metrics_of(tasks[0] if tasks else "binary")[0]


def _baseline_metric(store: Store, endpoint: str, version: str | None) -> str:
    baseline = find_baseline(store, version) if version is not None else None
    if baseline is not None and baseline.metric is not None:
        return baseline.metric.name
    return usual_metric(store, endpoint, version=version)


def measure_labelled(labelled: pl.DataFrame, metric: str) -> Measured:
    """A metric on predictions with their truths.

    Args:
        labelled: columns `score` (or `scores`, a list a row, for several classes) and `actual` (0/1, the class's
            index, or the value; null where the label is no class of the model). Rows without either are left out.
        metric: a name of `everloop.training.METRICS`.

    Raises:
        EmptySampleError: no rows.
        DataError: the metric is not for such scores.
    """
    from everloop.training.intervals import interval

    if labelled.height == 0:
        raise EmptySampleError(f"'{metric}' was asked of no labelled predictions.")
    known = answered(labelled)
    unknown = labelled.filter(labelled["actual"].is_null())
    texts = unknown["actual_text"].drop_nulls().unique().sort().head(5) if "actual_text" in unknown.columns else ()
    if known.height == 0:
        nan = float("nan")
        return Measured(nan, nan, nan, nan, 0, unknown.height, tuple(texts))
    found = interval(known["actual"].cast(float).to_numpy(), judged_array(known, metric), metric)
    error = found.standard_error
    if not math.isnan(found.high - found.low):
        # Classes that are parted completely have no spread of their own, but an exact interval.
        error = max(error, (found.high - found.low) / (2 * _CONFIDENCE_Z))
    return Measured(found.value, found.low, found.high, error, known.height, unknown.height, tuple(texts))


def worse_than_reference(measured: Measured, reference: ReferenceMetric, *, greater_is_better: bool) -> float:
    """The one-sided p-value of "not worse than the reference", with the noise of both; 1 where undefined.

    A normal test of the difference of two independent estimates; the reference's restlessness between stretches of
    time is noise too.
    """
    if math.isnan(measured.value) or math.isnan(measured.standard_error):
        return 1.0
    worse = (reference.value - measured.value) * (1 if greater_is_better else -1)
    spread = _spread(measured, reference)
    if spread == 0:
        return 0.0 if worse > 0 else 1.0
    return normal_tail(worse / spread)


def _scored_again(store: Store, ref: str, labelled: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    import polars as pl

    from everloop.prediction_log.log_reading import read_inputs
    from everloop.registry.version_packages import load_model

    predictor = load_model(store, ref)
    key = predictor.version or ref
    for version in labelled["version"].unique().sort().to_list():
        signature = store.records.get(ModelVersion, version).signature
        if list(signature.get("classes", ())) != list(predictor.classes) or signature.get("task") != predictor.task:
            raise UsageError(
                f"'{key}' answers {_classes_text(predictor.task, predictor.classes)}, but '{version}' has answered "
                f"{_classes_text(signature.get('task'), signature.get('classes', ()))}: no metric compares them."
            )
    kept = labelled.drop("score", "scores", "predicted", strict=False)
    if kept.height == 0:
        return labelled, key
    scores, places = predictor.answer_frame(read_inputs(labelled, predictor.signature))
    if places is not None:
        kept = kept.with_columns(predicted=pl.Series(places))
    if scores.ndim == 2:
        return kept.with_columns(score=pl.Series(scores.max(axis=1)), scores=pl.Series(scores.tolist())), key
    return kept.with_columns(score=pl.Series(scores)), key


def _classes_text(task: str | None, classes: Sequence[Json]) -> str:
    return f"one of {', '.join(map(repr, classes))}" if classes else f"a {task or 'value of no known task'}"


def _reference_metric(
    store: Store, metric: str, version: str | None, given: ReferenceMetric | tuple[float, float, float] | None
) -> ReferenceMetric:
    _greater_is_better(metric)
    kept = None
    if version is not None and not isinstance(given, ReferenceMetric):
        baseline = find_baseline(store, version)
        kept = baseline.metric if baseline is not None and baseline.metric is not None else None
        kept = kept if kept is not None and kept.name == metric else None
    if isinstance(given, ReferenceMetric):
        return given
    if given is not None:
        value, low, high = given
        if not low <= value <= high:
            raise UsageError(f"A reference lies within its interval; {value} is not in [{low}, {high}].")
        error = (high - low) / (2 * _CONFIDENCE_Z)
        return ReferenceMetric(metric, value, low, high, error, 0, kept.restlessness if kept else 0.0)
    if kept is None:
        raise UsageError(
            f"There is no reference for '{metric}'{f' of {version}' if version else ''}.",
            help="Give reference=(value, low, high), or build the version's baseline with scored rows.",
        )
    return kept


def _versions(store: Store, endpoint: str) -> list[str]:
    """The versions that an endpoint routes to, the champion first."""
    return [route.version for route in store.records.get(EndpointRecord, endpoint).routes]


def _task_of(store: Store, version: str) -> Task | None:
    """A version's task; None where it is not registered here or does not say."""
    found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    task: Task | None = found[0].signature.get("task") if found and found[0].signature else None
    return task


def _check_fits(store: Store, metric: str, versions: Sequence[str]) -> None:
    """Raise UsageError unless the metric fits the task of every version."""
    from everloop.training.metric_tasks import check_metric

    check_metric(metric)
    for version in versions:
        check_metric(metric, _task_of(store, version))


def _greater_is_better(metric: str) -> bool:
    from everloop.training.metrics import get_metric

    return get_metric(metric).greater_is_better


def _spread(measured: Measured, reference: ReferenceMetric) -> float:
    return math.hypot(measured.standard_error, reference.standard_error, reference.restlessness)


def _limit(
    reference: ReferenceMetric, measured: Measured, budget: AlarmBudget, *, greater_is_better: bool
) -> float | None:
    if math.isnan(measured.standard_error):
        return None
    distance = normal_quantile(budget.level(1)) * _spread(measured, reference)
    return reference.value - distance if greater_is_better else reference.value + distance


def _evidence(
    measured: Measured, reference: ReferenceMetric, p_value: float, labelled: int, predictions: int, until: datetime
) -> dict[str, Json]:
    return {
        "value": _finite(measured.value),
        "low": _finite(measured.low),
        "high": _finite(measured.high),
        "standard_error": _finite(measured.standard_error),
        "reference": asdict(reference),
        "p_value": p_value,
        "rows": labelled,
        "measured": measured.rows,
        "predictions": predictions,
        "judged_until": until.isoformat(),
        "unknown_labels": {"rows": measured.unknown, "values": list(measured.unknown_values)},
    }


def _summary(metric: str, measured: Measured, predictions: int) -> str:
    labelled = f"{measured.rows} of {predictions} predictions labelled"
    if math.isnan(measured.standard_error):
        return f"{metric} cannot be measured: {labelled}, too few or of one class only."
    return f"{metric} {_interval_text(measured)}; {labelled}."


def _interval_text(measured: Measured | ReferenceMetric) -> str:
    return f"{measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _span(text: str | timedelta) -> timedelta:
    return parse_duration(text) if isinstance(text, str) else text
