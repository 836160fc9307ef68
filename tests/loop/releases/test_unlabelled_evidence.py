"""Evidence without labels: estimates, disagreement and the distribution of the scores, beside held-out rows."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from polars.io.plugins import register_io_source

from everloop.errors import EmptySampleError
from everloop.loop.comparison.champions import Pairs
from everloop.loop.releases import unlabelled_evidence
from everloop.loop.releases.unlabelled_evidence import UnlabelledEvidence, mixture_boundary
from everloop.training.class_decisions import ClassScores

ALARM = 0.001


def draw(rows, seed, *, task="binary", strength=1.5, champion=1.5, broken=None):
    """Labels, predictions of candidate and champion, and inputs. `broken` changes the candidate's input."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=rows)
    seen = signal if broken is None else broken(signal, rng)
    own, other = (x + rng.normal(scale=0.3, size=rows) for x in (seen, signal))
    inputs = pl.DataFrame({"signal": seen})
    if task == "regression":
        labels = signal + rng.normal(scale=0.5, size=rows)
        return Pairs(labels, ClassScores(own, None), ClassScores(other, None)), inputs
    labels = (rng.uniform(size=rows) < 1 / (1 + np.exp(-1.5 * signal))).astype(float)
    own, other = (1 / (1 + np.exp(-power * x)) for power, x in ((strength, own), (champion, other)))
    if task == "multiclass":
        own, other = (np.column_stack([0.7 * one, 0.3 * one, 1 - one]) for one in (own, other))
        labels = np.where(labels > 0, rng.integers(0, 2, rows), 2).astype(float)
        return Pairs(labels, *(ClassScores(one, one.argmax(axis=1)) for one in (own, other))), inputs
    return Pairs(labels, *(ClassScores(one, (one >= 0.5).astype(np.intp)) for one in (own, other))), inputs


def look(live, metric="roc_auc", task="binary", limit=-0.01, **held_out):
    known = UnlabelledEvidence(*draw(2000, 1, task=task, **held_out), metric, task)
    pairs, inputs = live
    return known.problem(pairs.candidate, pairs.holder, inputs, limit=limit, false_alarm=ALARM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric"),
    [("binary", "roc_auc"), ("binary", "log_loss"), ("multiclass", "log_loss"), ("regression", "rmse")],
)
def test_a_healthy_candidate_is_left_alone(task, metric):
    known = UnlabelledEvidence(*draw(2000, 1, task=task), metric, task)
    for seed in range(2, 8):
        pairs, inputs = draw(2000, seed, task=task)
        for rows in (200, 700, 2000):
            part = np.arange(rows)
            own, other = pairs.candidate.take(part), pairs.holder.take(part)
            assert known.problem(own, other, inputs[:rows], limit=-0.01, false_alarm=ALARM) is None


def test_requests_that_have_changed_are_not_the_candidates_fault():
    """Both versions get the same requests from another population."""
    known = UnlabelledEvidence(*draw(2000, 1), "roc_auc", "binary")
    rng = np.random.default_rng(5)
    shifted = 1.5 + 0.4 * rng.normal(size=1500)
    own, other = (1 / (1 + np.exp(-1.5 * (shifted + rng.normal(scale=0.3, size=1500)))) for _ in range(2))
    both = [ClassScores(one, (one >= 0.5).astype(np.intp)) for one in (own, other)]
    assert known.problem(*both, pl.DataFrame({"signal": shifted}), limit=-0.01, false_alarm=ALARM) is None


@pytest.mark.parametrize(
    ("task", "metric"), [("binary", "roc_auc"), ("multiclass", "log_loss"), ("regression", "rmse")]
)
@pytest.mark.parametrize(
    "broken",
    [lambda x, rng: rng.permutation(x), lambda x, rng: -x, lambda x, rng: 10 * x],
    ids=["shuffled", "sign", "unit"],
)
def test_a_candidate_whose_input_is_broken_is_found_by_its_disagreement(task, metric, broken):
    found = look(draw(500, 3, task=task, broken=broken), metric, task)
    assert found is not None
    assert found.evidence["guard"] in ("disagreement", "score distribution")
    assert found.evidence["evidence"] > 1 / ALARM


