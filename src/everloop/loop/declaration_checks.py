"""Check the values of a declaration, so that a mistake in `loop.py` is reported where it was written.

Every function raises UsageError if the value does not fit. The message names the part, the argument and the value.
"""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from datetime import timedelta

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARES = frozenset(("roc_auc", "average_precision", "brier", "accuracy", "f1", "precision", "recall", "ece"))
"""Metrics that lie between 0 and 1."""
_SIZES = frozenset(("log_loss", "rmse", "mae", "median_ae", "mape"))
"""Metrics that are never below 0."""


def check_name(kind: str, name: object, example: str) -> None:
    """Check that the name of a loop or an endpoint can be part of a URL."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        written = f"'{name}'" if isinstance(name, str) else repr(name)
        raise UsageError(
            f"{written} cannot be the name of {kind}.",
            help=f"Use letters, digits, '-' and '_', such as '{example}'. The first character is a letter or a digit.",
        )


def check_text(argument: str, value: object, example: str) -> None:
    """Check that a value is a string with at least one character."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"{argument} is {value!r}, but must be a name.", help=f"For example: {example}")


def check_number(
    argument: str, value: object, *, least: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """Check that a value is a finite number in a range.

    Args:
        argument: how the number is written in a declaration, such as `Canary(margin=)`.
        least: the smallest allowed value.
        above: the largest value that is too small.
        whole: only whole numbers are allowed.
    """
    kind = "a whole number" if whole else "a number"
    limit = f" of {least:g} or more" if least is not None else f" above {above:g}" if above is not None else ""
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, Integral if whole else Real):
        number = float(value)
    if not math.isfinite(number) or (least is not None and number < least) or (above is not None and number <= above):
        remedy = "Write the number without quotes." if isinstance(value, str) else "Change the number in loop.py."
        raise UsageError(f"{argument} is {value!r}, but must be {kind}{limit}.", help=remedy)


def check_limit(argument: str, metric: str, value: object) -> None:
    """Check that a metric can have a value."""
    check_number(argument, value)
    number = float(value)  # type: ignore[arg-type]
    if metric in _SHARES and not 0 <= number <= 1:
        share = f" Write a share, such as {number / 100:g}." if 1 < number <= 100 else ""
        raise UsageError(
            f"{argument} is {value!r}, but {metric} lies between 0 and 1.",
            help=share.strip() or "Choose a limit between 0 and 1.",
        )
    if metric in _SIZES and number < 0:
        raise UsageError(f"{argument} is {value!r}, but {metric} is never below 0.", help="Choose a positive limit.")
    if metric == "r2" and number > 1:
        raise UsageError(f"{argument} is {value!r}, but r2 is never above 1.", help="Choose a limit of at most 1.")


def check_severity(argument: str, value: object) -> None:
    """Check the severity of an incident.

    Raises:
        UsageError: it is not one.
    """
    if value not in ("notice", "alarm"):
        raise UsageError(
            f"{argument} is {value!r}, but must be 'notice' or 'alarm'.",
            help=f"For example: {argument.rstrip(')')}'alarm')",
        )


def check_duration(argument: str, value: object, *, positive: bool = False) -> timedelta:
    """Check that a value is a duration; returns it.

    Args:
        positive: a duration of zero is an error as well.
    """
    if not isinstance(value, str):
        raise UsageError(
            f"{argument} is {value!r}, but must be a duration.",
            help="Write a string with s, m, h, d or w, such as '90s', '14d' or '1w'.",
        )
    try:
        span = parse_duration(value)
    except UsageError as error:
        raise UsageError(f"{argument}: {error.message}", help=error.help) from None
    if positive and not span:
        raise UsageError(f"{argument} is '{value}', but must be longer than 0.", help="For example: '1d' or '1w'.")
    return span
