"""Fit gradient boosted trees with LightGBM (Ke et al., NeurIPS 2017)."""

from __future__ import annotations

import hashlib
import json
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from everloop.errors import CorruptionError, MissingExtraError
from everloop.training.algorithms.algorithm import Attempt
from everloop.training.algorithms.booster import Booster
from everloop.training.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.algorithms.algorithm import TrainingProblem
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

MOST_ROUNDS = 3000
_FEW_ROWS = 64
"""Up to this number, rows are scored one by one, without building a matrix."""

_FIRST: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.1, "num_leaves": 31, "min_data_in_leaf": 50},
    {
        "learning_rate": 0.05,
        "num_leaves": 15,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.7,
        "lambda_l2": 5.0,
        "cat_smooth": 50.0,
    },
    {
        "learning_rate": 0.05,
        "num_leaves": 63,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 1.0,
        "cat_smooth": 20.0,
    },
    {"learning_rate": 0.05, "num_leaves": 7, "min_data_in_leaf": 20, "feature_fraction": 0.9, "lambda_l2": 1.0},
)
"""Settings that are tried first: the common default, a cautious one, a deep one for much data, a shallow one for little
data."""

_OBJECTIVES = {"mae": "regression_l1", "median_ae": "regression_l1", "mape": "mape"}


