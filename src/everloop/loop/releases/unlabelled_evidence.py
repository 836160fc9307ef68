"""Evidence against a candidate before enough labels have arrived: its scores on live and on held-out rows.

Candidate and champion score the same live rows, as for the comparison with labels. Three things end a release:

* **Estimates.** Both versions' metrics are estimated from their scores (CBPE) or from their inputs (DLE), with
  estimators that were fitted on the candidate's held-out rows. The candidate is clearly worse if the estimated gain is
  below the limit of harm by more than the noise explains.
* **Disagreement.** Candidate and champion differ, on more than a tenth of the rows, by more than they did on 99 % of
  the held-out rows.
* **Distribution.** The candidate's scores are outside the range of its held-out scores, or crowd in a part of it, and
  the champion's scores, on the same rows, do not.

Each looks at the first rows of a step, one of each key, and can be repeated by any process at any time: it depends on
the log only. The bets of `RateGuard` and the boundary of the estimates are valid at any number of looks.

Source of the boundary: H. Robbins, "Statistical methods related to the law of the iterated logarithm", Annals of
Mathematical Statistics 41 (1970).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.loop.comparison.champions import classes_of_both, spread
from everloop.loop.comparison.scored_rows import scored_rows
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.evidence_rows import has_all_inputs
from everloop.loop.releases.guards import FALSE_ALARM, RateGuard
from everloop.loop.releases.live_evidence import predictions_of
from everloop.loop.releases.rollout import step_started_at

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import polars as pl

    from everloop.loop.comparison.champions import Pairs
    from everloop.loop.loop_definition import Loop
    from everloop.loop.releases.release_declarations import Canary
    from everloop.monitoring.performance.performance_estimates import PerformanceEstimate
    from everloop.packages import Predictor
    from everloop.records import Json, Release
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

MOST_ROWS = 2_000
"""Rows of a step that are looked at, and held-out rows that the estimators learn from. Later rows are judged by labels
and by the guards of the endpoint."""
LEAST_ROWS = 200
"""With fewer live or held-out rows, nothing is decided."""
MOST_FAR = 0.1
"""The share of the rows on which the versions may differ by more than on 99 % of the held-out rows."""
_BINS = 10
_CROWDED = 0.4
"""A tenth of the candidate's range may get this much more of its scores than of the held-out ones."""
_MOVED = 20.0
"""Evidence that the champion's scores have moved as well: then the requests have changed, and not the candidate."""
_PRIOR_ROWS = 500.0
"""The boundary of the estimates is closest at about this many rows."""
_FIRST = 2 * MOST_ROWS
_KINDS = 3
_MOST_KEPT = 4
_kept: OrderedDict[tuple[str, str, str], UnlabelledEvidence | None] = OrderedDict()

_last_arrivals: OrderedDict[tuple[str, str, datetime], datetime] = OrderedDict()
"""By store, release and beginning of the step: when the last of its first rows arrived."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a release has to end, with the evidence."""

    reason: str
    evidence: dict[str, Json]


