"""Gates on the metrics of a candidate: a limit, a comparison with another version, groups of rows.

Each is a frozen dataclass of plain values, so that it can be part of a step's cache key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_limit, check_number, check_text
from everloop.loop.gates.gate_protocol import GateOutcome
from everloop.training.metric_tasks import check_metric

if TYPE_CHECKING:
    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import GateSeverity, Json, Outcome

MOST_GROUPS = 100
"""A column with more groups than this is grouped coarsely; see `slice_labels`."""


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Gate: the metric on the held-out rows must reach `value`.

    `value` is a minimum for metrics where higher is better, such as `roc_auc`, and a maximum for metrics where lower is
    better, such as `rmse`. The gate passes if the whole 95 % confidence interval meets `value`. It is undecided if only
    the estimate meets it, and it fails if the estimate does not.

    Args:
        metric: name of a metric, such as `"roc_auc"`, `"log_loss"` or `"rmse"`.
        value: the limit, in the unit of the metric.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the metric does not exist.

    Example:
        `AtLeast("roc_auc", 0.75)` asks for an AUC of 0.75 or more. `AtLeast("rmse", 12.0)` asks for an error of at most
        12, in the unit of the target.
    """

    metric: str
    value: float
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_limit("AtLeast(value=)", self.metric, self.value)

    @property
    def name(self) -> str:
        return f"at least {self.metric} {self.value:g}"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.loop.gates.gate_comparison import finite
        from everloop.training.intervals import interval
        from everloop.training.metrics import get_metric

        upward = get_metric(self.metric, context.task).greater_is_better
        found = interval(context.labels, context.judged(self.metric), self.metric)
        evidence: dict[str, Json] = {
            "value": finite(found.value),
            "low": finite(found.low),
            "high": finite(found.high),
            "bar": self.value,
            "rows": context.rows.height,
        }
        if math.isnan(found.value):
            text = f"{self.metric} is undefined on these {context.rows.height:,} rows; {_classes_in(context)}"
            return GateOutcome("undecided", text, evidence)
        value, low = (found.value, found.low) if upward else (-found.value, -found.high)
        bar = self.value if upward else -self.value
        outcome: Outcome = "pass" if low >= bar else "undecided" if value >= bar else "fail"
        message = f"{self.metric} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], required {self.value:g}"
        return GateOutcome(outcome, message, evidence)


@dataclass(frozen=True, slots=True)
class NotWorseThan:
    """Gate: the candidate must not be worse than another version by more than `margin`.

    Both versions score the candidate's held-out rows, and a paired bootstrap gives a 95 % confidence interval of the
    difference. The gate passes if the whole interval is above `-margin`, fails if the whole interval is below it, and
    is undecided otherwise. It also passes if no version has the alias yet.

    Args:
        alias: alias of the version to compare with.
        margin: the loss that you tolerate, in the unit of the metric. 0.01 of an AUC is one percentage point.
        metric: name of a metric. Default: the metric that the training step optimises, otherwise the first metric that
            a gate or watch names, otherwise the default for the target's task: `roc_auc` or `rmse`.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the metric does not exist.

    Example:
        `NotWorseThan("champion", margin=0.005)`
    """

    alias: str = "champion"
    margin: float = 0.01
    metric: str | None = None
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_text("NotWorseThan(alias=)", self.alias, "NotWorseThan('champion')")
        check_number("NotWorseThan(margin=)", self.margin)

    @property
    def name(self) -> str:
        return f"not worse than {self.alias}{_by(self.metric)}"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.loop.gates.gate_comparison import compare_with_alias

        outcome = compare_with_alias(context, self.alias, self.metric, self.margin)
        return outcome or GateOutcome("pass", f"no {self.alias} yet", {"champion": None})


@dataclass(frozen=True, slots=True)
class BetterThan:
    """Gate: the candidate must be better than another version, by more than `margin`.

    The comparison is that of `NotWorseThan`: paired on the candidate's held-out rows, with a 95 % confidence interval
    of the difference. The gate passes if the whole interval is above `margin`, fails if the whole interval is below it,
    and is undecided otherwise. Two equally good models are therefore undecided, and never pass. The gate passes if no
    version has the alias yet.

    Args:
        alias: alias of the version to compare with.
        margin: the gain that you require, in the unit of the metric.
        metric: name of a metric. Default: as for `NotWorseThan`.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the metric does not exist.

    Example:
        `BetterThan("champion", margin=0.01)` asks for an AUC that is surely more than one percentage point higher.
    """

    alias: str = "champion"
    margin: float = 0.0
    metric: str | None = None
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_text("BetterThan(alias=)", self.alias, "BetterThan('champion')")
        check_number("BetterThan(margin=)", self.margin, least=0)

    @property
    def name(self) -> str:
        return f"better than {self.alias}{_by(self.metric)}"

    def check(self, context: GateContext) -> GateOutcome:
        from everloop.loop.gates.gate_comparison import compare_with_alias

        outcome = compare_with_alias(context, self.alias, self.metric, -self.margin)
        if outcome is None:
            return GateOutcome("pass", f"no {self.alias} yet", {"champion": None})
        if outcome.outcome == "pass" and outcome.evidence.get("low") == self.margin == 0:
            # A gain of exactly 0 is not an improvement.
            outcome = GateOutcome("undecided", outcome.message, outcome.evidence)
        required = f"; required more than {self.margin:+.3g}" if "gain" in outcome.evidence else ""
        return GateOutcome(outcome.outcome, f"{outcome.message}{required}", {**outcome.evidence, "margin": self.margin})


