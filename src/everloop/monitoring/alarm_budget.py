"""Derive significance levels from a budget of false alarms, such as one a month.

A subject (a feature, the score or a metric) becomes a *warning* if it is significant in its window after a correction
for multiple subjects (Benjamini-Hochberg at level a). It becomes an *alarm* if it was a warning or an alarm in one of
the two windows before and its p-value is again at most a, that is, in two of the last three windows. The second test
needs no correction, because the first one has selected the subject.

If nothing changes, the flags of a subject form a Markov chain. The probability of a flag is a / subjects if the subject
was not flagged recently, and a if it was. `AlarmBudget.level` is the level a at which the stationary alarm rate of the
chain, summed over all subjects, equals the budget. It is 0.12 for twenty subjects, one alarm a month and one window a
day, and 0.026 for one window an hour. Windows are treated as independent of each other. If natural variation lasts
longer than a window, there are somewhat more alarms.
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
"""How many windows before the current one count as recent: a flag in one of them makes an alarm possible."""

Verdict = Literal["quiet", "warning", "alarm"]


@dataclass(frozen=True, slots=True)
class AlarmBudget:
    """How many false alarms a month are tolerated, and how many windows a month are checked.

    Raises:
        UsageError: one of the two is not above 0.
    """

    alarms_per_month: float
    windows_per_month: float

    def __post_init__(self) -> None:
        for name in ("alarms_per_month", "windows_per_month"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} must be a number above 0, not {value}.")

    def level(self, subjects: int) -> float:
        """Return the significance level of both tests for this many subjects; at most 0.5."""
        return _level(self.alarms_per_month / self.windows_per_month, max(1, subjects))

    def judge(self, p_values: Mapping[str, float], recently_flagged: Set[str]) -> dict[str, Verdict]:
        """Return the verdict on each subject of a window.

        Args:
            p_values: p-values by subject.
            recently_flagged: subjects that were a warning or an alarm in one of the two windows before.
        """
        level = self.level(len(p_values))
        significant = benjamini_hochberg(p_values, level)
        verdicts: dict[str, Verdict] = {}
        for subject, p_value in p_values.items():
            if subject in recently_flagged and p_value <= level:
                verdicts[subject] = "alarm"
            else:
                verdicts[subject] = "warning" if subject in significant else "quiet"
        return verdicts

    def limit_of(self, p_values: Mapping[str, float], subject: str, recently_flagged: Set[str]) -> float:
        """Return the largest p-value at which this subject would be flagged, given those of the others."""
        level = self.level(len(p_values))
        if subject in recently_flagged:
            return level
        return level * len(benjamini_hochberg(p_values, level) | {subject}) / len(p_values)


def budget_for(alarms_per_month: float, window: timedelta, windows_per_month: float | None = None) -> AlarmBudget:
    """Return the alarm budget for windows of a length.

    Args:
        alarms_per_month: how many false alarms a month are tolerated.
        window: length of a window.
        windows_per_month: how many windows a month are checked. Default: as many as fit into a month.

    Raises:
        UsageError: the window has no length, or a number is not above 0.
    """
    if window <= timedelta(0):
        raise UsageError(
            f"A window must end after it starts, but this one lasts {window}.", help="Pass a later end of the window."
        )
    return AlarmBudget(alarms_per_month, windows_per_month if windows_per_month is not None else MONTH / window)


def benjamini_hochberg(p_values: Mapping[str, float], level: float) -> set[str]:
    """Return the subjects that are significant at a false discovery rate of `level`.

    Source: Y. Benjamini, Y. Hochberg (1995), J. R. Statist. Soc. B 57, 289-300. It is valid for independent p-values
    and for positively dependent ones, as those of features usually are (Benjamini and Yekutieli, 2001).
    """
    ranked = sorted(p_values, key=lambda subject: p_values[subject])
    rejected = 0
    for rank, subject in enumerate(ranked, start=1):
        if p_values[subject] <= level * rank / len(ranked):
            rejected = rank
    return set(ranked[:rejected])


def adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Benjamini-Hochberg adjusted p-values: the smallest level at which each subject would be significant."""
    ranked = sorted(p_values, key=lambda subject: p_values[subject], reverse=True)
    result: dict[str, float] = {}
    lowest = 1.0
    for index, subject in enumerate(ranked):
        rank = len(ranked) - index
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
    """Return the expected number of alarms per window if nothing changes.

    This is the stationary rate of the chain whose state is whether each of the last two windows was flagged.
    """
    first = min(_expected_rejections(level, subjects) / subjects, level)
    # Unnormalised weights of the states; the state without flags has weight 1, and two states have one flag.
    once = first / (1 - level)
    both = level * once / (1 - level)
    flagged = (2 * once + both) / (1 + 2 * once + both)
    return subjects * level * flagged


def _expected_rejections(level: float, subjects: int) -> float:
    """Return how many of m independent subjects Benjamini-Hochberg rejects on average if nothing changes.

    This is more than `level`, because each rejection makes the next easier: Σ (j+1)! · C(m−1, j) · (level/m)^j · level.
    Source: H. Finner, M. Roters, On the false discovery rate and expected type I errors, Biom. J. 43 (2001).
    """
    total, term = 0.0, level
    for j in range(subjects):
        total += (j + 1) * term
        term *= level * (subjects - 1 - j) / subjects
    return total
