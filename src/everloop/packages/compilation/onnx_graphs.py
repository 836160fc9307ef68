"""Models as ONNX graphs, run by onnxruntime.

Inputs are passed as the graph declares them: one tensor of shape (n, 1) for each column, or one of shape (n, columns)
for an array. Some converters silently produce wrong graphs (calibrated wrappers, scaling before trees in single
precision), so a converted graph is used only after it has been proved equal.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from everloop.errors import CorruptionError, MissingExtraError, RequestError
from everloop.packages.compilation.deadline import OutOfTimeError, deadline
from everloop.packages.compilation.pipelines import UNSEEN, NotCompilableError
from everloop.packages.compilation.preprocessing import SINGLE_MAX
from everloop.packages.formats.onnx_references import check_references

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.compilation.pipelines import CompilationSource
    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.training.trained_model import Files, Task

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
        finite: refuse infinities, as the original does.
        narrow: refuse numbers that do not fit into single precision.
        unseen: treat a null text as an unseen category; otherwise it is refused.
        bound: clip numbers to ±1e30, so that arithmetic in single precision does not overflow.
    """

    name = "onnx"

    def __init__(
        self,
        graph: bytes,
        *,
        names: Sequence[str],
        task: Task,
        output: str,
        joined: bool,
        finite: bool = False,
        narrow: bool = False,
        bound: bool = False,
        unseen: bool = False,
    ) -> None:
        self._graph = graph
        self.names, self.task, self.output, self.joined = tuple(names), task, output, joined
        self.finite, self.narrow, self.bound, self.unseen = finite, narrow, bound, unseen
        self.session = open_session(graph)
        self._inputs = [(item.name, _dtype(item.type)) for item in self.session.get_inputs()]
        if len(self._inputs) != (1 if joined else len(self.names)):
            raise CorruptionError(
                f"The graph takes {len(self._inputs)} inputs, but the model has {len(self.names)}.",
                help="Package the model again.",
            )
        self._outputs = [output]

    @classmethod
    def from_state(cls, state: Mapping[str, Any], graph: bytes) -> Self:
        known = {name: state[name] for name in ("names", "task", "output", "joined", "finite")}
        flags: dict[str, Any] = {name: bool(state.get(name)) for name in ("narrow", "bound", "unseen")}
        return cls(graph, **known, **flags)

    def row(self, values: Sequence[Any]) -> Sequence[float]:
        if self.joined:
            name, dtype = self._inputs[0]
            feed = {name: self._to_dtype([[_NAN if value is None else value for value in values]], dtype)}
        else:
            feed = {
                name: self._to_dtype([[self._missing(dtype, column) if value is None else value]], dtype)
                for (name, dtype), column, value in zip(self._inputs, self.names, values, strict=True)
            }
        scores: list[float] = self._scores(feed).reshape(-1).tolist()
        return scores

    def frame(self, frame: pl.DataFrame) -> Array:
        return self._scores(self._feed(frame))

    def labelled(self, frame: pl.DataFrame, label: str) -> tuple[Array, NDArray[Any]]:
        """Return the scores, and the output `label` for the same rows."""
        feed = self._feed(frame)
        scores, labels = self.session.run([self.output, label], feed)
        return self._shaped(scores), np.asarray(labels).reshape(-1)

    def _feed(self, frame: pl.DataFrame) -> dict[str, Any]:
        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
        if self.joined:
            name, dtype = self._inputs[0]
            matrix = np.column_stack([self._column(frame[column], np.float64) for column in self.names])
            return {name: self._to_dtype(matrix, dtype)}
        feed = {}
        for (name, dtype), column in zip(self._inputs, self.names, strict=True):
            # In double precision, so that numbers which do not fit into single precision are noticed.
            values = self._column(frame[column], np.float64 if dtype is np.float32 else dtype)
            feed[name] = self._to_dtype(values, dtype)[:, None]
        return feed

    def to_files(self) -> Files:
        state = {
            "form": self.name,
            "names": list(self.names),
            "task": self.task,
            "output": self.output,
            "joined": self.joined,
            "finite": self.finite,
            "narrow": self.narrow,
            "bound": self.bound,
            "unseen": self.unseen,
        }
        return {"model.onnx": self._graph, "compiled.json": json.dumps(state, sort_keys=True).encode()}

    def _missing(self, dtype: Any, name: str) -> Any:
        if dtype in (np.float32, np.float64):
            return _NAN
        if dtype is np.object_ and self.unseen:
            # Most encoders that take nulls treat them as an unseen category; the proof finds those that do not.
            return UNSEEN
        raise RequestError(f"'{name}' is null, which the model does not take.")

    def _column(self, series: pl.Series, dtype: Any) -> NDArray[Any]:
        if dtype in (np.float32, np.float64):
            return series.cast(_float()).fill_null(_NAN).to_numpy().astype(dtype)
        if series.null_count():
            missing = self._missing(dtype, series.name)
            return np.array([missing if value is None else value for value in series.to_list()], dtype=np.object_)
        if dtype is np.object_:
            return np.array(series.to_list(), dtype=np.object_)
        return series.to_numpy().astype(dtype)

    def _to_dtype(self, values: Any, dtype: Any) -> NDArray[Any]:
        """Convert values to an array of the graph's type."""
        if dtype is not np.float32:
            return np.asarray(values, dtype=dtype)
        wide = np.asarray(values, dtype=np.float64)
        if self.finite and np.isinf(wide).any():
            raise RequestError("A value is infinite, which the model does not take.")
        if self.narrow and (np.abs(wide) > SINGLE_MAX).any():
            raise RequestError("A value is too large for the model.")
        return np.clip(wide, -_BOUND, _BOUND).astype(dtype) if self.bound else wide.astype(dtype)

    def _scores(self, feed: dict[str, Any]) -> Array:
        if self.finite and any(values.dtype.kind == "f" and np.isinf(values).any() for values in feed.values()):
            raise RequestError("A value is infinite, which the model does not take.")
        return self._shaped(self.session.run(self._outputs, feed)[0])

    def _shaped(self, found: Any) -> Array:
        scores = np.asarray(found, dtype=np.float64)
        if self.task == "multiclass":
            return scores
        if self.task == "binary" and scores.ndim == 2 and scores.shape[1] == 2:
            return np.ascontiguousarray(scores[:, 1])
        return scores.reshape(-1)


