"""Check performance: compare a metric on labelled predictions with its value before the release."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.alarm_budget import AlarmBudget, budget_for
from everloop.monitoring.baseline import ReferenceMetric, answered, find_baseline, score_array
from everloop.monitoring.findings import WINDOW, CheckedSeries, find_checked, find_recently_flagged, new_finding
from everloop.monitoring.logged_windows import due_until, read_labels, read_window
from everloop.monitoring.measures.tail_probabilities import normal_quantile, normal_tail
from everloop.monitoring.performance.label_verdicts import (
    CONCEPT,
    ESTIMATES,
    compare_told,
    concept_sentence,
    look_at_labels,
)
from everloop.records import EndpointRecord, Finding, Json, ModelVersion
from everloop.stores.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.monitoring.performance.custom_metrics import RowMetric
    from everloop.stores import Store
    from everloop.training.metrics import Metric
    from everloop.training.trained_model import Task

_CONFIDENCE_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric on labelled predictions with its 95 % interval. All numbers are NaN if the metric is undefined.

    `unknown`: number of labels that are not a class of the model and were left out. `unknown_values` has a few of them.
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
    keep: bool = True,
) -> list[Finding]:
    """Measure a metric on the labelled predictions of a window, and store the findings.

    Only labels that have arrived by the time of the store's clock count, and only predictions that are at least
    `labels_after` old, because labels that arrive early are rarely a fair sample. The metric is a warning if it is
    worse than the reference by more than the noise of both, at the level that the budget allows. Twice within three
    windows is an alarm. Checking a window again returns the earlier findings, unless new or corrected labels have
    arrived in the meantime.

    If the version's baseline knows what labels should show, the summary also says in its evidence whether labels still
    follow predictions as in the reference (`concept`, a sequential test over all windows), and whether they confirm
    what drift checks have estimated for these predictions (`estimates`).

    Args:
        metric: a name in `everloop.training.METRICS`, such as `roc_auc`. None takes the metric of the version's
            baseline, otherwise the default for the model's task.
        since: start of the window, by `event_at` of the predictions.
        until: end of the window, exclusive.
        version: key of the version whose predictions count. None: all predictions that clients received.
        reference: the value before the release, and the low and high end of its 95 % interval. Default: the version's
            baseline.
        labels_after: how long after a prediction its label usually arrives.
        alarms_per_month: how many false alarms a month are tolerated.
        windows_per_month: how many windows a month are checked. Default: as many as fit into a month.
        keep: False returns the findings without storing them, for a watch, whose findings are stored together with
            the incidents that follow from them.

    Returns:
        A warning or an alarm about the metric if there is one, then a summary (subject `window`, severity `info`)
        whose value is the metric.

    Raises:
        EmptySampleError: the window has no predictions, none that are old enough, or none with a label.
        UsageError: the metric does not exist or does not fit the model's task, there is no reference, or the window has
            no length.
    """
    budget = budget_for(alarms_per_month, until - since, windows_per_month)
    metric = metric if metric is not None else _baseline_metric(store, endpoint, version)
    _check_fits(store, metric, _versions(store, endpoint) if version is None else [version])
    expected = _reference_metric(store, metric, version, reference)
    end = due_until(store, until, _span(labels_after))
    if end <= since:
        raise EmptySampleError(
            f"Labels of predictions after {since.isoformat()} are not due yet.",
            help=f"They are expected {format_duration(_span(labels_after))} after each prediction. "
            "Check the window later, or set a shorter labels_after.",
        )
    predictions = read_window(store, endpoint, since, end, version=version, columns=["version"])
    labelled = read_labels(store, endpoint, since, end, version=version)
    if labelled.height == 0:
        raise EmptySampleError(
            f"None of the {predictions.height} predictions of '{endpoint}' in the window has a label yet.",
            help="Send labels with the keys of the predictions to POST /labels.",
        )
    check = CheckedSeries(endpoint, version, "performance", metric)
    facts = {
        "rows": labelled.height,
        # A corrected label changes the metric without changing the number of rows.
        "newest_label": labelled["label_arrived_at"].max().isoformat(),  # type: ignore[union-attr]
        "reference": expected.to_json(),
        **asdict(budget),
    }
    earlier = find_checked(store, check, since, until, facts)
    if earlier:
        return earlier
    measured = measure_labelled(labelled, metric)
    recently_flagged = find_recently_flagged(store, check, since, until)
    p_value = worse_than_reference(measured, expected, greater_is_better=_greater_is_better(metric))
    verdict = budget.judge({metric: p_value}, recently_flagged)[metric]
    limit = _limit(expected, measured, budget, greater_is_better=_greater_is_better(metric))
    evidence = _evidence(measured, expected, p_value, labelled.height, predictions.height, end)
    evidence["newest_label"] = facts["newest_label"]
    concept, estimates = _compare_with_expectations(store, check, labelled, since, until)
    remark = concept_sentence(concept)
    if concept is not None:
        evidence[CONCEPT] = {name: value for name, value in concept.items() if name != "state"}
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
                message=_joined(
                    f"{metric} is {_interval_text(measured)}, before the release it was {_interval_text(expected)}.",
                    remark,
                ),
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
            message=_joined(_summary(metric, measured, predictions.height), remark),
            evidence={
                **evidence,
                **({CONCEPT: concept} if concept is not None else {}),
                **({ESTIMATES: estimates} if estimates is not None else {}),
                "metric": metric,
                "told": [item.id for item in found],
                **asdict(budget),
                "suspects": sorted(recently_flagged),
                "subjects": {metric: {"value": evidence["value"], "p_value": p_value, "verdict": verdict}},
            },
        )
    )
    if keep:
        store.records.put(*found)
    return found


def _compare_with_expectations(
    store: Store, check: CheckedSeries, labelled: pl.DataFrame, since: datetime, until: datetime
) -> tuple[dict[str, Json] | None, dict[str, Json] | None]:
    """Return whether labels follow predictions as in the reference, and whether they confirm what was estimated."""
    baseline = find_baseline(store, check.version) if check.version is not None else None
    if baseline is None or baseline.packed_expectations is None or check.metric is None:
        return None, None
    measure = partial(measure_labelled, metric=check.metric)
    return (
        look_at_labels(store, check, baseline, labelled, since),
        compare_told(store, check, baseline, labelled, since, until, measure),
    )


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
    approximate: bool = False,
) -> pl.DataFrame:
    """Return a metric by period, as measured or as another version would have scored the same logged inputs.

    The hourly aggregates are used where they have the metric with its interval: accuracy, precision and recall of two
    classes, and roc_auc if it may be approximate. Everything else is measured on the rows.

    Values for `as_if` are too good if the version was trained on rows of the period, because it has learned from them.

    Args:
        metric: a name in `everloop.training.METRICS`. Default: the default for the model's task, see `usual_metric`.
        every: length of a period, written as Polars does: `1d`, `1w`, `1mo`, `1q`. Weeks start on Monday; all in UTC.
        as_if: key or alias of a version that scores the inputs again. Its predictions replace the logged ones.
        version: key of the version whose predictions count. None: all predictions that clients received.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        labels_after: predictions younger than this are left out.
        approximate: roc_auc may differ from that of the rows by a tenth of half its interval.

    Returns:
        One row for each period with predictions, oldest first: `from`, `to`, `version` (which answered, or `as_if`;
        several are joined by commas), `predictions`, `labelled`, `value`, `low`, `high` (null if undefined).

    Raises:
        EmptySampleError: there are no predictions.
        RequestError: the `as_if` version cannot score the logged inputs.
        UsageError: the metric does not exist or does not fit the model's task, or the period cannot be read.
    """
    import polars as pl

    metric = metric if metric is not None else usual_metric(store, endpoint, version=version)
    _greater_is_better(metric)
    end = due_until(store, until if until is not None else store.now(), _span(labels_after))
    predictions = read_window(store, endpoint, since, end, version=version, columns=["event_at", "version"])
    _check_fits(store, metric, predictions["version"].unique().sort().to_list())
    try:
        periods = predictions.select(pl.col("event_at").dt.truncate(every).alias("from"), "version")
        counted = periods.group_by("from").agg(pl.len().alias("predictions"), pl.col("version").unique().sort())
        counted = counted.with_columns(pl.col("from").dt.offset_by(every).alias("to")).sort("from")
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"'{every}' is not a period: {error}", help="Write 1d, 1w, 1mo or 1q.") from error
    if as_if is None and (approximate or metric != "roc_auc"):
        found = _aggregated(store, endpoint, metric, counted, version, since, end)
        if found is not None:
            return found
    labelled = read_labels(store, endpoint, since, end, version=version)
    predictor_key = as_if
    if as_if is not None:
        labelled, predictor_key = _scored_again(store, as_if, labelled)
    starts = labelled.select(pl.col("event_at").dt.truncate(every))["event_at"]
    rows = []
    for period in counted.iter_rows(named=True):
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
    """Return the default metric for the task of an endpoint's models.

    Raises:
        NotFoundError: the endpoint does not exist.
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


