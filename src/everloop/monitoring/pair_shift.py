"""How far the correlation of two features is from the baseline: what no feature alone can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.monitoring.noise.noise_model import pair_subject
from everloop.monitoring.window_counts import subject_of

if TYPE_CHECKING:
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.drift_judge import SubjectJudgement, WindowJudgement
    from everloop.monitoring.subject_shift import Verdict
    from everloop.monitoring.window_counts import Array
    from everloop.records import Json

SMALL_CHANGE = 0.1
"""A smaller change is quiet, however certain it is, in units of Fisher's z; that is a difference of 0.1 around 0."""


@dataclass(frozen=True, slots=True)
class PairShift:
    """The change of one pair's correlation in one window; the fields are those of `SubjectShift`.

    `before` and `now` are rank correlations, -1 to 1. `psi` is 0, because no distribution need have moved.
    """

    subject: str
    pair: tuple[str, str]
    before: float
    now: float
    judgement: SubjectJudgement
    strength: float
    verdict: Verdict
    calm: bool
    strong: bool = False
    psi: float = 0.0

    @property
    def p_value(self) -> float:
        return self.judgement.p_value

    @property
    def change(self) -> float:
        """Size of the change: the difference of Fisher's z, which is Cohen's q."""
        return _change(self.before, self.now)

    def evidence(self) -> dict[str, Json]:
        """Return the details of the change, for the evidence of a finding."""
        return {
            "correlation": [self.before, self.now],
            "p_value": self.p_value,
            "strength": self.strength,
            "direction": self.judgement.direction,
        }

    def message(self) -> str:
        """Describe the change in one sentence."""
        return pair_sentence(self.pair, self.before, self.now)


def _change(before: float, now: float) -> float:
    from everloop.data.sketches.pair_correlations import fisher_transformed

    one, other = fisher_transformed(np.array([before, now]))
    return float(abs(other - one))


def pair_sentence(pair: tuple[str, str], before: float, now: float) -> str:
    """Say how the rank correlation of two columns has changed."""
    one, other = pair
    return (
        f"'{one}' and '{other}' are related differently than before: their rank correlation is {now:.2f}, "
        f"before it was {before:.2f}."
    )


def measure_pairs(baseline: Baseline, judgement: WindowJudgement, correlations: Array | None) -> list[PairShift]:
    """Compare the correlations of one window with the baseline.

    Args:
        correlations: Fisher-transformed, one for each pair of the baseline; None if they are not known.

    Returns:
        One shift for each pair that both sides have.
    """
    from everloop.data.sketches.pair_correlations import pairs_of

    if baseline.pairs is None or correlations is None:
        return []
    judged = judgement.subjects()
    shifts: list[PairShift] = []
    for index, (one, other) in enumerate(pairs_of(baseline.pairs.names)):
        subject = pair_subject(subject_of(one, baseline), subject_of(other, baseline))
        if not math.isfinite(correlations[index]) or subject not in judged:
            continue
        found = judged[subject]
        accepted = baseline.accepted_pairs.get(subject)
        known = baseline.pairs.values[index] if accepted is None else accepted.value
        before, now = math.tanh(known), math.tanh(correlations[index])
        strength = max(0.0, found.surprise) / judgement.limit
        small = _change(before, now) < SMALL_CHANGE
        verdict: Verdict = "quiet" if strength < 1 or small else "alarm"
        calm = small or (strength < 1 and judgement.calm(subject))
        shifts.append(
            PairShift(subject, (one, other), before, now, found, strength, verdict, calm, judgement.strong(found))
        )
    return shifts
