"""Schedules: at which times a duration or a cron expression in a time zone comes due.

A cron expression names times of the wall clock. Where a zone changes to daylight saving time, some of them do not exist
and some exist twice. A time that does not exist comes due at the moment of the change, and a time that exists twice
comes due the first time only. So a daily schedule runs exactly once a day.

Source for local times that are skipped or repeated: PEP 495, which `zoneinfo` implements with `fold`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.loop.triggers.retrain_limits import RetrainLimits
    from everloop.loop.triggers.trigger_protocol import Due, TriggerContext

_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Every:
    """Trigger: retrain on a schedule.

    Args:
        interval: time between the starts of two runs, such as `"12h"` or `"1w"`, or a cron expression of five fields,
            such as `"0 6 * * mon"`.
        zone: time zone of a cron expression, such as `"Europe/Berlin"`. A time that daylight saving time skips comes
            due at the change; one that it repeats comes due once.
        catch_up: after a downtime, `"one"` makes one run up for all times that were missed. `"none"` waits for the next
            time: a run starts only within `grace` of its time.
        grace: how late a run may start with `catch_up="none"`.
        limits: limits for this trigger.

    Raises:
        UsageError: `interval` is neither a duration nor a cron expression, or the zone does not exist.

    Example:
        `Every("1w")`, or `Every("0 6 * * mon", zone="Europe/Berlin")` for Mondays at six in Berlin.
    """

    interval: str
    zone: str = "UTC"
    catch_up: Literal["one", "none"] = "one"
    grace: str = "1h"
    limits: RetrainLimits | None = None

    def __post_init__(self) -> None:
        if self.catch_up not in ("one", "none"):
            raise UsageError(
                f"Every(catch_up=) is {self.catch_up!r}, but must be 'one' or 'none'.",
                help="'one' makes up for missed times with one run, 'none' waits for the next time.",
            )
        check_duration("Every(grace=)", self.grace, positive=True)
        check_zone(self.zone)
        if not isinstance(self.interval, str) or not self.is_cron:
            check_duration("Every(interval=)", self.interval, positive=True)
            if self.zone != "UTC":
                raise UsageError(
                    f"Every({self.interval!r}) is a duration, so zone='{self.zone}' has no effect.",
                    help="Leave zone= out, or write a cron expression such as '0 6 * * mon'.",
                )
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

    @property
    def scheduled(self) -> bool:
        return True

    def check(self, context: TriggerContext) -> Due | None:
        now, began = context.now(), context.last.started_at.astimezone(UTC)
        due_at = self.next_at(context)
        if self.catch_up == "none":
            due_at = self._latest(began, now)
        if due_at is None or now < due_at:
            return None
        if self.catch_up == "none" and now - due_at > parse_duration(self.grace):
            return None
        evidence = {"scheduled_at": due_at.isoformat()}
        return context.due(f"{self.interval}: the last run began {began:%Y-%m-%d %H:%M}", evidence, due_at.isoformat())

    def next_at(self, context: TriggerContext) -> datetime | None:
        """Return the first time of the schedule after the last run began, in UTC."""
        began = context.last.started_at.astimezone(UTC)
        if not self.is_cron:
            due_at = began + parse_duration(self.interval)
            if self.catch_up == "none" and context.now() - due_at > parse_duration(self.grace):
                latest = self._latest(began, context.now())
                return None if latest is None else latest + parse_duration(self.interval)
            return due_at
        if self.catch_up == "none":
            latest = self._latest(began, context.now())
            late = latest is not None and context.now() - latest > parse_duration(self.grace)
            return next_time(self.interval, self.zone, context.now() if late else began)
        return next_time(self.interval, self.zone, began)

    def _latest(self, began: datetime, now: datetime) -> datetime | None:
        """Return the last time of the schedule in (began, now]; None if there is none."""
        if not self.is_cron:
            span = parse_duration(self.interval)
            times = (now - began) // span
            return began + times * span if times >= 1 else None
        latest = previous_time(self.interval, self.zone, now)
        return latest if latest is not None and latest > began else None


@lru_cache(maxsize=256)
def next_time(expression: str, zone: str, after: datetime) -> datetime:
    """Return the first moment after `after` at which a cron expression in a zone comes due, in UTC.

    Args:
        expression: five fields.
        zone: name of a time zone.
        after: with a time zone.
    """
    zone_info = ZoneInfo(zone)
    start = after.astimezone(UTC)
    # The first moments of wall times never decrease, and that of the present wall time is not later than `start`.
    wall = start.astimezone(zone_info).replace(tzinfo=None)
    for time in _wall_times(expression, wall, forward=True):
        moment = _first_moment(time, zone_info)
        if moment > start:
            break
    return moment


def previous_time(expression: str, zone: str, until: datetime) -> datetime | None:
    """Return the last moment up to and including `until` at which a cron expression in a zone came due, in UTC."""
    zone_info = ZoneInfo(zone)
    end = until.astimezone(UTC)
    local = end.astimezone(zone_info)
    # If the wall clock has been set back, times that it will show again have come due already.
    wall = local.replace(tzinfo=None, fold=0) + (_DAY if local.fold else timedelta(seconds=1))
    for time in _wall_times(expression, wall, forward=False):
        moment = _first_moment(time, zone_info)
        if moment <= end:
            return moment
    return None


def check_zone(zone: object) -> None:
    """Check the name of a time zone.

    Raises:
        UsageError: it does not exist.
    """
    if isinstance(zone, str) and _zone_exists(zone):
        return
    from difflib import get_close_matches
    from zoneinfo import available_timezones

    close = get_close_matches(str(zone), available_timezones(), n=3)
    raise UsageError(
        f"Every(zone=) is {zone!r}, which is not a time zone.",
        help=f"Did you mean {' or '.join(map(repr, close))}?" if close else "For example: 'Europe/Berlin'",
    )


@lru_cache(maxsize=64)
def _zone_exists(zone: str) -> bool:
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _first_moment(wall: datetime, zone_info: ZoneInfo) -> datetime:
    """Return when a wall clock first shows a time, in UTC. For a time that it skips, return the moment of the skip."""
    moment = wall.replace(tzinfo=zone_info, fold=0).astimezone(UTC)
    if moment.astimezone(zone_info).replace(tzinfo=None) == wall:
        return moment
    # In a gap, the earlier offset gives a moment after the change and the later offset one before it (PEP 495).
    low, high = sorted((moment, wall.replace(tzinfo=zone_info, fold=1).astimezone(UTC)))
    while high - low > _MICROSECOND:
        middle = low + (high - low) // 2
        if middle.astimezone(zone_info).replace(tzinfo=None) < wall:
            low = middle
        else:
            high = middle
    return high


def _wall_times(expression: str, start: datetime, *, forward: bool) -> Iterator[datetime]:
    """Yield the wall times of a cron expression, from the one next to `start`."""
    from croniter import croniter

    times = croniter(expression, start)
    step = times.get_next if forward else times.get_prev
    while True:
        yield step(datetime)
