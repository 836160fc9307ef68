"""Amounts of resources, such as CPUs and memory."""

from __future__ import annotations

import re

from everloop.errors import UsageError

_UNITS = {
    "": 1.0,
    "B": 1.0,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2.0**10,
    "MIB": 2.0**20,
    "GIB": 2.0**30,
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_amount(amount: float | str) -> float:
    """Return `2` or `"4GB"` as a number; memory is in bytes.

    Raises:
        UsageError: it is neither a number nor a size.
    """
    if isinstance(amount, int | float) and amount >= 0:
        return float(amount)
    found = _AMOUNT.fullmatch(str(amount).strip())
    if found is None or found.group(2).upper() not in _UNITS:
        raise UsageError(f"'{amount}' is not an amount of a resource.", help='Write a number, or a size such as "4GB".')
    return float(found.group(1)) * _UNITS[found.group(2).upper()]
