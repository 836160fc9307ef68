"""Adopt a fitted estimator of any library as a model.

The estimator is called as it was fitted, with its own columns and kind of table. It is stored in the format of skops if
skops trusts all its types. Otherwise it is stored as a pickle. Reading a pickle runs code, so `packages` only reads
pickles with a trusted signature.
"""

from __future__ import annotations

import json
import logging
import warnings
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
    other_classes,
    predicted_meaning,
    says_classes,
    task_for,
)
from everloop.training.targets import check_positive, class_place, find_classes, infer_task
from everloop.training.trained_model import Trained
from everloop.training.training_tables import table
from everloop.training.user_code import dump_code, load_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

logger = logging.getLogger("everloop.training")

Container = Literal["polars", "pandas", "numpy"]
_CONTAINERS: tuple[Container, ...] = ("polars", "pandas", "numpy")
_PROBE_ROWS = 20
_AGREEMENT_ROWS = 500
_AGREEMENT = 1e-5
"""Relative difference that rounding in single precision can explain."""
_CLASS_ROWS = 10_000


class AdoptedModel:
    """A fitted estimator with its inputs and the way to call it. It implements `Model`.

    Whether the scores of a row depend on other rows in the same call is up to the estimator.
    """

    reads: ClassVar[str] = "skops"
    """The format that `from_files` reads. It is fixed by the class, because the files must not decide to run code."""

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
        nulls: Sequence[str] | None = None,
    ) -> None:
        self.estimator = estimator
        self.format = format
        self.question = question
        self.task: Task = question.task
        self.inputs = tuple(inputs)
        self.types = dict(types)
        """Arrow type of each input, to build the estimator's columns from plain rows."""
        self.container: Container = container
        self.nulls = tuple(types) if nulls is None else tuple(nulls)
        """Inputs that had nulls in training. There pandas and NumPy store whole numbers as floats, and booleans as
        objects; the same must happen to a request without nulls. Packages of earlier versions do not name them."""
        self._blob = blob

    @property
    def order(self) -> tuple[int, ...]:
        """Index of each class in the estimator's own order; empty if the orders are the same."""
        return self.question.order

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores; None if the estimator itself predicts them."""
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
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Got: {', '.join(frame.columns[:30])}")
        return _contain(_as_trained(frame, self.inputs, self.types), self.container, self.nulls)

    def _frame_of(self, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
        import polars as pl

        for row in rows:
            for name in self.inputs:
                if name not in row:
                    raise RequestError(f"Column '{name}' is missing.", help=f"Got: {', '.join(list(row)[:30])}")
        schema = {name: _decoded_type(self.types[name]) for name in self.inputs}
        try:
            columns = {name: pl.Series(name, [row[name] for row in rows], dtype=schema[name]) for name in self.inputs}
        except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
            types = ", ".join(f"{name}: {self.types[name]}" for name in self.inputs[:30])
            raise RequestError(
                f"The rows do not have the types that the model was trained on: {error}", help=f"They are {types}."
            ) from error
        return pl.DataFrame(columns)

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "inputs": list(self.inputs),
            "types": self.types,
            "container": self.container,
            "nulls": list(self.nulls),
            **self.question.to_json(),
        }
        return {f"model.{self.format}": self._blob, "adopted.json": json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state, blob = json.loads(files["adopted.json"]), files[f"model.{cls.reads}"]
            fields = {name: state[name] for name in ("inputs", "types", "container")}
            question = EstimatorScores.from_json(state, state["task"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not an adopted model: {error!r}.", help="Build the package again."
            ) from error
        nulls = state.get("nulls")
        return cls(_load(blob, cls.reads), format=cls.reads, blob=blob, question=question, nulls=nulls, **fields)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


class PickledModel(AdoptedModel):
    """An adopted estimator that is stored as a pickle. Reading it runs code, so it needs a trusted signature."""

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
    positive: Json = None,
) -> Trained:
    """Wrap a fitted estimator as a model.

    Args:
        estimator: a fitted estimator with `predict`, as in scikit-learn, and `predict_proba` if it gives probabilities.
        frame: the rows that it was fitted on, or some of them. Columns, types and classes are read from them.
        target: the column that it predicts.
        features: the columns that it reads, in order. Default: those that the estimator names, otherwise all columns
            except the target.
        container: the kind of table that it takes. Default: the first of polars, pandas and numpy that works.
        task: default: inferred from the estimator and the target.
        metric: the metric that it was optimised for, for the record. Default: the default for the task.
        positive: of two classes, the one that scores are probabilities of. Default: the later one. If the classes are
            texts and `predict` returns one probability for each row, that is the probability of this class.

    Raises:
        TrainingError: the estimator is not fitted, or cannot predict these rows, or `positive` is not one of two
            classes.
        UsageError: the estimator predicts several targets.
    """
    from everloop.training.metrics import get_metric, metrics_of

    rows = table(frame)
    names = _names(estimator, rows, target, features)
    check_one_output(estimator)
    types = {name: arrow_type(dtype) for name, dtype in rows.select(names).schema.items()}
    trained_rows = _as_trained(rows, names, types)
    nulls = [name for name in names if rows[name].null_count()]
    inferred_task, classes, order = _task_and_classes(estimator, rows, names, target, task, container)
    labels, named = False, True
    if inferred_task != "regression" and task is None and not says_classes(estimator):
        some = rows.gather_every(max(1, rows.height // _CLASS_ROWS))
        predicted = _predicted(estimator, some.select(names), container)
        meaning = predicted_meaning(estimator, predicted, rows[target], inferred_task, classes)
        labels = meaning == "labels"
        # One probability for each row, of classes that are neither numbers nor booleans and so have no usual order.
        named = meaning != "chances" or np.size(predicted) != some.height or not isinstance(classes[0], str)
        if meaning == "amounts":
            inferred_task, classes, order = "regression", [], []
    _check_classes(estimator, rows[target], classes)
    kinds = (inferred_task, order, classes)
    question, working = _working_container(estimator, trained_rows, nulls, kinds, labels, container)
    if positive is not None:
        check_positive(positive, target, inferred_task, classes)
        question = question.about(positive, named=named)
        classes = list(question.classes)
    stored, blob = _dump(estimator)
    kind = PickledModel if stored == "pickle" else AdoptedModel
    model = kind(
        estimator,
        format=stored,
        blob=blob,
        question=question,
        inputs=names,
        types=types,
        container=working,
        nulls=nulls,
    )
    notes = [f"adopted {type(estimator).__module__}.{type(estimator).__qualname__}, stored as {stored}"]
    if working == "numpy" and features is None and len(names) > 1:
        notes.append(f"it was fitted without column names, so it gets the table's columns in order: {', '.join(names)}")
    if question.choice == "votes":
        notes.append(
            "it gives no probabilities, so the score of the predicted class is 1 and that of the others is 0; "
            "accuracy, precision, recall and f1 judge it better than log_loss, brier and ece do"
        )
    categories = {}
    for name in names:
        if types[name] == "string" and rows[name].n_unique() <= 100:
            categories[name] = sorted(rows[name].cast(_polars_type("string")).drop_nulls().unique().to_list())
    return Trained(
        model=model,
        task=inferred_task,
        target=target,
        features=types,
        nullable={name: rows[name].null_count() > 0 for name in names},
        categories=categories,
        classes=classes,
        metric=get_metric(metric or metrics_of(inferred_task)[0], inferred_task).name,
        best={"candidate": type(estimator).__name__},
        notes=notes,
        rows={"train": rows.height, "valid": 0},
    )


def _names(estimator: Any, rows: pl.DataFrame, target: str, features: Sequence[str] | None) -> list[str]:
    if target not in rows.columns:
        raise TrainingError(f"The rows have no column '{target}'.", help=f"They have: {', '.join(rows.columns)}")
    fitted_names = getattr(estimator, "feature_names_in_", None)
    if features is not None:
        names = list(features)
    elif fitted_names is not None:
        names = [str(name) for name in fitted_names]
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
            help="Name its columns: adopt(estimator, frame, target, features=[…]).",
        )
    return names


def _task_and_classes(
    estimator: Any,
    rows: pl.DataFrame,
    names: list[str],
    target: str,
    task: Task | None,
    container: Container | None,
) -> tuple[Task, list[Json], list[int]]:
    """Return the task, the sorted classes, and the index of each class in the estimator's own order."""
    known = None if task == "regression" else known_classes(estimator)
    if known is not None:
        classes, order = arranged(known)
        return task or task_for(classes), classes, order
    if task is None and kind_of(estimator) in ("clusterer", "outlier_detector"):
        predicted = _predicted(estimator, rows.select(names), container)
        found = found_classes(estimator, predicted, None, None)
        if found:
            return task_for(found), found, []
    inferred = task or _infer_task(estimator, rows, target)
    return inferred, list(find_classes(rows[target], inferred)), []


