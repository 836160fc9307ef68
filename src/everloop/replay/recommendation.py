"""Recommend a policy: the cheapest one whose live metric is not materially worse than the best one's.

A policy that happened to win one stretch of history may lose the next. So a policy must hold on the whole replay, on
both of its parts and on its end, and the losses are shrunk by their own uncertainty. The result also says what the
choice on the first part was worth on the second, which it had not seen. If no policy is certainly better than never
retraining, the advice is never to retrain, unless that loses 2 % against weekly retraining and a cheap policy does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.replay.hindsight import Loss, mean_metric, paired_loss
from everloop.replay.metric_text import metric_text
from everloop.replay.policies import NEVER, WEEKLY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from everloop.replay.hindsight import PeriodMetric

KEEP = 0.98
"""A recommended policy keeps at least this share of the best policy's live metric."""
RESERVE = 0.005
"""A policy is chosen only if it keeps this much more on the whole replay, because the future may suit it less."""
CLEAR_LOSS = 0.05
"""On a part of a few periods, a policy fails only by a loss above this share of the rival's metric on all periods."""
MATERIAL = 0.05
"""A loss below this share of the best policy's skill is not material."""
FIRST_PART = 0.6
"""Share of the periods on which the choice that is checked on the rest is made."""
LAST_PART = 0.25
"""Share of the periods at the end on which a policy must hold as well: a model that decays is worst there."""
AFFORDABLE = 0.4
"""A policy that retrains at most this share of the reference's times is preferred to a better one that does not."""
WORTH_ITS_COST = 0.01
"""A policy with more trainings is preferred if its metric is certainly better, and by more than this share."""
REFERENCE = WEEKLY
_NO_SKILL = {"roc_auc": 0.5}
_LEAST_PERIODS = 6
_NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A replayed policy as the recommendation sees it."""

    name: str
    periods: Sequence[PeriodMetric]
    trainings: int
    """Trainings after the first one."""
    seconds: float
    retrained_at: Sequence[datetime] = ()
    """When these trainings took place, to count those of a part of the replay."""


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
    """Whether no policy is certainly better than never retraining. False if nothing was compared."""


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
    if len(measured) == 1:
        return _only(measured[0], metric)
    begins = _begins(measured)
    chosen = _choose(measured, metric, greater_is_better)
    check: HeldOutCheck | None = None
    if len(begins) >= _LEAST_PERIODS:
        cut = round(len(begins) * FIRST_PART)
        first, rest = ([_part(one, part) for one in measured] for part in (begins[:cut], begins[cut:]))
        if all(mean_metric(one.periods) is not None for one in (*first, *rest)):
            check = _checked(_choose(first, metric, greater_is_better), rest, metric, greater_is_better)
    indistinguishable = _is_never_as_good(measured, greater_is_better)
    by_name = {one.name: one for one in measured}
    why = _explain(chosen, by_name, metric, check, indistinguishable=indistinguishable)
    return Recommendation(
        name=chosen.name, why=why, choice=chosen, check=check, best=chosen.best, indistinguishable=indistinguishable
    )


def _only(one: Candidate, metric: str) -> Recommendation:
    """The result for a policy that is compared with nothing."""
    value = metric_text(mean_metric(one.periods) or 0.0)
    why = f"{metric} {value} with {_times(one.trainings)}. No other policy was measured, so nothing is compared."
    choice = Choice(name=one.name, best=one.name, kept=1.0, loss=Loss(value=0.0, low=0.0, high=0.0))
    return Recommendation(name=one.name, why=why, choice=choice, check=None, best=one.name, indistinguishable=False)


def kept_share(value: float, best: float, metric: str, *, greater_is_better: bool) -> float:
    """Return which share of `best` a metric keeps; for errors, how many times smaller the best error is."""
    if greater_is_better:
        return value / best if best > 0 else 1.0 if value >= best else 0.0
    return best / value if value > 0 else 1.0


def _begins(candidates: Sequence[Candidate]) -> list[datetime]:
    return sorted({one.begin for candidate in candidates for one in candidate.periods})


def _part(one: Candidate, begins: Sequence[datetime]) -> Candidate:
    """The candidate on some consecutive periods, with the trainings of their time."""
    wanted = set(begins)
    periods = [period for period in one.periods if period.begin in wanted]
    trainings = one.trainings
    if one.retrained_at and periods:
        # The training at the end of the last period serves the next one.
        trainings = sum(periods[0].begin < at < periods[-1].end for at in one.retrained_at)
    return Candidate(
        name=one.name, periods=periods, trainings=trainings, seconds=one.seconds, retrained_at=one.retrained_at
    )


def _parts(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """The parts of the replay on which a policy must hold: both sides of the cut, and the end."""
    begins = _begins(candidates)
    if len(begins) < _LEAST_PERIODS:
        return []
    cut, end = round(len(begins) * FIRST_PART), max(2, round(len(begins) * LAST_PART))
    parts = [[_part(one, part) for one in candidates] for part in (begins[:cut], begins[cut:], begins[-end:])]
    return [part for part in parts if all(mean_metric(one.periods) is not None for one in part)]


def _never(candidates: Sequence[Candidate]) -> Candidate | None:
    """The policy that never retrains, or one that did not."""
    unchanged = [one for one in candidates if not one.trainings]
    return min(unchanged, key=lambda one: one.name != NEVER, default=None)


def _is_never_as_good(candidates: Sequence[Candidate], greater_is_better: bool) -> bool:
    """Whether no policy is certainly better than never retraining, on all periods or on a part of them.

    A change that comes late is certain only on the part after it. The intervals allow for the number of comparisons.
    """
    never = _never(candidates)
    others = [one for one in candidates if one is not never]
    if never is None or not others:
        return never is not None
    looks = [list(candidates), *_parts(candidates)]
    level = 1 - 0.05 / (len(others) * len(looks))
    for part in looks:
        periods = {one.name: one.periods for one in part}
        for one in others:
            loss = paired_loss(periods[never.name], periods[one.name], greater_is_better=greater_is_better, level=level)
            if loss.low > 0:
                return False
    return True


def _choose(candidates: Sequence[Candidate], metric: str, greater_is_better: bool) -> Choice:
    """Choose on the periods of these candidates alone."""
    sign = 1 if greater_is_better else -1
    means = {one.name: mean_metric(one.periods) or 0.0 for one in candidates}
    best = max(candidates, key=lambda one: (sign * means[one.name], -one.trainings))
    never = _never(candidates)
    reference = next((one for one in candidates if one.name == REFERENCE), best)
    affordable = [one for one in candidates if one.trainings <= max(1, AFFORDABLE * reference.trainings)]
    if never is not None and _is_never_as_good(candidates, greater_is_better):
        # What is not certain may still be so: without a retraining that keeps the metric as well, take a cheap one.
        keeping = [
            one
            for one in affordable
            if kept_share(means[one.name], means[reference.name], metric, greater_is_better=greater_is_better) >= KEEP
        ]
        # A policy that did not retrain either was only luckier with its window.
        ordered = sorted(
            (one for one in keeping if one.trainings), key=lambda one: (one.trainings, -sign * means[one.name])
        )
        chosen = never if never in keeping or not ordered else ordered[0]
        return _choice(chosen, best, metric, greater_is_better)
    parts = _parts(candidates)
    for pool, against in (
        (affordable, max(affordable, key=lambda one: sign * means[one.name], default=best)),
        (affordable, reference),
        (candidates, best),
    ):
        # A policy that is affordable must also hold against weekly retraining, whatever the other affordable ones do.
        rivals = {against.name, reference.name}
        fitting = [
            one
            for one in pool
            if all(_holds(one.name, rival, candidates, parts, metric, greater_is_better) for rival in rivals)
        ]
        if fitting:
            return _choice(_worth_most(fitting, means, greater_is_better), best, metric, greater_is_better)
    return _choice(best, best, metric, greater_is_better)


def _holds(
    name: str,
    rival: str,
    candidates: Sequence[Candidate],
    parts: Sequence[Sequence[Candidate]],
    metric: str,
    greater_is_better: bool,
) -> bool:
    """Whether a policy keeps enough of another one's metric, on all periods and on each part of them."""
    usual = abs(next((mean_metric(one.periods) or 0.0 for one in candidates if one.name == rival), 0.0))
    for least, part in ((KEEP + RESERVE, candidates), *((KEEP, part) for part in parts)):
        by_name = {one.name: one for one in part}
        mine, other = (mean_metric(by_name[one].periods) or 0.0 for one in (name, rival))
        if kept_share(mine, other, metric, greater_is_better=greater_is_better) >= least:
            continue
        few = part is not candidates and len(by_name[name].periods) < _LEAST_PERIODS
        if few and abs(mine - other) <= CLEAR_LOSS * usual:
            # A few periods say little, and an error that is small there is not what matters.
            continue
        if part is candidates or _exceeds_chance(by_name[name], by_name[rival], greater_is_better):
            return False
    by_name = {one.name: one for one in candidates}
    loss = paired_loss(by_name[name].periods, by_name[rival].periods, greater_is_better=greater_is_better)
    skill = abs((mean_metric(by_name[rival].periods) or 0.0) - _NO_SKILL.get(metric, 0.0))
    return _shrunk(loss) <= MATERIAL * skill


