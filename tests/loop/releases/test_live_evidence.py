"""Live evidence: which logged rows count, when there are enough, and what the comparison says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.loop import Canary
from everloop.loop.releases.live_evidence import live_evidence
from everloop.packages import build_package
from everloop.prediction_log.prediction_log import input_column
from everloop.records import Decision, Release
from everloop.registry import load_model, register
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = ("distance", "carrier", "wind", "weekend")
TABLE = sample_table(600, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three versions of `m`: of 400 rows, of 400 other rows, and of rows whose labels mean nothing."""
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "store") as opened:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        models = [
            train_sample(features=FEATURES),
            train_sample(features=FEATURES, seed=5),
            train_sample(features=("seats",)),
        ]
        for model in models:
            built = build_package(model, store=opened, sample=sample_table(100))
            register(opened, "m", built)
        yield opened


def logged(store, version, rows, *, at=BEGAN + timedelta(hours=1), features=FEATURES):
    """Rows of the prediction log that one version has answered, with their labels."""
    actual = rows["late"].cast(pl.Float64)
    return rows.select(pl.col(name).alias(input_column(name)) for name in features).with_columns(
        version=pl.lit(version), score=pl.Series(load_model(store, version).predict(rows)), actual=actual,
        actual_text=rows["late"].cast(pl.String), event_at=pl.lit(at),
    )  # fmt: skip


@pytest.fixture
def evidence(store, monkeypatch):
    """A function that compares `m@1` with a candidate on a log."""

    def compare(*parts, candidate="m@2", least_labels=100, metric="roc_auc", steps=((BEGAN, 10.0),), margin=0.01,
                least_days=1):  # fmt: skip
        log = pl.concat(parts, how="diagonal")
        monkeypatch.setattr("everloop.prediction_log.read_labelled", lambda *_, **__: log.lazy())
        decisions = tuple(
            Decision(at=at, action="start" if at == BEGAN else "advance", percent=percent, reason="")
            for at, percent in steps
        )
        release = replace(
            store.new(Release, endpoint="e", candidate=candidate, previous="m@1", steps=(10, 50, 100)),
            created_at=BEGAN, decisions=decisions,
        )  # fmt: skip
        canary = Canary(least_labels=least_labels, margin=margin, least_days=least_days)
        return live_evidence(store, release, "m@1", canary, metric)

    return compare


def test_both_versions_score_the_rows_of_both(store, evidence):
    found = evidence(logged(store, "m@1", TABLE.head(400)), logged(store, "m@2", TABLE.tail(200)))
    assert found.evidence["rows"] == 600
    assert found.evidence["answered_by_canary"] == 200
    assert found.evidence["champion"] == "m@1"
    assert found.outcome in ("pass", "undecided"), "two models of the same kind"
    own, other = (load_model(store, version).predict(TABLE) for version in ("m@2", "m@1"))
    assert found.evidence["gain"] == pytest.approx(roc_auc(own) - roc_auc(other), abs=1e-9)


def roc_auc(scores):
    from everloop.training.metrics import score

    return score("roc_auc", TABLE["late"].to_numpy().astype(float), scores)


def test_which_version_answered_does_not_matter_for_the_comparison(store, evidence):
    by_champion = evidence(logged(store, "m@1", TABLE))
    by_canary = evidence(logged(store, "m@2", TABLE))
    assert by_champion.evidence["gain"] == pytest.approx(by_canary.evidence["gain"])
    assert (by_champion.evidence["answered_by_canary"], by_canary.evidence["answered_by_canary"]) == (0, 600)


def test_a_useless_candidate_fails(store, evidence):
    columns = (*FEATURES, "seats")
    found = evidence(logged(store, "m@1", TABLE, features=columns), candidate="m@3")
    assert (found.outcome, found.evidence["rows"]) == ("fail", 600)
    assert found.evidence["gain"] < -0.1


def test_a_margin_tolerates_a_loss(store, evidence):
    columns = (*FEATURES, "seats")
    assert evidence(logged(store, "m@1", TABLE, features=columns), candidate="m@3", margin=0.9).outcome == "pass"


