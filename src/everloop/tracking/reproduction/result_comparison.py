"""Whether two runs came to the same: what a reproduction is judged by."""

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

WATCHED = "system/"
"""Metrics of the machine, which nobody expects twice."""


@dataclass(frozen=True, slots=True)
class ResultDifference:
    """One thing that is not as it was: `metric auc`, `artifact model`, `step train`, …"""

    subject: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.before} → {self.after}"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What became of doing a run again."""

    run: str
    again: str
    """Id of the new run, in its scratch home."""
    differences: tuple[ResultDifference, ...]
    remarks: tuple[str, ...] = ()
    """What was not as it was, or could not be compared, without being a difference of the results."""
    compared: int = 0
    """How many metrics, artifacts and steps were looked at."""

    @property
    def identical(self) -> bool:
        return not self.differences


def compare_metrics(
    store: Store, run: Run, other: Store, again: Run, *, tolerance: float = 0.0
) -> tuple[int, list[ResultDifference]]:
    """Compare every point of every metric, by name and step.

    Args:
        tolerance: relative; 0 wants the same bits.

    Returns:
        How many metrics there are, and what differs: of each metric the first point.
    """
    before, after = _series(store, run), _series(other, again)
    found: list[ResultDifference] = []
    names = sorted({*before, *after})
    for name in names:
        found += list(_differing(name, before.get(name, []), after.get(name, []), tolerance))[:1]
    return len(names), found


def compare_artifacts(store: Store, run: Run, other: Store, again: Run) -> tuple[int, list[ResultDifference]]:
    """Compare what the runs logged, by name and digest. Outputs of steps are not among it."""
    before, after = _digests(store, run), _digests(other, again)
    found = []
    names = sorted({*before, *after})
    for name in names:
        if before.get(name) != after.get(name):
            found.append(ResultDifference(f"artifact {name}", _said(before.get(name)), _said(after.get(name))))
    return len(names), found


def compare_ends(run: Run, again: Run) -> list[ResultDifference]:
    """Whether both ended alike."""
    if run.state == again.state or run.state in ("running", "lost"):
        return []
    return [ResultDifference("state", run.state, f"{again.state}{f' ({again.error})' if again.error else ''}")]


def same(one: float, two: float, tolerance: float = 0.0) -> bool:
    """Equal, both NaN, or within a relative tolerance."""
    if one == two or (math.isnan(one) and math.isnan(two)):
        return True
    return tolerance > 0 and math.isclose(one, two, rel_tol=tolerance)


def _differing(name: str, before: list[Point], after: list[Point], tolerance: float) -> Iterator[ResultDifference]:
    if len(before) != len(after):
        yield ResultDifference(f"metric {name}", _points(before), _points(after))
        return
    for one, two in zip(before, after, strict=True):
        if one.step != two.step:
            yield ResultDifference(f"metric {name}", f"step {one.step}", f"step {two.step}")
        elif not same(one.value, two.value, tolerance):
            at = f" at step {one.step}" if len(before) > 1 else ""
            yield ResultDifference(f"metric {name}{at}", repr(one.value), repr(two.value))


def _points(points: list[Point]) -> str:
    return "none" if not points else f"{len(points)} points" if len(points) > 1 else repr(points[0].value)


def _series(store: Store, run: Run) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in read_metrics(store, run.id):
        if not point.key.startswith(WATCHED):
            found.setdefault(point.key, []).append(point)
    return found


def _digests(store: Store, run: Run) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for artifact in store.records.find(Artifact, ("run", "=", run.id), ("step", "is", None)):
        found.setdefault(artifact.name, Counter())[artifact.digest] += 1
    return found


def _said(digests: Counter[str] | None) -> str:
    return "none" if not digests else ", ".join(digest[:19] for digest in sorted(digests))
