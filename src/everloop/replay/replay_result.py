"""The result of a replay: each policy's live metric by period, its incidents, trainings, releases, and the advice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.replay.hindsight import mean_metric, months_of

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.replay.hindsight import JudgedDisturbance, Loss, PeriodMetric
    from everloop.replay.policies import Policy
    from everloop.replay.policy_run import TrainingOutcome
    from everloop.replay.recommendation import Recommendation


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome:
    """What one policy did, and what it was worth."""

    policy: Policy
    periods: list[PeriodMetric]
    trainings: list[TrainingOutcome]
    retrainings: int
    """Trainings after the one that made the first champion."""
    failed: int
    """Trainings that ended with an error."""
    promotions: int
    """Releases that replaced a champion."""
    rollbacks: int
    rejections: int
    """Candidates that a gate rejected."""
    incidents: list[JudgedDisturbance]
    watched: bool
    """Whether drift or performance was watched, so that there could be incidents."""
    seconds: float
    """Wall-clock seconds of its replay."""
    training_seconds: float
    answered: int
    regret: Loss | None
    """How much worse than the best policy in hindsight; None without a period in common."""
    notes: list[str]
    error: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the periods' metrics."""
        return mean_metric(self.periods)

    @property
    def months(self) -> dict[str, float]:
        """Mean of the periods' metrics for each month in which they begin, such as `2013-04`."""
        return months_of(self.periods)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        policy = self.policy
        return {
            "retrain": [repr(trigger) for trigger in policy.retrain],
            "window": policy.window,
            "half_life": policy.half_life,
            "rule": policy.rule,
            "trains_on": policy.memory,
            "metric": self.mean,
            "months": self.months,
            "periods": [
                {
                    "from": one.begin.isoformat(),
                    "until": one.end.isoformat(),
                    "rows": one.rows,
                    "labelled": one.labelled,
                    "value": one.value,
                    "low": one.low,
                    "high": one.high,
                }
                for one in self.periods
            ],
            "incidents": [
                {
                    "kind": one.incident.kind,
                    "severity": one.incident.severity,
                    "title": one.incident.title,
                    "from": one.incident.began_at.isoformat(),
                    "until": one.incident.seen_at.isoformat(),
                    "verdict": one.verdict,
                    "why": one.why,
                }
                for one in self.incidents
            ],
            "watched": self.watched,
            "retrainings": self.retrainings,
            "failed_trainings": self.failed,
            "promotions": self.promotions,
            "rollbacks": self.rollbacks,
            "rejections": self.rejections,
            "trainings": [
                {
                    "at": one.at.isoformat(),
                    "trigger": one.trigger,
                    "state": one.state,
                    "why": one.why,
                    "seconds": round(one.seconds, 3),
                    "spared": round(one.spared, 3),
                }
                for one in self.trainings
            ],
            "seconds": round(self.seconds, 3),
            "training_seconds": round(self.training_seconds, 3),
            "answered": self.answered,
            "notes": self.notes,
            "error": self.error,
        }


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """Everything a replay found."""

    title: str
    metric: str
    greater_is_better: bool
    start: datetime
    end: datetime
    every: str
    labels_after: str
    rows: int
    policies: list[PolicyOutcome]
    recommendation: Recommendation | None
    """None if no policy could be measured."""
    seconds: float
    remarks: list[str] = field(default_factory=list)
    interrupted: bool = False

    def outcome(self, name: str) -> PolicyOutcome:
        """Return the outcome of a policy by its name.

        Raises:
            KeyError: no policy has this name.
        """
        return next(one for one in self.policies if one.policy.name == name)

    @property
    def recommended(self) -> PolicyOutcome | None:
        """The outcome of the recommended policy."""
        return None if self.recommendation is None else self.outcome(self.recommendation.name)

    @property
    def suggestion(self) -> list[str]:
        """The lines of `loop.py` that declare the recommended policy."""
        chosen = self.recommended
        return [] if chosen is None else chosen.policy.suggested_lines()

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON: `policies` by name, `regret` by name, `recommended`, `why`, and the rest."""
        advice = self.recommendation
        return {
            "title": self.title,
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "from": self.start.isoformat(),
            "to": self.end.isoformat(),
            "every": self.every,
            "labels_after": self.labels_after,
            "rows": self.rows,
            "policies": {one.policy.name: one.to_json() for one in self.policies},
            "regret": {
                one.policy.name: None
                if one.regret is None
                else {"value": one.regret.value, "low": one.regret.low, "high": one.regret.high}
                for one in self.policies
            },
            "recommended": None if advice is None else advice.name,
            "why": None if advice is None else advice.why,
            "check": None
            if advice is None or advice.check is None
            else {
                "chosen_on_first_part": advice.check.name,
                "kept": advice.check.kept,
                "reference": advice.check.reference,
                "periods": advice.check.periods,
                "held": advice.check.held,
            },
            "suggestion": self.suggestion,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
            "remarks": self.remarks,
        }