def _exceeds_chance(one: Candidate, rival: Candidate, greater_is_better: bool) -> bool:
    """Whether the loss on a part is more than its standard error. Of a few periods, it must be certain."""
    loss = paired_loss(one.periods, rival.periods, greater_is_better=greater_is_better)
    if len(one.periods) < _LEAST_PERIODS:
        return loss.low > 0
    return loss.value > (loss.high - loss.low) / (2 * _NORMAL_95)


def _worth_most(fitting: Sequence[Candidate], means: dict[str, float], greater_is_better: bool) -> Candidate:
    """The cheapest policy, or one with more trainings that are worth their cost."""
    sign = 1 if greater_is_better else -1
    ordered = sorted(fitting, key=lambda one: (one.trainings, one.name != NEVER))
    chosen = ordered[0]
    for one in ordered[1:]:
        gain = sign * (means[one.name] - means[chosen.name])
        # Among policies with about as few trainings, any certain gain counts.
        least = 0.0 if one.trainings <= chosen.trainings + 1 else WORTH_ITS_COST * abs(means[chosen.name])
        if gain > least and paired_loss(chosen.periods, one.periods, greater_is_better=greater_is_better).low > 0:
            chosen = one
    return chosen


def _choice(one: Candidate, best: Candidate, metric: str, greater_is_better: bool) -> Choice:
    loss = paired_loss(one.periods, best.periods, greater_is_better=greater_is_better)
    mine, other = mean_metric(one.periods) or 0.0, mean_metric(best.periods) or 0.0
    kept = kept_share(mine, other, metric, greater_is_better=greater_is_better)
    return Choice(name=one.name, best=best.name, kept=kept, loss=loss)