@dataclass(frozen=True, slots=True)
class Slices:
    """Gate: no group of rows may be much worse than all held-out rows together.

    The held-out rows are grouped by the values of `column`, and the metric is measured for each group. The gate fails
    if the whole 95 % confidence interval of a group is more than `worst_gap` worse, and is undecided if only its
    estimate is. Groups with fewer than `least_rows` rows are skipped, and so are groups with a single class of a
    binary target. If every group is skipped, the gate is undecided.

    Args:
        column: a column of the dataset, such as `"carrier"`. It does not have to be a feature.
        worst_gap: how much worse a group may be, in the unit of the metric.
        metric: name of a metric. Default: the metric that the training step optimises, otherwise the first metric that
            a gate or watch names, otherwise the default for the target's task.
        least_rows: how many held-out rows a group needs to be judged.
        severity: `"error"`, or `"warning"` to show a failure without rejecting the candidate.

    Raises:
        UsageError: the metric does not exist.

    Example:
        `Slices("carrier", worst_gap=0.15)` tolerates an AUC of 0.60 for one carrier if it is 0.75 over all flights.
    """

    column: str
    worst_gap: float
    metric: str | None = None
    least_rows: int = 100
    severity: GateSeverity = field(default="error", kw_only=True)

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_text("Slices(column=)", self.column, "Slices('carrier', worst_gap=0.15)")
        check_number("Slices(worst_gap=)", self.worst_gap, least=0)
        check_number("Slices(least_rows=)", self.least_rows, least=1, whole=True)

    @property
    def name(self) -> str:
        return f"slices of {self.column}{_by(self.metric)}"

    def check(self, context: GateContext) -> GateOutcome:
        import numpy as np

        from everloop.loop.gates.gate_comparison import finite
        from everloop.training.intervals import interval
        from everloop.training.metrics import get_metric, score

        metric = self.metric or context.metric
        sign = 1.0 if get_metric(metric, context.task).greater_is_better else -1.0
        judged_scores = context.judged(metric)
        overall = score(metric, context.labels, judged_scores)
        values = groups_of(context, self.column, "Slices")
        judged: dict[str, Json] = {}
        skipped = 0
        worst: tuple[float, str] | None = None
        failed: list[str] = []
        uncertain: list[str] = []
        for value in np.unique(values):
            mask = values == value
            if mask.sum() < self.least_rows or _is_single_class(context, mask):
                skipped += 1
                continue
            found = interval(context.labels[mask], judged_scores[mask], metric)
            gap = sign * (overall - found.value)
            if math.isnan(gap):
                skipped += 1
                continue
            # The gap at the better end of the slice's confidence interval.
            least_gap = min(sign * (overall - found.low), sign * (overall - found.high))
            judged[str(value)] = {
                "value": finite(found.value),
                "low": finite(found.low),
                "high": finite(found.high),
                "rows": int(mask.sum()),
            }
            if worst is None or gap > worst[0]:
                worst = (gap, str(value))
            if least_gap > self.worst_gap:
                failed.append(str(value))
            elif gap > self.worst_gap:
                uncertain.append(str(value))
        evidence: dict[str, Json] = {
            "whole": finite(overall),
            "slices": judged,
            "worst_gap": worst[0] if worst else None,
            "allowed": self.worst_gap,
            "skipped": skipped,
        }
        if worst is None:
            classes = " and both classes" if context.task == "binary" else ""
            message = f"no slice of {self.column} has {self.least_rows} rows{classes}"
            return GateOutcome("undecided", message, evidence)
        message = (
            f"worst slice: {worst[1]}, {worst[0]:.3f} worse than all rows ({overall:.3f}); allowed {self.worst_gap:g}"
        )
        return GateOutcome("fail" if failed else "undecided" if uncertain else "pass", message, evidence)


def groups_of(context: GateContext, column: str, gate: str) -> Any:
    """Return the name of each row's group, shape (n,): its value, `null`, or a range of many numbers.

    A text column with very many values keeps its most common ones; the others form the group `other values`.

    Raises:
        UsageError: the rows have no such column.
    """
    import polars as pl

    from everloop.training.evaluation import slice_labels

    if column not in context.rows.columns:
        raise UsageError(
            f"{gate}('{column}'): the dataset has no such column.", help=f"It has: {', '.join(context.rows.columns)}"
        )
    values = context.rows[column]
    if values.dtype.is_float():
        values = values.fill_nan(None)
    if values.dtype.is_nested() or isinstance(values.dtype, pl.Object | pl.Binary):
        raise UsageError(
            f"{gate}('{column}'): a column of the type {values.dtype} cannot define groups.",
            help="Choose a column of text, numbers, booleans or times.",
        )
    if values.n_unique() <= MOST_GROUPS and not values.dtype.is_float():
        return values.cast(pl.String).fill_null("null").to_numpy()
    return slice_labels(values).to_numpy()


def _is_single_class(context: GateContext, mask: Any) -> bool:
    import numpy as np

    return context.task == "binary" and len(np.unique(context.labels[mask])) < 2


def _classes_in(context: GateContext) -> str:
    import numpy as np

    found = len(np.unique(context.labels))
    return f"they have {found} class{'' if found == 1 else 'es'}" if context.task != "regression" else "too few rows"


def _by(metric: str | None) -> str:
    return f" by {metric}" if metric else ""
