"""Define trained models: the protocol of a model, and the record of how it was trained.

A model is small and self-contained. It includes its feature encoding, predicts from a frame or from plain rows, and is
stored as a few files. If possible, these are read without the library that trained the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, runtime_checkable

from everloop import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.class_decisions import ClassScores

    Scores = NDArray[np.float64]

Task = Literal["binary", "multiclass", "regression"]
Files = dict[str, bytes]


@runtime_checkable
class Model(Protocol):
    """A fitted model. It is thread-safe.

    `predict_scores` and `predict_rows` return

    * binary: shape (n,), the probability of the positive class, `classes[1]`;
    * multiclass: shape (n, k), the probabilities in the order of `classes`, which sum to one;
    * regression: shape (n,), in the unit of the target.

    A model whose classes do not follow from its scores also has `answer_frame` and `answer_rows`; see
    `class_decisions`.

    For the built-in formats, the score of a row is the same to the last bit whatever other rows are scored with it,
    and whether it comes from a frame or a dict.
    """

    format: str
    """Name in the plugin table, kind `model`: `lightgbm`, `linear`, `skops` or `pickle`."""
    task: Task
    inputs: tuple[str, ...]
    """The columns that it reads."""

    def predict_scores(self, frame: pl.DataFrame) -> Scores:
        """Return the score of every row of `frame`. Other columns are ignored.

        Nulls and unknown categories are allowed, and whole numbers may be floats.

        Raises:
            RequestError: a column is missing or has a type that cannot be read as the trained one.
        """
        ...

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Scores:
        """Return the scores of plain dicts. For few rows this is faster than building a frame.

        Raises:
            RequestError: see `predict_scores`.
        """
        ...

    def to_files(self) -> Files:
        """Return the model's files by name. The same model gives the same bytes."""
        ...

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """Read a model from the files of `to_files`.

        The format `pickle` runs code from the files, so check their signature first.
        """
        ...


def model_from_files(format: str, files: Mapping[str, bytes]) -> Model:
    """Read a model of any format from its files.

    Raises:
        NotFoundError: the format does not exist.
        CorruptionError: the files are not those of `to_files`.
        MissingExtraError: the format needs a library that is not installed.
    """
    read: Callable[[Mapping[str, bytes]], Model] = plugins.load("model", format).from_files
    return read(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A column that training could have used but did not."""

    column: str
    reason: str

    def to_dict(self) -> dict[str, Json]:
        return {"column": self.column, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that a search has chosen. They suffice to fit the same model again without searching."""

    algorithm: str
    task: Task
    params: dict[str, Json] = field(default_factory=dict)
    rounds: int | None = None
    """Number of boosting rounds; None for algorithms without rounds."""
    seed: int = 0
    positive: bool | int | float | str | None = None
    """The positive class of a binary target, if it was given."""

    def to_dict(self) -> dict[str, Json]:
        return {
            "algorithm": self.algorithm,
            "task": self.task,
            "params": dict(self.params),
            "rounds": self.rounds,
            "seed": self.seed,
            **({} if self.positive is None else {"positive": self.positive}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Json]) -> Recipe:
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model with the record of its training. All fields except `model` can be written as JSON."""

    kind: ClassVar[str] = "trained"

    model: Model
    task: Task
    target: str
    features: dict[str, str]
    """Arrow types of the columns that the model reads, by name and in order."""
    nullable: dict[str, bool]
    """Whether each column had nulls in training."""
    categories: dict[str, list[str]]
    """Known values of the categorical columns. The model treats all other values alike."""
    classes: list[Json]
    """Classes in the order of the scores; the second class of a binary task is positive. Empty for a regression."""
    metric: str
    """The metric that the search optimised."""
    leaderboard: list[dict[str, Json]] = field(default_factory=list)
    """One entry per trial, best first: candidate, params, rounds, value of `metric` on the validation rows, seconds."""
    best: dict[str, Json] = field(default_factory=dict)
    """The leaderboard entry of the winner."""
    recipe: Recipe | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    """Columns that were not used, each with the reason."""
    importance: dict[str, float] = field(default_factory=dict)
    """Importance of each column, as shares that sum to one."""
    notes: list[str] = field(default_factory=list)
    """Remarks for people, such as rows that were left out."""
    rows: dict[str, int] = field(default_factory=dict)
    """Numbers of rows that were used: `train` and `valid`."""
    seconds: float = 0.0

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The columns of `dropped` with their reasons, in the order of the table."""
        return tuple(LeftOut(column=name, reason=reason) for name, reason in self.dropped.items())

    def predict_scores(self, frame: pl.DataFrame) -> Scores:
        """Return the scores of a frame, see `Model.predict_scores`."""
        return self.model.predict_scores(frame)

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Return the scores and predicted classes of every row of a frame."""
        from everloop.training.class_decisions import answer_frame

        return answer_frame(self.model, frame)

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Scores:
        """Return the scores of plain rows, see `Model.predict_rows`."""
        return self.model.predict_rows(rows)

    def to_dict(self) -> dict[str, Json]:
        """Return all fields except the model, for a model card or a version's record."""
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
