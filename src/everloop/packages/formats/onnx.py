"""ONNX models that the user provides: stored unchanged, and run by onnxruntime."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everloop.errors import CorruptionError, RequestError, TrainingError, UsageError
from everloop.packages.compilation.onnx_graphs import GraphForm, open_session
from everloop.packages.formats.input_tables import TableKind
from everloop.training.class_decisions import PLAIN, ClassScores, by_rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]


class OnnxModel:
    """A `Model` around an ONNX graph."""

    format = "onnx"

    def __init__(
        self, form: GraphForm, table: TableKind, *, label: str | None = None, labels: Sequence[Json] = ()
    ) -> None:
        """`label`: the output with each row's class, if the graph has one; `labels`: its value for each class."""
        self.form = form
        self.table = table
        self.task: Task = form.task
        self.inputs = table.names
        self.label, self.labels = label, list(labels)
        self.rule = PLAIN if label is None else None

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.form.frame(self.table.cast(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.form.frame(self.table.from_rows(rows))

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Return scores, and the class in the graph's label output."""
        return self._predict(self.table.cast(frame))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        """Return scores, and the class in the graph's label output."""
        return self._predict(self.table.from_rows(rows))

    def _predict(self, frame: pl.DataFrame) -> ClassScores:
        if self.label is None:
            return by_rule(self, self.form.frame(frame))
        scores, predicted = self.form.labelled(frame, self.label)
        indices = {value: index for index, value in enumerate(self.labels)}
        unknown = next((value for value in predicted.tolist() if value not in indices), None)
        if unknown is not None:
            raise RequestError(
                f"The ONNX model predicts {unknown!r}, which is not one of its classes.",
                help=f"Its classes are: {', '.join(map(repr, self.labels[:10]))}",
            )
        return ClassScores(scores, np.array([indices[value] for value in predicted.tolist()], dtype=np.intp))

    def to_files(self) -> Files:
        files = self.form.to_files()
        state = {**json.loads(files["compiled.json"]), "table": self.table.to_json()}
        if self.label is not None:
            state |= {"label": self.label, "labels": self.labels}
        return {"model.onnx": files["model.onnx"], "onnx.json": json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state = json.loads(files["onnx.json"])
            return cls(
                GraphForm.from_state(state, files["model.onnx"]),
                TableKind.from_json(state["table"]),
                label=state.get("label"),
                labels=state.get("labels", ()),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not an ONNX model: {error!r}.", help="Package the model again."
            ) from error

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


def _reread(files: Files) -> OnnxModel:
    return OnnxModel.from_files(files)


def adopt_onnx(
    graph: bytes, table: TableKind, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> tuple[OnnxModel, list[Json]]:
    """Wrap an ONNX model without changing it. Columns are matched by name or, for one input tensor, by position.

    Raises:
        UsageError: the example's columns do not fit its inputs, or the task does not fit its outputs.
        TrainingError: it cannot predict the example.
    """
    from everloop.training.targets import find_classes

    session = open_session(graph)
    names = [item.name for item in session.get_inputs()]
    joined = len(names) == 1 and table.names != tuple(names)
    if not joined:
        absent = [name for name in names if name not in table.names]
        if absent:
            raise UsageError(
                f"The example lacks the columns {', '.join(map(repr, absent[:8]))}, which the ONNX model takes.",
                help=f"It has: {', '.join(table.names[:30])}",
            )
        by_name = {column.name: column for column in table.columns}
        table = replace(table, columns=tuple(by_name[name] for name in names))
    output = next(
        (item.name for item in session.get_outputs() if "prob" in item.name.lower()), session.get_outputs()[-1].name
    )
    try:
        form = GraphForm(graph, names=table.names, task="multiclass", output=output, joined=joined)
        scores = np.asarray(form.frame(table.cast(frame.head(5))))
    except Exception as error:  # onnxruntime's errors have no common base class
        raise TrainingError(
            f"The ONNX model cannot predict the example: {error}",
            help="Pass a table with the columns and types that the model takes.",
        ) from error
    width = scores.shape[1] if scores.ndim == 2 else 1
    found: Task = task or ("regression" if width == 1 else "binary" if width == 2 else "multiclass")
    if (width > 2) != (found == "multiclass"):
        raise UsageError(
            f"The ONNX model returns {width} numbers per row, which does not fit the task {found}.",
            help="Pass the right task=.",
        )
    form = GraphForm(graph, names=table.names, task=found, output=output, joined=joined)
    if found == "regression":
        return OnnxModel(form, table), []
    label = next((item.name for item in session.get_outputs() if item.name != output and _is_label(item.type)), None)
    classes: list[Any] = list(find_classes(target, found)) if target is not None else list(range(max(width, 2)))
    if label is None:
        return OnnxModel(form, table), classes
    predicted = set(form.labelled(table.cast(frame), label)[1].tolist())
    labels = _labels(predicted, classes, given=target is not None)
    return OnnxModel(form, table, label=label, labels=labels), classes if target is not None else labels


def _is_label(kind: str) -> bool:
    return kind in ("tensor(int64)", "tensor(int32)", "tensor(string)", "tensor(bool)")


def _labels(predicted: set[Any], classes: list[Any], *, given: bool) -> list[Any]:
    """Return the graph's label for each class, from the labels that it predicts for the example.

    Args:
        given: the classes come from the user's target.

    Raises:
        UsageError: the labels do not fit the classes.
    """
    # Integers that are not classes themselves are indices of classes.
    for candidate in (classes, list(range(len(classes)))):
        if predicted <= set(candidate):
            return candidate
    if not given and len(predicted) == len(classes):
        # Converters sort the classes.
        return sorted(predicted)
    listed = ", ".join(map(repr, sorted(predicted, key=str)[:10]))
    raise UsageError(
        f"The ONNX model predicts {listed} for the example, but its classes are {', '.join(map(repr, classes[:10]))}.",
        help="Pass as y= the target of the example's rows, with every class in it.",
    )
