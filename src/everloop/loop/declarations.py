"""The parts of a loop's declaration: gates, an endpoint and its rollout, watches, and retraining triggers.

Every part is a frozen dataclass of plain values, so a loop can be printed, compared, hashed and run over historical
data. The code that acts on a part is in the module of its stage: `gates.py`, `rollout.py` and `triggers.py`. Only
watches have it in their method `check`, because anyone can write one; see `watch_protocol.py`.

Durations are strings such as `90s`, `15m`, `12h`, `14d` or `1w`; `2d12h` is their sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from everloop.errors import UsageError
from everloop.loop.declaration_checks import (
    check_duration,
    check_limit,
    check_name,
    check_number,
    check_severity,
    check_text,
)
from everloop.training.metric_tasks import check_metric

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.loop.watch_protocol import WatchContext
    from everloop.records import Finding, FindingKind, IncidentSeverity

# --- gates: what a candidate must pass before it gets traffic -----------------------------------------------


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


# --- serving ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Canary:
    """A rollout that gives the candidate a growing share of the traffic, as live evidence allows.

    Once enough labels have arrived, candidate and champion are compared on the same live rows. If the candidate is not
    worse by more than `margin`, it gets the next share. If it is worse, it is rolled back and the champion gets all the
    traffic. If `patience` runs out without a clear result, the version with the better estimate wins.

    Args:
        steps: shares of the traffic in percent, rising and ending with 100.
        margin: the loss that you tolerate, in the unit of the metric.
        least_labels: how many labelled predictions are needed at each step before it is decided.
        patience: how long a step may stay undecided, such as `"4w"`.

    Raises:
        UsageError: the steps do not rise to 100, or `patience` is not a duration.

    Example:
        `Canary(steps=[10, 50, 100], least_labels=500, patience="2w")`
    """

    steps: tuple[float, ...] | list[float] = (10, 50, 100)
    margin: float = 0.01
    least_labels: int = 200
    patience: str = "4w"

    def __post_init__(self) -> None:
        given: object = self.steps
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UsageError(
                f"Canary(steps=) is {self.steps!r}, but must be a list of percentages.",
                help="For example: Canary(steps=[10, 50, 100])",
            )
        for step in self.steps:
            check_number("A step of Canary(steps=)", step, above=0)
        steps = tuple(float(step) for step in self.steps)
        rising = all(earlier < later for earlier, later in itertools.pairwise(steps))
        if not steps or not rising or steps[-1] != 100:
            raise UsageError(
                f"Canary steps must rise from above 0 to 100 percent, not {list(self.steps)}.",
                help="For example: Canary(steps=[10, 50, 100])",
            )
        check_number("Canary(margin=)", self.margin)
        check_number("Canary(least_labels=)", self.least_labels, least=1, whole=True)
        check_duration("Canary(patience=)", self.patience)
        object.__setattr__(self, "steps", steps)

    @property
    def percents(self) -> tuple[float, ...]:
        return tuple(self.steps)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The endpoint that serves the champion.

    Args:
        name: letters, digits, `-` and `_`, such as `"delays"`. Clients see it in the URL.
        rollout: how a candidate replaces the champion. Without one, a candidate that passes all its gates takes all
            the traffic at once.

    Raises:
        UsageError: the name contains other characters.

    Example:
        `Endpoint("delays", rollout=Canary(steps=[10, 50, 100]))`
    """

    name: str
    rollout: Canary | None = None

    def __post_init__(self) -> None:
        check_name("an endpoint", self.name, "delays")
        if self.rollout is not None and not isinstance(self.rollout, Canary):
            raise UsageError(
                f"Endpoint(rollout=) is {self.rollout!r}, but must be a canary.",
                help="For example: Endpoint('delays', rollout=Canary(steps=[10, 50, 100]))",
            )


