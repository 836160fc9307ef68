"""What a life cycle is declared of: gates, an endpoint and its rollout, watches, triggers.

Every part is a frozen dataclass of plain values: a loop is a value, so it can be printed, compared, digested
and run over history. What a part *does* stands with its stage: `gates.py`, `rollout.py`, `watching.py`,
`triggers.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Protocol

from everloop.errors import UsageError
from everloop.stores.durations import parse_duration
from everloop.training.metric_tasks import check_metric

# --- gates: what a candidate must show before it meets a customer -----------------------------------------


class Gate(Protocol):
    """One condition on a candidate. `name` stands in results; the rest is the gate's own business."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The metric on the held-out rows is at least `value` (at most, where lower is better).

    Passes when the whole confidence interval lies on the good side, fails when it all lies on the bad side
    or the estimate does, and is undecided between.
    """

    metric: str
    value: float

    def __post_init__(self) -> None:
        check_metric(self.metric)

    @property
    def name(self) -> str:
        return f"at least {self.metric} {self.value:g}"


@dataclass(frozen=True, slots=True)
class NotWorseThan:
    """The candidate is not worse than the holder of `alias` by more than `margin`, on the same rows.

    Compared by paired bootstrap over the candidate's held-out rows. Passes when there is no holder yet.

    Args:
        alias: whom to compare with.
        margin: tolerated loss, in the metric's unit.
        metric: default: the metric that the training step optimises, else the usual one of the target's task.
    """

    alias: str = "champion"
    margin: float = 0.01
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)

    @property
    def name(self) -> str:
        return f"not worse than {self.alias}"


@dataclass(frozen=True, slots=True)
class Slices:
    """No slice of `column` is worse than the whole by more than `worst_gap`.

    `metric` is by default the one that the training step optimises, else the usual one of the target's task.
    A slice fails only when its whole confidence interval lies below; slices of fewer than `least_rows`
    rows, or of one class only, are not judged.
    """

    column: str
    worst_gap: float
    metric: str | None = None
    least_rows: int = 100

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)

    @property
    def name(self) -> str:
        return f"slices of {self.column}"


@dataclass(frozen=True, slots=True)
class Latency:
    """The packaged model answers one row within `p99_ms` milliseconds, 99 times in 100."""

    p99_ms: float
    rows: int = 200

    @property
    def name(self) -> str:
        return f"latency p99 {self.p99_ms:g} ms"


# --- serving ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Canary:
    """A rollout in steps of percent of the traffic, each step decided by the live evidence.

    A step is taken when at least `least_labels` labelled answers show that the candidate is not worse than
    the champion by more than `margin`; it is rolled back when they show that it is. When `patience` passes
    without a verdict, the better estimate wins.
    """

    steps: tuple[float, ...] | list[float] = (10, 50, 100)
    margin: float = 0.01
    least_labels: int = 200
    patience: str = "4w"

    def __post_init__(self) -> None:
        steps = tuple(float(step) for step in self.steps)
        rising = all(earlier < later for earlier, later in itertools.pairwise(steps))
        if not steps or not rising or steps[0] <= 0 or steps[-1] != 100:
            raise UsageError(
                f"Canary steps must rise from above 0 to 100 percent, not {list(self.steps)}.",
                help="For example: Canary(steps=[10, 50, 100])",
            )
        parse_duration(self.patience)
        object.__setattr__(self, "steps", steps)

    @property
    def percents(self) -> tuple[float, ...]:
        return tuple(self.steps)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the champion answers. Without a rollout, a candidate that passes its gates takes all traffic."""

    name: str
    rollout: Canary | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("-", "").replace("_", "").isalnum():
            raise UsageError(
                f"'{self.name}' cannot name an endpoint.", help="Use letters, digits, '-' and '_', such as 'delays'."
            )


# --- watching ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drift:
    """Compare every window of the live inputs and scores with the training data.

    Args:
        alarms_per_month: how many false alarms a month are tolerated; the thresholds follow from it.
        window: how long one window is.
    """

    alarms_per_month: float = 1
    window: str = "1w"

    def __post_init__(self) -> None:
        parse_duration(self.window)


@dataclass(frozen=True, slots=True)
class Performance:
    """Compare the live metric with the one measured before release, once the labels are there.

    Args:
        metric: such as `roc_auc`; default: the metric that the training step optimises, else the usual one of the
            target's task.
        labels_after: how long after an answer its label is expected.
        alarms_per_month: how many false alarms a month are tolerated.
        window: how long one window is.
    """

    metric: str | None = None
    labels_after: str = "0s"
    alarms_per_month: float = 1
    window: str = "1w"

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_metric(self.metric)
        parse_duration(self.labels_after)
        parse_duration(self.window)


Watch = Drift | Performance

# --- retraining -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnDrift:
    """A drift alarm since the last turn asks for a new one, at most once per `cooldown`."""

    cooldown: str = "2w"

    def __post_init__(self) -> None:
        parse_duration(self.cooldown)


@dataclass(frozen=True, slots=True)
class OnPerformance:
    """A performance alarm since the last turn asks for a new one, at most once per `cooldown`."""

    cooldown: str = "1w"

    def __post_init__(self) -> None:
        parse_duration(self.cooldown)


@dataclass(frozen=True, slots=True)
class Every:
    """A new turn when the last one is this old: `1w`, `12h`, or a cron line such as `0 6 * * mon` (UTC)."""

    interval: str

    def __post_init__(self) -> None:
        if self.is_cron:
            from croniter import croniter

            if not croniter.is_valid(self.interval):
                raise UsageError(
                    f"'{self.interval}' is no cron line.", help="Five fields, such as '0 6 * * mon', or '1w'."
                )
        else:
            parse_duration(self.interval)

    @property
    def is_cron(self) -> bool:
        return len(self.interval.split()) >= 5


@dataclass(frozen=True, slots=True)
class OnNewData:
    """A new turn when what the source steps read has changed, at most once per `cooldown`."""

    cooldown: str = "1d"

    def __post_init__(self) -> None:
        parse_duration(self.cooldown)


Trigger = OnDrift | OnPerformance | Every | OnNewData


@dataclass(frozen=True, slots=True)
class Due:
    """A trigger that fired, and why."""

    trigger: str
    reason: str
    evidence: dict[str, object] = field(default_factory=dict)