def _aggregated(
    store: Store,
    endpoint: str,
    metric: str,
    counted: pl.DataFrame,
    version: str | None,
    since: datetime | None,
    end: datetime,
) -> pl.DataFrame | None:
    """Return the result of `performance_by` from the aggregates; None if they do not have what is needed."""
    import polars as pl

    from everloop.monitoring.performance.aggregated_performance import aggregated_performance

    periods = [(max(start, since or start), min(stop, end)) for start, stop in counted.select("from", "to").iter_rows()]
    found = aggregated_performance(store, endpoint, metric, periods, version=version)
    if found is None:
        return None
    return counted.select(
        "from",
        "to",
        pl.col("version").list.join(", "),
        pl.col("predictions").cast(pl.Int64),
        pl.Series("labelled", [one.labelled for one in found], dtype=pl.Int64),
        *(
            pl.Series(name, [getattr(one, name) for one in found], dtype=pl.Float64)
            for name in ("value", "low", "high")
        ),
    )


def measure_labelled(labelled: pl.DataFrame, metric: str | Metric | RowMetric) -> Measured:
    """Measure a metric on labelled predictions.

    Args:
        labelled: columns `score` (or `scores`, a list in each row, for several classes) and `actual` (0/1, the index of
            a class, or a number; null if the label is not a class of the model). Rows without a score or label are left
            out.
        metric: a name in `everloop.training.METRICS`, or a metric such as `cost_metric(...)` or a `RowMetric`.

    Raises:
        EmptySampleError: there are no rows.
        DataError: the metric does not fit such scores.
    """
    from everloop.monitoring.performance.custom_metrics import RowMetric
    from everloop.training.intervals import interval
    from everloop.training.metric_tasks import METRIC_TASKS
    from everloop.training.metrics import get_metric, scores_for

    if labelled.height == 0:
        name = metric if isinstance(metric, str) else metric.name
        raise EmptySampleError(
            f"'{name}' cannot be measured without labelled predictions.",
            help="Send labels, or choose a longer window.",
        )
    known = answered(labelled)
    unknown = labelled.filter(labelled["actual"].is_null())
    texts = unknown["actual_text"].drop_nulls().unique().sort().head(5) if "actual_text" in unknown.columns else ()
    if known.height == 0:
        nan = float("nan")
        return Measured(nan, nan, nan, nan, 0, unknown.height, tuple(texts))
    bound = get_metric(metric.bind(known) if isinstance(metric, RowMetric) else metric)
    decided = "predicted" in known.columns and known["predicted"].null_count() == 0
    judged = scores_for(bound, score_array(known), known["predicted"].to_numpy() if decided else None)
    found = interval(known["actual"].cast(float).to_numpy(), judged, bound)
    if found.method == "agreement" and bound.name not in METRIC_TASKS:
        # The range of a user's metric is unknown, so equal rows do not bound it.
        found = replace(found, low=math.nan, high=math.nan, standard_error=math.nan)
    error = found.standard_error
    if not math.isnan(found.high - found.low):
        # For perfectly separated classes the standard error is 0, but there is an exact interval.
        error = max(error, (found.high - found.low) / (2 * _CONFIDENCE_Z))
    return Measured(found.value, found.low, found.high, error, known.height, unknown.height, tuple(texts))


