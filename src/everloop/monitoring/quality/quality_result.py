"""The result of one quality check of a window or table, and the verdict on many of them together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from everloop.monitoring.alarm_budget import AlarmBudget, Verdict
    from everloop.records import FindingKind, Json

Basis = Literal["fact", "windows", "reference", "none"]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """One measurement of the quality of live data or of the service.

    Attributes:
        kind: `quality`, `freshness` or `latency`.
        subject: a column, or `predictions`, `labels`, `latency`, `errors` or `rows`.
        rule: what was checked, such as `nulls`, `categories` or `volume`.
        message: what was found, as one sentence without a full stop.
        value: the measurement: a share, a number of rows, or seconds.
        expected: the same before; None if it is not known.
        p_value: probability of such a value if nothing has changed; None if it cannot be compared with anything.
        basis: what it was compared with: earlier `windows`, a `reference`, or nothing. A `fact` needs no comparison.
            Without earlier windows, it cannot become an alarm.
        counts: rows with the property, and all rows, if the value is a share.
        verdict: `quiet`, `warning` or `alarm`.
    """

    kind: FindingKind
    subject: str
    rule: str
    message: str
    value: float | None = None
    expected: float | None = None
    p_value: float | None = None
    basis: Basis = "none"
    counts: tuple[int, int] | None = None
    evidence: dict[str, Json] = field(default_factory=dict)
    verdict: Verdict = "quiet"

    @property
    def key(self) -> str:
        """Identifies the check among those of a window."""
        return result_key(self.subject, self.rule)

    def state(self) -> dict[str, Json]:
        """What later windows need to know about this one."""
        state: dict[str, Json] = {"value": self.value, "p_value": self.p_value, "verdict": self.verdict}
        if self.counts is not None:
            state["counts"] = list(self.counts)
        return state


def result_key(subject: str, rule: str) -> str:
    return f"{subject}: {rule}"


def judge_window(
    results: Sequence[QualityResult], budget: AlarmBudget, recently_flagged: Set[str]
) -> list[QualityResult]:
    """Return the results with their verdicts, given a budget of false alarms.

    Facts count as certain: they are a warning in the first window, and an alarm if they last. Results that were
    compared with a reference only stay warnings, because a reference does not show how windows vary.
    """
    p_values = {result.key: result.p_value for result in results if result.p_value is not None}
    p_values |= {result.key: 0.0 for result in results if result.basis == "fact"}
    verdicts = budget.judge(p_values, recently_flagged)
    judged = []
    for result in results:
        verdict = verdicts.get(result.key, "quiet")
        if verdict == "alarm" and result.basis == "reference":
            verdict = "warning"
        judged.append(replace(result, verdict=verdict))
    return judged


def judge_table(results: Sequence[QualityResult], level: float) -> list[QualityResult]:
    """Return the results of a table with their verdicts: facts are alarms, what is significant is a warning.

    Args:
        level: false discovery rate of the warnings.
    """
    from everloop.monitoring.alarm_budget import benjamini_hochberg

    p_values = {item.key: item.p_value for item in results if item.p_value is not None and item.basis != "fact"}
    significant = benjamini_hochberg(p_values, level) if p_values else set()
    judged = []
    for item in results:
        verdict: Verdict = "alarm" if item.basis == "fact" else "warning" if item.key in significant else "quiet"
        judged.append(replace(item, verdict=verdict))
    return judged
