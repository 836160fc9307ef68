"""Gates on probabilities and decisions: calibration, and fairness between groups.

Calibration: the expected calibration error of Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
networks" (ICML 2017), and the calibration intercept and slope of Cox, "Two further applications of a model for binary
regression", Biometrika 45 (1958), as recommended by Van Calster et al., "Calibration: the Achilles heel of predictive
analytics", BMC Medicine 17 (2019).

Fairness: demographic parity (equal selection rates) and, by Hardt, Price and Srebro, "Equality of opportunity in
supervised learning" (NIPS 2016), equal opportunity (equal true positive rates) and equalized odds (equal true and false
positive rates). Intervals of a difference of rates are Newcombe's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_number, check_text
from everloop.loop.gates.gate_declarations import groups_of
from everloop.loop.gates.gate_protocol import GateOutcome

if TYPE_CHECKING:
    import numpy as np

    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import GateSeverity, Json, Outcome

FairnessMeasure = Literal["demographic_parity", "equal_opportunity", "equalized_odds"]
_RATES: dict[str, tuple[str, ...]] = {
    "demographic_parity": ("selection rate",),
    "equal_opportunity": ("true positive rate",),
    "equalized_odds": ("true positive rate", "false positive rate"),
}
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Gate: predicted probabilities must agree with the observed shares.

    The expected calibration error (ECE) is the mean distance between predicted probability and observed share over ten
    bins. Its interval contains the true error with a probability of at least 95 %, although the measured error of a
    perfect model is above 0, see `calibration_interval`. The gate passes if the whole interval is at most `worst_ece`,
    fails if all of it is above, and is undecided otherwise.

    With `slope`, two classes are also judged by the calibration slope: below 1, the probabilities are too extreme, as
    after overfitting; above 1, they are too timid.

    Args:
        worst_ece: the largest expected calibration error that passes.
        slope: the smallest and the largest calibration slope that pass, such as `(0.8, 1.25)`. None: any slope.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Example:
        `Calibrated(worst_ece=0.05, slope=(0.8, 1.25))`
    """

    worst_ece: float = 0.05
    slope: tuple[float, float] | None = None
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        check_number("Calibrated(worst_ece=)", self.worst_ece, above=0)
        if self.slope is not None:
            if not isinstance(self.slope, tuple | list) or len(self.slope) != 2:
                raise UsageError(
                    f"Calibrated(slope=) is {self.slope!r}, but must be two numbers.", help="For example: (0.8, 1.25)"
                )
            for number in self.slope:
                check_number("Calibrated(slope=)", number)
            object.__setattr__(self, "slope", tuple(self.slope))
            if self.slope[0] > self.slope[1]:
                raise UsageError(
                    f"Calibrated(slope=) is {self.slope!r}, so no slope passes.", help="Write the smaller number first."
                )

    @property
    def name(self) -> str:
        return f"calibrated within {self.worst_ece:g}"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.loop.gates.gate_comparison import finite
        from everloop.training.metrics import get_metric
        from everloop.training.probability_calibration import calibration_interval, calibration_slope

        get_metric("ece", context.task).prepare(context.labels, context.scores)  # checks labels and scores
        ece = calibration_interval(context.labels, context.scores, level=_LEVEL)
        outcomes = [_by_upper_limit(ece.low, ece.high, self.worst_ece)]
        messages = [f"ECE {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}], allowed {self.worst_ece:g}"]
        evidence: dict[str, Json] = {
            "ece": ece.value, "low": ece.low, "high": ece.high, "allowed": self.worst_ece, "rows": len(context.labels)
        }  # fmt: skip
        if context.scores.ndim == 1:
            slope, intercept = calibration_slope(context.labels, context.scores, level=_LEVEL)
            evidence["slope"] = [finite(slope.value), finite(slope.low), finite(slope.high)]
            evidence["intercept"] = [finite(intercept.value), finite(intercept.low), finite(intercept.high)]
            if self.slope is not None:
                outcomes.append(_within(slope.low, slope.high, *self.slope))
                limits = f"{self.slope[0]:g} to {self.slope[1]:g}"
                messages.append(f"slope {slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}], required {limits}")
        elif self.slope is not None:
            raise UsageError(
                f"Calibrated(slope=) is for two classes, and '{context.target}' has {context.scores.shape[1]}.",
                help="Leave out slope=.",
            )
        return GateOutcome(_worst_of(outcomes), "; ".join(messages), evidence)


