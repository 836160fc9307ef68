"""Compare a candidate with the champion on the same held-out rows: metrics, slices, importance of features, cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.ci.change_report import FeatureImportance, MetricComparison, SliceComparison, StepCost
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.ci.candidate_run import CandidateRun
    from everloop.loop import Loop
    from everloop.loop.comparison.champions import ComparedVersion
    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import StepRun

    Array = np.ndarray[Any, Any]

LEAST_SLICE_ROWS = 30
MOST_SLICES = 12
IMPORTANCE_ROWS = 2_000
_SEED = 1


def compare_metrics(context: GateContext, holder: ComparedVersion | None) -> tuple[MetricComparison, ...]:
    """Compare all metrics of the task. Those that cannot be computed for these rows are left out."""
    from everloop.training.intervals import interval, paired_bootstrap
    from everloop.training.metric_tasks import metrics_of
    from everloop.training.metrics import get_metric, score

    found = []
    for name in metrics_of(context.task):
        try:
            own = interval(context.labels, context.judged(name), name)
        except EverloopError:
            continue
        row: dict[str, Any] = {"champion": None}
        if holder is not None and holder.pairs is not None:
            candidate, champion = holder.pairs.judged(name)
            try:
                difference = paired_bootstrap(holder.pairs.labels, candidate, champion, name)
                sign = 1.0 if get_metric(name).greater_is_better else -1.0
                low, high = sorted((sign * difference.low, sign * difference.high))
                row = {
                    "champion": _finite(score(name, holder.pairs.labels, champion)),
                    "gain": _finite(sign * difference.value),
                    "gain_low": _finite(low),
                    "gain_high": _finite(high),
                }
            except EverloopError:
                row = {"champion": None}
        elif holder is not None:
            # Measured on other rows, so no difference can be shown.
            recorded = holder.metrics.get(name) or {}
            value = recorded.get("value")
            row = {"champion": float(value) if isinstance(value, int | float) else None}
        found.append(
            MetricComparison(
                name,
                _finite(own.value),
                _finite(own.low),
                _finite(own.high),
                deciding=name == context.metric,
                **row,
            )
        )
    return tuple(sorted(found, key=lambda one: not one.deciding))


def altered_inputs(context: GateContext, holder: ComparedVersion | None) -> str:
    """Tell whether the champion does worse on the rows of the change than on its own: the change altered its inputs.

    A change that damages a column damages both models on the same rows, so their difference does not show it.

    Returns:
        A sentence, or an empty text if the two 95 % intervals overlap or the champion is better.
    """
    from everloop.training.intervals import interval
    from everloop.training.metrics import get_metric

    if holder is None or holder.pairs is None:
        return ""
    recorded = holder.metrics.get(context.metric) or {}
    value, low, high = (recorded.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, int | float) or not isinstance(low, int | float) or not isinstance(high, int | float):
        return ""
    try:
        now = interval(holder.pairs.labels, holder.pairs.judged(context.metric)[1], context.metric)
    except EverloopError:
        return ""
    worse = now.high < low if get_metric(context.metric).greater_is_better else now.low > high
    if not worse:
        return ""
    return (
        f"the champion reaches {context.metric} {now.value:.3f} on the rows of this change, but {value:.3f} on its own "
        "held-out rows: the data have moved, or the change alters columns that it uses"
    )


def compare_slices(
    context: GateContext, holder: ComparedVersion | None, columns: Sequence[str]
) -> tuple[SliceComparison, ...]:
    """Compare the deciding metric for each value of some columns, the most frequent values first."""
    import polars as pl

    from everloop.training.intervals import paired_bootstrap
    from everloop.training.metrics import get_metric, score

    metric, pairs = context.metric, holder.pairs if holder is not None else None
    same_rows = pairs is not None and len(pairs.labels) == context.rows.height and not pairs.remark
    sign = 1.0 if get_metric(metric).greater_is_better else -1.0
    found = []
    for column in columns:
        if column not in context.rows.columns:
            continue
        values = context.rows[column].cast(pl.String)
        counts = values.drop_nulls().value_counts(sort=True).filter(pl.col("count") >= LEAST_SLICE_ROWS)
        for value, rows in counts.head(MOST_SLICES).iter_rows():
            chosen = (values == value).fill_null(value=False).to_numpy()
            labels = context.labels[chosen]
            try:
                own = score(metric, labels, context.judged(metric)[chosen])
                if not math.isfinite(own):
                    continue
                row: dict[str, Any] = {}
                if same_rows and pairs is not None:
                    candidate, champion = (scores[chosen] for scores in pairs.judged(metric))
                    difference = paired_bootstrap(pairs.labels[chosen], candidate, champion, metric)
                    low, high = sorted((sign * difference.low, sign * difference.high))
                    row = {
                        "champion": _finite(score(metric, pairs.labels[chosen], champion)),
                        "gain": _finite(sign * difference.value),
                        "gain_low": _finite(low),
                        "gain_high": _finite(high),
                    }
            except EverloopError:
                # Such as a slice in which only one class occurs.
                continue
            found.append(SliceComparison(column, value, rows, float(own), **row))
    return tuple(found)


def compare_importances(run: CandidateRun) -> tuple[FeatureImportance, ...]:
    """Measure by permutation how much each model depends on each feature, the largest change first.

    Source: L. Breiman, Random Forests, Machine Learning 45, 2001, section 10.
    """
    from everloop.registry import load_model

    if run.context.predictor is None:
        return ()
    rows = run.context.rows.head(IMPORTANCE_ROWS)
    labels = run.context.labels[: rows.height]
    own = _permuted(run.context.predictor, rows, labels, run.context.metric)
    other: dict[str, float] = {}
    if run.champion is not None and run.champion.package and run.champion.package != run.version.package:
        try:
            champion = load_model(run.store, run.champion.key)
            if list(champion.classes) == list(run.context.classes):
                other = _permuted(champion, rows, labels, run.context.metric)
        except EverloopError:
            # The rows lack a column that the champion needs, or its package is gone.
            other = {}
    names = dict.fromkeys([*own, *other])
    found = [FeatureImportance(name, own.get(name), other.get(name)) for name in names]
    return tuple(sorted(found, key=_shift, reverse=True))


def _permuted(predictor: Any, rows: pl.DataFrame, labels: Array, metric: str) -> dict[str, float]:
    import numpy as np

    from everloop.training.metrics import get_metric, score, scores_for

    sign = 1.0 if get_metric(metric).greater_is_better else -1.0

    def measure(table: pl.DataFrame) -> float:
        predictions = predictor.answer_frame(table)
        return sign * score(metric, labels, scores_for(metric, predictions.scores, predictions.places))

    try:
        full = measure(rows)
    except EverloopError:
        return {}
    order = np.random.default_rng(_SEED).permutation(rows.height)
    found = {}
    for name in predictor.input_names:
        if name in rows.columns:
            found[name] = float(full - measure(rows.with_columns(rows[name].gather(order).alias(name))))
    return found


def _shift(one: FeatureImportance) -> float:
    if one.candidate is None or one.champion is None:
        return abs(one.candidate or one.champion or 0.0)
    return max(abs(one.candidate - one.champion), abs(one.candidate) / 1e3)


def compare_costs(run: CandidateRun) -> tuple[StepCost, ...]:
    """Compare the time of each step with the run that made the champion."""
    from everloop.records import StepRun

    before: dict[str, StepRun] = {}
    if run.champion is not None and run.champion.run is not None:
        before = {step.name: step for step in run.store.records.find(StepRun, ("run", "=", run.champion.run))}
    found = []
    for step in run.steps:
        earlier = before.get(step.name)
        seconds = earlier.seconds if earlier is not None and earlier.status == "ran" else None
        found.append(StepCost(step.name, step.status, step.seconds, seconds))
    return tuple(found)


def count_seen(run: CandidateRun, loop: Loop) -> int | None:
    """Count the held-out rows that the champion was trained on. They flatter the champion."""
    import polars as pl

    from everloop.loop.comparison.champions import stored_part

    key = loop.data.key
    if run.champion is None or key is None or run.champion.key == run.version.key:
        return None
    parts = [stored_part(run.store, run.champion, part) for part in ("train", "valid")]
    keys = [part[key].cast(pl.String) for part in parts if part is not None and key in part.columns]
    if not keys:
        return None
    return int(run.context.rows[key].cast(pl.String).is_in(pl.concat(keys).unique().implode()).sum())


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
