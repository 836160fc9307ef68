"""The additive model of the score: what it recovers, and that its parts add up."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.column_sketches import sketch_frame
from everloop.monitoring.score_effects import ScoreEffects, fit_score_effects


def inputs(seed: int, rows: int = 20_000, shift: float = 0.0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    common = generator.normal(size=rows)
    return pl.DataFrame(
        {
            "x": common + generator.normal(shift, 1.0, rows),
            "y": common + generator.normal(size=rows),
            "c": generator.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1] if not shift else [0.2, 0.7, 0.1]),
            "idle": generator.normal(size=rows),
        }
    )


def additive(frame: pl.DataFrame) -> pl.Series:
    bonus = frame["c"].replace_strict({"a": 0.0, "b": 2.0, "c": -1.0}, return_dtype=pl.Float64)
    return 3 * frame["x"] - frame["y"] + bonus


@pytest.fixture(scope="module")
def fitted() -> tuple[pl.DataFrame, ScoreEffects]:
    frame = inputs(1)
    bins, _ = choose_bins(frame, frame.columns)
    effects = fit_score_effects(frame, bins, additive(frame))
    assert effects is not None
    return frame, effects


def test_known_effects_are_recovered(fitted: tuple[pl.DataFrame, ScoreEffects]) -> None:
    frame, effects = fitted
    bins, _ = choose_bins(frame, frame.columns)
    labels, found = bins["c"].labels, effects.effects["c"]
    by_label = dict(zip(labels, found, strict=True))
    assert by_label["b"] - by_label["a"] == pytest.approx(2.0, abs=0.15)
    assert by_label["c"] - by_label["a"] == pytest.approx(-1.0, abs=0.15)
    assert by_label["missing"] == by_label["new"] == 0
    assert effects.explained > 0.97
    assert effects.deviation == pytest.approx(additive(frame).std(ddof=0))
    # Against ordinary least squares on the features themselves: effects of the middle bins rise by the coefficient.
    counts = sketch_frame(frame, bins)["x"].array()
    rising = np.array(effects.effects["x"])[2:-1]
    middles = np.array([frame["x"].sort()[int(share)] for share in counts[2:-1].cumsum() - counts[2:-1] / 2])
    slope = np.polyfit(middles[2:-2], rising[2:-2], 1)[0]
    assert slope == pytest.approx(3.0, rel=0.1)


def test_importance_is_the_share_in_the_spread(fitted: tuple[pl.DataFrame, ScoreEffects]) -> None:
    frame, effects = fitted
    bins, _ = choose_bins(frame, frame.columns)
    importance = effects.importance(sketch_frame(frame, bins))
    assert sum(importance.values()) == pytest.approx(1.0)
    truth = {"x": 3 * 2**0.5, "y": 2**0.5, "c": float(additive(frame.with_columns(x=0.0, y=0.0)).std()), "idle": 0.0}
    total = sum(truth.values())
    assert importance == pytest.approx({name: value / total for name, value in truth.items()}, abs=0.03)


def test_movements_add_up_to_the_movement_of_the_score(fitted: tuple[pl.DataFrame, ScoreEffects]) -> None:
    frame, effects = fitted
    bins, _ = choose_bins(frame, frame.columns)
    moved = inputs(2, shift=0.3)
    reference, live = sketch_frame(frame, bins), sketch_frame(moved, bins)
    parts = effects.movement(reference, live)
    real = float(additive(moved).mean()) - float(additive(frame).mean())  # type: ignore[arg-type]
    assert sum(parts.values()) == pytest.approx(real, abs=0.1)
    # 'y' has not moved, though it is correlated with 'x', which has.
    assert parts["x"] == pytest.approx(0.9, abs=0.1)
    assert parts["c"] == pytest.approx(2.0 * 0.4, abs=0.08)
    assert parts["y"] == pytest.approx(0.0, abs=0.06)
    assert parts["idle"] == pytest.approx(0.0, abs=0.03)
    same = effects.movement(reference, reference)
    assert same == pytest.approx(dict.fromkeys(same, 0.0))


def test_features_that_a_window_lacks_have_no_part(fitted: tuple[pl.DataFrame, ScoreEffects]) -> None:
    frame, effects = fitted
    bins, _ = choose_bins(frame, ["x", "c"])
    sketches = sketch_frame(frame, bins)
    assert set(effects.movement(sketches, {"x": sketches["x"]})) == {"x"}
    assert set(effects.importance(sketches)) == {"x", "c"}


def test_effects_survive_json(fitted: tuple[pl.DataFrame, ScoreEffects]) -> None:
    _, effects = fitted
    assert ScoreEffects.from_json(json.loads(json.dumps(effects.to_json()))) == effects


@pytest.mark.parametrize(
    "score",
    [
        [0.1] * 50,
        ["yes", "no"] * 25,
        [None] * 50,
        [float("nan")] * 49 + [1.0],
        [1e308, -1e308] * 25,
        [float("inf"), 0.0] + [float("nan")] * 48,
    ],
    ids=["constant", "text", "null", "one number", "too large", "infinite"],
)
def test_scores_that_do_not_vary_as_numbers_have_no_effects(score: list[object]) -> None:
    frame = pl.DataFrame({"x": np.arange(50.0)})
    bins, _ = choose_bins(frame, ["x"])
    assert fit_score_effects(frame, bins, pl.Series(score)) is None


def test_numbers_in_texts_and_a_few_bad_values_are_fitted() -> None:
    frame = pl.DataFrame({"x": np.arange(50.0)})
    bins, _ = choose_bins(frame, ["x"])
    score = pl.Series([str(value) for value in range(48)] + ["inf", "?"])
    effects = fit_score_effects(frame, bins, score)
    assert effects is not None
    assert effects.deviation == pytest.approx(np.arange(48).std())
    assert np.isfinite(effects.effects["x"]).all()


def test_without_features_nothing_is_explained() -> None:
    effects = fit_score_effects(pl.DataFrame({"x": [1.0, 2.0]}), {}, pl.Series([0.0, 1.0]))
    assert effects is not None
    assert (effects.effects, effects.explained) == ({}, 0.0)
    assert effects.importance({}) == {}
