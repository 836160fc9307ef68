"""A user's own fitted estimator as a model, whatever library it comes from.

The estimator is asked exactly as it was fitted: with the columns and the kind of table that it knows. It is kept in
skops' format where that holds nothing but types which skops knows to be harmless; otherwise as a pickle, which runs
code when read and therefore is only read with a trusted signature (the models room sees to that).
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np

from everloop.errors import CorruptionError, MissingExtraError, RequestError, TrainingError, TrustError, UsageError
from everloop.training.encoding import arrow_type
from everloop.training.estimator_scores import EstimatorScores
from everloop.training.estimator_tasks import (
    arranged,
    check_one_output,
    first_answers,
    found_classes,
    kind_of,
    known_classes,
    task_for,
)
from everloop.training.targets import find_classes, infer_task
from everloop.training.trained_model import Trained
from everloop.training.training_tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Files, Json, Task

    Array = NDArray[np.float64]

logger = logging.getLogger("everloop.training")

Container = Literal["polars", "pandas", "numpy"]
_CONTAINERS: tuple[Container, ...] = ("polars", "pandas", "numpy")
_PROBE_ROWS = 20


class AdoptedModel:
    """An estimator with what it takes to ask it. See `Model` for what it answers.

    Whether one row's answer depends on the rows asked with it is up to the estimator.
    """

    reads: ClassVar[str] = "skops"
    """The format that `from_files` reads. What the files say of themselves is no reason to run code out of them."""

    def __init__(
        self,
        estimator: Any,
        *,
        format: str,
        blob: bytes,
        question: EstimatorScores,
        inputs: Sequence[str],
        types: Mapping[str, str],
        container: Container,
    ) -> None:
        self.estimator = estimator
        self.format = format
        self.question = question
        self.task: Task = question.task
        self.inputs = tuple(inputs)
        self.types = dict(types)
        """Arrow type of each input, so that plain rows become the columns that the estimator knows."""
        self.container: Container = container
        self._blob = blob

    @property
    def order(self) -> tuple[int, ...]:
        """Where the estimator has each class; empty where it has them in order."""
        return self.question.order

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores; None where the estimator is asked for them."""
        return self.question.rule if self.question.choice == "rule" else None

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.question.scores(self.estimator, self._contained(frame))

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and classes."""
        return self.question.answer(self.estimator, self._contained(frame))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.predict_scores(self._frame_of(rows))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        """Scores and classes."""
        return self.answer_frame(self._frame_of(rows))

    def _contained(self, frame: pl.DataFrame) -> Any:
        absent = [name for name in self.inputs if name not in frame.columns]
        if absent:
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
        return _contain(frame.select(self.inputs), self.container)

    def _frame_of(self, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
        import polars as pl

        for row in rows:
            for name in self.inputs:
                if name not in row:
                    raise RequestError(f"Column '{name}' is missing.", help=f"Given: {', '.join(list(row)[:30])}")
        schema = {name: _polars_type(self.types[name]) for name in self.inputs}
        try:
            columns = {name: pl.Series(name, [row[name] for row in rows], dtype=schema[name]) for name in self.inputs}
        except (TypeError, pl.exceptions.PolarsError) as error:
            raise RequestError(f"The rows do not have the types that the model knows: {error}") from error
        return pl.DataFrame(columns)

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "inputs": list(self.inputs),
            "types": self.types,
            "container": self.container,
            **self.question.to_json(),
        }
        return {f"model.{self.format}": self._blob, "adopted.json": json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        kept = cls.reads
        try:
            state, blob = json.loads(files["adopted.json"]), files[f"model.{kept}"]
            known = {name: state[name] for name in ("inputs", "types", "container")}
            question = EstimatorScores.from_json(state, state["task"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"These files are no adopted model: {error!r}.", help="Build it again.") from error
        return cls(_load(blob, kept), format=kept, blob=blob, question=question, **known)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


class PickledModel(AdoptedModel):
    """An estimator that skops cannot hold: reading it runs code, so somebody trusted must have signed it."""

    reads = "pickle"


def adopt(
    estimator: Any,
    frame: pl.DataFrame | pl.LazyFrame,
    target: str,
    *,
    features: Sequence[str] | None = None,
    container: Container | None = None,
    task: Task | None = None,
    metric: str | None = None,
) -> Trained:
    """Take a fitted estimator as it is.

    Args:
        estimator: fitted, with `predict`, as scikit-learn has it, and `predict_proba` where it gives probabilities.
        frame: rows that it was fitted on, or some of them: they tell columns, types and classes.
        target: column that it predicts.
        features: columns that it reads, in order; None asks the estimator, else takes all but the target.
        container: the kind of table that it takes; None tries polars, pandas and a plain array in turn.
        task: None infers it from the estimator and the target.
        metric: the metric that it was made for, for the record; None is the task's usual one.

    Raises:
        TrainingError: it is not fitted, or cannot answer these rows.
        UsageError: it predicts several targets.
    """
    from everloop.training.metrics import get_metric, metrics_of

    rows = table(frame)
    names = _names(estimator, rows, target, features)
    check_one_output(estimator)
    probe = rows.select(names).head(_PROBE_ROWS)
    asked, classes, order = _decided(estimator, rows, names, target, task, container)
    question, fits = _fitting_container(estimator, probe, asked, classes, order, container)
    kept, blob = _dump(estimator)
    types = {name: arrow_type(dtype) for name, dtype in rows.select(names).schema.items()}
    kind = PickledModel if kept == "pickle" else AdoptedModel
    model = kind(estimator, format=kept, blob=blob, question=question, inputs=names, types=types, container=fits)
    notes = [f"adopted {type(estimator).__module__}.{type(estimator).__qualname__}, kept as {kept}"]
    if question.choice == "votes":
        notes.append("gives no probabilities: the score of the predicted class is 1, of the others 0")
    categories = {}
    for name in names:
        if types[name] == "string" and rows[name].n_unique() <= 100:
            categories[name] = sorted(rows[name].cast(_polars_type("string")).drop_nulls().unique().to_list())
    return Trained(
        model=model,
        task=asked,
        target=target,
        features=types,
        nullable={name: rows[name].null_count() > 0 for name in names},
        categories=categories,
        classes=classes,
        metric=get_metric(metric or metrics_of(asked)[0], asked).name,
        best={"candidate": type(estimator).__name__},
        notes=notes,
        rows={"train": rows.height, "valid": 0},
    )


def _names(estimator: Any, rows: pl.DataFrame, target: str, features: Sequence[str] | None) -> list[str]:
    if target not in rows.columns:
        raise TrainingError(f"The rows have no column '{target}'.", help=f"There are: {', '.join(rows.columns)}")
    told = getattr(estimator, "feature_names_in_", None)
    if features is not None:
        names = list(features)
    elif told is not None:
        names = [str(name) for name in told]
    else:
        names = [name for name in rows.columns if name != target]
    absent = [name for name in names if name not in rows.columns]
    if absent:
        raise TrainingError(
            f"The estimator was fitted on '{absent[0]}', which the rows do not have.",
            help="Pass the rows that it was fitted on.",
        )
    width = getattr(estimator, "n_features_in_", None)
    if width is not None and width != len(names):
        raise TrainingError(
            f"The estimator was fitted on {width} columns, the rows have {len(names)} besides the target.",
            help="Say which: adopt(estimator, frame, target, features=[…]).",
        )
    return names


def _decided(
    estimator: Any,
    rows: pl.DataFrame,
    names: list[str],
    target: str,
    task: Task | None,
    container: Container | None,
) -> tuple[Task, list[Json], list[int]]:
    """The task, the classes in everloop's order, and where the estimator has each."""
    known = None if task == "regression" else known_classes(estimator)
    if known is not None:
        classes, order = arranged(known)
        return task or task_for(classes), classes, order
    if task is None and kind_of(estimator) in ("clusterer", "outlier_detector"):
        predicted = _predicted(estimator, rows.select(names), container)
        found = found_classes(estimator, predicted, None, None)
        if found:
            return task_for(found), found, []
    asked = task or _task(estimator, rows, target)
    return asked, list(find_classes(rows[target], asked)), []


