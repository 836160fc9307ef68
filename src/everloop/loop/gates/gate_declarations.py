"""The built-in gates, as a loop declares them. Each is a frozen dataclass of plain values.

`gate_checks.py` checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from everloop.loop.declaration_checks import check_limit, check_number, check_text
from everloop.training.metric_tasks import check_metric


class Gate(Protocol):
    """One condition on a candidate. `name` identifies the gate in its results."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Gate: the metric on the held-out rows must reach `value`.

    `value` is a minimum for metrics where higher is better, such as `roc_auc`, and a maximum for metrics where lower is
    better, such as `rmse`. The gate passes if the whole 95 % confidence interval meets `value`. It is undecided if only
    the estimate meets it, and it fails if the estimate does not.

    Args:
        metric: name of a metric, such as `"roc_auc"`, `"log_loss"` or `"rmse"`.
        value: the limit, in the unit of the metric.

    Raises:
        UsageError: the metric does not exist.

    Example:
        `AtLeast("roc_auc", 0.75)` asks for an AUC of 0.75 or more. `AtLeast("rmse", 12.0)` asks for an error of at most
        12, in the unit of the target.
    """

    metric: str
    value: float

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_limit("AtLeast(value=)", self.metric, self.value)

    @property
    def name(self) -> str:
        return f"at least {self.metric} {self.value:g}"


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

    Raises:
        UsageError: the metric does not exist.

    Example:
        `NotWorseThan("champion", margin=0.005)`
    """

    alias: str = "champion"
    margin: float = 0.01
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_text("NotWorseThan(alias=)", self.alias, "NotWorseThan('champion')")
        check_number("NotWorseThan(margin=)", self.margin)

    @property
    def name(self) -> str:
        return f"not worse than {self.alias}"


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

    Raises:
        UsageError: the metric does not exist.

    Example:
        `Slices("carrier", worst_gap=0.15)` tolerates an AUC of 0.60 for one carrier if it is 0.75 over all flights.
    """

    column: str
    worst_gap: float
    metric: str | None = None
    least_rows: int = 100

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_text("Slices(column=)", self.column, "Slices('carrier', worst_gap=0.15)")
        check_number("Slices(worst_gap=)", self.worst_gap, least=0)
        check_number("Slices(least_rows=)", self.least_rows, least=1, whole=True)

    @property
    def name(self) -> str:
        return f"slices of {self.column}"


@dataclass(frozen=True, slots=True)
class Latency:
    """Gate: the packaged model must answer single-row requests within `p99_ms` milliseconds, 99 times out of 100.

    The time is measured in the process of the run, without HTTP. Of three passes over the rows the fastest counts.

    Args:
        p99_ms: limit of the 99th percentile, in milliseconds.
        rows: how many held-out rows are scored at most, one at a time.

    Example:
        `Latency(p99_ms=20)`
    """

    p99_ms: float
    rows: int = 200

    def __post_init__(self) -> None:
        check_number("Latency(p99_ms=)", self.p99_ms, above=0)
        check_number("Latency(rows=)", self.rows, least=1, whole=True)

    @property
    def name(self) -> str:
        return f"latency p99 {self.p99_ms:g} ms"
