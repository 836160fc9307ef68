"""Intervals compared with brute force and SciPy, and their coverage."""

import json

import numpy as np
import pytest
from scipy import stats

from everloop.errors import DataError, EmptySampleError
from everloop.training.intervals import (
    BUCKETS,
    bootstrap,
    delong,
    delong_covariance,
    interval,
    intervals,
    mid_ranks,
    paired_bootstrap,
    wilson,
)
from everloop.training.metrics import score


def sample(rows, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.4).astype(float)
    scores = rng.normal(y, 1.5)
    return y, np.round(scores) if ties else scores


def structural_components(y, scores):
    """DeLong's V10 and V01 by comparing every positive with every negative."""
    positive, negative = scores[y > 0], scores[y == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return wins.mean(axis=1), wins.mean(axis=0)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_the_definition(ties):
    y, a = sample(90, ties=ties)
    b = a + np.random.default_rng(1).normal(0, 1, 90)
    areas, covariance = delong_covariance(y, a, b)
    ups, downs = zip(structural_components(y, a), structural_components(y, b), strict=True)
    expected = np.cov(np.stack(ups)) / (y > 0).sum() + np.cov(np.stack(downs)) / (y == 0).sum()
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)
    np.testing.assert_allclose(areas, [score("roc_auc", y, a), score("roc_auc", y, b)])


def test_mid_ranks_are_scipys():
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(mid_ranks(values), stats.rankdata(values))


def test_delong_covers():
    # Normal scores one spread apart have an area of Phi(1/sqrt 2).
    rng = np.random.default_rng(3)
    true, hits = stats.norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(300):
        y = np.arange(120) % 3 == 0
        found = delong(y, rng.normal(y, 1.0))
        hits += found.low <= true <= found.high
    assert 0.91 <= hits / 300 <= 0.985


def test_delong_of_separated_classes_has_a_width():
    found = delong([0, 0, 0, 0, 1, 1, 1, 1], np.arange(8.0))
    assert (found.value, found.high) == (1.0, 1.0)
    # Four successes in four: Clopper and Pearson's lower end.
    assert found.low == pytest.approx(stats.binomtest(4, 4).proportion_ci(method="exact").low)
    turned = delong([1, 1, 1, 1, 0, 0, 0, 0], np.arange(8.0))
    assert (turned.value, turned.low, turned.high) == (0.0, 0.0, pytest.approx(1 - found.low))


@pytest.mark.parametrize("y", [[1, 1, 1], [1, 0, 0]])
def test_delong_needs_two_rows_of_each_class(y):
    found = delong(y, [0.1, 0.2, 0.3])
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert json.loads(json.dumps(found.to_dict()))["low"] is None


def test_bootstrap_error_is_the_analytic_one():
    rng = np.random.default_rng(0)
    y = rng.normal(size=800)
    scores = y + rng.normal(size=800)
    found = bootstrap(y, scores, "mae", n=1000)
    expected = np.abs(y - scores).std(ddof=1) / np.sqrt(800)
    assert found.standard_error == pytest.approx(expected, rel=0.1)
    assert found.low < found.value < found.high
    assert found == bootstrap(y, scores, "mae", n=1000)
    assert found != bootstrap(y, scores, "mae", n=1000, seed=1)


def test_bootstrap_agrees_with_scipys():
    y, scores = sample(300)
    ours = bootstrap(y, scores, "average_precision", n=800)
    theirs = stats.bootstrap(
        (y, scores),
        lambda a, b: score("average_precision", a, b),
        paired=True,
        vectorized=False,
        n_resamples=800,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.15)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.02)


def test_buckets_keep_the_spread_of_large_samples():
    y, scores = sample(3 * BUCKETS)
    drawn, exact = bootstrap(y, scores, "roc_auc", n=120), delong(y, scores)
    assert drawn.standard_error == pytest.approx(exact.standard_error, rel=0.25)


def test_interval_chooses_delong_only_for_two_classes():
    y, scores = sample(100)
    assert interval(y, scores, "roc_auc").method == "delong"
    assert interval(y, scores, "average_precision", n=20).method == "bootstrap"
    assert interval(y, np.stack([1 - scores, scores], axis=1), "roc_auc", n=20).method == "bootstrap"
    assert interval(y, scores, "accuracy").method == "wilson"
    with pytest.raises(EmptySampleError):
        interval([], [], "roc_auc")


