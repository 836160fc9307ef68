"""What drift does to a model: how far the score has moved, because of which inputs, and what that is expected to cost.

Harm decides how loud an incident is. It is an alarm if the scores have moved or the performance is expected to have
fallen, and a notice otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
_MATERIAL_LOSS = 0.01
_MATERIAL_SHARE = 0.02
_MATERIAL_INCREASE = 0.05
_UNLIMITED = ("log_loss", "rmse", "mae", "mape", "median_ae")
_LEAST_PART = 0.1
_MOST_INPUTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedMetric:
    """A metric before, and what it is expected to be in the window, with a 95 % interval.

    Attributes:
        loss: by how much it is expected to be worse than before, in its own unit.
        certain_loss: lower end of the 95 % interval of the loss.
        rows: rows of the window that the estimate is based on.
        doubt: why the estimate is not trusted, as a sentence; empty if it is.
    """

    name: str
    before: float
    now: float
    low: float
    high: float
    loss: float
    certain_loss: float
    rows: int
    greater_is_better: bool = True
    doubt: str = ""

    @property
    def material_loss(self) -> float:
        """The smallest loss that matters.

        For a metric between 0 and 1 it is 0.01, or 2 % of the distance from its value before to its worst value if that
        is more. For an error without an upper limit, such as log_loss or rmse, it is 5 % of its value before.
        """
        if self.name in _UNLIMITED:
            return _MATERIAL_INCREASE * abs(self.before)
        worst = 0.0 if self.greater_is_better else 1.0
        return max(_MATERIAL_LOSS, _MATERIAL_SHARE * abs(self.before - worst))

    @property
    def fallen(self) -> bool:
        """Whether the metric is certain to be worse than before, and expected to be worse by an amount that matters."""
        return not self.doubt and self.certain_loss > 0 and self.loss >= self.material_loss

    def shifted(self, by: float) -> ExpectedMetric:
        """Return the same loss from another value before."""
        moved = {name: getattr(self, name) + by for name in ("before", "now", "low", "high")}
        return replace(self, **moved)

    def sentences(self) -> list[str]:
        """Return the expectation in words."""
        now, low, high = (self._possible(value) for value in (self.now, self.low, self.high))
        text = f"{self.name} is expected to be {now:.3g} ({low:.3g} to {high:.3g})"
        return [f"{text}; in the reference it was {self.before:.3g}.", *([self.doubt] if self.doubt else [])]

    def _possible(self, value: float) -> float:
        value = value if self.name == "r2" else max(0.0, value)
        return value if self.name in _UNLIMITED else min(1.0, value)

    def to_json(self) -> dict[str, Json]:
        return {
            "metric": self.name,
            "before": self.before,
            "now": self.now,
            "low": self.low,
            "high": self.high,
            "loss": self.loss,
            "certain_loss": self.certain_loss,
            "rows": self.rows,
            "doubt": self.doubt,
        }


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
        """How loud an incident is.

        It is an alarm if the metric is expected to have fallen (see `ExpectedMetric.fallen`) or the mean score has
        moved by a tenth of the scores' standard deviation; without scores, if an input has moved far.
        """
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
            found += self.expected.sentences()
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
            data["expected"] = self.expected.to_json()
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
    from everloop.monitoring.window_counts import centres_of, subject_of

    centres = centres_of(baseline)
    before = {name: centres[subject_of(name, baseline)] for name in baseline.features.sketches}
    largest = max((shift.psi for shift in shifts), default=0.0)
    effects = baseline.score_effects
    importance: dict[str, float] = {}
    if effects is not None:
        every = effects.importance(before)
        importance = {shift.subject: every[shift.subject] for shift in shifts if shift.subject in every}
    known = centres[PREDICTION].moments if baseline.score is not None else None
    live = score.moments if score is not None else None
    if known is None or live is None:
        return DriftHarm(importance=importance, expected=expected, largest_psi=largest)
    moved = live.mean - known.mean
    movement = moved / known.deviation if known.deviation > 0 else 0.0
    parts: dict[str, float] = {}
    if effects is not None and moved != 0:
        along = {name: part / moved for name, part in effects.movement(before, features).items() if part / moved > 0}
        total = sum(along.values())
        parts = {name: part / total for name, part in sorted(along.items(), key=lambda item: -item[1])}
    return DriftHarm((known.mean, live.mean), movement, parts, importance, expected, largest)
