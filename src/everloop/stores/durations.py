"""Durations as people write them: `90s`, `15m`, `12h`, `14d`, `1w`, and sums such as `2d12h`."""

from __future__ import annotations

import re
from datetime import timedelta

from everloop.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d++(?:\.\d++)?+)([smhdw])")


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `14d` or `2d12h`.

    Raises:
        UsageError: `text` is not a sum of numbers with units, or is too long a duration.
    """
    compact = text.replace(" ", "").lower()
    seconds, at = 0.0, 0
    while (part := _PART.match(compact, at)) is not None:
        seconds += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not compact or at < len(compact):
        raise UsageError(
            f"'{text[:100]}' is not a duration.",
            help="Write a number with s, m, h, d or w, such as '90s', '14d' or '1w'.",
        )
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise UsageError(
            f"The duration '{text[:100]}' is too long.", help="The longest possible duration is 999999999d."
        ) from None


def format_duration(span: timedelta) -> str:
    """Write a duration in its shortest exact form, largest unit first."""
    seconds = span.total_seconds()
    if seconds == 0:
        return "0s"
    text = ""
    for unit, size in sorted(_UNITS.items(), key=lambda item: -item[1]):
        count = int(seconds // size)
        if count and unit != "s":
            text += f"{count}{unit}"
            seconds -= count * size
    return text + (f"{seconds:g}s" if seconds else "")
