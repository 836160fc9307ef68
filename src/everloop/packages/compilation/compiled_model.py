"""Compiled models: preprocessed floats go into trees, weights, or an ONNX graph.

Needs NumPy, and LightGBM's shared library for trees or onnxruntime for a graph, but never the library that trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from everloop.errors import CorruptionError
from everloop.packages.compilation.preprocessing import (
    Preparation,
    column_values,
    number_reader,
    table_codes,
    table_rows,
)
from everloop.training.algorithms.booster import Booster
from everloop.training.algorithms.linear import link
from everloop.training.class_decisions import PLAIN, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

STATE = "compiled.json"
ABOVE_HALF = math.nextafter(0.5, 1.0)
FEW_ROWS = 64
"""Up to this number, rows are scored one by one, which avoids building a frame."""


class CompiledForm(Protocol):
    """One way to score rows. Scores have the layout that `Model` defines."""

    name: str

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        """Score one row of decoded values in the order of the inputs: one number, or one for each class."""
        ...

    def frame(self, frame: pl.DataFrame) -> Array:
        """Score a frame: shape (n,), or (n, classes)."""
        ...

    def to_files(self) -> Files: ...


class TreeForm:
    """Trees in LightGBM's text format.

    If there are trees for each of two classes, the class with the larger sum wins. The score is then that of the second
    class, changed in its last bit if rounding would put it on the wrong side of one half.

    Args:
        divisor: the sum of the trees is divided by it, in the same order as a forest computes its mean. Dividing each
            tree first would change the last bit of the sum, and ties would be broken differently.
    """

    name = "compiled trees"

    def __init__(self, preparation: Preparation, text: str, task: Task, divisor: int = 1) -> None:
        self.preparation = preparation
        self.divisor = divisor
        self._text = text
        self.booster = Booster(text)
        if self.booster.width != preparation.width:
            raise CorruptionError("The compiled trees do not fit their preparation.", help="Package the model again.")
        self._prepare, self._predict_row = preparation.row, self.booster.predict_row
        self._paired = task == "binary" and self.booster.outputs == 2

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        found = self._predict_row(self._prepare(values))
        if self.divisor != 1:
            found = [value / self.divisor for value in found]
        if not self._paired:
            return found
        low, high = found
        return (max(high, ABOVE_HALF) if high > low else min(high, 0.5),)

    def frame(self, frame: pl.DataFrame) -> Array:
        found = self.booster.predict(self.preparation.matrix(frame))
        if self.divisor != 1:
            found = found / self.divisor
        if not self._paired:
            return found
        low, high = found[:, 0], found[:, 1]
        return np.where(high > low, np.maximum(high, ABOVE_HALF), np.minimum(high, 0.5))

    def contributions(self, matrix: Array) -> Array:
        """Return what `Booster.contributions` returns."""
        found = self.booster.contributions(matrix) / self.divisor
        return found[:, 1:] if self._paired else found

    def to_files(self) -> Files:
        text = self._text.encode()
        state = {
            "form": self.name,
            "preparation": self.preparation.to_json(),
            "sha256": hashlib.sha256(text).hexdigest(),
            "divisor": self.divisor,
        }
        return {"trees.txt": text, STATE: _json(state)}


class LinearForm:
    """A linear model. The products of lookup tables with their weights are computed once, when it is loaded.

    Args:
        weights: shape (floats, outputs). bias: shape (outputs,).
        task: determines the link: none, sigmoid, softmax.
    """

    name = "compiled linear"

    def __init__(self, preparation: Preparation, weights: Array, bias: Array, task: Task) -> None:
        self.preparation = preparation
        self.weights, self.bias, self.task = weights, bias, task
        if weights.shape != (preparation.width, len(bias)):
            raise CorruptionError("The compiled weights do not fit their preparation.", help="Package the model again.")
        self._parts: list[tuple[Any, Array, Array | None]] = []
        at = 0
        for segment in preparation.segments:
            part = weights[at : at + segment.width]
            at += segment.width
            # The row of a refused value is NaN, so each table is multiplied on its own.
            sums = None if segment.keys is None else table_rows(segment) @ part
            self._parts.append((segment, part, sums))
        self._one = self._row_function()

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        return self._one(values)

    def frame(self, frame: pl.DataFrame) -> Array:
        total = np.tile(self.bias, (frame.height, 1))
        for segment, part, sums in self._parts:
            if sums is None:
                values = column_values(segment, frame)
                for output in range(part.shape[1]):
                    total[:, output] += values * part[0, output]
            else:
                total += sums[table_codes(segment, frame[segment.name])]
        return link(total, self.task)

    def contributions(self, values: Sequence[Any]) -> list[tuple[int, list[float]]]:
        """Return what each segment adds to the sums of one row: index of its input, one number for each output."""
        found = []
        at = 0
        row = np.array(self.preparation.row(values))
        for segment, part, _ in self._parts:
            found.append((segment.source, (row[at : at + segment.width] @ part).tolist()))
            at += segment.width
        return found

    def to_files(self) -> Files:
        state = {
            "form": self.name,
            "preparation": self.preparation.to_json(),
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
        }
        return {STATE: _json(state)}

    def _row_function(self) -> Callable[[Sequence[Any]], Sequence[float]]:
        if len(self.bias) > 1:
            return self._row_of_several
        numbers, tables = [], []
        for segment, part, sums in self._parts:
            if sums is None:
                numbers.append((segment.source, number_reader(segment), float(part[0, 0])))
            else:
                known = {key: float(value) for key, value in zip(segment.keys, sums[:, 0], strict=False)}
                if segment.null is not None:
                    known[None] = float(sums[-1, 0])
                unseen = None if segment.unseen is None else float(sums[-2, 0])
                tables.append((segment.source, known, unseen))
        bias, squash, several = float(self.bias[0]), self.task == "binary", self._row_of_several

        def one(values: Sequence[Any]) -> Sequence[float]:
            total = bias
            for source, read, weight in numbers:
                value = values[source]
                if type(value) is not float:
                    value = math.nan if value is None else float(value)
                total += weight * (value if read is None else read(value))
            for source, known, unseen in tables:
                value = values[source]
                add = known.get(value, unseen)
                if add is None:
                    # The value is refused; the slow path raises the error that names it.
                    return several(values)
                total += add
            if not squash:
                return (total,)
            if total >= 0:
                return (1.0 / (1.0 + math.exp(-total)),)
            small = math.exp(max(total, -745.0))
            return (small / (1.0 + small),)

        return one

    def _row_of_several(self, values: Sequence[Any]) -> Sequence[float]:
        sums = np.array(self.preparation.row(values)) @ self.weights + self.bias
        scores: list[float] = link(sums[None, :], self.task).reshape(-1).tolist()
        return scores


class CompiledModel:
    """A compiled form as a `Model`."""

    format = "compiled"

    def __init__(self, form: CompiledForm, task: Task, inputs: Sequence[str], rule: Rule = PLAIN) -> None:
        self.form = form
        self.rule = rule
        """How classes follow from scores; proved to give the classes that the original predicts."""
        self.task: Task = task
        self.inputs = tuple(inputs)

    @property
    def size_bytes(self) -> int:
        """Total size of its files."""
        return sum(map(len, self.form.to_files().values()))

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.form.frame(frame)

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        if len(rows) > FEW_ROWS:
            return self.form.frame(_frame_of(rows, self.inputs))
        score_row, names = self.form.row, self.inputs
        scores = np.array([score_row([row[name] for name in names]) for row in rows], dtype=np.float64)
        return scores if self.task == "multiclass" else scores.reshape(len(rows))

    def to_files(self) -> Files:
        files = self.form.to_files()
        state = json.loads(files[STATE])
        return {
            **files,
            STATE: _json(
                {
                    "version": 1,
                    "task": self.task,
                    "inputs": list(self.inputs),
                    "rule": self.rule.to_json(),
                    **state,
                }
            ),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state = json.loads(files[STATE])
            task, inputs = state["task"], state["inputs"]
            # Models compiled by an earlier everloop version have no rule.
            rule = Rule.from_json(state["rule"]) if "rule" in state else PLAIN
            return cls(_read_form(state, files, task), task, inputs, rule)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a compiled model: {error!r}.", help="Package the model again."
            ) from error

    def __reduce__(self) -> tuple[object, ...]:
        return _read, (self.to_files(),)


def _read_form(state: Mapping[str, Any], files: Mapping[str, bytes], task: Task) -> CompiledForm:
    if state["form"] == "onnx":
        from everloop.packages.compilation.onnx_graphs import GraphForm

        return GraphForm.from_state(state, files["model.onnx"])
    preparation = Preparation.from_json(state["preparation"])
    if state["form"] == LinearForm.name:
        return LinearForm(preparation, np.array(state["weights"]), np.array(state["bias"]), task)
    text = files["trees.txt"]
    # LightGBM crashes on a damaged text, so it gets only the original bytes.
    if hashlib.sha256(text).hexdigest() != state["sha256"]:
        raise CorruptionError("trees.txt differs from the text that was compiled.", help="Package the model again.")
    return TreeForm(preparation, text.decode(), task, int(state.get("divisor", 1)))


def _frame_of(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame([pl.Series(name, [row[name] for row in rows], strict=False) for name in names])


def _json(state: Any) -> bytes:
    return json.dumps(state, sort_keys=True).encode()


def _read(files: Files) -> CompiledModel:
    return CompiledModel.from_files(files)