class LightGBMModel:
    """A fitted LightGBM model with its encoder. It implements `Model`."""

    format = "lightgbm"

    def __init__(self, encoder: Encoder, text: str, task: Task) -> None:
        self.encoder = encoder
        self.task: Task = task
        self.inputs = encoder.inputs
        self._text = text
        self._booster = Booster(text)
        if self._booster.width != encoder.width:
            raise CorruptionError(
                f"The LightGBM model reads {self._booster.width} columns, but its encoder makes {encoder.width}.",
                help="Build the package again.",
            )

    @property
    def rounds(self) -> int:
        return self._booster.rounds

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self._booster.predict(self.encoder.encode(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        if len(rows) > _FEW_ROWS:
            return self._booster.predict(self.encoder.encode_rows(rows))
        encode, predict = self.encoder.encode_row, self._booster.predict_row
        answers = np.array([predict(encode(row)) for row in rows], dtype=np.float64)
        answers = answers.reshape(len(rows), self._booster.outputs)
        return answers[:, 0] if self._booster.outputs == 1 else answers

    def contributions(self, matrix: Array) -> Array:
        """Return the same as `Booster.contributions`, for an encoded matrix."""
        return self._booster.contributions(matrix)

    def importance(self, matrix: Array) -> dict[str, float]:
        """Return the share of each input in the gain of all splits. The shares sum to one."""
        return share(self.encoder, self._booster.importance())

    def to_files(self) -> Files:
        text = self._text.encode()
        state = {
            "version": 1,
            "task": self.task,
            "model_sha256": hashlib.sha256(text).hexdigest(),
            "encoder": self.encoder.to_dict(),
        }
        return {"model.txt": text, "encoder.json": json.dumps(state, sort_keys=True, indent=1).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            text, state = files["model.txt"], json.loads(files["encoder.json"])
            # LightGBM crashes on a damaged text, so it only gets the exact bytes that were stored.
            if hashlib.sha256(text).hexdigest() != state["model_sha256"]:
                raise CorruptionError("model.txt does not match its digest.", help="Build the package again.")
            return cls(Encoder.from_dict(state["encoder"]), text.decode(), state["task"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a LightGBM model: {error!r}.", help="Build the package again."
            ) from error

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.encoder, self._text, self.task)


class LightGBM:
    """Fits LightGBM models with early stopping on the validation rows."""

    name: ClassVar[str] = "lightgbm"
    complexity: ClassVar[int] = 2

    @staticmethod
    def load_libraries() -> None:
        try:
            import lightgbm  # noqa: F401
        except ImportError:
            raise MissingExtraError.of("The candidate 'lightgbm'", "lightgbm", "ml") from None

    def __init__(self, problem: TrainingProblem) -> None:
        self.load_libraries()
        import lightgbm

        began = perf_counter()
        self._lightgbm = lightgbm
        self._problem = problem
        categorical = [column for column, codes in enumerate(problem.encoder.codes) if codes]
        shared = {**fixed_settings(self._problem), "max_bin": 255, "feature_pre_filter": False}
        # All trials share the same bins, so binning is done once.
        self._train = lightgbm.Dataset(
            problem.matrix,
            problem.y,
            weight=problem.weights,
            categorical_feature=categorical,
            params=shared,
            free_raw_data=True,
        ).construct()
        self._valid = None
        if problem.valid_matrix is not None:
            self._valid = lightgbm.Dataset(
                problem.valid_matrix, problem.valid_y, reference=self._train, params=shared
            ).construct()
        self.setup_s = perf_counter() - began

    def params(self) -> Iterator[dict[str, Any]]:
        most = max(1, len(self._problem.y) // 20)
        for first in _FIRST:
            yield {**first, "min_data_in_leaf": min(first["min_data_in_leaf"], most)}
        rng = np.random.default_rng(self._problem.seed)
        while True:
            yield {
                "learning_rate": round(float(np.exp(rng.uniform(np.log(0.02), np.log(0.15)))), 4),
                "num_leaves": int(np.exp(rng.uniform(np.log(4), np.log(192)))),
                "min_data_in_leaf": min(int(np.exp(rng.uniform(np.log(5), np.log(500)))), most),
                "feature_fraction": round(float(rng.uniform(0.4, 1.0)), 3),
                "bagging_fraction": round(float(rng.uniform(0.5, 1.0)), 3),
                "bagging_freq": 1,
                "lambda_l2": round(float(np.exp(rng.uniform(np.log(0.01), np.log(50)))), 4),
                "cat_smooth": round(float(np.exp(rng.uniform(np.log(5), np.log(200)))), 2),
            }

    def fit(
        self, params: dict[str, Any], *, rounds: int | None = None, deadline: Callable[[float], float] | None = None
    ) -> Attempt:
        started = perf_counter()
        booster = self._lightgbm.Booster({**fixed_settings(self._problem), **params}, self._train)
        if rounds is not None or self._valid is None:
            for _ in range(rounds or 100):
                if booster.update():
                    break
            return self._attempt(booster, params, booster.current_iteration(), perf_counter() - started, None)

        booster.add_valid(self._valid, "valid")
        stopping, labels = self._problem.stopping, self._problem.valid_y
        assert labels is not None  # noqa: S101  (there are validation rows, so there are labels)
        # Validating on many rows costs more than a round of fitting, so it is done less often.
        every = 1 if len(labels) <= 2_000 else 5 if len(labels) <= 100_000 else 10
        patience = max(20, round(4 / params["learning_rate"]))
        best, best_rounds, best_scores, best_seconds = float("-inf"), 0, None, 0.0
        finished, fitting = True, 0.0
        for done in range(1, MOST_ROUNDS + 1):
            before = perf_counter()
            stuck = booster.update()
            fitting += perf_counter() - before
            late = deadline is not None and perf_counter() >= deadline(best_seconds)
            if done % every == 0 or done == 1 or stuck or late:
                scores = self._validation_scores(booster)
                value = stopping.prepare(labels, scores)(None)
                gain = value if stopping.greater_is_better else -value
                if gain > best or best_scores is None:
                    best, best_rounds, best_scores, best_seconds = gain, done, scores, fitting
            if stuck or done - best_rounds >= patience:
                break
            if late:
                finished = False
                break
        return self._attempt(booster, params, best_rounds, best_seconds, best_scores, finished)

    def _validation_scores(self, booster: Any) -> Array:
        captured: list[Array] = []

        def capture(scores: Array, _: object) -> tuple[str, float, bool]:
            captured.append(np.array(scores, dtype=np.float64))
            return "captured", 0.0, True

        booster.eval_valid(capture)
        return captured[0]

    def _attempt(
        self,
        booster: Any,
        params: dict[str, Any],
        rounds: int,
        seconds: float,
        scores: Array | None,
        finished: bool = True,
    ) -> Attempt:
        problem = self._problem

        def build() -> LightGBMModel:
            return LightGBMModel(
                problem.encoder, plain_text(booster.model_to_string(num_iteration=rounds)), problem.task
            )

        return Attempt(params=params, rounds=rounds, seconds=seconds, finished=finished, scores=scores, build=build)


def fixed_settings(problem: TrainingProblem) -> dict[str, Any]:
    """Return the settings that all fits of a problem share."""
    objective = {"binary": "binary", "multiclass": "multiclass"}.get(
        problem.task, _OBJECTIVES.get(problem.metric.name, "regression")
    )
    fixed: dict[str, Any] = {
        "objective": objective,
        "metric": "None",
        "verbosity": -1,
        "seed": problem.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": problem.threads,
    }
    return {**fixed, "num_class": problem.outputs} if problem.task == "multiclass" else fixed


def plain_text(text: str) -> str:
    """Remove the training settings from a model's text. They depend on the machine and do not affect predictions."""
    return text.partition("\nparameters:\n")[0].rstrip("\n") + "\n"


def share(encoder: Encoder, weights: Array) -> dict[str, float]:
    """Convert weights of matrix columns to shares of the input columns, largest first."""
    total = float(weights.sum())
    summed = dict.fromkeys(encoder.inputs, 0.0)
    for name, weight in zip(encoder.sources, weights, strict=True):
        summed[name] += float(weight) / total if total > 0 else 1.0 / len(weights)
    return dict(sorted(summed.items(), key=lambda item: -item[1]))
