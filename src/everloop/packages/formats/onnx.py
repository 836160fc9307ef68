"""An ONNX model that somebody gives as it is: kept byte for byte, answered by onnxruntime."""

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
    """A graph with its columns. See `Model` for what it answers."""

    format = "onnx"

    def __init__(
        self, form: GraphForm, table: TableKind, *, label: str | None = None, labels: Sequence[Json] = ()
    ) -> None:
        """`label`: the output that names each row's class, where the graph has one; `labels`: its values by class."""
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
        """Scores, and the class that the graph itself names."""
        return self._answer(self.table.cast(frame))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        """Scores, and the class that the graph itself names."""
        return self._answer(self.table.from_rows(rows))

    def _answer(self, frame: pl.DataFrame) -> ClassScores:
        if self.label is None:
            return by_rule(self, self.form.frame(frame))
        scores, said = self.form.labelled(frame, self.label)
        known = {value: place for place, value in enumerate(self.labels)}
        strange = next((value for value in said.tolist() if value not in known), None)
        if strange is not None:
            raise RequestError(
                f"The ONNX model predicts {strange!r}, which is not one of its classes.",
                help=f"They are: {', '.join(map(repr, self.labels[:10]))}",
            )
        return ClassScores(scores, np.array([known[value] for value in said.tolist()], dtype=np.intp))

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
            raise CorruptionError(f"These files are no ONNX model: {error!r}.", help="Build it again.") from error

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


def _reread(files: Files) -> OnnxModel:
    return OnnxModel.from_files(files)


def adopt_onnx(
    graph: bytes, table: TableKind, frame: pl.DataFrame, task: Task | None, truth: pl.Series | None
) -> tuple[OnnxModel, list[Json]]:
    """Take an ONNX model as it is: inputs by name or, where it takes one tensor, by place.

    Raises:
        UsageError: the example's columns do not fit its inputs, or the task cannot be told from its outputs.
        TrainingError: it cannot answer the example.
    """
    from everloop.training.targets import find_classes

    session = open_session(graph)
    asked = [item.name for item in session.get_inputs()]
    joined = len(asked) == 1 and table.names != tuple(asked)
    if not joined:
        absent = [name for name in asked if name not in table.names]
        if absent:
            raise UsageError(
                f"The example lacks the columns {', '.join(map(repr, absent[:8]))}, which the ONNX model takes.",
                help=f"It has: {', '.join(table.names[:30])}",
            )
        by_name = {column.name: column for column in table.columns}
        table = replace(table, columns=tuple(by_name[name] for name in asked))
    output = next(
        (item.name for item in session.get_outputs() if "prob" in item.name.lower()), session.get_outputs()[-1].name
    )
    few = table.cast(frame.head(5))
    try:
        form = GraphForm(graph, names=table.names, task="multiclass", output=output, joined=joined)
        answer = np.asarray(form.frame(few))
    except Exception as error:  # onnxruntime has a class for every cause and no common root
        raise TrainingError(f"The ONNX model cannot answer its example: {error}") from error
    width = answer.shape[1] if answer.ndim == 2 else 1
    found: Task = task or ("regression" if width == 1 else "binary" if width == 2 else "multiclass")
    if (width > 2) != (found == "multiclass"):
        raise UsageError(
            f"The ONNX model gives {width} numbers a row, which is no {found}.", help="Say the right task."
        )
    form = GraphForm(graph, names=table.names, task=found, output=output, joined=joined)
    if found == "regression":
        return OnnxModel(form, table), []
    label = next((item.name for item in session.get_outputs() if item.name != output and _is_label(item.type)), None)
    classes: list[Any] = list(find_classes(truth, found)) if truth is not None else list(range(max(width, 2)))
    if label is None:
        return OnnxModel(form, table), classes
    said = set(form.labelled(table.cast(frame), label)[1].tolist())
    labels = _labels(said, classes, given=truth is not None)
    return OnnxModel(form, table, label=label, labels=labels), classes if truth is not None else labels


def _is_label(kind: str) -> bool:
    return kind in ("tensor(int64)", "tensor(int32)", "tensor(string)", "tensor(bool)")


def _labels(said: set[Any], classes: list[Any], *, given: bool) -> list[Any]:
    """The graph's own label of each class, given the labels that it says to the example.

    Raises:
        UsageError: they are not those of the classes.
    """
    # Whole numbers that are not the classes themselves count them.
    for candidate in (classes, list(range(len(classes)))):
        if said <= set(candidate):
            return candidate
    if not given and len(said) == len(classes):
        # Converters keep the classes in order.
        return sorted(said)
    told = ", ".join(map(repr, sorted(said, key=str)[:10]))
    raise UsageError(
        f"The ONNX model predicts {told} for its example, and its classes are {', '.join(map(repr, classes[:10]))}.",
        help="Pass as y= the target of the example's rows, with every class in it.",
    )
