"""AutoTrain: budget, seed, latency limit, choice of the model, and errors for unsuitable data."""

import json
import pickle
import time

import numpy as np
import polars as pl
import pytest

from everloop.errors import NotFoundError, TrainingError, UsageError
from everloop.training import AutoTrain, Recipe, Trained, evaluate, fit_recipe
from everloop.training.metrics import score


def table(rows=1500, seed=0, curved=True):
    """A target that trees can learn and lines cannot (curved), or both can."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=rows), rng.normal(size=rows)
    kind = rng.integers(0, 3, rows)
    signal = (a * b * 3 if curved else a + b) + rng.normal(0, 0.3, rows)
    return pl.DataFrame(
        {
            "a": a,
            "b": b,
            "kind": [("x", "y", "z")[k] for k in kind],
            "late": signal > 0.5,
            "grade": np.digitize(signal, [-1.0, 1.0]),
            "minutes": signal * 10,
        }
    )


FEATURES = ["a", "b", "kind"]
TRAIN, VALID, TEST = table(800), table(300, 1), table(1000, 2)


def train(target="late", **declared):
    declared = {"budget_s": 300, "trials": 3} | declared
    return AutoTrain(**declared).fit(TRAIN, VALID, target=target, features=FEATURES)


@pytest.fixture(scope="module")
def trained():
    return train()


def test_it_finds_a_good_model(trained):
    assert isinstance(trained, Trained)
    assert trained.task == "binary"
    assert trained.classes == [False, True]
    assert score("roc_auc", TEST["late"], trained.predict_scores(TEST)) > 0.9
    assert trained.best["candidate"] == "lightgbm"
    assert trained.best["chosen"] == "best roc_auc"


def test_the_result_records_the_search(trained):
    told = json.loads(json.dumps(trained.to_dict()))
    assert told["features"] == {"a": "double", "b": "double", "kind": "string"}
    assert told["categories"] == {"kind": ["x", "y", "z"]}
    assert told["rows"] == {"train": 800, "valid": 300}
    assert [entry["candidate"] for entry in told["leaderboard"]].count("linear") >= 1
    values = [entry["value"] for entry in trained.leaderboard]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert sum(trained.importance.values()) == pytest.approx(1.0)
    assert list(trained.importance)[-1] == "kind"
    assert Recipe.from_dict(told["recipe"]) == trained.recipe


def test_the_same_seed_gives_the_same_model(trained):
    again = train()
    assert again.model.to_files() == trained.model.to_files()
    assert again.recipe == trained.recipe
    strip = [{k: v for k, v in entry.items() if k != "seconds"} for entry in trained.leaderboard]
    assert strip == [{k: v for k, v in entry.items() if k != "seconds"} for entry in again.leaderboard]


@pytest.mark.slow
def test_the_number_of_threads_does_not_matter():
    only = {"candidates": ("lightgbm",), "trials": 1}
    assert train(threads=2, **only).model.to_files() == train(threads=1, **only).model.to_files()


def test_a_recipe_gives_the_same_model_without_searching(trained):
    again = fit_recipe(trained.recipe, pl.concat([TRAIN, VALID]), target="late", features=FEATURES)
    assert again.model.to_files() == trained.model.to_files()
    assert again.rows == {"train": 1100, "valid": 0}


def test_without_refit_the_judged_model_is_kept():
    kept = train(refit=None)
    assert score("roc_auc", VALID["late"], kept.predict_scores(VALID)) == pytest.approx(kept.best["value"], abs=1e-12)


def test_the_result_survives_a_pickle(trained):
    again = pickle.loads(pickle.dumps(trained))  # noqa: S301
    assert again.predict_scores(TEST).tobytes() == trained.predict_scores(TEST).tobytes()
    assert again.to_dict() == trained.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("metric", [None, "mae", "r2"])
def test_numbers(metric):
    trained = train("minutes", metric=metric, trials=2)
    assert (trained.task, trained.classes, trained.metric) == ("regression", [], metric or "rmse")
    assert score("r2", TEST["minutes"], trained.predict_scores(TEST)) > 0.75


@pytest.mark.parametrize("metric", [None, "log_loss", "accuracy"])
def test_classes(metric):
    trained = train("grade", metric=metric, trials=2)
    assert (trained.task, trained.classes) == ("multiclass", [0, 1, 2])
    assert score("roc_auc", TEST["grade"], trained.predict_scores(TEST)) > 0.85


@pytest.mark.parametrize("candidate", ["lightgbm", "linear"])
@pytest.mark.parametrize("target", ["late", "grade", "minutes"])
def test_each_candidate_alone(candidate, target):
    straight = table(1200, 5, curved=False)
    trained = AutoTrain(candidates=(candidate,), trials=1, budget_s=300).fit(straight, target=target, features=FEATURES)
    assert trained.model.format == candidate
    fresh = table(800, 6, curved=False)
    metric = "r2" if target == "minutes" else "roc_auc"
    assert score(metric, fresh[target], trained.predict_scores(fresh)) > 0.9


def test_the_simpler_of_equals_wins():
    rows = table(1500, 3, curved=False)
    trained = AutoTrain(trials=3, budget_s=300).fit(rows, target="late", features=FEATURES)
    assert trained.model.format == "linear"
    assert trained.best["candidate"] == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("budget_s", [1.0, 2.5])
def test_the_search_keeps_to_its_budget(budget_s):
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({f"f{k}": rng.normal(size=12_000) for k in range(8)})
    rows = rows.with_columns(late=(pl.col("f0") * pl.col("f1") + pl.Series(rng.normal(size=12_000))) > 0)
    AutoTrain(budget_s=1, trials=2).fit(rows[:200], target="late")  # imports are paid once a process
    began = time.process_time()
    # Processor time, because the machine may be busy with other work.
    trained = AutoTrain(budget_s=budget_s, threads=1).fit(rows, target="late")
    # The trial that runs when the budget ends may finish.
    longest_s = max(entry["seconds"] for entry in trained.leaderboard)
    assert time.process_time() - began < 1.25 * budget_s + longest_s
    assert trained.seconds > 0.3 * budget_s
    assert {entry["candidate"] for entry in trained.leaderboard} == {"linear", "lightgbm"}


def test_a_tiny_budget_still_gives_a_model():
    trained = train(budget_s=0.001, trials=None)
    assert np.isfinite(trained.predict_scores(TEST)).all()
    assert len(trained.leaderboard) == 2


def test_the_latency_limit_excludes_slow_models():
    quick = train(latency_ms=1000.0, trials=2)
    assert all(entry["eligible"] for entry in quick.leaderboard if "eligible" in entry)
    with pytest.raises(TrainingError, match="No model predicts a row within 1e-06 ms; the fastest took"):
        train(latency_ms=1e-6, trials=2)


def test_the_listener_receives_every_trial():
    heard = []
    trained = AutoTrain(trials=3, budget_s=300).fit(
        TRAIN, VALID, target="late", features=FEATURES, listener=heard.append
    )
    assert sorted(entry["value"] for entry in heard) == sorted(entry["value"] for entry in trained.leaderboard)


def test_validation_rows_are_drawn_in_proportion():
    rare = TRAIN.with_columns(late=pl.int_range(pl.len()) % 100 == 0)
    trained = AutoTrain(trials=2, budget_s=300).fit(rare, target="late", features=FEATURES)
    assert trained.rows == {"train": 640, "valid": 160}


def test_lazy_and_arrow_tables_are_accepted(trained):
    lazy = AutoTrain(trials=3, budget_s=300).fit(TRAIN.lazy(), VALID.to_arrow(), target="late", features=FEATURES)
    assert lazy.model.to_files() == trained.model.to_files()


def test_rows_without_a_target_are_left_out_and_counted(trained):
    holes = pl.concat([TRAIN, TRAIN.head(30).with_columns(late=pl.lit(None, dtype=pl.Boolean))])
    found = AutoTrain(trials=3, budget_s=300).fit(holes, VALID, target="late", features=FEATURES)
    assert found.model.to_files() == trained.model.to_files()
    assert found.notes == ["30 of 830 training rows have no 'late' and were left out"]


def test_useless_columns_are_dropped_and_listed():
    rows = TRAIN.with_columns(same=pl.lit(1), empty=pl.lit(None, dtype=pl.Float64), tags=pl.lit([1]))
    found = AutoTrain(trials=1, budget_s=300).fit(rows, target="late", features=[*FEATURES, "same", "empty", "tags"])
    assert list(found.features) == FEATURES
    assert set(found.dropped) == {"same", "empty", "tags"}
    told = {one.column: one.reason for one in found.left_out}
    assert told == found.dropped
    assert told["empty"] == "every value is null"
    judged = evaluate(found, rows, "late")
    assert judged.left_out == found.left_out
    assert {"column": "same", "reason": "every row has the same value: 1"} in judged.to_dict()["left_out"]


def test_a_leak_is_noted():
    leaking = TRAIN.with_columns(arrived=pl.col("minutes"))
    found = AutoTrain(trials=2, budget_s=300).fit(leaking, target="late", features=["a", "arrived"])
    assert any("suspiciously good" in note for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "target", "features", "said"),
    [
        (TRAIN.head(30), "late", FEATURES, "30 labelled rows are too few"),
        (TRAIN.with_columns(late=pl.lit(value=True)), "late", FEATURES, "one value only \\(True"),
        (TRAIN.with_columns(late=pl.lit(None)), "late", FEATURES, "null in all 800 training rows"),
        (TRAIN, "lat", FEATURES, "no column 'lat'.*Did you mean 'late'"),
        (TRAIN, "late", ["kin"], "no feature column 'kin'.*kind"),
        (TRAIN, "late", ["late"], "cannot be a feature"),
        (TRAIN, "late", [], "no column to learn from"),
        (TRAIN.with_columns(a=pl.lit(1)), "late", ["a"], "No feature column is left.*every row has the same value: 1"),
        (TRAIN, "a", ["b"], None),
    ],
)
def test_data_without_information_is_an_error(rows, target, features, said):
    auto = AutoTrain(trials=1, budget_s=300)
    if said is None:
        assert auto.fit(rows, target=target, features=features).task == "regression"
        return
    with pytest.raises(TrainingError, match=said):
        auto.fit(rows, target=target, features=features)


def test_one_class_on_a_side():
    auto = AutoTrain(trials=1, budget_s=300)
    with pytest.raises(TrainingError, match="validation rows have one 'late' only"):
        auto.fit(TRAIN, VALID.filter(pl.col("late")), target="late", features=FEATURES)
    with pytest.raises(TrainingError, match="training rows have no 'late' of False"):
        auto.fit(TRAIN.filter(pl.col("late")), VALID, target="late", features=FEATURES)
    with pytest.raises(TrainingError, match="validation rows have no column 'kind'"):
        auto.fit(TRAIN, VALID.drop("kind"), target="late", features=FEATURES)


def test_invalid_settings_are_errors():
    with pytest.raises(UsageError, match="budget_s is 0"):
        AutoTrain(budget_s=0)
    with pytest.raises(UsageError, match=r"no candidate 'forest'\. Candidates: lightgbm, linear"):
        AutoTrain(candidates=("forest",))
    with pytest.raises(UsageError, match="no candidates"):
        AutoTrain(candidates=())
    with pytest.raises(UsageError, match="There is no metric 'auc'"):
        AutoTrain(metric="auc")
    with pytest.raises(UsageError, match="trials is -1"):
        AutoTrain(trials=-1)
    with pytest.raises(UsageError, match="roc_auc is not for regression targets"):
        train("minutes", metric="roc_auc")
    with pytest.raises(NotFoundError):
        fit_recipe(Recipe(algorithm="forest", task="binary"), TRAIN, target="late")


def test_scores_and_metrics_are_about_the_positive_class():
    named = [rows.with_columns(late=pl.when("late").then(pl.lit("late")).otherwise(pl.lit("on time")))
             for rows in (TRAIN, VALID, TEST)]  # fmt: skip
    found = {}
    for positive in (None, "late"):
        settings = AutoTrain(budget_s=300, trials=1, candidates=("linear",), positive=positive)
        made = settings.fit(*named[:2], target="late", features=FEATURES)
        again = fit_recipe(made.recipe, pl.concat(named[:2]), target="late", features=FEATURES)
        assert again.classes == made.classes
        found[positive] = made, evaluate(made, named[2], target="late").metrics
    plain, chosen = found[None], found["late"]
    assert (plain[0].classes, chosen[0].classes) == (["late", "on time"], ["on time", "late"])
    assert Recipe.from_dict(json.loads(json.dumps(chosen[0].recipe.to_dict()))) == chosen[0].recipe
    assert "positive" not in plain[0].recipe.to_dict()
    assert chosen[1]["roc_auc"].value == pytest.approx(plain[1]["roc_auc"].value, abs=1e-6)
    share = float((named[2]["late"] == "late").mean())
    assert chosen[1]["average_precision"].value < plain[1]["average_precision"].value
    assert chosen[1]["average_precision"].value > share


def test_a_search_in_a_step_reports_its_progress(tmp_path):
    import everloop as el
    from everloop.pipeline import Graph, Listener, run_graph
    from everloop.stores import open_store

    @el.step
    def train() -> float:
        rng = np.random.default_rng(0)
        x = rng.normal(size=300)
        table = pl.DataFrame({"x": x, "y": (x + rng.normal(size=300) > 0).astype(int)})
        el.AutoTrain(metric="roc_auc", budget_s=20, trials=3, candidates=("linear",), seed=1).fit(table, target="y")
        return 1.0

    class Heard(Listener):
        def __init__(self):
            self.news = []

        def on_progress(self, name, progress):
            self.news.append(progress)

    heard = Heard()
    with open_store(tmp_path / "home") as store:
        run_graph(Graph.wire([train]), store, listener=heard)
    assert heard.news[0].note == "loading the libraries"
    assert {one.total for one in heard.news} == {20.0}
    assert "now linear" in heard.news[1].note
    assert heard.news[-1].note.startswith("3 trials, best roc_auc ")
    assert [one.done for one in heard.news] == sorted(one.done for one in heard.news)
