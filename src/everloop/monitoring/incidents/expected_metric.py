"""What the metric of a version is expected to have become in a window, before labels are there.

For two classes, the sketch of the window's scores is enough if it is fine enough. Otherwise a sample of rows is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.data.sketches.bins import NumericBins
from everloop.monitoring.incidents.drift_harm import ExpectedMetric
from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
from everloop.monitoring.performance.harm import estimate_harm
from everloop.training.metrics import get_metric

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.performance.label_expectations import LabelExpectations

SAMPLE_ROWS = 10_000
"""At most about as many rows of a window are read for an estimate."""

_LEAST_CELLS = 10
_MOST_OUTSIDE = 0.05


def expect_metric(
    baseline: Baseline, score: Sketch | None, read_rows: Callable[[], pl.DataFrame | None], doubt: str = ""
) -> ExpectedMetric | None:
    """Return what the baseline's metric is expected to be in a window; None if it cannot be estimated.

    Args:
        score: sketch of the window's scores.
        read_rows: returns a sample of the window with `score` (or `scores`), and its inputs under their own names or
            as `input_<name>`. It is called only if the sketch is not enough.
        doubt: why the estimate is not trusted.
    """
    known = baseline.expectations()
    found = expect_of(known, score, read_rows, doubt) if known is not None else None
    if found is None or baseline.metric is None or baseline.metric.name != found.name:
        return found
    # The estimator may have been fitted to a sample of the reference, and the metric may have been accepted since.
    return found.shifted(baseline.metric.value - found.before)


def expect_of(
    known: LabelExpectations, score: Sketch | None, read_rows: Callable[[], pl.DataFrame | None], doubt: str = ""
) -> ExpectedMetric | None:
    """Return what a metric is expected to be in a window; see `expect_metric`."""
    if known.estimator is None:
        return None
    window: Sketch | pl.DataFrame | None = score
    if score is None or not _is_enough(known, score):
        window = read_rows()
    if window is None:
        return None
    found = estimate_harm(known.estimator, window, known.metric)
    if found.now is None or found.low is None or found.high is None or found.before is None:
        return None
    return ExpectedMetric(
        name=known.metric,
        before=found.before,
        now=found.now,
        low=found.low,
        high=found.high,
        loss=found.loss or 0.0,
        certain_loss=found.loss_low or 0.0,
        rows=found.rows,
        greater_is_better=get_metric(known.metric).greater_is_better,
        doubt=doubt,
    )


def _is_enough(known: LabelExpectations, score: Sketch) -> bool:
    """Whether a sketch of scores shows the distribution of two classes well enough."""
    if not isinstance(known.estimator, ConfidenceEstimator) or known.estimator.task != "binary":
        return False
    present = score.rows - score.counts[0]
    outside = score.counts[1] + score.counts[-1]
    fine = isinstance(score.bins, NumericBins) and len(score.bins.edges) > _LEAST_CELLS
    return fine and present > 0 and outside <= _MOST_OUTSIDE * present