def _infer_task(estimator: Any, rows: pl.DataFrame, target: str) -> Task:
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
        except Exception as error:  # an estimator of any library may raise anything
            failure = error
    raise TrainingError(
        f"The {type(estimator).__name__} cannot predict the rows that it was trained on: {failure}",
        help="Return a fitted estimator that takes the prepared table's columns, or pass `container`.",
    ) from failure


def _working_container(
    estimator: Any,
    rows: pl.DataFrame,
    nulls: Sequence[str],
    kind: tuple[Task, Sequence[int], Sequence[Json]],
    labels: bool,
    requested: Container | None,
) -> tuple[EstimatorScores, Container]:
    """Return the way to call the estimator, and a kind of table that it takes.

    Raises:
        TrainingError: it takes none, or its predictions for a Polars and for a pandas frame differ. Nothing shows which
            of the two it was fitted on.
    """
    failures: list[str] = []
    probe = rows.head(_PROBE_ROWS)
    for container in (requested,) if requested else _CONTAINERS:
        found = _tried(estimator, _contain(probe, container, nulls), kind, labels)
        if isinstance(found, str):
            failures.append(f"{container}: {found}")
            continue
        if container == "polars" and requested is None:
            _check_agreement(estimator, found, rows, nulls)
        return found, container
    raise TrainingError(
        f"The {type(estimator).__name__} cannot predict the rows that it was trained on ({'; '.join(failures)}).",
        help="Return an estimator that takes the columns of `train` without the target, time and key. If columns were "
        "converted or encoded before fit, do that inside of the estimator, for example with a scikit-learn Pipeline.",
    )