def _task(estimator: Any, rows: pl.DataFrame, target: str) -> Task:
    kind = kind_of(estimator)
    if kind == "regressor" or not hasattr(estimator, "predict_proba"):
        inferred = infer_task(rows[target])
        if kind == "regressor" or inferred == "regression":
            return "regression"
        return inferred
    return infer_task(rows[target])


def _predicted(estimator: Any, rows: pl.DataFrame, container: Container | None) -> Any:
    for one in (container,) if container else _CONTAINERS:
        try:
            return estimator.predict(_contain(rows, one))
        except Exception as error:  # whatever a stranger's estimator raises; the last one is told
            failure = error
    raise TrainingError(f"The {type(estimator).__name__} cannot answer its rows: {failure}") from failure


def _fitting_container(
    estimator: Any,
    probe: pl.DataFrame,
    task: Task,
    classes: list[Json],
    order: Sequence[int],
    asked: Container | None,
) -> tuple[EstimatorScores, Container]:
    """How the estimator is asked, and the kind of table that it takes."""
    import warnings

    failures = []
    for container in (asked,) if asked else _CONTAINERS:
        try:
            with warnings.catch_warnings():
                # An estimator that misses its column names says so by a warning; the next container has them.
                warnings.simplefilter("error")
                question, answers = first_answers(estimator, _contain(probe, container), task, order, classes)
        except UsageError:
            raise
        except Exception as error:  # whatever a stranger's estimator raises
            failures.append(f"{container}: {type(error).__name__}: {error}")
            continue
        scores = answers.scores
        if len(scores) == probe.height and np.isfinite(scores).all():
            return question, container
        failures.append(f"{container}: {len(scores)} answers for {probe.height} rows, some of them not numbers")
    raise TrainingError(
        f"The {type(estimator).__name__} cannot answer the rows that it was trained on ({'; '.join(failures)}).",
        help="Return a fitted estimator that takes the prepared table's columns, or pass `container`.",
    )


