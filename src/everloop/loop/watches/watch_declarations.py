"""The built-in watches, as a loop declares them.

Durations are strings such as `90s`, `15m`, `12h`, `14d` or `1w`; `2d12h` is their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_number, check_text
from everloop.training.metric_tasks import check_metric

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.loop.watches.watch_protocol import WatchContext
    from everloop.records import Finding, FindingKind


@dataclass(frozen=True, slots=True)
class Drift:
    """Watch: compare the live inputs and scores of every time window with the training data.

    Args:
        alarms_per_month: how many incidents a month may open although nothing has changed, on average. How surprising a
            window must be follows from it.
        window: length of a time window, such as `"1d"` or `"1w"`.
        seasons: seasons of the data besides hours, weekdays and the year, which are learned if the training data are
            long enough. A length such as `"12h"` or `"28d"`, `"month"` for the days of the month, or `"1y"`. If the
            training data have three cycles, what is usual in each part of it is learned. Otherwise a smooth change
            within the season is expected, and only abrupt changes are reported until a whole season has been logged.

    Raises:
        UsageError: `window` is not a duration, or a season cannot be read or is not longer than a window.

    Example:
        `Drift(alarms_per_month=1, window="1d", seasons=["1y"])`
    """

    name: ClassVar[str] = "drift"
    kind: ClassVar[FindingKind] = "drift"

    alarms_per_month: float = 1
    window: str = "1w"
    seasons: tuple[str, ...] | list[str] = ()

    def __post_init__(self) -> None:
        check_number("Drift(alarms_per_month=)", self.alarms_per_month, above=0)
        window = check_duration("Drift(window=)", self.window, positive=True)
        if self.seasons != ():
            from everloop.monitoring.noise.declared_seasons import parse_seasons

            try:
                declared = parse_seasons(self.seasons, window)
            except UsageError as error:
                raise UsageError(f"Drift(seasons=): {error.message}", help=error.help) from None
            object.__setattr__(self, "seasons", tuple(season.name for season in declared))

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
                seasons=self.seasons,
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