def _tried(
    estimator: Any, probe: Any, kind: tuple[Task, Sequence[int], Sequence[Json]], labels: bool
) -> EstimatorScores | str:
    """Return the way to call the estimator with a table of this kind, or why it does not work."""
    try:
        with warnings.catch_warnings():
            # An estimator warns if column names are missing. Then the next container, which has them, is better.
            warnings.simplefilter("error")
            question, answers = first_answers(estimator, probe, *kind, labels=labels)
    except UsageError:
        raise
    except Exception as error:  # an estimator of any library may raise anything
        return f"{type(error).__name__}: {error}"
    if len(answers.scores) == len(probe) and np.isfinite(answers.scores).all():
        return question
    return f"{len(answers.scores)} predictions for {len(probe)} rows, or some are not numbers"


def _check_agreement(estimator: Any, question: EstimatorScores, rows: pl.DataFrame, nulls: Sequence[str]) -> None:
    """Check that an estimator predicts the same for a pandas frame as for a Polars frame, if it takes both."""
    some = rows.gather_every(max(1, rows.height // _AGREEMENT_ROWS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = question.answer(estimator, _contain(some, "polars"))
            theirs = question.answer(estimator, _contain(some, "pandas", nulls))
    except Exception as error:  # it does not take both
        logger.debug("%s takes no pandas frame: %s", type(estimator).__name__, error)
        return
    scale = np.maximum(1.0, np.abs(ours.scores))
    apart = ~(np.abs(ours.scores - theirs.scores) <= _AGREEMENT * scale).reshape(some.height, -1).all(axis=1)
    if ours.places is not None and theirs.places is not None:
        apart |= ours.places != theirs.places
    if apart.any():
        at = int(np.argmax(apart))
        raise TrainingError(
            f"The {type(estimator).__name__} predicts {ours.scores[at].tolist()} if it gets a Polars frame, but "
            f"{theirs.scores[at].tolist()} if it gets a pandas frame, for the row {some.row(at, named=True)}. Nothing "
            "shows which of the two it was fitted on.",
            help="Convert the table at the start of `predict`: for pandas, "
            "`if hasattr(X, 'to_pandas'): X = X.to_pandas()`; for Polars, `X = polars.DataFrame(X)`.",
        )


def _check_classes(estimator: Any, target: pl.Series, classes: Sequence[Json]) -> None:
    """Check that the estimator's classes are values of the target, so that its predictions mean the same.

    Raises:
        TrainingError: they share fewer than two values: the target was encoded before fit, for example.
    """
    values = target.drop_nulls().unique().sort().to_list()
    # A step may have left out rows of rare classes.
    if not classes or sum(class_place(value, classes) is not None for value in values) >= min(2, len(values)):
        return
    raise other_classes(estimator, target, classes)


def _as_trained(frame: pl.DataFrame, names: Sequence[str], types: Mapping[str, str]) -> pl.DataFrame:
    """Return the inputs with the types of the training table, whatever decoded or stored them in between."""
    return frame.select(_converted(frame[name], types[name]) for name in names)


def _converted(series: pl.Series, name: str) -> pl.Series:
    import polars as pl

    dtype = _polars_type(name)
    if series.dtype == dtype:
        return series
    if isinstance(dtype, pl.Datetime) and isinstance(series.dtype, pl.Datetime):
        cut = series.dt.cast_time_unit(dtype.time_unit)
        moments = cut if series.dtype.time_zone else cut.dt.replace_time_zone("UTC")
        # A request names moments in UTC, in which training read times without a zone, too.
        zoned = moments.dt.convert_time_zone(dtype.time_zone or "UTC")
        return zoned if dtype.time_zone else zoned.dt.replace_time_zone(None)
    if dtype.is_integer():
        # A value that does not fit the width of training stays as it is.
        narrow = series.cast(dtype, strict=False)
        return narrow if narrow.null_count() == series.null_count() else series
    return series if dtype == pl.Object else series.cast(dtype)


def _contain(frame: pl.DataFrame, container: Container, nulls: Sequence[str] = ()) -> Any:
    """Return a new table that the estimator may change, as `to_pandas` and `to_numpy` of Polars return it.

    Args:
        nulls: columns that had nulls in training.
    """
    import polars as pl

    if container == "polars":
        return frame
    frame = frame.with_columns(frame[name].cast(pl.Float64) for name in nulls if frame[name].dtype.is_integer())
    if container == "numpy":
        return frame.to_numpy(writable=True)
    try:
        import pandas as pd
    except ImportError:
        raise MissingExtraError.of("This estimator", "pandas", "pandas") from None
    # Converted column by column, because `to_pandas` of Polars needs pyarrow for strings.
    return pd.DataFrame({column.name: _pandas_values(column, column.name in nulls) for column in frame.get_columns()})


def _pandas_values(column: pl.Series, nulls: bool) -> Any:
    import pandas as pd
    import polars as pl

    if arrow_type(column.dtype) == "string":
        # pandas would infer another type for a single null.
        return pd.Series(column.to_list(), dtype=pd.Series([""]).dtype)
    if column.dtype == pl.Boolean and nulls:
        return pd.Series(column.to_list(), dtype=object)
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
        moments = pd.Series(column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy())
        return moments.dt.tz_localize("UTC").dt.tz_convert(column.dtype.time_zone)
    values = column.to_numpy()
    return values.astype("datetime64[ms]") if column.dtype == pl.Date else values


def _polars_type(name: str) -> pl.DataType:
    """Return the Polars type of an input for its Arrow type."""
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
        "null": pl.String,
        **{str(kind).lower(): kind for kind in (pl.Int8, pl.Int16, pl.Int32, pl.Int64)},
        **{str(kind).lower(): kind for kind in (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)},
    }
    return cast("pl.DataType", fixed.get(name, pl.Float64 if name.startswith("decimal") else pl.Object)())


def _decoded_type(name: str) -> pl.DataType:
    """Return the Polars type of an input's decoded values: whole numbers of any width, and moments in UTC."""
    import polars as pl

    dtype = _polars_type(name)
    if isinstance(dtype, pl.Datetime):
        return pl.Datetime(dtype.time_unit, "UTC")
    return pl.Int64() if dtype.is_integer() else dtype


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
        except Exception as error:  # skops raises many kinds of errors; a pickle works for all of them
            logger.debug("skops cannot store %s: %s", type(estimator).__name__, error)
    return "pickle", dump_code(estimator)


def _load(blob: bytes, format: str) -> Any:
    if format == "pickle":
        return load_code(blob)
    try:
        import skops.io as skops
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError:
        raise MissingExtraError.of("A scikit-learn model", "skops", "ml") from None
    try:
        return skops.loads(blob, trusted=[])
    except UntrustedTypesFoundException as error:
        raise TrustError(
            f"The model contains types that skops does not trust: {error}", help="Build the package again."
        ) from error


def _reread(kind: type[AdoptedModel], files: Files) -> AdoptedModel:
    return kind.from_files(files)
