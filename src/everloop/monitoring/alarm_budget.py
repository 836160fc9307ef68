"""From a false-alarm budget to p-values: "one false alarm a month" instead of a threshold.

A subject (a feature, the score, a metric) becomes a *warning* when it stands out of its window after the correction
for many subjects (Benjamini-Hochberg at level a). It becomes an *alarm* when it was a warning or an alarm in one of
the two windows before and its p-value is at most a again: two of the last three windows. The second look needs no
correction, because the first one has chosen the subject.

When nothing changes, a subject's flags form a Markov chain: flagged with probability a / subjects from calm, a from
suspicion. `AlarmBudget.level` is the a at which its stationary alarm rate, summed over the subjects, is the budget:
0.12 for twenty subjects, one alarm a month and a window a day; 0.026 for a window an hour. Windows are taken as
independent of each other; where the world's restlessness outlasts a window there are somewhat more alarms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

MONTH = timedelta(days=365.25 / 12)
MEMORY = 2
"""How many windows before the current one an alarm may lean on."""

Verdict = Literal["quiet", "warning", "alarm"]


@dataclass(frozen=True, slots=True)
class AlarmBudget:
    """How many false alarms a month are tolerated, and how many windows a month there are to raise them."""

    alarms_per_month: float
    windows_per_month: float

    def __post_init__(self) -> None:
        for name in ("alarms_per_month", "windows_per_month"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} must be a number above 0, not {value}.")

    def level(self, subjects: int) -> float:
        """The level a of both looks when `subjects` are watched together; at most 0.5."""
        return _level(self.alarms_per_month / self.windows_per_month, max(1, subjects))

    def judge(self, p_values: Mapping[str, float], suspects: Set[str]) -> dict[str, Verdict]:
        """One window's verdict on each subject.

        Args:
            p_values: by subject.
            suspects: subjects that were a warning or an alarm in one of the two windows before.
        """
        level = self.level(len(p_values))
        standing_out = benjamini_hochberg(p_values, level)
        verdicts: dict[str, Verdict] = {}
        for subject, p_value in p_values.items():
            if subject in suspects and p_value <= level:
                verdicts[subject] = "alarm"
            else:
                verdicts[subject] = "warning" if subject in standing_out else "quiet"
        return verdicts

    def limit_of(self, p_values: Mapping[str, float], subject: str, suspects: Set[str]) -> float:
        """The p-value at or below which this subject is not quiet, given the others."""
        level = self.level(len(p_values))
        if subject in suspects:
            return level
        return level * len(benjamini_hochberg(p_values, level) | {subject}) / len(p_values)


def budget_for(alarms_per_month: float, window: timedelta, windows_per_month: float | None = None) -> AlarmBudget:
    """The budget of windows of this length: told how many a month there are, or as many as follow each other.

    Raises:
        UsageError: the window has no length, or a number is not above 0.
    """
    if window <= timedelta(0):
        raise UsageError(f"A window must end after it starts; this one lasts {window}.")
    return AlarmBudget(alarms_per_month, windows_per_month if windows_per_month is not None else MONTH / window)


def benjamini_hochberg(p_values: Mapping[str, float], level: float) -> set[str]:
    """The subjects that stand out at a false discovery rate of `level`.

    Source: Y. Benjamini, Y. Hochberg (1995), J. R. Statist. Soc. B 57, 289-300. Holds for independent p-values and
    for positively dependent ones, which features mostly are (Benjamini and Yekutieli, 2001).
    """
    ranked = sorted(p_values, key=lambda subject: p_values[subject])
    kept = 0
    for rank, subject in enumerate(ranked, start=1):
        if p_values[subject] <= level * rank / len(ranked):
            kept = rank
    return set(ranked[:kept])


def adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Benjamini-Hochberg adjusted p-values: the smallest level at which each subject would stand out."""
    ranked = sorted(p_values, key=lambda subject: p_values[subject], reverse=True)
    result: dict[str, float] = {}
    lowest = 1.0
    for place, subject in enumerate(ranked):
        rank = len(ranked) - place
        lowest = min(lowest, p_values[subject] * len(ranked) / rank)
        result[subject] = lowest
    return {subject: result[subject] for subject in p_values}


@lru_cache(maxsize=256)
def _level(rate: float, subjects: int) -> float:
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _alarm_rate(middle, subjects) < rate else (low, middle)
    return high


def _alarm_rate(level: float, subjects: int) -> float:
    """Alarms a window when nothing changes: the stationary rate of the chain (flagged last, flagged before last)."""
    first = min(_expected_rejections(level, subjects) / subjects, level)
    # Unnormalised weights against calm = 1: flagged last only, before last only, both.
    once = first / (1 - level)
    both = level * once / (1 - level)
    suspicion = (2 * once + both) / (1 + 2 * once + both)
    return subjects * level * suspicion


def _expected_rejections(level: float, subjects: int) -> float:
    """How many of `subjects` independent subjects Benjamini-Hochberg picks on average when nothing is there.

    More than `level`, because each rejection eases the next: Σ (j+1)! · C(m−1, j) · (level/m)^j · level.
    Source: H. Finner, M. Roters, On the false discovery rate and expected type I errors, Biom. J. 43 (2001).
    """
    total, term = 0.0, level
    for already in range(subjects):
        total += (already + 1) * term
        term *= level * (subjects - 1 - already) / subjects
    return total
