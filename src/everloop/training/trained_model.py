"""What training hands on: a model that answers, and everything that is known about how it came to be.

A model is small and self-contained: it holds its own feature encoding, answers from a frame or from plain rows,
and becomes a handful of files that are read back without the library that trained it where that is possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from everloop import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.class_decisions import ClassScores

    Scores = NDArray[np.float64]

Json = Any
Task = Literal["binary", "multiclass", "regression"]
Files = dict[str, bytes]


@runtime_checkable
class Model(Protocol):
    """A fitted model. Thread-safe: any number of threads may ask one model at once.

    `predict_scores` and `predict_rows` give

    * binary: shape (n,), the probability of the positive class, `classes[1]`;
    * multiclass: shape (n, k), one probability a class in the order of `classes`, rows sum to one;
    * regression: shape (n,), in the target's unit.

    A model whose classes do not follow from its scores has `answer_frame` and `answer_rows` as well; see `decisions`.

    For the built-in formats the answer to a row does not depend, to the last bit, on the rows asked with it, nor on
    whether it was asked as a frame or as a dict.
    """

    format: str
    """Name in the plugin table, kind `model`: `lightgbm`, `linear`, `skops` or `pickle`."""
    task: Task
    inputs: tuple[str, ...]
    """The columns that it reads."""

    def predict_scores(self, frame: pl.DataFrame) -> Scores:
        """Answer for every row of `frame`. Columns that it does not read are ignored.

        Nulls and categories never seen in training are fine; whole numbers may come as floats.

        Raises:
            RequestError: a column is missing or has a type that cannot be read as the trained one.
        """
        ...

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Scores:
        """The same from plain dicts, without building a frame: the quick way for few rows.

        Raises:
            RequestError: as `predict_scores`.
        """
        ...

    def to_files(self) -> Files:
        """File name to bytes; the same model gives the same bytes."""
        ...

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Undo `to_files`.

        The format `pickle` runs code that the files bring along: check the bytes' signature first.
        """
        ...


def model_from_files(format: str, files: Mapping[str, bytes]) -> Model:
    """Read a model of any format back.

    Raises:
        NotFoundError: no such format.
        CorruptionError: the files are not what `to_files` wrote.
        MissingExtraError: the format needs a library that is not installed.
    """
    read: Callable[[Mapping[str, bytes]], Model] = plugins.load("model", format).from_files
    return read(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A column that training was given and did not use."""

    column: str
    reason: str

    def to_dict(self) -> dict[str, Json]:
        return {"column": self.column, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Enough to fit the same model again: the outcome of a search without the search."""

    algorithm: str
    task: Task
    params: dict[str, Json] = field(default_factory=dict)
    rounds: int | None = None
    """Boosting rounds, where the algorithm counts in rounds."""
    seed: int = 0

    def to_dict(self) -> dict[str, Json]:
        return {
            "algorithm": self.algorithm,
            "task": self.task,
            "params": dict(self.params),
            "rounds": self.rounds,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Json]) -> Recipe:
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with what training learned on the way. Everything but `model` is JSON-able."""

    kind: ClassVar[str] = "trained"

    model: Model
    task: Task
    target: str
    features: dict[str, str]
    """Column name to Arrow type, in order; only what the model reads."""
    nullable: dict[str, bool]
    """Whether the column had nulls in training."""
    categories: dict[str, list[str]]
    """Known values of the categorical columns; any other value is answered as unseen."""
    classes: list[Json]
    """In the order of the scores; the positive class of a binary task is the second. Empty for regression."""
    metric: str
    """The metric that the search was judged by."""
    leaderboard: list[dict[str, Json]] = field(default_factory=list)
    """One entry a trial, best first: candidate, params, rounds, value (of `metric` on the validation rows), seconds."""
    best: dict[str, Json] = field(default_factory=dict)
    """The leaderboard's entry of the winner."""
    recipe: Recipe | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    """Columns that were offered but not used, each with the reason."""
    importance: dict[str, float] = field(default_factory=dict)
    """Share of each column in what the model has learned; sums to one."""
    notes: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    """`train` and `valid`: rows that were used."""
    seconds: float = 0.0

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The columns of `dropped` with their reasons, in the order of the table."""
        return tuple(LeftOut(column=name, reason=reason) for name, reason in self.dropped.items())

    def predict_scores(self, frame: pl.DataFrame) -> Scores:
        """As `model.predict_scores`."""
        return self.model.predict_scores(frame)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and predicted classes of every row of a frame."""
        from everloop.training.class_decisions import answer_frame

        return answer_frame(self.model, frame)

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Scores:
        """As `model.predict_rows`."""
        return self.model.predict_rows(rows)

    def to_dict(self) -> dict[str, Json]:
        """All but the model, for a model card or a version's record."""
        return {
            "format": self.model.format,
            "task": self.task,
            "target": self.target,
            "features": dict(self.features),
            "nullable": dict(self.nullable),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "classes": list(self.classes),
            "metric": self.metric,
            "leaderboard": [dict(entry) for entry in self.leaderboard],
            "best": dict(self.best),
            "recipe": self.recipe.to_dict() if self.recipe else None,
            "dropped": dict(self.dropped),
            "importance": dict(self.importance),
            "notes": list(self.notes),
            "rows": dict(self.rows),
            "seconds": self.seconds,
        }
