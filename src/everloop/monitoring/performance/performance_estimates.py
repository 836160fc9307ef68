"""What an estimate of performance is, and whether labels that arrive later contradict it.

An estimate assumes that the relation between inputs and labels is still that of the reference (no concept drift). If
the measured value is further from the estimate than both errors allow, the assumption is contradicted, and estimates of
later windows must not be trusted until there is a new reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.monitoring.measures.tail_probabilities import normal_quantile, normal_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTRADICTION_LEVEL = 0.01
"""Chance that at least one of the metrics of a check is contradicted although the assumption holds."""
LEAST_DIFFERENCE = 0.02
"""Smaller relative differences do not matter, however significant they are."""
_Z = normal_quantile(0.025)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceEstimate:
    """An estimated metric with the 95 % interval of the value that labels will show.

    All numbers are NaN if the metric is undefined for the window. `window_error` is the standard error from the number
    of rows in the window, `reference_error` the one from the reference: its number of rows, and variation between its
    blocks of time.
    """

    metric: str
    value: float
    low: float
    high: float
    window_error: float
    reference_error: float
    rows: int

    @property
    def standard_error(self) -> float:
        return math.hypot(self.window_error, self.reference_error)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateCheck:
    """An estimate beside the value that labels have shown for the same rows.

    `p_value` is two-sided: how likely a difference as large as this is if the assumption holds. `reason` says in a
    sentence why the estimate is not trusted any more; None if it is.
    """

    metric: str
    estimated: float
    realised: float
    p_value: float
    rows: int
    reason: str | None

    @property
    def contradicted(self) -> bool:
        return self.reason is not None


def new_estimate(
    metric: str,
    value: float,
    rows: int,
    window_error: float,
    reference_error: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> PerformanceEstimate:
    """Return an estimate with its normal interval, cut at the limits of the metric."""
    error = math.hypot(window_error, reference_error)
    if math.isnan(value) or math.isnan(error):
        nan = math.nan
        return PerformanceEstimate(
            metric=metric, value=nan, low=nan, high=nan, window_error=nan, reference_error=nan, rows=rows
        )
    return PerformanceEstimate(
        metric=metric,
        value=value,
        low=min(value, max(limits[0], value - _Z * error)),
        high=max(value, min(limits[1], value + _Z * error)),
        window_error=window_error,
        reference_error=reference_error,
        rows=rows,
    )


def compare_with_labels(estimates: Sequence[tuple[PerformanceEstimate, float]]) -> list[EstimateCheck]:
    """Test estimates against the realised values of the same rows.

    A metric is contradicted if its p-value is below `CONTRADICTION_LEVEL` divided by the number of metrics
    (Bonferroni), and if the difference is at least `LEAST_DIFFERENCE` of the estimate. Undefined metrics have the
    p-value 1.

    Args:
        estimates: estimates, each with the value measured from labels.
    """
    if not estimates:
        raise EmptySampleError("There are no estimates to compare with labels.", help="Name at least one metric.")
    level = CONTRADICTION_LEVEL / len(estimates)
    checks = []
    for estimate, realised in estimates:
        gap, error = abs(realised - estimate.value), estimate.standard_error
        if math.isnan(gap) or math.isnan(error):
            p_value = 1.0
        elif error == 0:
            p_value = 1.0 if gap <= 1e-12 else 0.0
        else:
            p_value = min(1.0, 2 * normal_tail(gap / error))
        large = gap >= LEAST_DIFFERENCE * abs(estimate.value)
        reason = None
        if p_value < level and large:
            reason = (
                f"The labels of {estimate.rows} predictions show {estimate.metric} {realised:.3f}, but the estimate "
                f"for them was {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] (p = {p_value:.2g}). The "
                "relation between inputs and labels has changed, so estimates are not trusted."
            )
        checks.append(
            EstimateCheck(
                metric=estimate.metric,
                estimated=estimate.value,
                realised=realised,
                p_value=p_value,
                rows=estimate.rows,
                reason=reason,
            )
        )
    return checks
