"""Comparison of several runs: what differs between them, and the curves of their metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.records import Run
from everloop.stores.printable import shell_line
from everloop.stores.records.searchable import entries, value_of
from everloop.tracking.journal.recovery import recover_journals
from everloop.tracking.metric_history import read_history

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.records import Json
    from everloop.stores import Store

MOST_RUNS = 200
_SOURCE = ("command", "code", "git_commit", "git_dirty", "python", "platform", "host")
_ABOUT = ("name", "state", "loop", "trigger", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences between runs. Each dict maps a name to its value in each run; None if a run has no value."""

    runs: tuple[Run, ...]
    about: dict[str, tuple[Json, ...]]
    """Name, state, loop, trigger, seconds."""
    params: dict[str, tuple[Json, ...]]
    tags: dict[str, tuple[Json, ...]]
    metrics: dict[str, tuple[Json, ...]]
    source: dict[str, tuple[Json, ...]]
    """Command, code, commit, machine; packages as `packages.<name>`."""
    same: dict[str, int]
    """Group to the number of values that are the same in all runs, and left out."""

    @property
    def differs(self) -> bool:
        """Whether the inputs of the runs, their params or source, differ."""
        return bool(self.params or self.source)


def compare_runs(store: Store, runs: Sequence[Run | str]) -> Comparison:
    """Find the differences between runs.

    Raises:
        UsageError: fewer than two runs, or more than 200.
        NotFoundError: a run does not exist.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise UsageError(
            f"{len(runs)} run{'s' if len(runs) != 1 else ''} cannot be compared.", help=f"Choose 2 to {MOST_RUNS} runs."
        )
    recover_journals(store)
    found = tuple(run if isinstance(run, Run) else store.records.get(Run, run) for run in runs)
    values = [_values(run) for run in found]
    groups: dict[str, dict[str, tuple[Json, ...]]] = {}
    same: dict[str, int] = {}
    for group in ("about", "params", "tags", "metrics", "source"):
        names = dict.fromkeys(name for one in values for name in one[group])
        rows = {name: tuple(one[group].get(name) for one in values) for name in names}
        groups[group] = {name: row for name, row in rows.items() if not _equal(row)}
        same[group] = len(rows) - len(groups[group])
    return Comparison(runs=found, same=same, **groups)


def read_curves(store: Store, runs: Sequence[Run | str], key: str, max_points: int | None = 500) -> pl.DataFrame:
    """One metric of several runs as a frame with the columns `run`, `step`, `at` and `value`.

    Args:
        max_points: the most points of each run; see `read_history`.
    """
    import polars as pl

    frames = []
    for run in runs:
        identity = run.id if isinstance(run, Run) else run
        points = read_history(store, identity, key, max_points).frame()
        frames.append(points.select(pl.lit(identity, pl.String).alias("run"), pl.all()))
    empty: dict[str, Any] = {"run": pl.String, "step": pl.Int64, "at": pl.Datetime("us", "UTC"), "value": pl.Float64}
    return pl.concat([pl.DataFrame(schema=empty), *frames])


def _values(run: Run) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {"params": {}, "tags": {}, "metrics": {}}
    for path, entry in entries(run).items():
        if len(path) == 2:
            found[path[0]][path[1]] = value_of(*entry)
    source = {name: getattr(run.source, name) for name in _SOURCE}
    source["command"] = shell_line(run.source.launch) or None
    source.update((f"packages.{name}", version) for name, version in run.source.packages.items())
    found["source"] = {name: value for name, value in source.items() if value is not None}
    found["about"] = {name: getattr(run, name) for name in _ABOUT if getattr(run, name) is not None}
    return found


def _equal(row: tuple[Json, ...]) -> bool:
    # Here NaN equals NaN, and 1 does not equal True.
    return all(type(value) is type(row[0]) and (value == row[0] or value != value != row[0] != row[0]) for value in row)
