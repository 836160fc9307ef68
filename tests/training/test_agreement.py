"""Intervals of perfect and useless scores have a width, which is that of the literature."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from everloop.training.intervals import bootstrap, delong, interval, intervals, paired_bootstrap
from everloop.training.metrics import METRICS, metrics_of, score
from everloop.training.unanimous_intervals import agreement_bounds, room


def exact(successes, rows, level=0.95):
    found = stats.binomtest(successes, rows).proportion_ci(confidence_level=level, method="exact")
    return found.low, found.high


def wilson_of(successes, rows):
    found = stats.binomtest(successes, rows).proportion_ci(method="wilson")
    return found.low, found.high


@pytest.mark.parametrize("rows", [1, 2, 10, 30, 100, 2000])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_room_is_clopper_and_pearsons(rows, level):
    assert 1 - room(rows, level) == pytest.approx(exact(rows, rows, level)[0])
    assert room(rows, level) == pytest.approx(exact(0, rows, level)[1])


def test_rule_of_three():
    # Hanley and Lippman-Hand (1983): no event in n gives an upper one-sided 95 % bound of about 3 / n.
    for rows in (30, 100, 1000):
        assert room(rows, 0.90) == pytest.approx(3 / rows, rel=0.06)


def test_a_perfect_or_hopeless_classifier():
    y = np.array([0.0] * 60 + [1.0] * 40)
    right, wrong = np.where(y > 0, 0.9, 0.1), np.where(y > 0, 0.1, 0.9)
    good = intervals(y, right, ["accuracy", "recall", "precision", "f1", "roc_auc", "average_precision"])
    assert all(found.value == found.high == 1.0 for found in good.values())
    assert (good["accuracy"].low, good["recall"].low) == (
        pytest.approx(wilson_of(100, 100)[0]), pytest.approx(wilson_of(40, 40)[0])
    )  # fmt: skip
    assert good["precision"].low == pytest.approx(wilson_of(40, 40)[0])
    for name in ("f1", "roc_auc", "average_precision"):
        assert good[name].low == pytest.approx(exact(40, 40)[0]), name
    bad = intervals(y, wrong, ["accuracy", "recall", "f1", "roc_auc"])
    assert all(found.value == found.low == 0.0 for found in bad.values())
    assert bad["accuracy"].high == pytest.approx(wilson_of(0, 100)[1])
    assert bad["roc_auc"].high == pytest.approx(exact(0, 40)[1])
    share = exact(0, 40)[1]
    assert bad["f1"].high == pytest.approx(2 * share / (1 + share))
    for found in (*good.values(), *bad.values()):
        assert found.low < found.high
        assert found.standard_error > 0


def test_perfect_scores_of_several_classes():
    y = np.repeat([0.0, 1.0, 2.0], [50, 30, 20])
    scores = np.eye(3)[y.astype(int)]
    for name in metrics_of("multiclass"):
        found = interval(y, scores, name)
        assert found.low < found.high, name
    assert interval(y, scores, "accuracy").low == pytest.approx(wilson_of(100, 100)[0])
    assert interval(y, scores, "roc_auc").low == pytest.approx(exact(20, 20)[0])


def test_a_regression_without_error():
    y = np.arange(101.0)
    found = intervals(y, y, ["mae", "rmse", "r2", "median_ae"])
    share = exact(0, 101)[1]
    assert (found["mae"].value, found["mae"].low) == (0.0, 0.0)
    # As many rows as may still be unlike these, each wrong by the whole range.
    assert found["mae"].high == pytest.approx(share * 100)
    assert found["rmse"].high == pytest.approx(np.sqrt(share) * 100)
    assert (found["r2"].high, found["r2"].low) == (1.0, pytest.approx(1 - share * 100**2 / y.var()))
    assert (found["median_ae"].low, found["median_ae"].high) == (0.0, 0.0)
    alike = interval(np.full(10, 3.0), np.full(10, 3.0), "mae")
    # Nothing in this sample says how large an error may be.
    assert np.isnan(alike.high)
    assert alike.to_dict()["high"] is None


def test_a_constant_score_is_not_certain_to_be_useless():
    found = delong([0, 1] * 20, np.full(40, 0.3))
    share = exact(0, 20)[1]
    assert (found.value, found.low, found.high) == (
        0.5,
        pytest.approx(0.5 * (1 - share)),
        pytest.approx(0.5 + share / 2),
    )


def test_bounds_hold_as_often_as_they_say():
    """Samples without an error, of populations at the bound: they come up no more often than one in forty."""
    rng = np.random.default_rng(0)
    rows = 60
    rate = room(rows, 0.95)
    clean = np.mean([not (rng.uniform(size=rows) < rate).any() for _ in range(4000)])
    assert clean == pytest.approx(0.025, abs=0.008)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(METRICS)),
    positives=st.integers(1, 30),
    negatives=st.integers(1, 30),
    right=st.booleans(),
)
def test_no_interval_of_a_metric_is_a_point(name, positives, negatives, right):
    y = np.repeat([1.0, 0.0], [positives, negatives])
    scores = y if right else 1 - y
    found = bootstrap(y, scores, name, n=40)
    if np.isnan(found.low) or np.isnan(found.high) or name == "median_ae":
        return
    assert found.low < found.high
    assert found.low <= found.value <= found.high


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(2, 400), st.booleans())
def test_perfect_areas_are_seen_in_spite_of_rounding(positives, negatives, right):
    y = np.repeat([1.0, 0.0], [positives, negatives])
    found = delong(y, np.where(y > 0, 0.7, 0.3) if right else np.where(y > 0, 0.3, 0.7))
    low, high = agreement_bounds("roc_auc", y, y, 1.0 if right else 0.0, 0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_two_perfect_classifiers_may_differ_on_other_rows():
    y = np.array([0.0] * 60 + [1.0] * 40)
    one, two = np.where(y > 0, 0.9, 0.1), np.where(y > 0, 0.6, 0.2)
    share = exact(0, 100)[1]
    found = paired_bootstrap(y, one, two, "accuracy", n=40)
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-share), pytest.approx(share))
    of_class = exact(0, 40)[1]
    for name in ("recall", "precision"):
        found = paired_bootstrap(y, one, two, name, n=40)
        assert (found.value, found.low, found.high) == (0.0, pytest.approx(-of_class), pytest.approx(of_class)), name
    # As many rows as positives that one model alone finds.
    found, relative = paired_bootstrap(y, one, two, "f1", n=40), share * 100 / 40
    assert found.high == -found.low == pytest.approx(2 * relative / (1 + relative))
    found = paired_bootstrap(y, one, two, "roc_auc", n=40)
    assert found.high == -found.low == pytest.approx(relative)


def test_more_rows_without_a_difference_say_more():
    widths = []
    for rows in (50, 500, 5000):
        y = np.tile([0.0, 1.0], rows // 2)
        widths.append(paired_bootstrap(y, y, y, "accuracy", n=20).high)
    assert widths == [pytest.approx(exact(0, rows)[1]) for rows in (50, 500, 5000)]


def test_two_regressions_without_a_difference():
    y = np.arange(101.0)
    same = y + np.tile([3.0, -3.0], 51)[:101]
    share, span = exact(0, 101)[1], max(same.max(), y.max()) - min(same.min(), y.min())
    found = paired_bootstrap(y, same, same, "mae", n=40)
    assert (found.value, found.low, found.high) == (0.0, pytest.approx(-share * span), pytest.approx(share * span))
    found = paired_bootstrap(y, same, same, "rmse", n=40)
    lost = np.sqrt((1 - share) * 9 + share * span**2) - np.sqrt((1 - share) * 9)
    assert (found.low, found.high) == (pytest.approx(-lost), pytest.approx(lost))


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(name for name in METRICS if "binary" in METRICS[name].tasks)),
    seed=st.integers(0, 10**6),
    rows=st.integers(8, 40),
)
def test_the_interval_contains_what_other_rows_may_show(name, seed, rows):
    """Two models alike on a sample; in the population as many rows as the sample leaves room for set them apart."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.tile([0.0, 1.0], rows))
    scores = np.clip(0.5 + (y - 0.5) * rng.uniform(-0.2, 1.0, len(y)), 0.0, 1.0)
    found = paired_bootstrap(y, scores, scores, name, n=20)
    assert found.low < 0 < found.high
    assert found.low == pytest.approx(-found.high)
    # Per row, on as many rows as there may be: one model right and sure, the other wrong and sure.
    copies = 20
    truth, alike = np.tile(y, copies), np.tile(scores, copies)
    unlike = rng.permutation(len(truth))[: int(room(len(y), 0.95) * len(truth))]
    good, bad = alike.copy(), alike.copy()
    good[unlike], bad[unlike] = truth[unlike], 1 - truth[unlike]
    assert abs(score(name, truth, good) - score(name, truth, bad)) <= found.high + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 200))
def test_medians_of_two_equal_regressions(seed, rows):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=rows)
    scores = y + rng.normal(size=rows)
    found = paired_bootstrap(y, scores, scores, "median_ae", n=20)
    assert found.low < 0 < found.high
