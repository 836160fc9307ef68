"""Recommend a policy: the cheapest one whose live metric is not materially worse than the best one's.

A policy that happened to win one stretch of history may lose the next. So a policy must hold on the whole replay and on
both of its parts, the losses are shrunk by their own uncertainty, and the result says what the choice on the first part
was worth on the second, which it had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.replay.hindsight import Loss, mean_metric, paired_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.replay.hindsight import PeriodMetric

KEEP = 0.98
"""A recommended policy keeps at least this share of the best policy's live metric."""
MATERIAL = 0.05
"""A loss below this share of the best policy's skill is not material."""
FIRST_PART = 0.6
"""Share of the periods on which the choice that is checked on the rest is made."""
_NO_SKILL = {"roc_auc": 0.5}
_LEAST_PERIODS = 6


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A replayed policy as the recommendation sees it."""

    name: str
    periods: Sequence[PeriodMetric]
    trainings: int
    """Trainings after the first one."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The policy chosen on some periods."""

    name: str
    best: str
    """The policy with the best mean metric on the same periods."""
    kept: float
    """Share of the best policy's metric that the chosen one keeps; for errors the inverse ratio."""
    loss: Loss


@dataclass(frozen=True, kw_only=True)
class HeldOutCheck:
    """What the choice on the first part of the replay was worth on the rest."""

    name: str
    periods: int
    kept: float
    """Share of the reference policy's metric on the rest."""
    reference: str
    held: bool


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The recommended policy and the reasons."""

    name: str
    why: str
    choice: Choice
    check: HeldOutCheck | None
    """None if the replay is too short to be divided."""
    best: str
    """The policy with the best mean metric over the whole replay."""
    indistinguishable: bool
    """Whether no policy is certainly better than never retraining."""


def recommend(candidates: Sequence[Candidate], metric: str, *, greater_is_better: bool) -> Recommendation:
    """Recommend one of the candidates.

    Args:
        candidates: the policies, all replayed over the same periods.
        metric: name of the live metric.
        greater_is_better: whether a larger value of the metric is better.

    Raises:
        EmptySampleError: no policy has a metric in any period.
    """
    measured = [one for one in candidates if mean_metric(one.periods) is not None]
    if not measured:
        raise EmptySampleError(
            "No period of the replay has labels to measure a policy by.",
            help="Replay a longer time, or use a longer period with --every.",
        )
    begins = sorted({one.begin for candidate in measured for one in candidate.periods})
    cut = round(len(begins) * FIRST_PART)
    whole = _choose(measured, metric, greater_is_better)
    chosen = whole
    check: HeldOutCheck | None = None
    if len(begins) >= _LEAST_PERIODS:
        first = [_part(one, begins[:cut]) for one in measured]
        rest = [_part(one, begins[cut:]) for one in measured]
        if all(mean_metric(one.periods) is not None for one in (*first, *rest)):
            chosen = _choose(measured, metric, greater_is_better, parts=(first, rest))
            check = _checked(_choose(first, metric, greater_is_better), rest, greater_is_better)
    never = next((one for one in measured if not one.trainings), None)
    indistinguishable = never is not None and not any(
        paired_loss(never.periods, one.periods, greater_is_better=greater_is_better).low > 0
        for one in measured
        if one is not never
    )
    by_name = {one.name: one for one in measured}
    why = _explain(chosen, by_name, metric, check, indistinguishable=indistinguishable)
    return Recommendation(
        name=chosen.name, why=why, choice=chosen, check=check, best=whole.best, indistinguishable=indistinguishable
    )


def kept_share(value: float, best: float, metric: str, *, greater_is_better: bool) -> float:
    """Return which share of `best` a metric keeps; for errors, how many times smaller the best error is."""
    if greater_is_better:
        return value / best if best > 0 else 1.0 if value >= best else 0.0
    return best / value if value > 0 else 1.0


def _part(one: Candidate, begins: Sequence[object]) -> Candidate:
    wanted = set(begins)
    periods = [period for period in one.periods if period.begin in wanted]
    return Candidate(name=one.name, periods=periods, trainings=one.trainings, seconds=one.seconds)


def _choose(
    candidates: Sequence[Candidate],
    metric: str,
    greater_is_better: bool,
    parts: tuple[Sequence[Candidate], ...] = (),
) -> Choice:
    means = {one.name: mean_metric(one.periods) or 0.0 for one in candidates}
    sign = 1 if greater_is_better else -1
    best = max(candidates, key=lambda one: (sign * means[one.name], -one.trainings))
    skill = abs(means[best.name] - _NO_SKILL.get(metric, 0.0))
    fitting = []
    for one in candidates:
        loss = paired_loss(one.periods, best.periods, greater_is_better=greater_is_better)
        kept = kept_share(means[one.name], means[best.name], metric, greater_is_better=greater_is_better)
        holds = kept >= KEEP and _shrunk(loss) <= MATERIAL * skill
        if holds and all(_keeps(one.name, part, metric, greater_is_better) for part in parts):
            fitting.append((one.trainings, one.seconds, one, loss, kept))
    if not fitting:
        zero = Loss(value=0.0, low=0.0, high=0.0)
        return Choice(name=best.name, best=best.name, kept=1.0, loss=zero)
    fewest = min(trainings for trainings, *_ in fitting)
    # Among policies with about as few trainings, the better metric wins.
    near = [item for item in fitting if item[0] <= fewest + 1]
    _, _, one, loss, kept = max(near, key=lambda item: (sign * means[item[2].name], -item[0]))
    return Choice(name=one.name, best=best.name, kept=kept, loss=loss)


def _keeps(name: str, part: Sequence[Candidate], metric: str, greater_is_better: bool) -> bool:
    means = {one.name: mean_metric(one.periods) or 0.0 for one in part}
    best = max(means.values()) if greater_is_better else min(means.values())
    return kept_share(means[name], best, metric, greater_is_better=greater_is_better) >= KEEP


def _shrunk(loss: Loss) -> float:
    """The loss, shrunk towards zero by its uncertainty: the mean of a normal posterior with an empirical prior.

    Source: C. N. Morris, Parametric empirical Bayes inference, Journal of the American Statistical Association 78
    (1983). The prior's variance is estimated by the square of the loss itself, less its sampling variance.
    """
    error = (loss.high - loss.low) / (2 * 1.96)
    signal = max(0.0, loss.value**2 - error**2)
    return 0.0 if signal == 0.0 else loss.value * signal / (signal + error**2)


def _checked(choice: Choice, rest: Sequence[Candidate], greater_is_better: bool) -> HeldOutCheck:
    means = {one.name: mean_metric(one.periods) or 0.0 for one in rest}
    trainings = {one.name: one.trainings for one in rest}
    reference = "weekly" if "weekly" in means else max(trainings, key=lambda name: trainings[name])
    kept = kept_share(means[choice.name], means[reference], "", greater_is_better=greater_is_better)
    periods = max(len(one.periods) for one in rest)
    return HeldOutCheck(name=choice.name, periods=periods, kept=kept, reference=reference, held=kept >= KEEP)


def _explain(
    choice: Choice,
    candidates: dict[str, Candidate],
    metric: str,
    check: HeldOutCheck | None,
    *,
    indistinguishable: bool,
) -> str:
    one = candidates[choice.name]
    value = mean_metric(one.periods)
    reference = candidates.get("weekly") or candidates[choice.best]
    against = mean_metric(reference.periods)
    text = f"{metric} {value:.4g}"
    if reference.name != one.name and against is not None and value is not None:
        share = kept_share(value, against, metric, greater_is_better=_greater(metric))
        text += f", {share:.1%} of that of '{reference.name}'"
        text += f", with {_times(one.trainings)} instead of {reference.trainings}"
    else:
        text += f", with {_times(one.trainings)}"
    sentences = [f"{text}."]
    if choice.best != choice.name:
        best = candidates[choice.best]
        sentences.append(
            f"'{best.name}' was best with {mean_metric(best.periods):.4g} and {_times(best.trainings)}; the difference"
            f" is {choice.loss.value:.3g} [{choice.loss.low:.3g}, {choice.loss.high:.3g}], which is not material."
        )
    if indistinguishable:
        sentences.append("No policy was certainly better than never retraining.")
    if check is not None:
        verb = "kept" if check.held else "kept only"
        sentences.append(
            f"Check: '{check.name}', chosen on the first part alone, {verb} {check.kept:.1%} of '{check.reference}' on"
            f" the last {check.periods} periods."
        )
    return " ".join(sentences)


def _times(trainings: int) -> str:
    return "no retraining" if not trainings else f"{trainings} retraining{'' if trainings == 1 else 's'}"


def _greater(metric: str) -> bool:
    from everloop.training.metrics import higher_is_better

    return higher_is_better(metric)
