"""Runs grouped by one column: how many, and a metric's least, mean and greatest value in each group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.records import Json
    from everloop.stores import Store

MOST_RUNS = 20_000
"""Runs that are grouped; of more, the newest."""
MOST_GROUPS = 200
_PAGE = 5000
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class RunGroup:
    """The runs that share a value. `least`, `mean` and `greatest` are of the finite values of the metric."""

    value: str | None
    """The shared value as text; None if the runs have none."""
    filter: str
    """The condition that finds these runs, for the filter of the table."""
    runs: int
    measured: int
    """How many of them have a finite value of the metric."""
    least: float | None
    mean: float | None
    greatest: float | None


@dataclass(frozen=True, slots=True)
class RunGroups:
    """Groups, those with most runs first. `read`: the runs that were grouped; `total`: how many match the filter."""

    by: str
    metric: str | None
    groups: list[RunGroup]
    read: int
    total: int
    left_out: int
    """Groups beyond those listed."""


def group_runs(store: Store, by: str, metric: str | None, where: str = "") -> RunGroups:
    """Group the runs that match a filter by a column, such as `params.lr` or `state`.

    Raises:
        UsageError: the column, the metric or the filter is not valid.
    """
    from everloop.tracking.search.run_search import count_runs, search_runs

    if not by:
        raise UsageError("by= names no column to group by.", help="For example: by=params.lr")
    columns = [by] if metric is None or metric == by else [by, metric]
    values: dict[str | None, list[float]] = {}
    sizes: dict[str | None, int] = {}
    examples: dict[str | None, Json] = {}
    read, after = 0, None
    while read < MOST_RUNS:
        page = search_runs(store, where or None, limit=min(_PAGE, MOST_RUNS - read), after=after, columns=columns)
        for row in page.rows:
            if not isinstance(row, dict):
                continue
            value = row.get(by)
            name = None if value is None else str(value)[:_LONGEST]
            sizes[name] = sizes.get(name, 0) + 1
            examples.setdefault(name, value)
            number = row.get(metric) if metric is not None else None
            if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
                values.setdefault(name, []).append(float(number))
        read += len(page.rows)
        after = page.next
        if after is None:
            break
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name is None, name or ""))
    listed = ordered[:MOST_GROUPS]
    groups = [_group(name, _condition(by, examples[name]), sizes[name], values.get(name, [])) for name in listed]
    total = read if after is None else count_runs(store, where or None)
    return RunGroups(by, metric, groups, read, total, max(0, len(ordered) - MOST_GROUPS))


def _group(value: str | None, condition: str, runs: int, numbers: list[float]) -> RunGroup:
    if not numbers:
        return RunGroup(value, condition, runs, 0, None, None, None)
    mean = math.fsum(numbers) / len(numbers)
    return RunGroup(value, condition, runs, len(numbers), min(numbers), mean, max(numbers))


def _condition(by: str, value: Json) -> str:
    if value is None:
        return f"{by} is null"
    if isinstance(value, bool):
        return f"{by} = {'true' if value else 'false'}"
    if isinstance(value, int | float):
        return f"{by} = {value!r}"
    text = str(value)
    if len(text) > _LONGEST or "\n" in text:
        return ""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{by} = "{escaped}"'
