"""Neural networks: they take one matrix in single precision, and return scores.

A classifier must return probabilities. Logits cannot be recognized with certainty, so other outputs are refused rather
than guessed.
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
    """A `Model` around a network. Subclasses define how it predicts and how it is stored."""

    format: str
    final: ClassVar[str] = ""
    """Advice for errors: how to make the last layer return probabilities."""

    def __init__(self, table: TableKind, task: Task) -> None:
        self.table, self.task = table, task
        self.inputs = table.names

    @abstractmethod
    def forward(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        """Return the network's output for rows, shape (n,), (n, 1) or (n, classes)."""

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
        scores = np.asarray(self.forward(matrix), dtype=np.float64)
        if self.task == "multiclass":
            return scores
        if self.task == "binary" and scores.ndim == 2 and scores.shape[1] == 2:
            return np.ascontiguousarray(scores[:, 1])
        return scores.reshape(len(matrix))


def describe_network(
    model: NetworkModel, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> list[Json]:
    """Infer the task and the classes of a network from its output, and set its task.

    Raises:
        UsageError: a column is not numeric, or a classifier does not return probabilities.
        TrainingError: it cannot predict the example.
    """
    from everloop.training.targets import find_classes, infer_task

    name = type(model).__name__
    other = next((column.name for column in model.table.columns if column.type not in _NUMBERS), None)
    if other is not None:
        raise UsageError(
            f"The column '{other}' is not numeric, but a network takes a matrix of numbers.",
            help="Convert it in the data step of the loop, or with a function: save_model(model, …, before=prepare).",
        )
    rows = model.table.cast(frame.head(20))
    matrix = np.column_stack([series.cast(_float()).fill_null(0.0).to_numpy() for series in rows.get_columns()])
    try:
        raw = np.asarray(model.forward(matrix.astype(np.float32)), dtype=np.float64)
        raw = raw.reshape(len(matrix), -1)
    except Exception as error:  # a foreign network can raise anything
        raise TrainingError(
            f"The {name} cannot predict the example: {type(error).__name__}: {error}",
            help="It must take one tensor of shape (rows, columns) in single precision, and return one row for each.",
        ) from error
    width = raw.shape[1]
    found = task or ("binary" if width == 2 else "multiclass" if width > 2 else None)
    if found is None:
        found = "regression" if target is None else infer_task(target)
    if (width > 2) != (found == "multiclass") or (width == 2 and found == "regression"):
        raise UsageError(
            f"The {name} returns {width} numbers per row, which does not fit the task {found}.",
            help="Pass the right task=.",
        )
    model.task = found
    if found == "regression":
        return []
    sums = raw.sum(axis=1) if width > 1 else np.ones(len(raw))
    if raw.min() < 0 or raw.max() > 1 or np.abs(sums - 1).max() > 1e-3:
        raise UsageError(
            f"The {name} returns numbers that are not probabilities ({raw.min():.3g} to {raw.max():.3g}).",
            help=model.final,
        )
    classes: list[Any] = list(find_classes(target, found)) if target is not None else []
    if found == "multiclass" and classes and len(classes) != width:
        raise UsageError(
            f"The {name} returns {width} numbers per row, but the target has {len(classes)} values: "
            f"{', '.join(map(repr, classes[:8]))}.",
            help="It must return one probability for each value of the target, in their sorted order.",
        )
    return classes or ([False, True] if found == "binary" else list(range(width)))


def _float() -> Any:
    import polars as pl

    return pl.Float64()
