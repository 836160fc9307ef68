"""Neural networks: a table of numbers goes in as one matrix in single precision, and scores come out.

For classes the network must give probabilities; whether an answer is a logit cannot be told for sure, so one that is no
probability is refused and not guessed at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from everloop.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.formats.input_tables import TableKind
    from everloop.records import Json
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

_NUMBERS = ("Float32", "Float64", "Int64", "Boolean")


class NetworkModel(ABC):
    """A network with its columns. See `Model` for what it answers. Subclasses say how it is asked and kept."""

    format: str
    final: ClassVar[str] = ""
    """How to make the last layer give probabilities, in words."""

    def __init__(self, table: TableKind, task: Task) -> None:
        self.table, self.task = table, task
        self.inputs = table.names

    @abstractmethod
    def answer(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        """What the network gives for rows, shape (n,), (n, 1) or (n, classes)."""

    @abstractmethod
    def to_files(self) -> Files: ...

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self._scores(self.table.cast(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self._scores(self.table.from_rows(rows))

    def _scores(self, frame: pl.DataFrame) -> Array:
        columns = [series.cast(_float()).fill_null(float("nan")).to_numpy() for series in frame.get_columns()]
        with np.errstate(over="ignore"):
            matrix = np.column_stack(columns).astype(np.float32)
        scores = np.asarray(self.answer(matrix), dtype=np.float64)
        if self.task == "multiclass":
            return scores
        if self.task == "binary" and scores.ndim == 2 and scores.shape[1] == 2:
            return np.ascontiguousarray(scores[:, 1])
        return scores.reshape(len(matrix))


def describe_network(
    model: NetworkModel, frame: pl.DataFrame, task: Task | None, truth: pl.Series | None
) -> list[Json]:
    """Find the task and the classes of a network by asking it, and set its task.

    Raises:
        UsageError: a column is no number, or classes come without probabilities.
        TrainingError: it cannot answer the example.
    """
    from everloop.training.targets import find_classes, infer_task

    name = type(model).__name__
    strange = next((column.name for column in model.table.columns if column.type not in _NUMBERS), None)
    if strange is not None:
        raise UsageError(
            f"The column '{strange}' is no number, and a network takes a matrix of numbers.",
            help="Prepare it with a function: save_model(model, …, before=prepare).",
        )
    few = model.table.cast(frame.head(20))
    matrix = np.column_stack([series.cast(_float()).fill_null(0.0).to_numpy() for series in few.get_columns()])
    try:
        raw = np.asarray(model.answer(matrix.astype(np.float32)), dtype=np.float64)
        raw = raw.reshape(len(matrix), -1)
    except Exception as error:  # whatever a stranger's network raises
        raise TrainingError(
            f"The {name} cannot answer its example: {type(error).__name__}: {error}",
            help="It must take one tensor of shape (rows, columns) in single precision, and give one row for each.",
        ) from error
    width = raw.shape[1]
    found = task or ("binary" if width == 2 else "multiclass" if width > 2 else None)
    if found is None:
        found = "regression" if truth is None else infer_task(truth)
    if (width > 2) != (found == "multiclass") or (width == 2 and found == "regression"):
        raise UsageError(f"The {name} gives {width} numbers a row, which is no {found}.", help="Say the right task.")
    model.task = found
    if found == "regression":
        return []
    sums = raw.sum(axis=1) if width > 1 else np.ones(len(raw))
    if raw.min() < 0 or raw.max() > 1 or np.abs(sums - 1).max() > 1e-3:
        raise UsageError(
            f"The {name} gives numbers that are no probabilities ({raw.min():.3g} to {raw.max():.3g}).",
            help=model.final,
        )
    classes: list[Any] = list(find_classes(truth, found)) if truth is not None else []
    return classes or ([False, True] if found == "binary" else list(range(width)))


def _float() -> Any:
    import polars as pl

    return pl.Float64()
