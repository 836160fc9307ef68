"""How far each subject of a window is from its baseline, in numbers and words for people.

The input is sketches and a judgement, the output is shifts. Nothing here reads or writes a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from everloop.data.sketches.bins import NumericBins
from everloop.monitoring.baseline import PREDICTION, Baseline
from everloop.monitoring.measures.distances import (
    DistanceName,
    distance_between,
    live_shares,
    smoothed_shares,
)
from everloop.monitoring.reports.change_sentences import change_sentence
from everloop.monitoring.window_counts import centres_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.drift_judge import SubjectJudgement, WindowJudgement
    from everloop.records import Json

SMALL_PSI = 0.02
"""A shift with a smaller PSI is called small, however certain it is. For a normally distributed feature, a PSI of 0.02
means that the mean has moved by a seventh of the standard deviation."""
MOVED_CELLS = 5

Verdict = Literal["quiet", "warning", "alarm"]


@dataclass(frozen=True, slots=True)
class SubjectShift:
    """The shift of one subject in one window.

    Attributes:
        psi: population stability index against the baseline, in nats.
        judgement: how surprising the window is in the subject's most surprising direction.
        strength: surprise as a share of the limit; from 1 on it is a reason to open an incident.
        verdict: `quiet` below the limit, `warning` if the shift is small, else `alarm`.
        strong: whether it may open an incident beside an ongoing one.
        calm: whether an open incident about the subject may be over: this window alone is not surprising.
    """

    subject: str
    psi: float
    judgement: SubjectJudgement
    strength: float
    verdict: Verdict
    calm: bool
    strong: bool
    reference: Sketch
    live: Sketch

    @property
    def p_value(self) -> float:
        """Probability of such a surprise in any direction of the subject if nothing has changed."""
        return self.judgement.p_value

    def evidence(self) -> dict[str, Json]:
        """Return the details of the shift, for the evidence of a finding."""
        data: dict[str, Json] = {
            "psi": self.psi,
            "p_value": self.p_value,
            "strength": self.strength,
            "direction": self.judgement.direction,
            "deviation_in_direction": self.judgement.value,
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
        """Describe the shift in one sentence."""
        return change_sentence(self.subject, self.reference, self.live, self.judgement.direction)


def measure_shifts(
    baseline: Baseline,
    judgement: WindowJudgement,
    features: Mapping[str, Sketch],
    score: Sketch | None = None,
) -> list[SubjectShift]:
    """Compare all subjects of one window with the baseline.

    Args:
        judgement: the judgement on the window.
        features: the window's sketches, with the bins of the baseline.
        score: the sketch of the window's scores; its subject is `prediction`.

    Returns:
        One shift for each subject that both sides have, the most surprising first.
    """
    centres = centres_of(baseline)
    pairs = {
        subject_of(name, baseline): (centres[subject_of(name, baseline)], live)
        for name, live in features.items()
        if name in baseline.features.sketches
    }
    if baseline.score is not None and score is not None:
        pairs[PREDICTION] = (centres[PREDICTION], score)
    shifts = []
    for subject, found in judgement.subjects().items():
        if subject not in pairs:
            continue
        known, live = pairs[subject]
        distance = distance_between("psi", known, live) if live.rows else 0.0
        strength = max(0.0, found.surprise) / judgement.limit
        verdict: Verdict = "quiet" if strength < 1 else ("warning" if distance < SMALL_PSI else "alarm")
        calm = strength < 1 and judgement.calm(subject)
        shifts.append(
            SubjectShift(subject, distance, found, strength, verdict, calm, judgement.strong(found), known, live)
        )
    return shifts


def _share(sketch: Sketch, cell: int) -> float:
    return sketch.counts[cell] / sketch.rows if sketch.rows else 0.0
