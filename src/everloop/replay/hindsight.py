"""Hindsight: what each policy's predictions were worth, once all labels are known.

Nothing here reaches a policy. The live metric is measured per period on the rows that were answered, with the score
that answered them. Differences between policies are paired by period. Their intervals come from a moving-block
bootstrap over the periods, because neighbouring periods resemble one another.
Source: H. R. Künsch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17,
1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from everloop.errors import EmptySampleError, EverloopError
from everloop.replay.metric_text import metric_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from everloop.records import Incident
    from everloop.replay.policy_run import PolicyTrace, Schedule
    from everloop.replay.replay_history import ReplayHistory

    Array = NDArray[np.float64]

Verdict = Literal["needed", "not needed", "unclear"]
REPLICATES = 2000
LEAST_ROWS = 5
"""A period with fewer labelled rows has no metric of its own."""
ENOUGH_ROWS = 30
"""Periods with fewer rows are measured together."""
ENOUGH_OF_CLASS = 10
"""Periods with fewer rows of the rarer of two classes are measured together."""


@dataclass(frozen=True, kw_only=True)
class PeriodMetric:
    """The live metric of one period with its 95 % interval; None if it cannot be measured."""

    begin: datetime
    end: datetime
    rows: int
    labelled: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much worse one policy is than another, in the unit of the metric; 0 or above means worse."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class JudgedDisturbance:
    """An incident, and whether it was needed."""

    incident: Incident
    verdict: Verdict
    before: float | None
    during: float | None
    why: str


class Judge:
    """Measures policies on one history."""

    def __init__(
        self, history: ReplayHistory, schedule: Schedule, metric: str, task: str, classes: Sequence[object]
    ) -> None:
        from everloop.training.metrics import get_metric
        from everloop.training.targets import encode_target

        self.history = history
        self.schedule = schedule
        self.metric = get_metric(metric)
        self.labels = encode_target(history.table[history.target], task, classes)  # type: ignore[arg-type]
        self.together = self._together(task)
        """How many periods are measured together, because one has few rows."""

    def periods(self, trace: PolicyTrace) -> list[PeriodMetric]:
        """Return the live metric of each period that the policy reached, or of several periods together."""
        schedule = self.schedule
        span = self.together * schedule.every
        found = []
        for number in range(-(-schedule.periods // self.together)):
            begin = schedule.start + number * span
            end = min(begin + span, schedule.end)
            if trace.until is None or end > trace.until:
                break
            first, last = self.history.between(begin, end)
            value, low, high, labelled = self.measure(trace, first, last)
            found.append(
                PeriodMetric(
                    begin=begin, end=end, rows=last - first, labelled=labelled, value=value, low=low, high=high
                )
            )
        return found

    def _together(self, task: str) -> int:
        """Return how many periods have about `ENOUGH_ROWS` rows, by the median of the periods.

        Of two classes, the rarer one should have about `ENOUGH_OF_CLASS` rows.
        """
        import numpy as np

        needed = ENOUGH_ROWS
        known = self.labels[np.isfinite(self.labels)]
        if task == "binary" and len(known):
            rarer = int(min(np.count_nonzero(known), np.count_nonzero(known == 0)))
            needed = max(needed, -(-ENOUGH_OF_CLASS * len(known) // max(1, rarer)))
        schedule = self.schedule
        rows = []
        for number in range(schedule.periods):
            first, last = self.history.between(
                schedule.start + number * schedule.every, schedule.start + (number + 1) * schedule.every
            )
            rows.append(last - first)
        usual = max(1, sorted(rows)[len(rows) // 2]) if rows else 1
        # A replay of a few periods is not cut into fewer than four parts.
        return max(1, min(-(-needed // usual), schedule.periods // 4))

    def measure(
        self, trace: PolicyTrace, first: int, last: int
    ) -> tuple[float | None, float | None, float | None, int]:
        """Return value, low, high and the number of labelled, answered rows among the positions `[first, last)`."""
        import numpy as np

        from everloop.training.intervals import interval
        from everloop.training.metrics import scores_for

        if trace.scores is None:
            return None, None, None, 0
        scores, labels = trace.scores[first:last], self.labels[first:last]
        flat = scores if scores.ndim == 1 else scores[:, 0]
        usable = np.isfinite(labels) & np.isfinite(flat)
        labelled = int(usable.sum())
        if labelled < LEAST_ROWS:
            return None, None, None, labelled
        places = None if trace.places is None else trace.places[first:last][usable]
        try:
            measured = interval(labels[usable], scores_for(self.metric, scores[usable], places), self.metric, n=200)
        except EverloopError:
            # A period with a single class has no ROC curve.
            return None, None, None, labelled
        if not math.isfinite(measured.value):
            return None, None, None, labelled
        low, high = (bound if math.isfinite(bound) else None for bound in (measured.low, measured.high))
        return measured.value, low, high, labelled

    def judge_incident(
        self, trace: PolicyTrace, incident: Incident, retrained: PolicyTrace | None = None
    ) -> JudgedDisturbance:
        """Compare the live metric during an incident with the one before it, and with that of a retrained model.

        The incident was needed if the metric during it was worse than before by more than its interval, or if the
        policy that retrains most often was better at that time by more than this interval. Before means as many
        periods as the incident lasted, at least four; without any, the metric on the rows held out from training.

        Args:
            trace: the policy that had the incident.
            incident: the incident.
            retrained: the policy that retrains most often, if it is another one.
        """
        begin, end = incident.began_at, incident.seen_at
        during, low, high, _ = self.measure(trace, *self.history.between(begin, end))
        span = max(end - begin, 4 * self.schedule.every)
        before, *_ = self.measure(trace, *self.history.between(max(self.schedule.start, begin - span), begin))
        basis = "the weeks before"
        if before is None:
            before = next((trace.expected[key] for key in incident.versions if key in trace.expected), None)
            basis = "the rows held out before its release"
        if before is None or during is None or low is None or high is None:
            return JudgedDisturbance(
                incident=incident, verdict="unclear", before=before, during=during, why="too few labels to say"
            )
        greater = self.metric.greater_is_better
        worse = high < before if greater else low > before
        as_good = during >= before if greater else during <= before
        possible = None if retrained is None else self.measure(retrained, *self.history.between(begin, end))[0]
        gained = possible is not None and (possible > high if greater else possible < low)
        verdict: Verdict = "needed" if worse or gained else "not needed" if as_good else "unclear"
        then, least, most, usual = (metric_text(one) for one in (during, low, high, before))
        why = f"{self.metric.name} {then} [{least}, {most}] during it, {usual} on {basis}"
        if gained and retrained is not None and possible is not None:
            why += f"; '{retrained.policy.name}', which had retrained, had {metric_text(possible)}"
        return JudgedDisturbance(incident=incident, verdict=verdict, before=before, during=during, why=why)


def mean_metric(periods: Sequence[PeriodMetric]) -> float | None:
    """Return the mean of the periods' metrics; None if no period has one."""
    values = [one.value for one in periods if one.value is not None]
    return sum(values) / len(values) if values else None