def test_scores_that_crowd_in_a_part_of_the_range():
    """The versions agreed little on the held-out rows, so only the distribution shows it."""
    known = UnlabelledEvidence(*draw(2000, 1, broken=lambda x, rng: rng.permutation(x)), "roc_auc", "binary")
    pairs, inputs = draw(600, 4)
    flat = np.full(600, 0.501) + np.linspace(0, 0.01, 600)
    crowded = ClassScores(flat, np.ones(600, dtype=np.intp))
    found = known.problem(crowded, pairs.holder, inputs, limit=-0.5, false_alarm=ALARM)
    assert found is not None
    assert found.evidence["guard"] == "score distribution"
    assert "of its held-out scores are" in found.reason


def test_an_estimate_that_is_clearly_worse():
    """The candidate is less certain on live rows. Its scores still move with the champion's."""
    held_out = draw(4000, 1)
    known = UnlabelledEvidence(*held_out, "log_loss", "binary")
    pairs, inputs = draw(2000, 6)
    faint = 0.5 + 0.35 * (pairs.candidate.scores - 0.5)
    weak = ClassScores(faint, (faint >= 0.5).astype(np.intp))
    known._far = 1.0  # as if the held-out rows had shown such disagreement
    known._ranges = (known._ranges[0], known._ranges[0])
    found = known._estimates(weak, pairs.holder, inputs, -0.01, ALARM)
    assert found is not None
    assert found.evidence["guard"] == "estimate"
    assert found.evidence["gain"] < -0.05
    assert known._estimates(pairs.candidate, pairs.holder, inputs, -0.01, ALARM) is None


def test_too_few_rows_decide_nothing():
    assert look(draw(199, 3, broken=lambda x, rng: -x)) is None
    with pytest.raises(EmptySampleError):
        UnlabelledEvidence(*draw(199, 1), "roc_auc", "binary")


def test_the_boundary_holds_at_any_number_of_looks():
    """Robbins' mixture: the probability of ever exceeding it is at most the error."""
    rng = np.random.default_rng(0)
    rows = np.arange(50, 5001, 50)
    sums = np.cumsum(rng.normal(0, math.sqrt(50), size=(20_000, len(rows))), axis=1)
    limits = np.array([mixture_boundary(int(count), 0.05) for count in rows])
    assert (sums / np.sqrt(rows) > limits).any(axis=1).mean() <= 0.05
    assert mixture_boundary(500, 0.05) == pytest.approx(math.sqrt(2 * (math.log(2) + 2 * math.log(20))))


def test_the_first_rows_of_a_step_are_not_looked_for_among_later_rows(monkeypatch):
    monkeypatch.setattr(unlabelled_evidence, "_FIRST", 20)
    began = datetime(2024, 1, 1, tzinfo=UTC)

    def answered(count, *, minute=0):
        arrived = [began + timedelta(minutes=minute + number) for number in range(-5, count)]
        return pl.DataFrame({"arrived_at": arrived, "id": [f"{minute}-{number:03}" for number in range(-5, count)]})

    log, read = answered(30), []

    def rows(with_columns, predicate, n_rows, batch_size):
        found = log if predicate is None else log.filter(predicate)
        read.append(found.height)
        yield found

    def first():
        lazy = register_io_source(rows, schema=log.schema, is_pure=False)
        found = unlabelled_evidence._first_rows(lazy, began, ("store", "release", began))
        assert found.equals(log.filter(pl.col("arrived_at") >= began).sort("arrived_at", "id").head(20))

    first()
    first()
    log = pl.concat([log, answered(40, minute=100)])
    first()
    assert read == [30, 20, 20]
    # Rows of another instance that arrive late, and rows that were removed.
    log = pl.concat([log, answered(10, minute=3)])
    first()
    log = log.filter(pl.col("arrived_at") >= began + timedelta(minutes=12))
    first()
    assert read[3] == 33
    assert read[-1] > 20
