"""Amounts of resources, such as CPUs and memory, and whether an executor has what a plan needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.pipeline.graph_plan import Plan

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


def check_plan(plan: Plan, capacity: Mapping[str, float]) -> None:
    """Check that an executor on this machine can run a plan.

    Args:
        capacity: the resources of the executor; empty if it does not count them.

    Raises:
        UsageError: a step needs a resource that the executor does not have, or an environment of its own.
    """
    for node in plan.nodes:
        for resource in ("cpu", *node.resources):
            if capacity and resource not in capacity:
                raise UsageError(
                    f"Step '{node.name}' needs the resource '{resource}', which this executor does not have.",
                    help=f"It has: {', '.join(capacity)}. Add it: PoolExecutor(resources={{'{resource}': 1}})",
                )
        if node.environment:
            raise UsageError(
                f"Step '{node.name}' declares an environment ({', '.join(node.environment)}), which this executor "
                "cannot create.",
                help="Run it on Ray: everloop run --on ray://HOST:PORT, or install the packages here and drop the "
                "declaration.",
            )