_NAN = float("nan")
_BOUND = 1e30
CONVERSION_S = 10.0
"""The longest time that a converter may take."""
_MOST_QUANTILES = 200
"""Converting takes half a second for 60 quantiles and ten seconds for 600."""
_CONVERTED = frozenset({"sklearn", "lightgbm", "xgboost"})
"""Libraries whose estimators skl2onnx and onnxmltools support."""
_OPSET = {"": 18, "ai.onnx.ml": 3}
"""The newest that both skl2onnx and onnxmltools write."""


def open_session(graph: bytes) -> Any:
    """Open a session with one thread: a row is too small to share between threads.

    The graph is checked first for references to files and foreign operators.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        TrustError: the graph refers to a file, or to an operator that is not part of onnxruntime.
        CorruptionError: onnxruntime cannot run the graph.
    """
    check_references(graph)
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError.of("An ONNX model", "onnxruntime", "onnx") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Otherwise onnxruntime guesses the format, and its own format has not been checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise CorruptionError(
            f"onnxruntime cannot run this ONNX model: {error}", help="Export the model again."
        ) from error


def convert(
    original: CompilationSource, signature: Signature, sample: pl.DataFrame, *, single: bool = False
) -> GraphForm:
    """Convert a scikit-learn estimator or pipeline with skl2onnx; LightGBM's and XGBoost's with onnxmltools.

    Args:
        single: use single precision, which more converters support; the proof shows whether it is exact enough.

    Raises:
        NotCompilableError: a converter is not installed, or does not support the model.
    """
    if original.order:
        raise NotCompilableError("its classes are not in order")
    last = last_step(original.estimator)
    library = type(last).__module__.partition(".")[0]
    if library not in _CONVERTED and "skl2onnx" not in sys.modules:
        # A library that registers its own converter has imported skl2onnx.
        raise NotCompilableError(f"there is no converter for {type(last).__name__}")
    if max(map(_quantiles, _steps(original.estimator)), default=0) > _MOST_QUANTILES:
        raise NotCompilableError("skl2onnx takes too long for the quantiles of a QuantileTransformer")
    try:
        import skl2onnx
        from skl2onnx.common import data_types
    except ImportError:
        raise NotCompilableError("skl2onnx is not installed: pip install 'everloop[onnx]'") from None
    if any(np.isinf(thresholds).any() for thresholds in _thresholds(last)):
        # skl2onnx would halve an infinite interval forever.
        raise NotCompilableError("one of its trees separates nulls from all other values")
    _register_boosters()
    kinds: dict[str, Json] = {
        "string": data_types.StringTensorType,
        "int": data_types.Int64TensorType,
        "bool": data_types.BooleanTensorType,
        "float": data_types.FloatTensorType if single else data_types.DoubleTensorType,
    }
    joined = original.table.container == "numpy"
    unsupported = [item.name for item in signature.inputs if item.type not in kinds]
    if unsupported:
        raise NotCompilableError(f"a graph cannot take the type of '{unsupported[0]}'")
    if joined:
        initial = [("X", kinds["float"]([None, len(signature.inputs)]))]
    else:
        initial = [(item.name, kinds[item.type]([None, 1])) for item in signature.inputs]
    estimator = _convertible(original.estimator)
    options = {id(last_step(estimator)): {"zipmap": False}} if original.task != "regression" else None
    try:
        with _plain_attributes(), warnings.catch_warnings(), deadline(CONVERSION_S):
            warnings.simplefilter("ignore")
            graph = skl2onnx.convert_sklearn(estimator, initial_types=initial, options=options, target_opset=_OPSET)
    except OutOfTimeError:
        raise NotCompilableError(f"skl2onnx could not convert it within {CONVERSION_S:g} s") from None
    output = graph.graph.output[-1].name
    return GraphForm(
        graph.SerializeToString(),
        names=signature.names,
        task=original.task,
        output=output,
        joined=joined,
        finite=_refuses(original, signature, sample, float("inf")),
        narrow=_refuses(original, signature, sample, 1e300),
        bound=single,
        unseen=True,
    )


