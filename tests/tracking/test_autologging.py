"""Autologging of real libraries: one run per fit, and no patches left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from everloop.errors import UsageError
from everloop.records import Artifact, Run
from everloop.tracking import read_metrics, start_run
from everloop.tracking.autologging import LIBRARIES, autolog, sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def _logging(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("EVERLOOP_STORE", str(store.home))
    sessions._warned.clear()
    autolog()
    yield
    autolog(disable=True)


def rows(count: int = 120) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, 4))
    return features, (features[:, 0] + 0.2 * rng.normal(size=count) > 0).astype(int)


def only_run(store: Store) -> Run:
    (run,) = store.records.find(Run)
    return run


def test_an_estimator_is_one_run(store: Store) -> None:
    from sklearn.linear_model import LogisticRegression

    features, truth = rows()
    model = LogisticRegression(C=0.5).fit(features, truth)
    run = only_run(store)
    assert (run.name, run.state) == ("LogisticRegression", "finished")
    assert run.params["C"] == 0.5
    assert run.tags["estimator"] == "LogisticRegression"
    assert run.metrics["training_score"] == model.score(features, truth)


def test_transformers_do_not_log(store: Store) -> None:
    from sklearn.preprocessing import StandardScaler

    StandardScaler().fit_transform(rows()[0])
    assert store.records.find(Run) == []


def test_fits_inside_of_fits_are_one_run(store: Store) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=2).fit(*rows())
    run = only_run(store)
    assert run.name == "GridSearchCV"
    assert run.params["best_logisticregression__C"] == search.best_params_["logisticregression__C"]
    assert run.metrics["best_cv_score"] == search.best_score_


def test_fits_in_threads_of_a_fit_belong_to_it(store: Store) -> None:
    from joblib import parallel_config
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    with parallel_config("threading", n_jobs=2):
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(*rows())
    assert only_run(store).name == "GridSearchCV"


def test_estimators_defined_later_log_as_well(store: Store) -> None:
    from sklearn.base import BaseEstimator

    class Guess(BaseEstimator):
        def __init__(self, guess: int = 1) -> None:
            self.guess = guess

        def fit(self, X: Any, y: Any) -> Guess:  # noqa: N803
            return self

        def predict(self, X: Any) -> Any:  # noqa: N803
            return np.full(len(X), self.guess)

    Guess(3).fit(*rows())
    assert (only_run(store).name, only_run(store).params) == ("Guess", {"guess": 3})


def test_inside_a_run_it_logs_to_that_run(store: Store) -> None:
    from sklearn.linear_model import LogisticRegression

    with start_run("mine", store=store) as mine:
        LogisticRegression(C=0.5).fit(*rows())
        LogisticRegression(C=0.25).fit(*rows())
    assert only_run(store).id == mine.id
    assert mine.record.params["C"] == 0.5
    assert mine.record.params["LogisticRegression_2/C"] == 0.25


def test_a_fit_that_fails_fails_as_it_would_and_says_so(store: Store) -> None:
    from sklearn.linear_model import LogisticRegression

    with pytest.raises(ValueError, match="NaN"):
        LogisticRegression().fit([[float("nan")], [1.0]], [0, 1])
    assert only_run(store).state == "failed"
    assert "NaN" in (only_run(store).error or "")


def test_trouble_while_logging_is_one_warning(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the store is on fire")

    monkeypatch.setattr(sessions, "start_run", broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            assert hasattr(LogisticRegression().fit(*rows()), "coef_")
    assert [str(one.message) for one in said if "on fire" in str(one.message)] != []
    assert sum("on fire" in str(one.message) for one in said) == 1


def test_models_are_kept_when_asked(store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LinearRegression

    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    autolog(models=True)
    LinearRegression().fit(*rows())
    (kept,) = store.records.find(Artifact)
    assert (kept.name, kept.type, kept.meta["class"].rpartition(".")[2]) == ("model", "pickle", "LinearRegression")
    assert kept.signature is not None


def test_disabled_all_is_as_it_was(store: Store) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.linear_model import LogisticRegression

    autolog(disable=True)
    fit, subclass = vars(LogisticRegression)["fit"], vars(BaseEstimator).get("__init_subclass__")
    autolog()
    assert vars(LogisticRegression)["fit"] is not fit
    autolog(disable=True)
    assert vars(LogisticRegression)["fit"] is fit
    assert vars(BaseEstimator).get("__init_subclass__") is subclass
    LogisticRegression().fit(*rows())
    assert store.records.find(Run) == []


def test_asked_twice_a_fit_is_still_one_run(store: Store) -> None:
    from sklearn.linear_model import LinearRegression

    autolog()
    autolog()
    LinearRegression().fit(*rows())
    assert only_run(store).name == "LinearRegression"


def test_two_threads_of_the_user_are_two_runs(store: Store) -> None:
    from sklearn.linear_model import LinearRegression

    ready = threading.Barrier(2)

    def work() -> None:
        ready.wait()
        LinearRegression().fit(*rows())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.records.find(Run)) == 2


def test_lightgbm_logs_each_iteration(store: Store) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    features, truth = rows()
    data = lightgbm.Dataset(features, truth)
    params = {"objective": "binary", "verbose": -1, "num_threads": 1}
    lightgbm.train(params, data, num_boost_round=5, valid_sets=[data], valid_names=["seen"])
    run = only_run(store)
    assert (run.name, run.params["objective"], run.params["num_boost_round"]) == ("lightgbm", "binary", 5)
    assert [point.step for point in read_metrics(store, run.id, "seen/binary_logloss")] == list(range(5))


def test_lightgbms_estimators_are_one_run_with_their_iterations(store: Store) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    features, truth = rows()
    model = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1, n_jobs=1)
    model.fit(features, truth, eval_X=features, eval_y=truth)
    run = only_run(store)
    assert (run.name, run.params["n_estimators"]) == ("LGBMClassifier", 4)
    (curve,) = (name for name in run.metrics if name.endswith("binary_logloss"))
    assert [point.step for point in read_metrics(store, run.id, curve)] == list(range(4))
    assert run.metrics["training_score"] > 0.5


def test_xgboost_logs_each_iteration(store: Store) -> None:
    xgboost = pytest.importorskip("xgboost")
    features, truth = rows()
    data = xgboost.DMatrix(features, truth)
    xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 4, evals=[(data, "seen")], verbose_eval=False)
    xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(features, truth, eval_set=[(features, truth)], verbose=False)
    first, second = store.records.find(Run, order="id")
    assert [point.step for point in read_metrics(store, first.id, "seen/logloss")] == list(range(4))
    assert (second.name, second.params["n_estimators"]) == ("XGBClassifier", 3)
    assert [point.step for point in read_metrics(store, second.id, "validation_0/logloss")] == list(range(3))


def test_catboost_logs_each_iteration(store: Store, tmp_path: Any) -> None:
    catboost = pytest.importorskip("catboost")
    features, truth = rows()
    model = catboost.CatBoostClassifier(
        iterations=4, verbose=False, thread_count=1, train_dir=str(tmp_path / "catboost")
    )
    model.fit(features, truth, eval_set=(features, truth))
    run = only_run(store)
    assert (run.name, run.params["iterations"]) == ("CatBoostClassifier", 4)
    assert [point.step for point in read_metrics(store, run.id, "validation/Logloss")] == list(range(4))


@pytest.mark.slow
def test_a_study_is_one_run(store: Store) -> None:
    optuna = pytest.importorskip("optuna")
    from sklearn.linear_model import LogisticRegression

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    features, truth = rows()

    def objective(trial: Any) -> float:
        model = LogisticRegression(C=trial.suggest_float("C", 0.01, 1.0))
        return float(model.fit(features, truth).score(features, truth))

    study = optuna.create_study(study_name="find-c", direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=3)
    run = only_run(store)
    assert run.name == "find-c"
    assert run.metrics["best_value"] == study.best_value
    assert run.params["best_C"] == study.best_params["C"]
    assert [point.step for point in read_metrics(store, run.id, "value")] == [0, 1, 2]


def test_unknown_libraries_are_refused() -> None:
    with pytest.raises(UsageError, match="Autologging does not support 'prolog'"):
        autolog(libraries=["prolog"])


_LATER = """
import sys, everloop as el
el.autolog()
assert not {"sklearn", "lightgbm", "torch", "optuna", "numpy"} & set(sys.modules), sorted(sys.modules)
import sklearn
from sklearn.linear_model import LinearRegression
LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
from everloop.records import Run
with el.open_store() as store:
    print(*(run.name for run in store.records.find(Run)))
