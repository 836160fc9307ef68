"""Comparison of a run's results with those of its reproduction."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.records import Artifact, Run
from everloop.tracking.journal.run_folding import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Point
    from everloop.stores import Store

SYSTEM_PREFIX = "system/"
"""Metrics of the machine, which are different in each run."""


@dataclass(frozen=True, slots=True)
class ResultDifference:
    """One difference between the results. `subject` is `metric auc`, `artifact model`, `step train`, …"""

    subject: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.before} → {self.after}"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The outcome of reproducing a run."""

    run: str
    again: str
    """Id of the new run, in its scratch home."""
    differences: tuple[ResultDifference, ...]
    remarks: tuple[str, ...] = ()
    """Other differences, such as packages, and things that could not be compared."""
    compared: int = 0
    """The number of metrics, artifacts and steps that were compared."""

    @property
    def identical(self) -> bool:
        return not self.differences


def compare_metrics(
    store: Store, run: Run, other: Store, again: Run, *, tolerance: float = 0.0
) -> tuple[int, list[ResultDifference]]:
    """Compare every point of every metric, by name and step.

    Args:
        tolerance: relative tolerance; 0 requires equal values.

    Returns:
        The number of metrics, and for each metric that differs, its first difference.
    """
    before, after = _series(store, run), _series(other, again)
    found: list[ResultDifference] = []
    names = sorted({*before, *after})
    for name in names:
        found += list(_differing(name, before.get(name, []), after.get(name, []), tolerance))[:1]
    return len(names), found


def compare_artifacts(store: Store, run: Run, other: Store, again: Run) -> tuple[int, list[ResultDifference]]:
    """Compare the artifacts that the runs logged, by name and digest. Outputs of steps are not included."""
    before, after = _digests(store, run), _digests(other, again)
    found = []
    names = sorted({*before, *after})
    for name in names:
        if before.get(name) != after.get(name):
            found.append(
                ResultDifference(f"artifact {name}", _show_digests(before.get(name)), _show_digests(after.get(name)))
            )
    return len(names), found


def compare_ends(run: Run, again: Run) -> list[ResultDifference]:
    """Compare the final states of the runs."""
    if run.state == again.state or run.state in ("running", "lost"):
        return []
    return [ResultDifference("state", run.state, f"{again.state}{f' ({again.error})' if again.error else ''}")]


def same(one: float, two: float, tolerance: float = 0.0) -> bool:
    """Whether two numbers are equal, both NaN, or within a relative tolerance."""
    if one == two or (math.isnan(one) and math.isnan(two)):
        return True
    return tolerance > 0 and math.isclose(one, two, rel_tol=tolerance)


def _differing(name: str, before: list[Point], after: list[Point], tolerance: float) -> Iterator[ResultDifference]:
    if len(before) != len(after):
        yield ResultDifference(f"metric {name}", _show_points(before), _show_points(after))
        return
    for one, two in zip(before, after, strict=True):
        if one.step != two.step:
            yield ResultDifference(f"metric {name}", f"step {one.step}", f"step {two.step}")
        elif not same(one.value, two.value, tolerance):
            at = f" at step {one.step}" if len(before) > 1 else ""
            yield ResultDifference(f"metric {name}{at}", repr(one.value), repr(two.value))


def _show_points(points: list[Point]) -> str:
    return "none" if not points else f"{len(points)} points" if len(points) > 1 else repr(points[0].value)


def _series(store: Store, run: Run) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in read_metrics(store, run.id):
        if not point.key.startswith(SYSTEM_PREFIX):
            found.setdefault(point.key, []).append(point)
    return found


def _digests(store: Store, run: Run) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for artifact in store.records.find(Artifact, ("run", "=", run.id), ("step", "is", None)):
        found.setdefault(artifact.name, Counter())[artifact.digest] += 1
    return found


def _show_digests(digests: Counter[str] | None) -> str:
    return "none" if not digests else ", ".join(digest[:19] for digest in sorted(digests))
