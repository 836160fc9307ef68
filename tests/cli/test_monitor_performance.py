"""`everloop monitor performance|coverage|compare|fairness|attribution` on an endpoint with logged labels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score

import everloop as el
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name
from everloop.records import EndpointRecord, Route
from everloop.stores import open_store

START = datetime(2024, 3, 4, tzinfo=UTC)


def _inputs(rows, seed):
    random = np.random.default_rng(seed)
    return pl.DataFrame({"age": random.normal(40, 9, rows), "city": random.choice(["oslo", "rome"], rows)})


@pytest.fixture
def log(everloop):
    """Six days with two versions: the second one is a shadow, and adds noise to its scores."""
    with open_store(".everloop") as store:
        store.simulate(START + timedelta(days=8))
        train = _inputs(300, 0).to_pandas()[["age"]]
        for number in range(2):
            model = LogisticRegression(C=1 + number).fit(train, (train["age"] > 40).astype(int))
            version = el.save_model(model, "late", example=train, y=(train["age"] > 40).astype(int), store=store)
        store.records.put(
            store.new(EndpointRecord, name="late", model="late", routes=(Route(version="late@1", percent=100.0),))
        )
        rows, random = 1200, np.random.default_rng(7)
        inputs = _inputs(rows, 8)
        chance = 1 / (1 + np.exp(-(inputs["age"].to_numpy() - 40) / 5))
        actual = random.uniform(size=rows) < chance
        at = [START + timedelta(days=6 * share) for share in np.sort(random.uniform(size=rows))]
        for name, role, mark, noise in (("late@1", "champion", "", 0.0), ("late@2", "shadow", "~late@2", 2.0)):
            score = np.clip(chance * np.exp(-np.abs(noise * random.normal(size=rows))), 0.001, 0.999).round(3)
            frame = pl.DataFrame(
                {
                    "id": [f"r{n}-0{mark}" for n in range(rows)],
                    "event_at": at,
                    "arrived_at": at,
                    "version": name,
                    "role": role,
                    "entity": [f"k{n}" for n in range(rows)],
                    "score": score,
                    "label": ["1" if one > 0.5 else "0" for one in score],
                    "seconds": 0.001,
                    "input_age": inputs["age"],
                    "input_city": inputs["city"],
                }
            )
            store.tables.append(table_name(store, PREDICTIONS, "late"), frame)
            if not mark:
                first = frame.with_columns(actual=pl.Series(actual))
        told = first.filter(pl.int_range(pl.len()) % 4 != 3)
        labels = told.select(
            "entity",
            pl.col("event_at") + pl.duration(hours=2),
            (pl.col("event_at") + pl.duration(hours=2)).alias("arrived_at"),
            pl.lit(None, pl.Float64).alias("value"),
            pl.col("actual").cast(pl.Int8).cast(pl.String).alias("text"),
        )
        store.tables.append(table_name(store, LABELS, "late"), labels)
        assert version.key == "late@2"
        yield told


@pytest.mark.slow
def test_performance_by_period_is_that_of_scikit_learn(everloop, log):
    found = everloop("monitor", "performance", "late", "--every", "1d", "--json").json
    assert (len(found), sum(one["predictions"] for one in found)) == (6, 1200)
    for day, one in enumerate(found):
        part = log.filter(pl.col("event_at").dt.date() == (START + timedelta(days=day)).date())
        assert one["labelled"] == part.height
        assert one["value"] == pytest.approx(roc_auc_score(part["actual"], part["score"]), abs=2e-3)
        assert one["low"] < one["value"] < one["high"]
    accuracy = everloop("monitor", "performance", "late", "--metric", "accuracy", "--every", "1q", "--json").json
    assert accuracy[0]["value"] == pytest.approx(accuracy_score(log["actual"], log["score"] > 0.5))
    text = everloop("monitor", "performance", "late", "--every", "1d", "--since", "2024-03-06").out
    assert "2024-03-06" in text
    assert "2024-03-05" not in text


@pytest.mark.slow
def test_performance_by_slice_and_version(everloop, log):
    found = everloop("monitor", "performance", "late", "--every", "1q", "--by", "city", "--json").json
    assert {one["city"] for one in found} == {"oslo", "rome"}
    for one in found:
        part = log.filter(pl.col("input_city") == one["city"])
        assert one["value"] == pytest.approx(roc_auc_score(part["actual"], part["score"]))
    assert "oslo" in everloop("monitor", "performance", "late", "--every", "1q", "--by", "city").out
    (one,) = everloop("monitor", "performance", "late", "--every", "1q", "--version", "late@2", "--json").json
    assert (one["version"], one["labelled"]) == ("late@2", 900)
    assert one["value"] < 0.8


@pytest.mark.slow
def test_estimates_are_shown_beside_what_labels_say(everloop, log):
    found = everloop("monitor", "performance", "late", "--every", "1d", "--estimate", "--json").json
    assert len(found) in (3, 4)
    inside = [one["low"] <= one["realised"] <= one["high"] for one in found if one["realised"] is not None]
    assert sum(inside) >= len(inside) - 1 > 0
    assert "realised" in everloop("monitor", "performance", "late", "--every", "1d", "--estimate").out
    later = everloop("monitor", "performance", "late", "--estimate", "--learn-until", "2024-03-08", "--json").json
    assert later[0]["from"].startswith("2024-03-01")
    early = everloop("monitor", "performance", "late", "--estimate", "--learn-until", "2024-03-04T01:00")
    assert early.code != 0
    assert "until a later moment" in early.err


@pytest.mark.slow
def test_coverage_and_delay_of_labels(everloop, log):
    (one,) = everloop("monitor", "coverage", "late", "--every", "1q", "--json").json
    assert (one["predictions"], one["labelled"], one["coverage"]) == (1200, 900, 0.75)
    ages = everloop("monitor", "coverage", "late", "--by-age", "--json").json
    assert ages[0]["coverage"] in (0.0, 0.75)
    assert ages[-1]["coverage"] in (None, 0.75)
    assert "0.75" in everloop("monitor", "coverage", "late", "--every", "1q").out


@pytest.mark.slow
def test_versions_are_compared_on_the_same_rows(everloop, log):
    found = everloop("monitor", "compare", "late", "late@1", "late@2", "--json").json
    assert (found["paired"], found["champion_rows"], found["metric"]) == (True, 900, "roc_auc")
    assert found["champion_value"] == pytest.approx(roc_auc_score(log["actual"], log["score"]))
    assert found["high"] < 0
    assert "gain of the challenger" in everloop("monitor", "compare", "late", "late@1", "late@2").out
    assert everloop("monitor", "compare", "late", "late@1", "late@1").code == 2


@pytest.mark.slow
def test_groups_are_compared(everloop, log):
    found = everloop("monitor", "fairness", "late", "--by", "city", "--every", "1q", "--json").json
    rates = {(one["city"], one["measure"]): one["value"] for one in found}
    part = log.filter(pl.col("input_city") == "oslo", pl.col("actual"))
    assert rates["oslo", "true_positive_rate"] == pytest.approx((part["score"] > 0.5).mean())
    assert "true_positive_rate" in everloop("monitor", "fairness", "late", "--by", "city", "--every", "1q").out


@pytest.mark.slow
def test_importance_of_inputs(everloop, log):
    (one,) = everloop("monitor", "attribution", "late", "late@1", "--every", "1q", "--json").json
    assert (one["feature"], one["share"]) == ("age", 1.0)
    assert "age" in everloop("monitor", "attribution", "late", "late@1", "--every", "1q").out


@pytest.mark.slow
def test_bad_input_names_the_value(everloop, log):
    for words, problem in (
        (("performance", "late", "--by", "city", "--estimate"), "--by and --estimate cannot be combined"),
        (("performance", "late", "--learn-until", "2024-03-05"), "--learn-until needs --estimate"),
        (("performance", "late", "--since", "soon"), "--since 'soon' is not a day or a time"),
        (("performance", "late", "--by", "nothing"), "nothing"),
        (("performance", "late", "--estimate", "--metric", "nothing"), "nothing"),
        (("coverage", "nowhere"), "nowhere"),
        (("fairness", "late", "--by", "nothing"), "nothing"),
        (("attribution", "late", "late@9"), "late@9"),
        (("compare", "late", "late@1", "late@9"), "late@9"),
    ):
        result = everloop("monitor", *words)
        assert result.code in (2, 3, 4, 6), words
        assert problem in result.err, words
