"""The built-in triggers, as a loop declares them.

Durations are strings such as `90s`, `15m`, `12h`, `14d` or `1w`; `2d12h` is their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_severity

if TYPE_CHECKING:
    from everloop.records import IncidentSeverity


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
