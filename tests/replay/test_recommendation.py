from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from everloop.errors import EmptySampleError
from everloop.replay.hindsight import PeriodMetric, block_means, mean_metric, paired_loss
from everloop.replay.recommendation import Candidate, recommend

START = datetime(2020, 1, 6, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def periods(values):
    return [
        PeriodMetric(
            begin=START + index * WEEK, end=START + (index + 1) * WEEK, rows=100, labelled=100, value=value, low=None,
            high=None,
        )
        for index, value in enumerate(values)
    ]  # fmt: skip


def candidate(name, values, trainings):
    return Candidate(name=name, periods=periods(values), trainings=trainings, seconds=float(trainings))


NOISE = np.random.default_rng(3).normal(0, 0.02, 40)


def test_the_cheapest_policy_that_is_as_good_as_the_best_is_recommended():
    found = recommend(
        [
            candidate("never", 0.60 + NOISE, 0),
            candidate("weekly", 0.75 + NOISE, 39),
            candidate("drift", 0.749 + NOISE, 6),
        ],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "drift"
    assert found.best == "weekly"
    assert not found.indistinguishable
    assert "with 6 retrainings, 0.1% worse than 'weekly' (0.7492) with 39 retrainings" in found.why
    assert "That is 24.9% better than 'never' (0.5992)." in found.why


def test_never_is_recommended_if_nothing_is_better():
    found = recommend(
        [candidate("never", 0.7 + NOISE, 0), candidate("weekly", 0.7 + NOISE[::-1], 39)],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "never"
    assert found.indistinguishable
    assert "No policy was certainly better than never retraining" in found.why


@pytest.mark.parametrize(("name", "trainings"), [("never", 0), ("weekly", 39)])
def test_a_single_policy_is_compared_with_nothing(name, trainings):
    found = recommend([candidate(name, 0.7 + NOISE, trainings)], "roc_auc", greater_is_better=True)
    assert (found.name, found.best, found.check, found.indistinguishable) == (name, name, None, False)
    assert found.why.endswith("No other policy was measured, so nothing is compared.")
    for word in ("better", "worse", "Check", "certainly"):
        assert word not in found.why


def test_a_small_loss_that_is_a_large_part_of_the_skill_is_material():
    # 98 % of an AUC of 0.52 is 0.51, which is half of what the model knows.
    found = recommend(
        [candidate("never", 0.511 + NOISE, 0), candidate("weekly", 0.52 + NOISE, 39)],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "weekly"


def test_errors_count_the_other_way():
    found = recommend(
        [
            candidate("never", 60 + 100 * NOISE, 0),
            candidate("weekly", 30 + 100 * NOISE, 39),
            candidate("drift", 30.3 + 100 * NOISE, 5),
        ],
        "rmse",
        greater_is_better=False,
    )
    assert found.name == "drift"
    assert found.choice.kept == pytest.approx(mean_metric(periods(30 + 100 * NOISE)) / (30.3 + 100 * NOISE.mean()))


def test_a_policy_that_fails_in_the_second_part_is_not_recommended():
    drift = np.where(np.arange(40) < 24, 0.755, 0.71) + NOISE
    found = recommend(
        [candidate("weekly", 0.75 + NOISE, 39), candidate("drift", drift, 6), candidate("monthly", 0.748 + NOISE, 10)],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "monthly"
    assert found.check is not None
    assert found.check.name == "drift"
    assert not found.check.held
    assert "'drift' would have been recommended" in found.why
    assert "kept only" in found.why


def test_without_a_metric_there_is_no_recommendation():
    with pytest.raises(EmptySampleError, match="labels"):
        recommend([candidate("never", [None] * 8, 0)], "roc_auc", greater_is_better=True)


def test_a_loss_is_paired_by_period():
    loss = paired_loss(periods(0.6 + NOISE), periods(0.65 + NOISE), greater_is_better=True)
    assert loss.value == pytest.approx(0.05)
    # The noise that both share cancels out.
    assert loss.high - loss.low < 1e-9
    short = paired_loss(periods([0.5, None, 0.7]), periods([0.6, 0.6, 0.6]), greater_is_better=True)
    assert short.value == pytest.approx(0.0)


def test_block_means_have_the_spread_of_the_mean():
    values = np.random.default_rng(0).normal(0, 1, 400)
    means = block_means(values, replicates=4000, seed=1)
    assert means.std() == pytest.approx(1 / 20, rel=0.25)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    # Values that resemble their neighbours know less, so their mean spreads more.
    slow = np.repeat(np.random.default_rng(0).normal(0, 1, 50), 8)
    assert block_means(slow, seed=1).std() > 2 * block_means(np.random.default_rng(1).permutation(slow), seed=1).std()


def test_block_means_are_repeatable():
    values = np.arange(30.0)
    assert np.array_equal(block_means(values, seed=4), block_means(values, seed=4))


def test_never_is_recommended_although_another_policy_was_luckier():
    # The mean is better by more than 2 %, but by nothing that the intervals could tell from luck.
    luck = np.random.default_rng(5).normal(0, 0.12, 40)
    luck += 0.02 - luck.mean()
    found = recommend(
        [candidate("never", 0.7 + NOISE, 0), candidate("weekly", 0.7 + NOISE + luck, 39)],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.best == "weekly"
    assert found.choice.kept < 0.98
    assert found.name == "never"


def test_a_policy_with_few_trainings_that_holds_against_weekly_wins_over_a_better_one_with_many():
    found = recommend(
        [
            candidate("never", 0.60 + NOISE, 0),
            candidate("weekly", 0.75 + NOISE, 39),
            candidate("weekly-30d", 0.79 + NOISE, 39),
            candidate("monthly", 0.749 + NOISE, 9),
        ],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "monthly"
    assert found.best == "weekly-30d"
    assert "which is not worth 30 more trainings" in found.why


def test_more_trainings_are_recommended_if_they_are_certainly_worth_it():
    candidates = [
        candidate("never", 30 + 100 * NOISE, 0),
        candidate("weekly", 20 + 100 * NOISE, 39),
        candidate("drift", 20.2 + 100 * NOISE, 3),
        candidate("monthly-30d", 19.5 + 100 * NOISE, 9),
    ]
    assert recommend(candidates, "rmse", greater_is_better=False).name == "monthly-30d"
    assert recommend(candidates[:3], "rmse", greater_is_better=False).name == "drift"


def test_a_policy_that_decays_at_the_end_is_not_recommended():
    never = 0.75 + NOISE - np.where(np.arange(40) >= 30, 0.03, 0.0)
    found = recommend(
        [candidate("never", never, 0), candidate("weekly", 0.75 + NOISE, 39), candidate("monthly", 0.749 + NOISE, 9)],
        "roc_auc",
        greater_is_better=True,
    )
    assert found.name == "monthly"


def test_a_loss_by_chance_on_a_few_periods_at_the_end_does_not_decide():
    weekly = [343, 178, 211, 439, 656, 1077, 1402, 849, 430, 553, 489, 328, 187]
    monthly = [351, 173, 219, 435, 650, 950, 1358, 997, 456, 518, 496, 346, 187]
    never = [346, 199, 203, 447, 683, 909, 1274, 1235, 1226, 1128, 863, 409, 266]
    found = recommend(
        [candidate("never", never, 0), candidate("weekly", weekly, 60), candidate("monthly", monthly, 15)],
        "rmse",
        greater_is_better=False,
    )
    assert found.name == "monthly"


def test_the_check_counts_the_trainings_of_its_part_alone():
    # Forty trainings in all, but three on the first part: cheap where the choice was made.
    at = [START + WEEK * number for number in (2, 8, 14, *range(24, 40))]
    late = Candidate(
        name="late", periods=periods(0.75 + NOISE), trainings=len(at), seconds=19.0, retrained_at=at
    )  # fmt: skip
    every = [START + WEEK * number for number in range(1, 40)]
    weekly = Candidate(name="weekly", periods=periods(0.75 + NOISE), trainings=39, seconds=39.0, retrained_at=every)
    found = recommend([candidate("never", 0.6 + NOISE, 0), weekly, late], "roc_auc", greater_is_better=True)
    assert found.check.name == "late"
    assert found.check.held


def test_a_change_that_comes_late_is_certain_on_the_part_after_it():
    # Whole samples of the bootstrap miss the last third, so the interval of the whole replay reaches zero.
    noise = 10 * NOISE[:12]
    late = np.where(np.arange(12) >= 8, 20.0, 10.0) + noise
    found = recommend(
        [candidate("never", late, 0), candidate("monthly", 10 + noise, 2)], "rmse", greater_is_better=False
    )
    assert found.name == "monthly"
    assert not found.indistinguishable


def test_what_may_be_luck_is_insured_if_a_cheap_policy_keeps_the_metric():
    # Retraining is better by 3 %, but not for certain; monthly retraining keeps that at a quarter of the trainings.
    luck = np.random.default_rng(5).normal(0, 0.12, 40)
    luck += 0.02 - luck.mean()
    candidates = [
        candidate("never", 0.7 + NOISE, 0),
        candidate("weekly", 0.7 + NOISE + luck, 39),
        candidate("monthly", 0.698 + NOISE + luck, 9),
    ]
    found = recommend(candidates, "roc_auc", greater_is_better=True)
    assert found.indistinguishable
    assert found.name == "monthly"
    assert "may lose is more than 2 %" in found.why
    # Errors are said to be worse if they are larger.
    means = {"never": (12, 0), "weekly": (10, 39), "monthly": (10.1, 9)}
    errors = [candidate(name, mean + NOISE, trainings) for name, (mean, trainings) in means.items()]
    assert "1.0% worse than 'weekly'" in recommend(errors, "rmse", greater_is_better=False).why


def test_a_few_periods_at_the_end_do_not_rule_out_the_best_window():
    # Daily bike rentals, measured over five weeks at a time: the best window lost by 2 to 3 % on the last four periods.
    weekly = [888.0, 1128, 1244, 878, 907, 778, 522, 384, 252]
    monthly = [893.0, 1088, 1253, 938, 923, 754, 545, 375, 277]
    lighter = [819.0, 1003, 1187, 872, 822, 784, 522, 406, 271]
    never = [889.0, 1150, 1554, 1287, 1604, 1465, 858, 581, 323]
    candidates = [
        candidate("never", never, 0),
        candidate("weekly", weekly, 42),
        candidate("monthly", monthly, 10),
        candidate("monthly-half-life-180d", lighter, 10),
    ]
    assert recommend(candidates, "rmse", greater_is_better=False).name == "monthly-half-life-180d"
