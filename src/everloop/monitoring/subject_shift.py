"""Measure how far each subject of a window is from its baseline, and whether that is more than noise.

The input is sketches and the output is shifts. Nothing here reads or writes a store.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.data.sketches.bins import NumericBins
from everloop.monitoring.alarm_budget import AlarmBudget, Verdict, adjusted
from everloop.monitoring.baseline import PREDICTION, Baseline, Reference
from everloop.monitoring.measures.distances import (
    DistanceName,
    distance_between,
    distance_function,
    live_shares,
    smoothed_shares,
)
from everloop.monitoring.noise import DRAWS, NoiseFloor, noise_floor

if TYPE_CHECKING:
    from collections.abc import Mapping, Set
    from datetime import timedelta

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.records import Json

LEAST_PSI = 0.01
"""A smaller PSI is never a finding, even if it is significant. For a normally distributed feature, a PSI of 0.01 means
that the mean has moved by a tenth of the standard deviation."""

MOVED_CELLS = 5


@dataclass(frozen=True, slots=True)
class SubjectShift:
    """The shift of one subject in one window.

    Attributes:
        psi: population stability index against the baseline, in nats.
        expected_psi: mean PSI of windows of this size if nothing changes.
        p_value: probability of at least this PSI if nothing changes.
        adjusted_p_value: the p-value after Benjamini-Hochberg over all subjects of the window.
        limit: PSI above which the subject would be flagged.
    """

    subject: str
    psi: float
    expected_psi: float
    p_value: float
    adjusted_p_value: float
    limit: float
    verdict: Verdict
    reference: Sketch
    live: Sketch

    def evidence(self) -> dict[str, Json]:
        """Return the details of the shift, for the evidence of a finding."""
        data: dict[str, Json] = {
            "psi": self.psi,
            "expected_psi": self.expected_psi,
            "p_value": self.p_value,
            "adjusted_p_value": self.adjusted_p_value,
            "rows": self.live.rows,
            "missing": [_share(self.reference, 0), _share(self.live, 0)],
            "cells": self.moved_cells(),
        }
        others: tuple[DistanceName, ...] = ("jensen_shannon",)
        # Ordered distances ignore missing values, so at least one value is needed.
        if isinstance(self.reference.bins, NumericBins) and self.live.rows > self.live.counts[0]:
            others = ("jensen_shannon", "ks", "wasserstein")
        data |= {name: distance_between(name, self.reference, self.live) for name in others}
        if self.reference.moments and self.live.moments:
            data["mean"] = [self.reference.moments.mean, self.live.moments.mean]
            data["deviation"] = [self.reference.moments.deviation, self.live.moments.deviation]
        if self.live.unseen:
            data["unseen"] = dict(self.live.unseen)
        return data

    def moved_cells(self) -> list[dict[str, Json]]:
        """Return the cells that contribute most to the PSI, largest first: label, share before and share now."""
        reference = smoothed_shares(self.reference.array())
        live = live_shares(self.live.array(), reference)
        parts = (live - reference) * np.log(live / reference)
        largest = np.argsort(-parts, kind="stable")[:MOVED_CELLS]
        labels = self.reference.bins.labels
        return [
            {"cell": labels[cell], "before": _share(self.reference, cell), "now": _share(self.live, cell)}
            for cell in map(int, largest)
            if parts[cell] > 0
        ]

    def message(self) -> str:
        """Describe the shift in one line: PSI and limit, and what has changed most."""
        parts = [f"PSI {self.psi:.3g}, limit {self.limit:.3g}"]
        if self.reference.moments and self.live.moments:
            parts.append(f"mean {self.reference.moments.mean:.4g} → {self.live.moments.mean:.4g}")
        before, now = _share(self.reference, 0), _share(self.live, 0)
        if abs(now - before) >= 0.01:
            parts.append(f"missing {before:.1%} → {now:.1%}")
        if self.live.unseen:
            parts.append("new: " + ", ".join(repr(value) for value in self.live.unseen))
        elif not isinstance(self.reference.bins, NumericBins) and (moved := self.moved_cells()):
            parts.append(f"{moved[0]['cell']!r} {moved[0]['before']:.1%} → {moved[0]['now']:.1%}")
        return "; ".join(parts)


def measure_shifts(
    baseline: Baseline,
    features: Mapping[str, Sketch],
    score: Sketch | None = None,
    *,
    span: timedelta,
    budget: AlarmBudget,
    recently_flagged: Set[str] = frozenset(),
    least_psi: float = LEAST_PSI,
    draws: int = DRAWS,
) -> list[SubjectShift]:
    """Compare all subjects of one window with the baseline.

    Args:
        features: the window's sketches, with the bins of the baseline.
        score: the sketch of the window's scores; its subject is `prediction`.
        span: length of the window. It is compared with blocks of the reference of about this length.
        budget: how many false alarms are tolerated.
        recently_flagged: subjects that were a warning or an alarm in one of the two windows before.
        least_psi: a smaller PSI is never flagged, whatever its p-value.
        draws: how many simulations are run for each subject.

    Returns:
        One shift for each subject that both sides have, the smallest p-value first.

    Raises:
        EmptySampleError: the window has no rows.
    """
    pairs = [(baseline.features, name, live) for name, live in features.items() if name in baseline.features.sketches]
    if baseline.score is not None and score is not None:
        pairs.append((baseline.score, PREDICTION, score))
    found: dict[str, tuple[Sketch, Sketch, float, NoiseFloor]] = {}
    for reference, name, live in pairs:
        known = reference.sketches[name]
        distance = distance_between("psi", known, live)
        # A feature may have the same name as the score.
        subject = f"input_{name}" if name == PREDICTION and reference is baseline.features else name
        found[subject] = known, live, distance, floor_of(reference, name, live.rows, span, draws)
    p_values = {name: floor.p_value(distance) for name, (_, _, distance, floor) in found.items()}
    verdicts = budget.judge(p_values, recently_flagged)
    corrected = adjusted(p_values)
    shifts = []
    for name, (known, live, distance, floor) in found.items():
        limit = max(least_psi, floor.limit(budget.limit_of(p_values, name, recently_flagged)))
        verdict: Verdict = verdicts[name] if distance >= least_psi else "quiet"
        shifts.append(
            SubjectShift(name, distance, floor.mean, p_values[name], corrected[name], limit, verdict, known, live)
        )
    return sorted(shifts, key=lambda shift: (shift.p_value, -shift.psi, shift.subject))


def floor_of(reference: Reference, subject: str, rows: int, span: timedelta, draws: int = DRAWS) -> NoiseFloor:
    """Return the noise floor of a subject's PSI for windows of `rows` rows and of the length `span`."""
    sketch = reference.sketches[subject]
    blocks = reference.blocks.counts_over(subject, span) if reference.blocks is not None else None
    return noise_floor(
        distance_function("psi", sketch, sketch),
        sketch.array(),
        rows,
        blocks=blocks,
        draws=draws,
        # Each subject has its own random numbers, and the same ones each time.
        seed=zlib.crc32(subject.encode()),
    )


def _share(sketch: Sketch, cell: int) -> float:
    return sketch.counts[cell] / sketch.rows if sketch.rows else 0.0