# --- monitoring -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drift:
    """Watch: compare the live inputs and scores of every time window with the training data.

    Args:
        alarms_per_month: how many incidents a month may open although nothing has changed, on average. How surprising a
            window must be follows from it.
        window: length of a time window, such as `"1d"` or `"1w"`.

    Raises:
        UsageError: `window` is not a duration.

    Example:
        `Drift(alarms_per_month=1, window="1d")`
    """

    name: ClassVar[str] = "drift"
    kind: ClassVar[FindingKind] = "drift"

    alarms_per_month: float = 1
    window: str = "1w"

    def __post_init__(self) -> None:
        check_number("Drift(alarms_per_month=)", self.alarms_per_month, above=0)
        check_duration("Drift(window=)", self.window, positive=True)

    def check(self, context: WatchContext, since: datetime, until: datetime) -> list[Finding]:
        from everloop.monitoring import check_drift

        versions = context.answering(since, until)
        findings: list[Finding] = []
        for version in versions:
            findings += check_drift(
                context.store,
                context.endpoint,
                version,
                since,
                until,
                alarms_per_month=self.alarms_per_month,
                versions=len(versions),
                keep=False,
            )
        return findings


@dataclass(frozen=True, slots=True)
class Performance:
    """Watch: compare the metric on live predictions with its value before the release, once the labels have arrived.

    Args:
        metric: name of a metric, such as `"roc_auc"`. Default: the metric that the training step optimises, otherwise
            the first metric that a gate or watch names, otherwise the default for the target's task.
        labels_after: how long after a prediction its label usually arrives, such as `"1d"`. A window is checked that
            long after it ends.
        alarms_per_month: how many false alarms a month you tolerate, on average.
        window: length of a time window, such as `"1d"` or `"1w"`.

    Raises:
        UsageError: the metric does not exist, or a duration cannot be read.

    Example:
        `Performance("roc_auc", labels_after="1d")`
    """

    name: ClassVar[str] = "performance"
    kind: ClassVar[FindingKind] = "performance"

    metric: str | None = None
    labels_after: str = "0s"
    alarms_per_month: float = 1
    window: str = "1w"

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        check_duration("Performance(labels_after=)", self.labels_after)
        check_number("Performance(alarms_per_month=)", self.alarms_per_month, above=0)
        check_duration("Performance(window=)", self.window, positive=True)

    def check(self, context: WatchContext, since: datetime, until: datetime) -> list[Finding]:
        from everloop.monitoring import check_performance

        return check_performance(
            context.store,
            context.endpoint,
            self.metric,
            since,
            until,
            version=context.version,
            labels_after=self.labels_after,
            alarms_per_month=self.alarms_per_month,
            keep=False,
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """Watch: check the live data and the service in every time window.

    Data: the contract of the training data, missing values, new categories, constant columns, repeated rows, and
    features that differ from their feature view. Service: the number of predictions, silence, the age of the newest
    label, the latency and the errors. Shares, counts and times are compared with earlier windows, so what is usual for
    an endpoint is not reported.

    Args:
        latency_ms: at most 1 % of the requests may take longer than this many milliseconds. Default: no limit; the
            latency is compared with earlier windows only.
        views: feature views whose features clients send with their requests, such as `("weather",)`. The features are
            compared with the view as it was known when the request arrived.
        alarms_per_month: how many false alarms a month you tolerate, on average.
        window: length of a time window, such as `"1h"` or `"1d"`.

    Raises:
        UsageError: a number is not above 0, or `window` is not a duration.

    Example:
        `Quality(latency_ms=50, window="1d")`
    """

    name: ClassVar[str] = "quality"
    kind: ClassVar[FindingKind] = "quality"

    latency_ms: float | None = None
    views: tuple[str, ...] | list[str] = ()
    alarms_per_month: float = 1
    window: str = "1d"

    def __post_init__(self) -> None:
        if self.latency_ms is not None:
            check_number("Quality(latency_ms=)", self.latency_ms, above=0)
        given: object = self.views
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UsageError(
                f"Quality(views=) is {self.views!r}, but must be a list of names.",
                help="For example: Quality(views=['weather'])",
            )
        for view in self.views:
            check_text("A view of Quality(views=)", view, "Quality(views=['weather'])")
        object.__setattr__(self, "views", tuple(self.views))
        check_number("Quality(alarms_per_month=)", self.alarms_per_month, above=0)
        check_duration("Quality(window=)", self.window, positive=True)

    def check(self, context: WatchContext, since: datetime, until: datetime) -> list[Finding]:
        from everloop.monitoring import check_quality

        return check_quality(
            context.store,
            context.endpoint,
            context.version,
            since,
            until,
            latency_ms=self.latency_ms,
            views=self.views,
            alarms_per_month=self.alarms_per_month,
            keep=False,
        )


# --- retraining -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnDrift:
    """Trigger: retrain if there is a drift incident about the current champion. Needs a `Drift` watch.

    Args:
        cooldown: shortest time between the start of the last run and a run that this trigger starts.
        at_least: `"alarm"` for incidents that harm predictions, or are expected to; `"notice"` for all incidents.

    Raises:
        UsageError: `cooldown` is not a duration, or `at_least` is not a severity.

    Example:
        `OnDrift(cooldown="8w")`
    """

    cooldown: str = "2w"
    at_least: IncidentSeverity = "alarm"

    def __post_init__(self) -> None:
        check_duration("OnDrift(cooldown=)", self.cooldown)
        check_severity("OnDrift(at_least=)", self.at_least)


@dataclass(frozen=True, slots=True)
class OnPerformance:
    """Trigger: retrain if there is a performance incident about the current champion. Needs a `Performance` watch.

    Args:
        cooldown: shortest time between the start of the last run and a run that this trigger starts.
        at_least: `"alarm"` for incidents that harm predictions, or are expected to; `"notice"` for all incidents.

    Raises:
        UsageError: `cooldown` is not a duration, or `at_least` is not a severity.

    Example:
        `OnPerformance(cooldown="6w")`
    """

    cooldown: str = "1w"
    at_least: IncidentSeverity = "alarm"

    def __post_init__(self) -> None:
        check_duration("OnPerformance(cooldown=)", self.cooldown)
        check_severity("OnPerformance(at_least=)", self.at_least)


@dataclass(frozen=True, slots=True)
class Every:
    """Trigger: retrain on a schedule.

    Args:
        interval: time between the starts of two runs, such as `"12h"` or `"1w"`, or a cron expression of five fields in
            UTC, such as `"0 6 * * mon"`.

    Raises:
        UsageError: `interval` is neither a duration nor a cron expression.

    Example:
        `Every("1w")`, or `Every("0 6 * * mon")` for Mondays at 6:00 UTC.
    """

    interval: str

    def __post_init__(self) -> None:
        if not isinstance(self.interval, str) or not self.is_cron:
            check_duration("Every(interval=)", self.interval, positive=True)
            return
        from croniter import CroniterError, croniter

        try:
            if len(self.interval.split()) > 5:
                raise ValueError("more than five fields")
            # A date such as the 30th of February is written correctly and never comes.
            croniter(self.interval).get_next()
        except (CroniterError, ValueError):
            raise UsageError(
                f"'{self.interval}' is not a cron expression of a time that comes.",
                help="Write five fields, such as '0 6 * * mon', or a duration, such as '1w'.",
            ) from None

    @property
    def is_cron(self) -> bool:
        return len(self.interval.split()) >= 5


@dataclass(frozen=True, slots=True)
class OnNewData:
    """Trigger: retrain if the files or queries that the source steps read have changed.

    Args:
        cooldown: shortest time between the start of the last run and a run that this trigger starts.

    Raises:
        UsageError: `cooldown` is not a duration.

    Example:
        `OnNewData(cooldown="1d")`
    """

    cooldown: str = "1d"

    def __post_init__(self) -> None:
        check_duration("OnNewData(cooldown=)", self.cooldown)


Trigger = OnDrift | OnPerformance | Every | OnNewData


@dataclass(frozen=True, slots=True)
class Due:
    """A run that is due: the name of the trigger that fired, the reason, and the evidence for it."""

    trigger: str
    reason: str
    evidence: dict[str, object] = field(default_factory=dict)