class UnlabelledEvidence:
    """What the held-out rows show of a candidate and its champion, to compare live rows with. Not thread-safe.

    Args:
        pairs: both versions' predictions for the candidate's held-out rows, with labels.
        inputs: the same rows.
        metric: the metric that decides the release.
        task: `binary`, `multiclass` or `regression`.

    Raises:
        EmptySampleError: there are fewer than 200 rows.
    """

    def __init__(self, pairs: Pairs, inputs: pl.DataFrame, metric: str, task: str) -> None:
        import numpy as np

        if len(pairs.labels) < LEAST_ROWS:
            raise EmptySampleError(f"{len(pairs.labels)} held-out rows are too few to compare live rows with.")
        self.metric = metric
        self._task = task
        self._far = float(np.quantile(_distances(pairs.candidate, pairs.holder), 0.99, method="higher"))
        self._ranges = tuple(_ScoreRange(_one_score(one)) for one in (pairs.candidate, pairs.holder))
        self._held_out = _some(pairs, inputs)
        self._estimators: tuple[Any, Any] | None = None
        self._fitted = False

    def problem(
        self, candidate: ClassScores, champion: ClassScores, inputs: pl.DataFrame, *, limit: float, false_alarm: float
    ) -> Problem | None:
        """Look at live rows.

        Args:
            candidate: predictions of the candidate, one for each key.
            champion: those of the champion for the same rows.
            inputs: the rows.
            limit: the gain below which the candidate is harmful.
            false_alarm: the probability of ending a harmless release, over all looks at these rows.
        """
        if inputs.height < LEAST_ROWS:
            return None
        each = false_alarm / _KINDS
        return (
            self._disagreement(candidate, champion, each)
            or self._distribution(candidate, champion, each)
            or self._estimates(candidate, champion, inputs, limit, each)
        )

    def _disagreement(self, candidate: ClassScores, champion: ClassScores, false_alarm: float) -> Problem | None:
        far = _distances(candidate, champion) > self._far * (1 + 1e-9) + 1e-9
        guard = RateGuard("disagreement")
        guard.add(int(far.sum()), len(far), MOST_FAR)
        if not guard.tripped(false_alarm):
            return None
        reason = (
            f"it differs from the champion by more than {self._far:.3g} on {guard.events:,} of {guard.trials:,} rows, "
            "and did so on 1 % of the held-out rows"
        )
        return Problem(reason, _evidence(guard, limit=self._far))

    def _distribution(self, candidate: ClassScores, champion: ClassScores, false_alarm: float) -> Problem | None:
        own, other = (
            one.guards(_one_score(scores)) for one, scores in zip(self._ranges, (candidate, champion), strict=True)
        )
        for name, guard in own.items():
            # One part of the range may be crowded because of the requests. Then the champion's is as well.
            if guard.tripped(false_alarm / len(own)) and not any(one.evidence > _MOVED for one in other.values()):
                reason = f"{guard.events:,} of {guard.trials:,} of its scores are {name}"
                return Problem(reason, _evidence(guard))
        return None

    def _estimates(
        self, candidate: ClassScores, champion: ClassScores, inputs: pl.DataFrame, limit: float, false_alarm: float
    ) -> Problem | None:
        from everloop.training.metrics import get_metric

        if not self._fitted:
            # It takes up to a second, so only a release that needs it pays for it.
            self._estimators, self._fitted = self._fit(*self._held_out), True
        if self._estimators is None:
            return None
        own, other = (
            self._estimate(estimator, scores, inputs)
            for estimator, scores in zip(self._estimators, (candidate, champion), strict=True)
        )
        if own is None or other is None:
            return None
        sign = 1.0 if get_metric(self.metric).greater_is_better else -1.0
        gain, error = sign * (own.value - other.value), math.hypot(own.standard_error, other.standard_error)
        needed = mixture_boundary(inputs.height, false_alarm)
        if not error > 0 or not (limit - gain) / error > needed:
            return None
        reason = (
            f"its estimated {self.metric} is {own.value:.3f} against {other.value:.3f} of the champion on "
            f"{inputs.height:,} rows without labels"
        )
        evidence: dict[str, Json] = {
            "guard": "estimate",
            "metric": self.metric,
            "gain": gain,
            "standard_error": error,
            "deviations": (limit - gain) / error,
            "needed": needed,
        }
        return Problem(reason, evidence)

    def _fit(self, pairs: Pairs, inputs: pl.DataFrame) -> tuple[Any, Any] | None:
        """Fit an estimator for each version; None if the metric cannot be estimated."""
        from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
        from everloop.monitoring.performance.loss_estimation import LossEstimator

        def fitted(one: ClassScores) -> Any:
            if self._task == "regression":
                return LossEstimator.fit(inputs, one.scores, pairs.labels, self.metric)
            return ConfidenceEstimator.fit(one.scores, pairs.labels, predicted=one.places)

        try:
            return fitted(pairs.candidate), fitted(pairs.holder)
        except (DataError, EmptySampleError, UsageError):
            # Another metric, or labels of one class.
            return None

    def _estimate(self, estimator: Any, scores: ClassScores, inputs: pl.DataFrame) -> PerformanceEstimate | None:
        try:
            if self._task == "regression":
                found = estimator.estimate(inputs, scores.scores, self.metric)
            else:
                found = estimator.estimate(scores.scores, self.metric, predicted=scores.places)
        except (DataError, EmptySampleError, UsageError):
            return None
        estimate: PerformanceEstimate = found[self.metric]
        return estimate if math.isfinite(estimate.value) and math.isfinite(estimate.standard_error) else None


