"""Freeze windows: times in which no release takes a step forward.

A window is weekly (`fri 16:00 - mon 08:00 Europe/Berlin`, `22:00 - 06:00 UTC` every day) or a range of dates, both
included (`2026-12-20 - 2027-01-03 Europe/Berlin`). It is kept by the wall clock of its zone, so it moves with daylight
saving time: 16:00 is 16:00 in summer and in winter. Without a zone, it is UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_WEEKLY = re.compile(r"(?:([a-z]{3}) )?(\d{1,2}):(\d\d) ?- ?(?:([a-z]{3}) )?(\d{1,2}):(\d\d)(?: (\S+))?", re.IGNORECASE)
_DATES = re.compile(r"(\d{4}-\d\d-\d\d)(?: ?- ?(\d{4}-\d\d-\d\d))?(?: (\S+))?")


@dataclass(frozen=True, slots=True)
class FreezeWindow:
    """A window. `begin` and `end` are minutes since Monday 00:00, or since 00:00 if `length` is a day; or dates."""

    text: str
    zone: ZoneInfo
    begin: int | date
    end: int | date
    length: int = 0

    def contains(self, moment: datetime) -> bool:
        """Return whether a moment lies in the window, whose beginning belongs to it."""
        local = moment.astimezone(self.zone)
        if isinstance(self.begin, date) or isinstance(self.end, date):
            return self.begin <= local.date() <= self.end  # type: ignore[operator]
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return (minute - self.begin) % self.length < (self.end - self.begin) % self.length


def parse_window(text: object) -> FreezeWindow:
    """Parse a window.

    Raises:
        UsageError: the text is not a window, or its zone does not exist.
    """
    plain = " ".join(text.split()) if isinstance(text, str) else ""
    weekly, dates = _WEEKLY.fullmatch(plain), _DATES.fullmatch(plain)
    if dates is not None:
        try:
            begin, end = date.fromisoformat(dates[1]), date.fromisoformat(dates[2] or dates[1])
        except ValueError:
            raise _not_a_window(text, "one of its dates does not exist") from None
        if end < begin:
            raise _not_a_window(text, "its end is before its beginning")
        return FreezeWindow(plain, _zone(text, dates[3]), begin, end)
    if weekly is None:
        raise _not_a_window(text, "its form is not known")
    first, last = weekly[1], weekly[4]
    if (first is None) != (last is None):
        raise _not_a_window(text, "either both times or none of them have a day")
    begin_minute = _minute(text, first, weekly[2], weekly[3])
    end_minute = _minute(text, last, weekly[5], weekly[6])
    length = _DAY_MINUTES if first is None else _WEEK_MINUTES
    if (end_minute - begin_minute) % length == 0:
        raise _not_a_window(text, "it has no length")
    return FreezeWindow(plain, _zone(text, weekly[7]), begin_minute, end_minute, length)


def frozen_by(windows: Sequence[str], moment: datetime) -> str | None:
    """Return the first window that contains a moment, as it was declared; None if there is none."""
    return next((window for window in windows if parse_window(window).contains(moment)), None)


def _minute(text: object, day: str | None, hour: str, minute: str) -> int:
    if day is not None and day.lower() not in _DAYS:
        raise _not_a_window(text, f"'{day}' is not a day; the days are {', '.join(_DAYS)}")
    if int(minute) > 59 or int(hour) * 60 + int(minute) > _DAY_MINUTES:
        raise _not_a_window(text, f"'{hour}:{minute}' is not a time of day")
    return (_DAYS.index(day.lower()) * _DAY_MINUTES if day is not None else 0) + int(hour) * 60 + int(minute)


def _zone(text: object, name: str | None) -> ZoneInfo:
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _not_a_window(text, f"'{name}' is not a time zone, such as Europe/Berlin") from None


def _not_a_window(text: object, why: str) -> UsageError:
    return UsageError(
        f"Canary(freeze=) has {text!r}, which is not a window: {why}.",
        help='For example: "fri 16:00 - mon 08:00 Europe/Berlin" or "2026-12-20 - 2027-01-03 Europe/Berlin"',
    )


__all__ = ["FreezeWindow", "frozen_by", "parse_window"]