def worse_than_reference(measured: Measured, reference: ReferenceMetric, *, greater_is_better: bool) -> float:
    """Return the one-sided p-value of the hypothesis that the metric is not worse than the reference; 1 if undefined.

    This is a normal test of the difference of two independent estimates. The noise includes the variation of the
    reference between blocks of time.
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
                f"'{key}' predicts {_classes_text(predictor.task, predictor.classes)}, but '{version}' predicted "
                f"{_classes_text(signature.get('task'), signature.get('classes', ()))}. No metric can compare them.",
                help="Choose another version for `as_if`, or a period whose versions all have its classes.",
            )
    rows = labelled.drop("score", "scores", "predicted", strict=False)
    if rows.height == 0:
        return labelled, key
    scores, places = predictor.answer_frame(read_inputs(labelled, predictor.signature))
    if places is not None:
        rows = rows.with_columns(predicted=pl.Series(places))
    if scores.ndim == 2:
        return rows.with_columns(score=pl.Series(scores.max(axis=1)), scores=pl.Series(scores.tolist())), key
    return rows.with_columns(score=pl.Series(scores)), key


def _classes_text(task: str | None, classes: Sequence[Json]) -> str:
    return f"one of {', '.join(map(repr, classes))}" if classes else f"a {task or 'value of an unknown task'}"


def _reference_metric(
    store: Store, metric: str, version: str | None, reference: ReferenceMetric | tuple[float, float, float] | None
) -> ReferenceMetric:
    _greater_is_better(metric)
    if isinstance(reference, ReferenceMetric):
        return reference
    stored = None
    if version is not None:
        baseline = find_baseline(store, version)
        stored = baseline.metric if baseline is not None else None
        stored = stored if stored is not None and stored.name == metric else None
    if reference is not None:
        value, low, high = reference
        if not low <= value <= high:
            raise UsageError(
                f"The reference {value} is outside its interval [{low}, {high}].", help="Pass (value, low, high)."
            )
        error = (high - low) / (2 * _CONFIDENCE_Z)
        return ReferenceMetric(metric, value, low, high, error, 0, stored.between_block_std if stored else 0.0)
    if stored is None:
        raise UsageError(
            f"There is no reference for '{metric}'{f' of {version}' if version else ''}.",
            help="Pass reference=(value, low, high), or build the version's baseline with scored rows.",
        )
    return stored


def _versions(store: Store, endpoint: str) -> list[str]:
    """Return the versions that an endpoint routes to, the champion first."""
    return [route.version for route in store.records.get(EndpointRecord, endpoint).routes]


def _task_of(store: Store, version: str) -> Task | None:
    """Return the task of a version; None if the version is not registered here or its signature has no task."""
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
    return math.hypot(measured.standard_error, reference.standard_error, reference.between_block_std)


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
        "reference": reference.to_json(),
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
        return f"{metric} cannot be measured: {labelled}, which are too few or of one class only."
    return f"{metric} {_interval_text(measured)}; {labelled}."


def _joined(message: str, remark: str) -> str:
    return f"{message} {remark}" if remark else message


def _interval_text(measured: Measured | ReferenceMetric) -> str:
    return f"{measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _span(text: str | timedelta) -> timedelta:
    return parse_duration(text) if isinstance(text, str) else text