class _ScoreRange:
    """The tenths of a version's held-out scores, and how many of the live scores may be in or outside of them."""

    def __init__(self, held_out: Array) -> None:
        import numpy as np

        self._outer = np.quantile(held_out, [0.005, 0.995])
        self._edges = np.unique(np.quantile(held_out, np.linspace(0, 1, _BINS + 1)[1:-1]))
        counts = np.bincount(np.searchsorted(self._edges, held_out, side="right"), minlength=len(self._edges) + 1)
        self._shares = counts / len(held_out)

    def guards(self, scores: Array) -> dict[str, RateGuard]:
        """Bets on live scores, by what the scores are."""
        import numpy as np

        low, high = self._outer
        outside = RateGuard("score distribution")
        outside.add(int((~((scores >= low) & (scores <= high))).sum()), len(scores), MOST_FAR)
        found = {f"outside [{low:.3g}, {high:.3g}], which 99 % of its held-out scores are inside": outside}
        counts = np.bincount(np.searchsorted(self._edges, scores, side="right"), minlength=len(self._shares))
        for index, (count, share) in enumerate(zip(counts, self._shares, strict=True)):
            tolerated = float(share) + _CROWDED
            if tolerated < 0.95:
                crowded = RateGuard("score distribution")
                crowded.add(int(count), len(scores), tolerated)
                found[f"{self._part(index)}, which {share:.0%} of its held-out scores are"] = crowded
        return found

    def _part(self, index: int) -> str:
        if index == 0:
            return f"below {self._edges[0]:.3g}"
        if index == len(self._edges):
            return f"at least {self._edges[-1]:.3g}"
        return f"between {self._edges[index - 1]:.3g} and {self._edges[index]:.3g}"


def unlabelled_problem(
    loop: Loop, store: Store, release: Release, previous: str, canary: Canary, metric: str
) -> GateOutcome | None:
    """Return a failed outcome if live rows without labels show that the candidate is bad; otherwise None.

    Nothing is decided if the candidate's held-out rows are not stored, or the champion cannot score them.
    """
    if not canary.before_labels or loop.serve is None:
        return None
    known = _reference(loop, store, release, previous, metric)
    if known is None:
        return None
    found = _live_rows(store, release, previous)
    if found is None:
        return None
    rows, models = found
    candidate, champion = models[release.candidate], models[previous]
    every = classes_of_both(candidate, champion)
    own, other = (
        spread(
            predictions_of(rows, model, version, scored_rows(store.tables.root, release.created_at, version)),
            model.classes,
            every,
        )
        for model, version in ((candidate, release.candidate), (champion, previous))
    )
    from everloop.prediction_log import read_inputs

    steps = sum(decision.action in ("start", "advance") for decision in release.decisions)
    problem = known.problem(
        own,
        other,
        read_inputs(rows, candidate.signature),
        limit=-canary.margin if canary.rule == "not_worse" else 0.0,
        false_alarm=FALSE_ALARM / (steps * (steps + 1)),
    )
    if problem is None:
        return None
    return GateOutcome("fail", f"before labels: {problem.reason}", {"rows": rows.height, **problem.evidence})


def mixture_boundary(rows: int, error: float) -> float:
    """Return how many standard errors a mean has to be from its limit, valid at any number of looks.

    Args:
        rows: rows behind the mean.
        error: the probability that it is ever exceeded.
    """
    ratio = rows / _PRIOR_ROWS
    return math.sqrt((1.0 + 1.0 / ratio) * (math.log1p(ratio) + 2.0 * math.log(1.0 / error)))


def _reference(loop: Loop, store: Store, release: Release, previous: str, metric: str) -> UnlabelledEvidence | None:
    key = (f"{store.tables.root}@{store.project}", release.id, metric)
    if key not in _kept:
        _kept[key] = _build(loop, store, release.candidate, previous, metric)
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _build(loop: Loop, store: Store, candidate: str, previous: str, metric: str) -> UnlabelledEvidence | None:
    from everloop.loop.comparison.champions import stored_part
    from everloop.loop.gates.gate_checks import context_for
    from everloop.registry import get_version

    version = get_version(store, candidate)
    held_out = stored_part(store, version, "test")
    if held_out is None or held_out.height < LEAST_ROWS:
        return None
    context = context_for(
        store, version, held_out, target=loop.data.target, key=loop.data.key, time=loop.data.time, metric=metric
    )
    compared = context.compared_with("champion")
    if compared is None or compared.version != previous or compared.pairs is None:
        return None
    pairs = compared.pairs
    if len(pairs.labels) != held_out.height:
        # Only some of the rows could be scored by both, so the inputs are those of other rows.
        return None
    try:
        return UnlabelledEvidence(pairs, held_out.select(context.features), metric, context.task)
    except EmptySampleError:
        return None


