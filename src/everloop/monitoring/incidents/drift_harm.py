"""What drift does to a model: how far the score has moved, because of which inputs, and what that is expected to cost.

Harm decides how loud an incident is. It is an alarm if the scores have moved or the performance is expected to have
fallen, and a notice otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.pair_shift import PairShift
    from everloop.monitoring.subject_shift import SubjectShift
    from everloop.records import IncidentSeverity, Json

MATERIAL_MOVEMENT = 0.1
"""Scores have moved if their mean has moved by a tenth of their standard deviation."""
MATERIAL_PSI = 0.1
"""Without scores, an input that has moved that far is loud."""
_LEAST_PART = 0.1
_MOST_INPUTS = 3


@dataclass(frozen=True, slots=True)
class ExpectedMetric:
    """A metric before, and what it is expected to be in the window, with a 95 % interval."""

    name: str
    before: float
    now: float
    low: float
    high: float
    greater_is_better: bool = True

    @property
    def fallen(self) -> bool:
        """Whether the whole interval is worse than before."""
        return self.high < self.before if self.greater_is_better else self.low > self.before


@dataclass(frozen=True, slots=True)
class DriftHarm:
    """The harm of drift in one window.

    Attributes:
        score: mean score of the reference and of the window; None if scores are not known.
        movement: difference of the two in standard deviations of the reference's scores.
        parts: by input, its share of the movement that inputs explain, the largest first. Shares add to 1 over all
            inputs whose parts have the direction of the movement.
        importance: share of each moved input in the spread of the score, 0 to 1; empty if it is not known.
        expected: what performance is expected to have become; None if it cannot be estimated.
    """

    score: tuple[float, float] | None = None
    movement: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    importance: dict[str, float] = field(default_factory=dict)
    expected: ExpectedMetric | None = None
    largest_psi: float = 0.0

    @property
    def severity(self) -> IncidentSeverity:
        if self.expected is not None and self.expected.fallen:
            return "alarm"
        if self.score is not None:
            return "alarm" if abs(self.movement) >= MATERIAL_MOVEMENT else "notice"
        return "alarm" if self.largest_psi >= MATERIAL_PSI else "notice"

    def sentences(self) -> list[str]:
        """Return what a product owner should know, one thought a sentence."""
        found: list[str] = []
        if self.score is not None:
            before, now = self.score
            if abs(self.movement) >= MATERIAL_MOVEMENT:
                verb = "risen" if now > before else "fallen"
                found.append(f"The mean prediction has {verb} from {before:.3g} to {now:.3g}{self._because()}.")
            else:
                found.append(f"The predictions have hardly moved (mean {before:.3g}, now {now:.3g}).")
        elif self.largest_psi < MATERIAL_PSI:
            found.append("The change is small. Without predictions it is not known whether a model suffers.")
        else:
            found.append("Without predictions it is not known whether a model suffers.")
        if self.expected is not None:
            metric = self.expected
            text = f"{metric.name} is expected to be {metric.now:.3f} ({metric.low:.3f} to {metric.high:.3f})"
            found.append(f"{text}; in the reference it was {metric.before:.3f}.")
        return found

    def to_json(self) -> dict[str, Json]:
        """Return the harm for the evidence of a finding."""
        data: dict[str, Json] = {
            "severity": self.severity,
            "score": list(self.score) if self.score is not None else None,
            "movement": self.movement,
            "parts": dict(self.parts),
            "importance": dict(self.importance),
            "text": " ".join(self.sentences()),
        }
        if self.expected is not None:
            metric = self.expected
            data["expected"] = {
                "metric": metric.name,
                "before": metric.before,
                "now": metric.now,
                "low": metric.low,
                "high": metric.high,
            }
        return data

    def _because(self) -> str:
        named = [(name, part) for name, part in self.parts.items() if part >= _LEAST_PART][:_MOST_INPUTS]
        if not named:
            return ""
        listed = [f"'{name}' ({part:.0%})" for name, part in named]
        text = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
        return f", mostly because of {text}"


def weight_of(psi: float, importance: float | None) -> float:
    """Return how much a moved input matters: what the model uses and what has moved far comes first."""
    return (importance or 0.0) * min(psi, 1.0) + 1e-3 * psi


def measure_harm(
    baseline: Baseline,
    shifts: Sequence[SubjectShift | PairShift],
    features: Mapping[str, Sketch],
    score: Sketch | None,
    expected: ExpectedMetric | None = None,
) -> DriftHarm:
    """Measure what a window's drift does to the scores.

    Args:
        shifts: the shifts of the subjects that are a reason for an incident.
        features: the window's sketches.
        score: sketch of the window's scores.
        expected: the estimated performance of the window, if it is known.
    """
    from everloop.monitoring.baseline import PREDICTION

    largest = max((shift.psi for shift in shifts), default=0.0)
    effects = baseline.score_effects
    importance: dict[str, float] = {}
    if effects is not None:
        every = effects.importance(baseline.features.sketches)
        importance = {shift.subject: every[shift.subject] for shift in shifts if shift.subject in every}
    known = baseline.score.sketches[PREDICTION].moments if baseline.score is not None else None
    live = score.moments if score is not None else None
    if known is None or live is None:
        return DriftHarm(importance=importance, expected=expected, largest_psi=largest)
    moved = live.mean - known.mean
    movement = moved / known.deviation if known.deviation > 0 else 0.0
    parts: dict[str, float] = {}
    if effects is not None and moved != 0:
        along = {
            name: part / moved
            for name, part in effects.movement(baseline.features.sketches, features).items()
            if part / moved > 0
        }
        total = sum(along.values())
        parts = {name: part / total for name, part in sorted(along.items(), key=lambda item: -item[1])}
    return DriftHarm((known.mean, live.mean), movement, parts, importance, expected, largest)