def _shrunk(loss: Loss) -> float:
    """The loss, shrunk towards zero by its uncertainty: the mean of a normal posterior with an empirical prior.

    Source: C. N. Morris, Parametric empirical Bayes inference, Journal of the American Statistical Association 78
    (1983). The prior's variance is estimated by the square of the loss itself, less its sampling variance.
    """
    error = (loss.high - loss.low) / (2 * 1.96)
    signal = max(0.0, loss.value**2 - error**2)
    return 0.0 if signal == 0.0 else loss.value * signal / (signal + error**2)


def _checked(choice: Choice, rest: Sequence[Candidate], metric: str, greater_is_better: bool) -> HeldOutCheck:
    means = {one.name: mean_metric(one.periods) or 0.0 for one in rest}
    trainings = {one.name: one.trainings for one in rest}
    reference = REFERENCE if REFERENCE in means else max(trainings, key=lambda name: trainings[name])
    kept = kept_share(means[choice.name], means[reference], metric, greater_is_better=greater_is_better)
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
    one, never = candidates[choice.name], _never(list(candidates.values()))
    value = mean_metric(one.periods) or 0.0
    reference = candidates.get(REFERENCE) or candidates[choice.best]
    text = f"{metric} {metric_text(value)} with {_times(one.trainings)}"
    if reference.name != one.name:
        text += f", {_compared(value, reference, metric)} with {_times(reference.trainings)}"
    sentences = [f"{text}."]
    if never is not None and never.name not in (one.name, reference.name):
        sentences.append(f"That is {_compared(value, never, metric)}.")
    if choice.best not in (choice.name, reference.name):
        best = candidates[choice.best]
        sentences.append(
            f"'{best.name}' was best with {metric_text(mean_metric(best.periods) or 0.0)} and {_times(best.trainings)}."
        )
    if choice.best != choice.name:
        loss, more = choice.loss, candidates[choice.best].trainings - one.trainings
        verdict = "which may be chance"
        if choice.kept >= KEEP:
            verdict = "which is not material"
        elif loss.low > 0:
            verdict = f"which is not worth {more} more training{'' if more == 1 else 's'}"
            if more <= 0:
                verdict = f"but '{choice.best}' did not hold on every part of the replay"
        interval = f"{metric_text(loss.value, 3)} [{metric_text(loss.low, 3)}, {metric_text(loss.high, 3)}]"
        sentences.append(f"The loss against '{choice.best}' is {interval}, {verdict}.")
    if indistinguishable:
        sentences.append("No policy was certainly better than never retraining.")
        if one is not never and never is not None:
            sentences.append("But what never retraining may lose is more than 2 %, and this policy is cheap.")
    if check is not None:
        sentences.append(_check_in_words(check, choice.name))
    return " ".join(sentences)


def _check_in_words(check: HeldOutCheck, chosen: str) -> str:
    same = " as well" if check.name == chosen else ""
    text = f"Check: on the first part alone, '{check.name}' would have been recommended{same}."
    if check.name == check.reference:
        return text
    outcome = f"{'kept' if check.held else 'kept only'} {check.kept:.1%} of the metric of '{check.reference}'"
    if check.kept >= 1:
        outcome = f"was as good as '{check.reference}' or better"
    return f"{text} On the last {check.periods} periods, which were not used for that, it {outcome}."


def _compared(value: float, other: Candidate, metric: str) -> str:
    """A metric in words, compared with that of another policy."""
    theirs = mean_metric(other.periods) or 0.0
    share = (value - theirs) / abs(theirs) if theirs else 0.0
    if abs(share) < 0.0005:
        return f"the same as '{other.name}'"
    better = (share > 0) == _greater(metric)
    return f"{abs(share):.1%} {'better' if better else 'worse'} than '{other.name}' ({metric_text(theirs)})"


def _times(trainings: int) -> str:
    return "no retraining" if not trainings else f"{trainings} retraining{'' if trainings == 1 else 's'}"


def _greater(metric: str) -> bool:
    from everloop.training.metrics import higher_is_better

    return higher_is_better(metric)