"""


@pytest.mark.slow
def test_nothing_is_imported_before_the_user_does_and_all_is_patched_after(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", _LATER], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("LinearRegression", 0), done.stderr


def test_every_library_has_its_module() -> None:
    from importlib import import_module

    for name in LIBRARIES:
        assert callable(import_module(f"everloop.tracking.autologging.{name}_fits").patch)


_KERAS = """
import os, sys
os.environ["KERAS_BACKEND"] = sys.argv[1]
import everloop as el
el.autolog()
import keras, numpy as np
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)], name="small")
model.compile(optimizer="sgd", loss="mse")
model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=3, verbose=0, validation_split=0.25)
fit = keras.Model.fit
el.autolog(disable=True)
assert keras.Model.fit is not fit
"""


@pytest.mark.slow
def test_keras_logs_each_epoch(store: Store, need: Any) -> None:
    backend = next((name for name in ("torch", "jax", "tensorflow") if find_spec(name)), None)
    if find_spec("keras") is None or backend is None:
        need("keras", "Keras", "install keras and torch")
    # Importing it here would choose its backend for every test.
    done = subprocess.run([sys.executable, "-c", _KERAS, str(backend)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run(store)
    assert (run.name, run.params["epochs"], run.params["optimizer"], run.metrics["parameters"]) == (
        "small",
        3,
        "SGD",
        4,
    )
    for name in ("loss", "val_loss"):
        assert [point.step for point in read_metrics(store, run.id, name)] == [0, 1, 2]


_LIGHTNING = """
import everloop as el
el.autolog()
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset

class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.save_hyperparameters({"width": 3})
    def training_step(self, batch, number):
        loss = ((self.layer(batch[0]) - batch[1]) ** 2).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss
    def validation_step(self, batch, number):
        self.log("val_loss", ((self.layer(batch[0]) - batch[1]) ** 2).mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

rows = DataLoader(TensorDataset(torch.ones(8, 3), torch.ones(8, 1)), batch_size=4)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
lightning.Trainer(max_epochs=4, check_val_every_n_epoch=2, accelerator="cpu", **quiet).fit(Line(), rows, rows)
"""


@pytest.mark.slow
def test_lightning_logs_each_epoch(store: Store, need: Any) -> None:
    if find_spec("lightning") is None:
        need("lightning", "PyTorch Lightning", "install lightning and torch")
    done = subprocess.run([sys.executable, "-c", _LIGHTNING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run(store)
    assert (run.name, run.state, run.tags["estimator"]) == ("lightning", "finished", "Line")
    assert (run.params["max_epochs"], run.params["width"]) == (4, 3)
    steps = {name: [point.step for point in read_metrics(store, run.id, name)] for name in ("train_loss", "val_loss")}
    assert steps == {"train_loss": [0, 1, 2, 3], "val_loss": [1, 3]}