def _convertible(estimator: Any) -> Any:
    """Return a copy without a setting that converters do not support and that does not change predictions."""
    if hasattr(estimator, "steps"):
        (*before, (name, last)), made = estimator.steps, copy.copy(estimator)
        made.steps = [*before, (name, _convertible(last))]
        return made
    if not getattr(estimator, "flatten_transform", False):
        return estimator
    made = copy.copy(estimator)
    made.flatten_transform = False
    return made


def _steps(estimator: Any) -> list[Any]:
    """Return the estimator and all steps of its pipelines, column transformers and unions."""
    inner = [step[1] for step in getattr(estimator, "steps", ())]
    inner += [entry[1] for entry in getattr(estimator, "transformers_", getattr(estimator, "transformer_list", ()))]
    return [estimator, *(part for step in inner if not isinstance(step, str) for part in _steps(step))]


def _quantiles(step: Any) -> int:
    """Return the number of quantiles that a step holds for all its columns."""
    if type(step).__module__.startswith("sklearn.") and type(step).__name__ == "QuantileTransformer":
        return int(np.size(getattr(step, "quantiles_", ())))
    return 0


def last_step(estimator: Any) -> Any:
    """Return the estimator at the end of a pipeline."""
    return last_step(estimator.steps[-1][1]) if hasattr(estimator, "steps") else estimator


def _thresholds(estimator: Any) -> list[NDArray[np.float64]]:
    """Return the split thresholds of scikit-learn's trees; empty for other estimators."""
    estimators = getattr(estimator, "estimators_", [estimator])
    members = estimators.ravel().tolist() if isinstance(estimators, np.ndarray) else list(estimators)
    found = [member.tree_.threshold for member in members if hasattr(member, "tree_")]
    iterations = getattr(estimator, "_predictors", ())
    return found + [predictor.nodes["num_threshold"] for predictors in iterations for predictor in predictors]


def _refuses(original: CompilationSource, signature: Signature, sample: pl.DataFrame, value: float) -> bool:
    """Whether the original refuses a row whose numbers are all this value."""
    import polars as pl

    names = [item.name for item in signature.inputs if item.type == "float"]
    try:
        original.model.predict_scores(sample.head(1).with_columns(pl.lit(value).alias(name) for name in names))
    except Exception:  # any error of the estimator means that it refuses the row
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


class _plain_attributes:  # noqa: N801 - used like a function
    """Convert NumPy numbers that skl2onnx passes as attributes, because newer versions of onnx refuse them."""

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
        raise CorruptionError(
            f"The graph takes a {kind}, which a model input cannot be.", help=f"Supported: {', '.join(_DTYPES)}."
        ) from None


def _float() -> Any:
    import polars as pl

    return pl.Float64()