def _live_rows(store: Store, release: Release, previous: str) -> tuple[pl.DataFrame, dict[str, Predictor]] | None:
    """The first rows of the present step that both versions can score, one of each key; None if they are too few."""
    import polars as pl

    from everloop.prediction_log import read_predictions
    from everloop.prediction_log.label_matching import ANSWERED
    from everloop.registry import load_model

    began: datetime = step_started_at(release)
    answered = read_predictions(store, release.endpoint, roles=ANSWERED)
    if "arrived_at" not in answered.collect_schema():
        return None
    rows = _first_rows(answered, began, (store.tables.root, release.id, began))
    if rows.height < LEAST_ROWS:
        return None
    models = {key: load_model(store, key) for key in (release.candidate, previous)}
    rows = rows.filter(has_all_inputs(rows, models))
    own = pl.coalesce("entity", pl.concat_str(pl.lit("\0"), pl.col("id")))
    rows = rows.with_columns(own.alias("#key")).unique("#key", keep="first", maintain_order=True).drop("#key")
    rows = rows.head(MOST_ROWS)
    return (rows, models) if rows.height >= LEAST_ROWS else None


def _first_rows(answered: pl.LazyFrame, began: datetime, step: tuple[str, str, datetime]) -> pl.DataFrame:
    """The first rows that arrived in a step. Once there are enough of them, later rows are not read again."""
    import polars as pl

    arrived = pl.col("arrived_at")
    last = _last_arrivals.get(step)
    if last is not None:
        rows = answered.filter(arrived >= began, arrived <= last).bottom_k(_FIRST, by=["arrived_at", "id"]).collect()
    if last is None or rows.height < _FIRST:
        rows = answered.filter(arrived >= began).bottom_k(_FIRST, by=["arrived_at", "id"]).collect()
    rows = rows.sort("arrived_at", "id")
    if rows.height == _FIRST:
        _last_arrivals[step] = rows["arrived_at"][-1]
        while len(_last_arrivals) > _MOST_KEPT:
            _last_arrivals.popitem(last=False)
    return rows


def _some(pairs: Pairs, inputs: pl.DataFrame) -> tuple[Pairs, pl.DataFrame]:
    """Some of the held-out rows, chosen evenly."""
    import numpy as np

    rows = len(pairs.labels)
    if rows <= MOST_ROWS:
        return pairs, inputs
    chosen = np.linspace(0, rows - 1, MOST_ROWS).astype(np.intp)
    return (
        replace(
            pairs,
            labels=pairs.labels[chosen],
            candidate=pairs.candidate.take(chosen),
            holder=pairs.holder.take(chosen),
        ),
        inputs[chosen],
    )


def _distances(one: ClassScores, other: ClassScores) -> Array:
    """How far two versions' predictions of each row are apart: half of the summed differences for several classes."""
    import numpy as np

    apart: Array = np.abs(np.asarray(one.scores, dtype=np.float64) - np.asarray(other.scores, dtype=np.float64))
    return apart if apart.ndim == 1 else 0.5 * apart.sum(axis=1)


def _one_score(predictions: ClassScores) -> Array:
    """A number per row: the score, or the largest of several classes."""
    import numpy as np

    scores: Array = np.asarray(predictions.scores, dtype=np.float64)
    return scores if scores.ndim == 1 else scores.max(axis=1)


def _evidence(guard: RateGuard, **more: Json) -> dict[str, Json]:
    found: dict[str, Json] = {
        "guard": guard.name,
        "events": guard.events,
        "trials": guard.trials,
        "evidence": guard.evidence,
    }
    return {**found, **more}


__all__ = [
    "LEAST_ROWS",
    "MOST_ROWS",
    "Problem",
    "UnlabelledEvidence",
    "mixture_boundary",
    "unlabelled_problem",
]
