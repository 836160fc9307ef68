"""Warm start: continue to boost the champion's model instead of searching for a new one.

The new trees correct the champion's predictions on the present rows. How many are added is decided on the validation
rows; none is added if none helps. Only LightGBM models can be continued. The champion's encoder is kept, because its
trees refer to the columns of its matrix.

Source: LightGBM's "Python-package introduction", `init_model` of `lightgbm.train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import RequestError
from everloop.training.algorithms.lightgbm import LightGBMModel, fixed_settings, plain_text
from everloop.training.encoding import Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.records import Json
    from everloop.training.algorithms.algorithm import TrainingProblem
    from everloop.training.trained_model import Model, Task

MOST_NEW_ROUNDS = 300
STEP = 5
"""The validation rows are scored each time that this many rounds have been added."""
SETTINGS: dict[str, Any] = {"learning_rate": 0.05, "num_leaves": 15, "lambda_l2": 1.0}


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The model that a training continues.

    Attributes:
        model: the model, of any format.
        classes: its classes in the order of its scores; empty for a regression.
        name: its name for people, such as `delays@3`.
    """

    model: Model
    classes: Sequence[Json]
    name: str


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A continued model: how many rounds the search on the validation rows has added, and what they gained."""

    rounds: int
    before: float
    """The metric of the champion on the validation rows."""
    after: float


def reason_against(start: WarmStart, rows: pl.DataFrame, names: Sequence[str], task: Task, classes: list[Json]) -> str:
    """Return why a model cannot be continued on these rows; empty if it can."""
    model = start.model
    if not isinstance(model, LightGBMModel):
        return f"{start.name} is a {model.format} model, and only lightgbm models can be continued"
    if model.task != task:
        return f"{start.name} is for {model.task} targets, but the target is {task}"
    if list(start.classes) != list(classes):
        return f"the classes of {start.name} are {list(start.classes)}, but those of the rows are {list(classes)}"
    present = Encoder.fit(rows.select(names)).inputs
    if tuple(present) != tuple(model.inputs):
        changed = sorted(set(present) ^ set(model.inputs))
        which = f": {', '.join(changed[:5])}" if changed else ", in their order"
        return f"the columns of {start.name} differ from those of the rows{which}"
    try:
        model.encoder.encode(rows.head(100))
    except RequestError as error:
        return f"{start.name} cannot read the rows: {error.message}"
    return ""


def find_rounds(start: LightGBMModel, problem: TrainingProblem) -> Continued:
    """Find how many rounds to add by the metric on the validation rows."""
    assert problem.valid_matrix is not None  # noqa: S101  (set by the caller)
    assert problem.valid_y is not None  # noqa: S101
    booster, first = _boost(start, problem, MOST_NEW_ROUNDS), start.rounds
    gains: list[tuple[float, int]] = []
    values: dict[int, float] = {}
    for added in range(0, booster.current_iteration() - first + 1, STEP):
        scores = np.asarray(booster.predict(problem.valid_matrix, num_iteration=first + added))
        judged = problem.stopping.prepare(problem.valid_y, scores)(None)
        values[added] = problem.metric.prepare(problem.valid_y, scores)(None)
        # Of equal gains, the one with fewer rounds.
        gains.append((judged if problem.stopping.greater_is_better else -judged, -added))
    best = -max(gains)[1]
    return Continued(rounds=best, before=values[0], after=values[best])


def add_rounds(start: LightGBMModel, problem: TrainingProblem, rounds: int) -> LightGBMModel:
    """Return a model with `rounds` more rounds, fitted to the problem's training rows."""
    if rounds == 0:
        return start
    booster = _boost(start, problem, rounds)
    return LightGBMModel(start.encoder, plain_text(booster.model_to_string(num_iteration=-1)), start.task)


def _boost(start: LightGBMModel, problem: TrainingProblem, rounds: int) -> Any:
    import lightgbm

    before = lightgbm.Booster(model_str=start.to_files()["model.txt"].decode())
    categorical = [column for column, codes in enumerate(problem.encoder.codes) if codes]
    rows = lightgbm.Dataset(
        problem.matrix, problem.y, weight=problem.weights, categorical_feature=categorical, free_raw_data=False
    )
    least = {"min_data_in_leaf": max(1, min(50, len(problem.y) // 20))}
    return lightgbm.train(
        {**fixed_settings(problem), **SETTINGS, **least}, rows, num_boost_round=rounds, init_model=before
    )