def test_several_at_once_are_each_alone():
    y, scores = sample(200)
    chances = 1 / (1 + np.exp(-scores))
    names = ["f1", "roc_auc", "log_loss"]
    together = intervals(y, chances, names, n=60, seed=4)
    assert list(together) == names
    assert together == {name: interval(y, chances, name, n=60, seed=4) for name in names}
    assert together["f1"] == bootstrap(y, chances, "f1", n=60, seed=4)


def test_paired_difference_is_sharper_than_two_intervals():
    y, a = sample(600)
    b = a + np.random.default_rng(5).normal(0, 0.2, 600)
    found = paired_bootstrap(y, a, b, "roc_auc")
    assert found.value == pytest.approx(score("roc_auc", y, a) - score("roc_auc", y, b))
    assert found.standard_error < 0.3 * delong(y, a).standard_error
    _, spread = delong_covariance(y, a, b)
    expected = np.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    assert found.standard_error == pytest.approx(expected, rel=0.15)


def test_the_interval_of_a_difference_is_students():
    y, a = sample(60)
    b = a + np.random.default_rng(5).normal(0, 0.5, 60)
    rarest = min(y.sum(), len(y) - y.sum())
    for metric, labels, freedom in (("roc_auc", y, rarest - 1), ("mae", a + y, 59)):
        found = paired_bootstrap(labels, a, b, metric)
        reach = stats.t.ppf(0.975, freedom) * found.standard_error
        assert (found.low, found.high) == (pytest.approx(found.value - reach), pytest.approx(found.value + reach))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["log_loss", "average_precision"])
def test_the_interval_of_a_difference_covers_it(metric):
    """Two equally good models of 36 rows. BCa intervals covered 84 and 86 of 100."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = (np.arange(36) < 18).astype(float)
        shared = rng.normal(0, 0.84, 36)
        one, two = (1 / (1 + np.exp(-1.3 * (2 * y - 1 + shared + rng.normal(0, 0.55, 36)))) for _ in range(2))
        found = paired_bootstrap(y, one, two, metric, n=300, seed=seed)
        covered += found.low <= 0 <= found.high
    assert covered / 200 >= 0.92


def test_paired_difference_keeps_the_metrics_sign():
    rng = np.random.default_rng(0)
    y = rng.normal(size=500)
    near, far = y + rng.normal(0, 0.5, 500), y + rng.normal(0, 1.0, 500)
    better = paired_bootstrap(y, near, far, "rmse")
    assert better.high < 0
    assert better.p_worse == 0.0
    worse = paired_bootstrap(y, far, near, "rmse")
    assert worse.low > 0
    assert worse.p_worse == 1.0
    assert worse.mean == pytest.approx(-better.mean)


def test_a_model_against_itself_is_a_tie():
    y, a = sample(200)
    found = paired_bootstrap(y, a, a, "roc_auc", n=50)
    assert (found.value, found.p_worse) == (0.0, 0.5)
    # On other rows it might not be one: Clopper and Pearson, and as many rows may all be of the smaller class.
    share = stats.binomtest(0, 200).proportion_ci(method="exact").high * 200 / min(y.sum(), (1 - y).sum())
    assert (found.low, found.high) == (pytest.approx(-share), pytest.approx(share))
    assert found.standard_error == pytest.approx(share / stats.norm.ppf(0.975))
    assert found.replicates == 50


def test_paired_difference_of_other_rows_is_refused():
    with pytest.raises(DataError, match="same rows"):
        paired_bootstrap([0, 1, 0], [0.1, 0.2, 0.3], [0.1, 0.2], "roc_auc")


def test_wilson_is_scipys():
    for hits, rows in ((0, 10), (3, 10), (10, 10), (250, 1000)):
        expected = stats.binomtest(hits, rows).proportion_ci(method="wilson")
        assert wilson(hits, rows) == pytest.approx((expected.low, expected.high))
    assert np.isnan(wilson(0, 0)).all()


def test_draws_that_are_kept_for_the_next_sample_are_those_of_a_new_one(monkeypatch):
    y, scores = sample(60)
    kept = [bootstrap(y, scores, "brier", seed=3) for _ in range(2)]
    monkeypatch.setattr("everloop.training.intervals._MOST_KEPT_DRAWS", 0)
    assert kept == [bootstrap(y, scores, "brier", seed=3)] * 2
    assert kept[0] != bootstrap(y, scores, "brier", seed=4)
