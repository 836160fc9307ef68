"""Loops whose training step returns something else than an estimator: a network, a file, a list of models, …"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from everloop.errors import TrainingError, UsageError
from everloop.loop.stages import adopt

RNG = np.random.default_rng(0)
ROWS = pl.DataFrame({"key": range(400), "a": RNG.normal(size=400), "b": RNG.normal(size=400)}).with_columns(
    late=pl.col("a") + pl.col("b") > 0,
    grade=pl.when(pl.col("a") > 0.5)
    .then(pl.lit("top"))
    .when(pl.col("a") > -0.5)
    .then(pl.lit("mid"))
    .otherwise(pl.lit("low")),
)
INPUTS = ROWS.select("a", "b")


def adopted(model, target="late", **options):
    return adopt.function(model, ROWS.drop({"late", "grade"} - {target}), target, None, "key", None, (), **options)


class WithContext:
    """A model as MLflow's `PythonModel`: it gets a context before the table."""

    def predict(self, context, table):
        return 1 / (1 + np.exp(-10 * (table["a"].to_numpy() + table["b"].to_numpy())))


def test_a_model_that_predicts_with_a_context() -> None:
    trained = adopted(WithContext())
    assert (trained.task, trained.target, list(trained.classes)) == ("binary", "late", [False, True])
    assert (trained.predict_scores(INPUTS) > 0.5).tolist() == ROWS["late"].to_list()
    assert trained.best == {"candidate": "WithContext"}
    assert trained.rows == {"train": 400, "valid": 0}


def test_a_list_of_models_is_their_average() -> None:
    table = INPUTS.to_pandas()
    models = [LogisticRegression(C=strength).fit(table, ROWS["late"]) for strength in (0.01, 10.0)]
    trained = adopted(models)
    expected = np.mean([model.predict_proba(table)[:, 1] for model in models], axis=0)
    np.testing.assert_allclose(trained.predict_scores(INPUTS), expected, atol=1e-12)


@pytest.mark.slow
def test_an_onnx_model_as_bytes() -> None:
    to_onnx = pytest.importorskip("skl2onnx").to_onnx
    matrix = INPUTS.to_numpy().astype(np.float32)
    fitted = LogisticRegression().fit(matrix, ROWS["late"].to_numpy())
    blob = to_onnx(fitted, matrix[:1], options={"zipmap": False}).SerializeToString()
    trained = adopted(blob)
    np.testing.assert_allclose(trained.predict_scores(INPUTS), fitted.predict_proba(matrix)[:, 1], atol=1e-6)


@pytest.mark.slow
def test_a_positive_class_that_is_not_the_later_one_is_an_error() -> None:
    assert adopted(WithContext(), positive=True).classes[1] is True
    with pytest.raises(TrainingError, match="scores of a WithContext are about True, the later of the two classes"):
        adopted(WithContext(), positive=False)


LOOP = """
import everloop as el
import numpy as np
import polars as pl


@el.step
def rows() -> pl.DataFrame:
    draw = np.random.default_rng(0).normal(size=(600, 3))
    late = draw[:, 0] + 0.5 * draw[:, 1] > 0
    return pl.DataFrame({"a": draw[:, 0], "b": draw[:, 1], "c": draw[:, 2], "late": late})


def network():
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 1)

        def forward(self, x):
            return FINAL(self.inner(x))

    return Net()


@el.step
def fit(train: pl.DataFrame) -> object:
    import torch

    torch.manual_seed(0)
    net = network()
    x = torch.tensor(train.select("a", "b", "c").to_numpy(), dtype=torch.float32)
    y = torch.tensor(train["late"].to_numpy(), dtype=torch.float32)[:, None]
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.LOSS(net(x), y).backward()
        optimizer.step()
    return net


loop = el.Loop("late", data=el.Dataset(rows, target="late"), train=fit, gates=[el.AtLeast("roc_auc", 0.9)],
               serve=el.Endpoint("late"))
"""


@pytest.mark.slow
def test_a_network_of_pytorch_is_trained_released_and_predicts_as_it_was_returned(need, tmp_path, monkeypatch) -> None:
    if find_spec("torch") is None:
        need("torch", "PyTorch with safetensors", "pip install torch safetensors")
    import everloop as el
    from everloop.loop import load_project, run_loop
    from everloop.stores import open_store

    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    (tmp_path / "everloop.toml").touch()
    final = LOOP.replace("FINAL", "torch.sigmoid").replace("LOSS", "binary_cross_entropy")
    (tmp_path / "loop.py").write_text(final)
    with open_store(tmp_path / ".everloop") as store:
        (loop,) = load_project(tmp_path).loops.values()
        first = run_loop(loop, store)
        assert first.release.state == "completed"
        rows = [{"a": 2.0, "b": 1.0, "c": 0.0}, {"a": -2.0, "b": -1.0, "c": 0.0}]
        scores = el.load_model(store, "late@1").predict(rows)
        assert scores[0] > 0.95
        assert scores[1] < 0.05
        again = run_loop(loop, store)
        assert again.ran == 0


@pytest.mark.slow
def test_a_network_that_does_not_return_probabilities_or_too_many_is_refused(need) -> None:
    try:
        import torch
    except ImportError:
        need("torch", "PyTorch with safetensors", "pip install torch safetensors")
    with pytest.raises(UsageError, match="numbers that are not probabilities"):
        adopted(torch.nn.Linear(2, 1))
    with pytest.raises(UsageError, match="returns 5 numbers per row, but the target has 3 values: 'low', 'mid', 'top'"):
        adopted(torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Softmax(dim=1)), "grade")
    trained = adopted(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Softmax(dim=1)), "grade")
    assert (trained.task, trained.predict_scores(INPUTS).shape) == ("multiclass", (400, 3))