def months_of(periods: Sequence[PeriodMetric]) -> dict[str, float]:
    """Return the mean of the periods' metrics for each calendar month in which they begin, such as `2013-04`."""
    values: dict[str, list[float]] = {}
    for one in periods:
        if one.value is not None:
            values.setdefault(f"{one.begin:%Y-%m}", []).append(one.value)
    return {month: sum(found) / len(found) for month, found in sorted(values.items())}


def paired_loss(
    mine: Sequence[PeriodMetric],
    other: Sequence[PeriodMetric],
    *,
    greater_is_better: bool,
    seed: int = 0,
    level: float = 0.95,
) -> Loss:
    """Return the mean loss against another policy over the periods that both have, with its interval.

    Args:
        mine: the periods of the policy.
        other: the periods of the policy it is compared to.
        greater_is_better: whether a larger value of the metric is better.
        seed: seed of the bootstrap.
        level: confidence level of the interval.

    Raises:
        EmptySampleError: there is no such period.
    """
    import numpy as np

    theirs = {one.begin: one.value for one in other}
    pairs = [(one.value, theirs.get(one.begin)) for one in mine]
    differences = np.array([b - a for a, b in pairs if a is not None and b is not None], dtype=np.float64)
    if not len(differences):
        raise EmptySampleError("The two policies have no period in common.")
    losses = differences if greater_is_better else -differences
    means = block_means(losses, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Loss(value=float(losses.mean()), low=float(low), high=float(high))


def block_means(values: Array, *, replicates: int = REPLICATES, seed: int = 0) -> Array:
    """Return the means of moving-block bootstrap samples of a series, shape (replicates,).

    Args:
        values: shape (n,), in the order of time.
        replicates: number of samples.
        seed: the same seed gives the same samples.
    """
    import numpy as np

    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    random = np.random.default_rng(seed)
    # Circular blocks, so that the first and the last values are drawn as often as the others.
    starts = random.integers(0, count, size=(replicates, blocks))
    places = (starts[:, :, None] + np.arange(length)[None, None, :]).reshape(replicates, -1)[:, :count] % count
    means: Array = values[places].mean(axis=1)
    return means