def _contain(frame: pl.DataFrame, container: Container) -> Any:
    if container == "polars":
        return frame
    if container == "numpy":
        return frame.to_numpy()
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError.of("This estimator", "pandas", "pandas") from None
    # Column by column: Polars' own conversion would need pyarrow for strings.
    return pd.DataFrame(
        {name: column.to_list() if _is_text(column) else column.to_numpy() for name, column in _named(frame)}
    )


def _named(frame: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    return [(column.name, column) for column in frame.get_columns()]


def _is_text(series: pl.Series) -> bool:
    return arrow_type(series.dtype) == "string"


def _polars_type(name: str) -> Any:
    import polars as pl

    unit, _, zone = name.partition("[")[2].rstrip("]").partition(", tz=")
    if name.startswith("timestamp"):
        return pl.Datetime(cast("Any", unit), zone or None)
    if name.startswith("duration"):
        return pl.Duration(cast("Any", unit))
    fixed: dict[str, Any] = {
        "string": pl.String,
        "bool": pl.Boolean,
        "float": pl.Float32,
        "double": pl.Float64,
        "date32[day]": pl.Date,
        "time64[ns]": pl.Time,
    }
    # Whole numbers come as floats where training had no nulls but the request has.
    return fixed.get(name, pl.Float64 if name.startswith(("int", "uint", "decimal")) else pl.Object)


def _dump(estimator: Any) -> tuple[str, bytes]:
    try:
        import skops.io as skops
    except ImportError:
        skops = None
    if skops is not None:
        try:
            blob: bytes = skops.dumps(estimator)
            if not skops.get_untrusted_types(data=blob):
                return "skops", blob
        except Exception as error:  # of many kinds, for what it cannot hold; the pickle is the answer to all of them
            logger.debug("skops cannot hold %s: %s", type(estimator).__name__, error)
    import cloudpickle

    return "pickle", cloudpickle.dumps(estimator)


def _load(blob: bytes, format: str) -> Any:
    if format == "pickle":
        import cloudpickle

        return cloudpickle.loads(blob)
    try:
        import skops.io as skops
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError:
        raise MissingExtraError.of("A scikit-learn model", "skops", "ml") from None
    try:
        return skops.loads(blob, trusted=[])
    except UntrustedTypesFoundException as error:
        raise TrustError(f"The model holds types that are not known to be harmless: {error}") from error


def _reread(kind: type[AdoptedModel], files: Files) -> AdoptedModel:
    return kind.from_files(files)
