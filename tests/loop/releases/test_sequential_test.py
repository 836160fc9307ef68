"""The test that decides a release: error rates by simulation of many streams, and power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from everloop.loop.releases.metric_influence import (
    MeasuredGain,
    ProofError,
    clustered_error,
    influence,
    measure_gain,
    measure_separate_gain,
    normal_equivalent,
)
from everloop.loop.releases.sequential_test import look
from everloop.loop.releases.spending_boundaries import boundaries
from everloop.training.intervals import delong_covariance
from everloop.training.metrics import score

RNG = np.random.default_rng(5)
LABELS = (RNG.uniform(size=800) < 0.3).astype(float)
OWN = 1 / (1 + np.exp(-(LABELS * 1.2 + RNG.normal(size=800) - 1)))
OTHER = 1 / (1 + np.exp(-(LABELS + RNG.normal(size=800) - 1)))


def gain(value, error, rows, freedom=1e6, units=1000):
    return MeasuredGain(value, error, freedom, 0.7, 0.7 - value, rows, units)


def test_the_error_of_an_area_is_that_of_delong():
    _, covariance = delong_covariance(LABELS, OWN, OTHER)
    expected = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = measure_gain("roc_auc", LABELS, OWN, OTHER)
    assert found.standard_error == pytest.approx(expected, rel=0.01)
    assert found.gain == pytest.approx(score("roc_auc", LABELS, OWN) - score("roc_auc", LABELS, OTHER))


@pytest.mark.parametrize("metric", ["log_loss", "brier", "accuracy"])
def test_the_error_of_a_mean_is_that_of_paired_differences(metric):
    found = measure_gain(metric, LABELS, OWN, OTHER)
    losses = {
        "log_loss": lambda p: -np.log(np.where(LABELS > 0, p, 1 - p)),
        "brier": lambda p: (p - LABELS) ** 2,
        "accuracy": lambda p: -((p >= 0.5) == LABELS).astype(float),
    }[metric]
    pairs = stats.ttest_rel(losses(OTHER), losses(OWN))
    assert found.gain / found.standard_error == pytest.approx(pairs.statistic, rel=1e-6)


@pytest.mark.parametrize("metric", ["rmse", "mae", "average_precision", "f1"])
def test_influence_values_predict_what_leaving_rows_out_changes(metric):
    labels = LABELS if metric in ("average_precision", "f1") else OTHER
    whole, moved = influence(metric, labels, OWN, np.arange(800) % 100)
    assert moved.sum() == pytest.approx(0, abs=1e-6)
    kept = np.arange(800) % 100 != 7
    without = score(metric, labels[kept], OWN[kept])
    assert whole - without == pytest.approx(moved[~kept].sum() / 792, abs=2e-4)


def test_rows_of_one_key_are_one_observation():
    moved = np.random.default_rng(1).normal(size=200)
    moved -= moved.mean()
    alone = clustered_error(moved, None, None, 200)
    repeated = clustered_error(np.repeat(moved, 5), np.repeat(np.arange(200), 5), None, 1000)
    assert repeated.value == pytest.approx(alone.value)
    assert repeated.units == 200


def test_days_that_differ_widen_the_error_and_days_that_do_not_hardly():
    rng = np.random.default_rng(2)
    days = np.repeat(np.arange(30), 50)
    same, shifted = rng.normal(size=1500), rng.normal(size=1500) + rng.normal(size=30)[days]
    plain = clustered_error(same - same.mean(), None, days, 1500)
    wide = clustered_error(shifted - shifted.mean(), None, days, 1500)
    assert plain.design_effect < 2
    assert wide.value == pytest.approx(math.sqrt(1 / 30 + 1 / 1500), rel=0.35)


@pytest.mark.parametrize("freedom", [5, 12, 40, 500])
def test_the_normal_equivalent_of_a_t_value(freedom):
    for t in (-3.5, -1.0, 0.3, 2.0, 4.5):
        assert normal_equivalent(t, freedom) == pytest.approx(stats.norm.isf(stats.t.sf(t, freedom)), abs=0.02)


def test_a_look_needs_new_rows_and_enough_of_them():
    assert not look(gain(0.5, 0.01, 20, units=20), ()).counted
    assert look(gain(0.5, 0.01, 1000), ()).counted
    again = look(gain(0.5, 0.01, 1010), (1000,))
    assert (again.counted, again.verdict) == (False, "open")
    assert not look(gain(math.nan, math.nan, 1000), ()).counted


def test_success_and_harm():
    assert look(gain(0.02, 0.005, 5000), ()).verdict == "success"
    assert look(gain(-0.04, 0.005, 1000), ()).verdict == "harm"
    assert look(gain(0.0, 0.01, 5000), (), rule="better").verdict == "open"
    early = look(gain(0.01, 0.006, 500), (), margin=0.01)
    assert (early.verdict, early.seems_harmless) == ("open", True)


def streams(shift, looks=60, rows=84, streams=4000, seed=0):
    """Estimates at daily looks of streams whose rows gain `shift` standard deviations; shape (streams, looks)."""
    rng = np.random.default_rng(seed)
    sums = np.cumsum(rng.normal(shift * rows, math.sqrt(rows), size=(streams, looks)), axis=1)
    return sums / (rows * np.arange(1, looks + 1))


def verdicts(means, rows=84, **rule):
    """The last verdict of each stream, with looks every day."""
    found = []
    for stream in means:
        looks, verdict = (), "open"
        for day, mean in enumerate(stream, 1):
            seen = look(gain(float(mean), 1 / math.sqrt(day * rows), day * rows), looks, **rule)
            looks, verdict = seen.looks, seen.verdict
            if verdict != "open":
                break
        found.append(verdict)
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "margin", "shift"), [("not_worse", 0.05, -0.05), ("better", 0.0, 0.0)])
def test_with_daily_looks_a_candidate_at_the_limit_is_rarely_promoted(rule, margin, shift):
    found = verdicts(streams(shift, streams=1500), rule=rule, margin=margin)
    assert (found == "success").mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.slow
def test_a_better_candidate_is_promoted_and_a_bad_one_rolled_back():
    # With the margin, a gain of 5 standard errors at the planned end.
    assert (verdicts(streams(0.02, streams=300), margin=0.05) == "success").mean() >= 0.97
    assert (verdicts(streams(-0.2, streams=300), margin=0.05) == "harm").mean() >= 0.99
    assert (verdicts(streams(0.0, streams=300), margin=0.05) == "harm").mean() <= 0.02


@given(error=st.floats(1e-4, 10), freedom=st.floats(2, 1e6), skewness=st.floats(-1.5, 1.5), deviations=st.floats(-5, 5))
def test_the_reach_of_a_proof_is_the_excess_that_it_just_proves(error, freedom, skewness, deviations):
    proof = ProofError(error, freedom, skewness)
    assert proof.deviations(proof.reach(deviations)) == pytest.approx(deviations, abs=1e-5)
    plain = ProofError(error, freedom)
    assert proof.deviations(error) <= plain.deviations(error), "the correction only ever asks for more"


@pytest.mark.slow
def test_a_proof_from_skewed_days_keeps_its_error():
    """Most days are a little better than average and some far worse, so a plain t value is too often large."""
    rng = np.random.default_rng(4)
    errors = {"plain": 0, "corrected": 0}
    for _ in range(3000):
        days = 1.0 - rng.exponential(size=30)
        found = clustered_error(np.repeat(days - days.mean(), 2), None, np.repeat(np.arange(30), 2), 60)
        t = days.mean() / found.proof.value
        errors["plain"] += normal_equivalent(t, found.proof.freedom) > stats.norm.isf(0.025)
        errors["corrected"] += found.proof.deviations(days.mean()) > stats.norm.isf(0.025)
    assert errors["plain"] / 3000 > 0.05
    assert errors["corrected"] / 3000 < 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("skewed", "effect"), [(False, 3.0), (True, 1.0), (True, 3.0)])
def test_with_daily_looks_days_that_differ_promote_no_more_candidates_at_the_limit(skewed, effect):
    """`effect`: the variance between days over that within days. Sums of 84 rows of 60 days."""
    rng = np.random.default_rng(7)
    streams, looks = 800, np.arange(3, 61)
    limits = boundaries([84 * day / 5000 for day in looks], 0.05, "late")
    spread = math.sqrt((effect - 1.0) / 84)
    promoted = 0
    for _ in range(streams):
        days = 1.0 - rng.gamma(4.0, 0.25, size=60) if skewed else rng.normal(0, 0.5, size=60)
        sums = 84 * spread * days / 0.5 + rng.normal(0, math.sqrt(84), size=60)
        for day, limit in zip(looks, limits, strict=True):
            seen = sums[:day] - sums[:day].mean()
            # Two rows a day with the same sum and the variance of 84 rows.
            within = np.repeat(seen / 2, 2) + np.tile([1.0, -1.0], day) * math.sqrt(84 / 2)
            proof = clustered_error(within * 2 * day / (84 * day), None, np.repeat(np.arange(day), 2), 84 * day).proof
            if proof.deviations(sums[:day].mean() / 84) > limit:
                promoted += 1
                break
    assert promoted / streams <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / streams)


def test_success_needs_the_days_that_are_declared():
    rng = np.random.default_rng(3)
    labels = (rng.uniform(size=3000) < 0.3).astype(float)
    good, bad = (1 / (1 + np.exp(-(labels * strength + rng.normal(size=3000)))) for strength in (1.6, 0.8))
    days = np.repeat(np.arange(6), 500)
    found = measure_gain("roc_auc", labels, good, bad, days=days)
    assert found.days == 6
    assert look(found, (), least_days=6, planned=2000).verdict == "success"
    assert look(found, (), least_days=7, planned=2000).verdict == "open"
    apart = measure_separate_gain("roc_auc", (labels, good, days), (labels, bad, days))
    assert apart.days == 6
    assert apart.error_of_proof.value >= found.error_of_proof.value