@dataclass(frozen=True, slots=True)
class Fair:
    """Gate: the rates of any two groups must not be further apart than `worst_gap`. For models of two classes.

    The measures compare groups by how often the second class is predicted (`demographic_parity`), by how often it is
    predicted for rows that have it (`equal_opportunity`), or by that and by how often it is predicted for rows that do
    not have it (`equalized_odds`).

    Each pair of groups is compared by Newcombe's interval. The gate fails if the gap of a pair is surely above
    `worst_gap`, at a level of 95 % for all pairs together (Bonferroni), so that many small groups do not fail by
    chance. It passes if each pair is surely within the limit, at 95 % for each: an intersection-union test, which needs
    no correction (Berger, Technometrics 24, 1982). Otherwise it is undecided.

    Args:
        column: a column of the dataset. It does not have to be a feature. Nulls form a group of their own, and many
            different numbers are divided into quarters.
        worst_gap: the largest difference of a rate between two groups that passes, such as 0.1.
        measure: `"demographic_parity"`, `"equal_opportunity"` or `"equalized_odds"`.
        least_rows: groups with fewer rows that a rate is a share of are skipped.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the measure does not exist.

    Example:
        `Fair("sex", worst_gap=0.1, measure="equal_opportunity")`
    """

    column: str
    worst_gap: float = 0.1
    measure: FairnessMeasure = "demographic_parity"
    least_rows: int = 30
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        check_text("Fair(column=)", self.column, "Fair('sex', worst_gap=0.1)")
        check_number("Fair(worst_gap=)", self.worst_gap, least=0)
        check_number("Fair(least_rows=)", self.least_rows, least=1, whole=True)
        if self.measure not in _RATES:
            raise UsageError(
                f"Fair(measure=) is {self.measure!r}, which does not exist.", help=f"Use one of: {', '.join(_RATES)}"
            )

    @property
    def name(self) -> str:
        return f"{self.measure.replace('_', ' ')} of {self.column}"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.training.intervals import newcombe

        if context.task != "binary":
            raise UsageError(
                f"Fair('{self.column}') is for two classes, but '{context.target}' is {context.task}.",
                help="Compare groups by a metric instead: el.Slices(column, worst_gap=…)",
            )
        groups = groups_of(context, self.column, "Fair")
        rates = _group_rates(context, groups, self.measure, self.least_rows)
        pairs = [(rate, one, other) for rate, found in rates.items() for one, other in combinations(found, 2)]
        evidence: dict[str, Json] = {
            "groups": {
                rate: {name: {"rate": hits / rows, "rows": rows} for name, (hits, rows) in found.items()}
                for rate, found in rates.items()
            },
            "allowed": self.worst_gap,
            "pairs": len(pairs),
        }
        if any(len(found) < 2 for found in rates.values()):
            few = next(rate for rate, found in rates.items() if len(found) < 2)
            message = f"fewer than two groups of {self.column} have {self.least_rows} rows for the {few}"
            return GateOutcome("undecided", message, evidence)
        corrected = 1 - (1 - _LEVEL) / len(pairs)
        outcomes: list[Outcome] = []
        worst: tuple[float, str] = (-1.0, "")
        for rate, one, other in pairs:
            (hits, rows), (other_hits, other_rows) = rates[rate][one], rates[rate][other]
            counts = (hits, rows, other_hits, other_rows)
            gap = abs(hits / rows - other_hits / other_rows)
            surely_at_least = _distance(*newcombe(*counts, level=corrected))[0]
            surely_at_most = _distance(*newcombe(*counts, level=_LEVEL))[1]
            failed = surely_at_least > self.worst_gap
            outcomes.append("fail" if failed else "pass" if surely_at_most <= self.worst_gap else "undecided")
            if gap > worst[0]:
                low, high = _distance(*newcombe(*counts, level=corrected))
                text = (
                    f"{rate} {hits / rows:.3f} for {one} and {other_hits / other_rows:.3f} for {other}: "
                    f"{gap:.3f} apart [{low:.3f}, {high:.3f}]"
                )
                worst = (gap, text)
                evidence |= {"worst_gap": gap, "low": low, "high": high, "worst_pair": [one, other], "rate": rate}
        return GateOutcome(_worst_of(outcomes), f"{worst[1]}, allowed {self.worst_gap:g}", evidence)


def _group_rates(
    context: GateContext, groups: np.ndarray[Any, Any], measure: str, least_rows: int
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return for each rate and group its hits and rows, for groups with enough rows."""
    import numpy as np

    chosen, actual = context.predicted_classes() == 1, context.labels == 1
    names, index = np.unique(groups, return_inverse=True)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for rate in _RATES[measure]:
        within = {"selection rate": np.ones_like(actual), "true positive rate": actual}.get(rate, ~actual)
        rows = np.bincount(index[within], minlength=len(names))
        hits = np.bincount(index[within & chosen], minlength=len(names))
        found[rate] = {
            str(name): (int(hits[at]), int(rows[at])) for at, name in enumerate(names) if rows[at] >= least_rows
        }
    return found


def _distance(low: float, high: float) -> tuple[float, float]:
    """Return the interval of the absolute value of a difference with this interval."""
    if low <= 0 <= high:
        return 0.0, max(-low, high)
    return min(abs(low), abs(high)), max(abs(low), abs(high))


def _by_upper_limit(low: float, high: float, limit: float) -> Outcome:
    return "fail" if low > limit else "pass" if high <= limit else "undecided"


def _within(low: float, high: float, least: float, most: float) -> Outcome:
    """Return pass if the whole interval is within the limits, and fail if all of it is outside."""
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    return "fail" if high < least or low > most else "pass" if low >= least and high <= most else "undecided"


def _worst_of(outcomes: list[Outcome]) -> Outcome:
    return "fail" if "fail" in outcomes else "undecided" if "undecided" in outcomes else "pass"
