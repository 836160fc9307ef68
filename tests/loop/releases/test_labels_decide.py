"""Gates and rollouts compare the labels that models predict, not their scores with a threshold of one half."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

from everloop.loop import Canary
from everloop.loop.comparison.champions import ComparedVersion, score_holder
from everloop.loop.gates.gate_checks import judge
from everloop.loop.gates.gate_declarations import NotWorseThan
from everloop.loop.gates.gate_protocol import GateContext
from everloop.loop.releases.live_evidence import live_evidence
from everloop.prediction_log.prediction_log import input_column
from everloop.records import Decision
from everloop.registry import get_version, load_model, save_model
from everloop.stores import open_store
from everloop.training.metrics import score

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores import Store

LABELS = ("accuracy", "f1", "recall")
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A weak champion `returns@1`, and `returns@2` with much better scores but a bad threshold for its labels."""
    folder: Path = tmp_path_factory.mktemp("duel")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "store") as opened:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        known = rows(1000, 0)
        for column, threshold in (("strong", 0.5), ("weak", 0.9999)):
            # Each model can only learn from one column, because the other one is replaced by noise.
            noise = pl.Series(column, np.random.default_rng(2).normal(size=known.height))
            inputs = known.with_columns(noise).select("weak", "strong").to_pandas()
            model = FixedThresholdClassifier(LogisticRegression(), threshold=threshold)
            save_model(model.fit(inputs, known["returned"].to_list()), "returns", inputs, store=opened)
        yield opened


def rows(count: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    returned = rng.uniform(size=count) < 0.5
    weak, strong = (returned * apart + rng.normal(size=count) for apart in (1.0, 3.0))
    return pl.DataFrame({"weak": weak, "strong": strong, "returned": np.where(returned, "yes", "no")})


TEST = rows(600, 1)
ACTUAL = (TEST["returned"] == "yes").to_numpy().astype(float)


def gain_of_labels(store: Store, metric: str) -> float:
    """How much better `returns@2` is than `returns@1`, by their predicted labels."""
    predicted = [load_model(store, key).predict_labels(TEST) for key in ("returns@2", "returns@1")]
    own, other = (score(metric, ACTUAL, np.array([float(label == "yes") for label in one or ()])) for one in predicted)
    return own - other


def gain_of_scores(store: Store, metric: str) -> float:
    """How much better `returns@2` is than `returns@1`, by their scores."""
    own, other = (score(metric, ACTUAL, load_model(store, key).predict(TEST)) for key in ("returns@2", "returns@1"))
    return own - other


def gate_input(store: Store, champion: ComparedVersion) -> GateContext:
    candidate = load_model(store, "returns@2")
    scores, places = candidate.answer_frame(TEST)
    return GateContext(
        rows=TEST,
        labels=ACTUAL,
        scores=scores,
        champions={"champion": champion},
        metric="accuracy",
        task="binary",
        predict=candidate.predict,
        features=candidate.input_names,
        places=places,
    )


@pytest.mark.parametrize("metric", LABELS)
def test_the_gate_compares_predicted_labels(store: Store, metric: str) -> None:
    candidate, holder = load_model(store, "returns@2"), get_version(store, "returns@1")
    predictions = candidate.answer_frame(TEST)
    champion = score_holder(store, holder, candidate, TEST, ACTUAL, predictions, target="returned", key=None)
    by_labels = judge(NotWorseThan(metric=metric), gate_input(store, champion))
    assert gain_of_scores(store, metric) > 0.05
    assert by_labels.evidence["gain"] == pytest.approx(gain_of_labels(store, metric))
    assert by_labels.evidence["gain"] < -0.05
    assert by_labels.outcome == "fail"
    # Metrics of scores still compare the scores.
    by_scores = judge(NotWorseThan(metric="roc_auc"), gate_input(store, champion))
    assert by_scores.outcome == "pass"


def test_the_gate_compares_predicted_labels_on_different_rows(store: Store) -> None:
    own = float(np.mean([label == true for label, true in zip(load_model(store, "returns@2").predict_labels(TEST) or (),
                                                              TEST["returned"], strict=True)]))  # fmt: skip
    metrics = {"accuracy": {"value": 0.65, "low": 0.62, "high": 0.68}}
    champion = ComparedVersion("returns@1", why="no reason", metrics=metrics)
    outcome = judge(NotWorseThan(), gate_input(store, champion))
    assert outcome.evidence["candidate_value"] == pytest.approx(own)
    assert outcome.outcome == "fail"


def logged(
    store: Store, version: str, part: pl.DataFrame, *, names: tuple[str, ...] = ("weak", "strong")
) -> pl.DataFrame:
    """Return predictions of one version as in the prediction log, with their labels."""
    scores, places = load_model(store, version).answer_frame(part)
    actual = (part["returned"] == "yes").cast(pl.Float64)
    return part.select(pl.col(name).alias(input_column(name)) for name in names).with_columns(
        version=pl.lit(version), score=pl.Series(scores), predicted=pl.Series(places, dtype=pl.Float64), actual=actual,
        actual_text=part["returned"], event_at=pl.lit(BEGAN + timedelta(hours=1)),
    )  # fmt: skip


def live(store: Store, log: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setattr("everloop.prediction_log.read_labelled", lambda *_, **__: log.lazy())
    started = Decision(at=BEGAN, action="start", percent=20, reason="")
    release = SimpleNamespace(
        endpoint="returns", candidate="returns@2", created_at=BEGAN, decisions=(started,), looks=()
    )
    outcome = live_evidence(store, release, "returns@1", Canary(least_labels=100), "accuracy")
    assert outcome is not None
    return {"outcome": outcome.outcome, **outcome.evidence}


def test_a_rollout_compares_predicted_labels(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pl.concat([logged(store, "returns@1", TEST.head(400)), logged(store, "returns@2", TEST.tail(200))])
    found = live(store, log, monkeypatch)
    assert found["rows"] == 600
    assert found["gain"] == pytest.approx(gain_of_labels(store, "accuracy"))
    assert found["outcome"] == "fail"


def test_a_rollout_compares_the_labels_that_were_served(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pl.concat([logged(store, "returns@1", TEST.head(400)), logged(store, "returns@2", TEST.tail(200))])
    # The served labels differ from those of the package. Clients received the served ones.
    right = log.with_columns(predicted=pl.when(pl.col("version") == "returns@2").then("actual").otherwise("predicted"))
    found = live(store, right, monkeypatch)
    predicted = [label == "yes" for label in load_model(store, "returns@2").predict_labels(TEST.head(400)) or ()]
    correct = int((np.array(predicted) == ACTUAL[:400]).sum()) + 200
    assert found["candidate_value"] == pytest.approx(correct / 600)


def test_a_rollout_compares_predicted_labels_on_different_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.loop.releases.live_evidence.has_all_inputs", lambda *_: pl.lit(value=False))
    log = pl.concat([logged(store, "returns@1", TEST.head(400)), logged(store, "returns@2", TEST.tail(200))])
    found = live(store, log, monkeypatch)
    assert found["paired"] is False
    predicted = [label == "yes" for label in load_model(store, "returns@2").predict_labels(TEST.tail(200)) or ()]
    assert found["candidate_value"] == pytest.approx(float((np.array(predicted) == ACTUAL[400:]).mean()))
    # 2.3 standard errors at the first look are no proof yet: later looks are paid for.
    assert found["gain"] == pytest.approx(found["candidate_value"] - found["champion_value"])
    assert found["outcome"] == "undecided"
