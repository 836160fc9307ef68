"""A model as an ONNX graph, answered by onnxruntime.

Inputs go in as they are declared: one tensor of shape (n, 1) for each column, or one of shape (n, columns) for an
array. Converters are known to go wrong without a word (calibrated wrappers, scaling before trees in single precision),
so a converted graph means nothing until it has been proved.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everloop.errors import CorruptionError, MissingExtraError, RequestError
from everloop.models.compilation.deadline import OutOfTimeError, deadline
from everloop.models.compilation.reading import NotCompilableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.models.compilation.reading import Subject
    from everloop.models.signature import Signature
    from everloop.records import Json
    from everloop.training.trained import Files, Task

    Array = NDArray[np.float64]

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class GraphForm:
    """An ONNX graph with the columns that it takes.

    Args:
        names: inputs of the signature, in order. joined: all of them go into one tensor.
        output: name of the output that holds the scores.
        finite: infinities are refused, as the original does.
    """

    name = "onnx"

    def __init__(
        self, graph: bytes, *, names: Sequence[str], task: Task, output: str, joined: bool, finite: bool = False
    ) -> None:
        self._graph = graph
        self.names, self.task, self.output, self.joined = tuple(names), task, output, joined
        self.finite = finite
        self.session = open_session(graph)
        self._inputs = [(item.name, _dtype(item.type)) for item in self.session.get_inputs()]
        if len(self._inputs) != (1 if joined else len(self.names)):
            raise CorruptionError(f"The graph takes {len(self._inputs)} inputs, the model has {len(self.names)}.")
        self._outputs = [output]

    @classmethod
    def from_state(cls, state: Mapping[str, Any], graph: bytes) -> Self:
        known = {name: state[name] for name in ("names", "task", "output", "joined", "finite")}
        return cls(graph, **known)

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        if self.joined:
            name, dtype = self._inputs[0]
            feed = {name: np.array([[_NAN if value is None else value for value in values]], dtype=dtype)}
        else:
            feed = {
                name: np.array([[_missing(dtype, column) if value is None else value]], dtype=dtype)
                for (name, dtype), column, value in zip(self._inputs, self.names, values, strict=True)
            }
        scores: list[float] = self._scores(feed).reshape(-1).tolist()
        return scores

    def frame(self, frame: pl.DataFrame) -> Array:
        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
        if self.joined:
            name, dtype = self._inputs[0]
            matrix = np.column_stack([_column(frame[column], np.float64, column) for column in self.names])
            return self._scores({name: matrix.astype(dtype)})
        return self._scores(
            {
                name: _column(frame[column], dtype, column)[:, None]
                for (name, dtype), column in zip(self._inputs, self.names, strict=True)
            }
        )

    def to_files(self) -> Files:
        state = {
            "form": self.name,
            "names": list(self.names),
            "task": self.task,
            "output": self.output,
            "joined": self.joined,
            "finite": self.finite,
        }
        return {"model.onnx": self._graph, "compiled.json": json.dumps(state, sort_keys=True).encode()}

    def _scores(self, feed: dict[str, Any]) -> Array:
        if self.finite and any(values.dtype.kind == "f" and np.isinf(values).any() for values in feed.values()):
            raise RequestError("A value is infinite, which the model does not take.")
        scores = np.asarray(self.session.run(self._outputs, feed)[0], dtype=np.float64)
        if self.task == "multiclass":
            return scores
        if self.task == "binary" and scores.ndim == 2 and scores.shape[1] == 2:
            return np.ascontiguousarray(scores[:, 1])
        return scores.reshape(-1)


_NAN = float("nan")
CONVERSION_S = 10.0
"""No converter may take longer."""
_OPSET = {"": 18, "ai.onnx.ml": 3}
"""The newest that skl2onnx and onnxmltools write alike."""


def open_session(graph: bytes) -> Any:
    """A session with one thread for each operator: a row is too small to share.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        CorruptionError: the bytes are no graph that it can run.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError.of("An ONNX model", "onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for every cause and no common root
        raise CorruptionError(f"The bytes are no ONNX model that can be run: {error}") from error


def convert(original: Subject, signature: Signature, sample: pl.DataFrame) -> GraphForm:
    """A scikit-learn estimator or pipeline through skl2onnx; LightGBM's and XGBoost's through onnxmltools.

    Raises:
        NotCompilableError: a converter is not installed, or does not know the model.
    """
    try:
        import skl2onnx
        from skl2onnx.common import data_types
    except ImportError:
        raise NotCompilableError("skl2onnx is not installed: pip install 'everloop[onnx]'") from None
    if original.order:
        raise NotCompilableError("its classes are not in order")
    members = np.ravel(getattr(last_step(original.estimator), "estimators_", [last_step(original.estimator)]))
    if any(np.isinf(member.tree_.threshold).any() for member in members if hasattr(member, "tree_")):
        # Halving an interval that is infinite, skl2onnx would never end.
        raise NotCompilableError("a tree of it splits nulls from all else")
    _register_boosters()
    kinds: dict[str, Json] = {
        "string": data_types.StringTensorType,
        "int": data_types.Int64TensorType,
        "bool": data_types.BooleanTensorType,
        "float": data_types.DoubleTensorType,
    }
    joined = original.table.container == "numpy"
    strange = [item.name for item in signature.inputs if item.type not in kinds]
    if strange:
        raise NotCompilableError(f"'{strange[0]}' is of a type that no graph takes")
    if joined:
        initial = [("X", data_types.DoubleTensorType([None, len(signature.inputs)]))]
    else:
        initial = [(item.name, kinds[item.type]([None, 1])) for item in signature.inputs]
    last = last_step(original.estimator)
    options = {id(last): {"zipmap": False}} if original.task != "regression" else None
    try:
        with _plain_attributes(), warnings.catch_warnings(), deadline(CONVERSION_S):
            warnings.simplefilter("ignore")
            graph = skl2onnx.convert_sklearn(
                original.estimator, initial_types=initial, options=options, target_opset=_OPSET
            )
    except OutOfTimeError:
        raise NotCompilableError(f"skl2onnx had not converted it after {CONVERSION_S:g} s") from None
    output = graph.graph.output[-1].name
    return GraphForm(
        graph.SerializeToString(),
        names=signature.names,
        task=original.task,
        output=output,
        joined=joined,
        finite=_refuses_infinities(original, signature, sample),
    )


def last_step(estimator: Any) -> Any:
    """The estimator at the end of a pipeline."""
    return last_step(estimator.steps[-1][1]) if hasattr(estimator, "steps") else estimator


def _refuses_infinities(original: Subject, signature: Signature, sample: pl.DataFrame) -> bool:
    import polars as pl

    names = [item.name for item in signature.inputs if item.type == "float"]
    try:
        original.model.predict_scores(sample.head(1).with_columns(pl.lit(float("inf")).alias(name) for name in names))
    except Exception:  # whatever the estimator raises: it refuses the row
        return True
    return False


def _register_boosters() -> None:
    from contextlib import suppress

    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    with suppress(ImportError):
        import lightgbm
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm

        choices = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
        update_registered_converter(
            lightgbm.LGBMClassifier,
            "LightGbmLGBMClassifier",
            calculate_linear_classifier_output_shapes,
            convert_lightgbm,
            options=choices,
        )
        update_registered_converter(
            lightgbm.LGBMRegressor,
            "LgbmLGBMRegressor",
            calculate_linear_regressor_output_shapes,
            convert_lightgbm,
            options={"split": None},
        )


class _plain_attributes:  # noqa: N801 - reads as a context
    """skl2onnx gives NumPy numbers to attributes, which newer onnx refuses; they are made plain on their way."""

    def __enter__(self) -> None:
        import onnx.helper

        self._make = onnx.helper.make_attribute
        make = self._make

        def plain(key: str, value: Any, *rest: Any, **named: Any) -> Any:
            return make(key, _plain(value), *rest, **named)

        onnx.helper.make_attribute = plain

    def __exit__(self, *_: object) -> None:
        import onnx.helper

        onnx.helper.make_attribute = self._make


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _dtype(kind: str) -> Any:
    try:
        return _DTYPES[kind]
    except KeyError:
        raise CorruptionError(f"The graph takes a {kind}, which no model input can be.") from None


def _missing(dtype: Any, name: str) -> Any:
    if dtype in (np.float32, np.float64):
        return _NAN
    raise RequestError(f"'{name}' is null, which the graph does not take.")


def _column(series: pl.Series, dtype: Any, name: str) -> NDArray[Any]:
    if dtype in (np.float32, np.float64):
        return series.cast(_float()).fill_null(_NAN).to_numpy().astype(dtype)
    if series.null_count():
        raise RequestError(f"'{name}' is null, which the graph does not take.")
    if dtype is np.object_:
        return np.array(series.to_list(), dtype=np.object_)
    return series.to_numpy().astype(dtype)


def _float() -> Any:
    import polars as pl

    return pl.Float64()