def test_by_default_a_proof_needs_the_rows_of_a_week(store, evidence):
    columns = (*FEATURES, "seats")
    one_day = logged(store, "m@1", TABLE, features=columns)
    found = evidence(one_day, candidate="m@3", margin=0.9, least_days=None)
    assert found.outcome == "undecided"
    assert "not worse by 0.9 so far, but that needs 7 days and the rows are of 1" in found.message
    week = one_day.with_columns(event_at=pl.col("event_at") + pl.duration(days=pl.int_range(pl.len()) % 7))
    assert evidence(week, candidate="m@3", margin=0.9, least_days=None).outcome == "pass"
    # A bad candidate is rolled back on its first day.
    assert evidence(one_day, candidate="m@3", least_days=None).outcome == "fail"


@pytest.mark.parametrize(("rows", "enough"), [(0, False), (99, False), (100, True), (101, True)])
def test_the_number_of_labels_that_is_needed(store, evidence, rows, enough):
    assert (evidence(logged(store, "m@1", TABLE).head(rows)) is not None) == enough


def test_rows_of_an_earlier_step_count_for_the_comparison_but_not_as_new(store, evidence):
    steps = ((BEGAN, 10.0), (BEGAN + timedelta(days=1), 50.0))
    before = logged(store, "m@1", TABLE.head(500))
    after = logged(store, "m@2", TABLE.tail(100), at=BEGAN + timedelta(days=1))
    for parts, fresh in (((before,), 0), ((before, after.head(99)), 99), ((before, after), 100)):
        found = evidence(*parts, steps=steps)
        assert (found.evidence["since_step"], found.evidence["rows"]) == (fresh, 500 + fresh)
        assert not found.evidence["ready"] or fresh >= 100


def test_predictions_without_a_label_do_not_count(store, evidence):
    unknown = pl.lit(None, dtype=pl.Float64)
    log = logged(store, "m@1", TABLE)
    assert evidence(log.head(99), log.tail(400).with_columns(actual=unknown)) is None
    assert evidence(log.head(200), log.tail(400).with_columns(actual=unknown)).evidence["rows"] == 200


def test_labels_of_a_single_class_cannot_be_compared(store, evidence):
    log = logged(store, "m@1", TABLE)
    assert evidence(log.filter(pl.col("actual") == 0)) is None


def test_scores_that_its_package_would_not_give_fail_the_canary(store, evidence):
    log = logged(store, "m@2", TABLE)
    found = evidence(log.with_columns(pl.when(pl.int_range(pl.len()) == 7).then(0.5).otherwise("score").alias("score")))
    assert found.outcome == "fail"
    assert "the canary's scores differ by" in found.message
    assert found.evidence["rows"] == 600
    assert found.evidence["largest_difference"] == pytest.approx(abs(log["score"][7] - 0.5))


def test_rounding_of_the_served_scores_is_tolerated(store, evidence):
    noise = np.random.default_rng(0).uniform(-1e-12, 1e-12, 600)
    log = logged(store, "m@2", TABLE).with_columns(pl.col("score") + pl.Series(noise))
    assert "gain" in evidence(log).evidence


def test_the_scores_of_the_champion_are_not_those_that_it_served(store, evidence):
    """It may have been another build of the champion; only the canary's own answers are compared with its package."""
    log = logged(store, "m@1", TABLE)
    assert evidence(log.with_columns(score=0.5)).evidence["gain"] == pytest.approx(evidence(log).evidence["gain"])


def test_versions_with_different_columns_are_measured_on_their_own_rows(store, evidence):
    champion = logged(store, "m@1", TABLE.head(300))
    canary = logged(store, "m@3", TABLE.tail(300), features=("seats",))
    found = evidence(champion, canary, candidate="m@3")
    assert found.evidence["paired"] is False
    assert found.evidence["answered_by"] == {"m@3": 300, "m@1": 300}
    assert found.outcome == "fail"
    assert evidence(champion, candidate="m@3") is None, "the canary has answered nothing"
    one_class = canary.filter(pl.col("actual") == 0)
    assert evidence(champion, one_class, candidate="m@3") is None


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "brier", "accuracy"])
def test_a_positive_gain_is_better_whatever_the_direction_of_the_metric(store, evidence, metric):
    columns = (*FEATURES, "seats")
    found = evidence(logged(store, "m@1", TABLE, features=columns), candidate="m@3", metric=metric)
    assert found.evidence["gain"] < 0
