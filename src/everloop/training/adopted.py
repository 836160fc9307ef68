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

from everloop.errors import CorruptionError, MissingExtraError, RequestError, TrainingError, TrustError
from everloop.training.encoding import arrow_type
from everloop.training.tables import table
from everloop.training.targets import find_classes, infer_task
from everloop.training.trained import Trained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained import Files, Json, Task

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
        task: Task,
        inputs: Sequence[str],
        types: Mapping[str, str],
        container: Container,
        order: Sequence[int] = (),
    ) -> None:
        self.estimator = estimator
        self.format = format
        self.task: Task = task
        self.inputs = tuple(inputs)
        self.types = dict(types)
        """Arrow type of each input, so that plain rows become the columns that the estimator knows."""
        self.container: Container = container
        self._order = tuple(order)
        self._blob = blob

    @property
    def order(self) -> tuple[int, ...]:
        """Where the estimator has each class; empty where it has them in order."""
        return () if self._order == tuple(range(len(self._order))) else self._order

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        absent = [name for name in self.inputs if name not in frame.columns]
        if absent:
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
        return ask(self.estimator, _contain(frame.select(self.inputs), self.container), self.task, self._order)

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
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
        return self.predict_scores(pl.DataFrame(columns))

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "inputs": list(self.inputs),
            "types": self.types,
            "container": self.container,
            "order": list(self._order),
        }
        return {f"model.{self.format}": self._blob, "adopted.json": json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        kept = cls.reads
        try:
            state, blob = json.loads(files["adopted.json"]), files[f"model.{kept}"]
            known = {name: state[name] for name in ("task", "inputs", "types", "container", "order")}
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"These files are no adopted model: {error!r}.", help="Build it again.") from error
        return cls(_load(blob, kept), format=kept, blob=blob, **known)

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
        estimator: fitted, with `predict_proba` (classes) or `predict` (numbers), as scikit-learn has them.
        frame: rows that it was fitted on, or some of them: they tell columns, types and classes.
        target: column that it predicts.
        features: columns that it reads, in order; None asks the estimator, else takes all but the target.
        container: the kind of table that it takes; None tries polars, pandas and a plain array in turn.
        task: None infers it from the estimator and the target.
        metric: the metric that it was made for, for the record; None is the task's usual one.

    Raises:
        TrainingError: it is not fitted, or cannot answer these rows.
    """
    from everloop.training.metrics import get_metric, metrics_of

    rows = table(frame)
    names = _names(estimator, rows, target, features)
    asked = task or _task(estimator, rows, target)
    known = getattr(estimator, "classes_", None)
    classes, order = _classes(None if known is None else list(known), rows, target, asked)
    probe = rows.select(names).head(_PROBE_ROWS)
    fits = _fitting_container(estimator, probe, asked, order, container)
    kept, blob = _dump(estimator)
    types = {name: arrow_type(dtype) for name, dtype in rows.select(names).schema.items()}
    kind = PickledModel if kept == "pickle" else AdoptedModel
    model = kind(estimator, format=kept, blob=blob, task=asked, inputs=names, types=types, container=fits, order=order)
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
        notes=[f"adopted {type(estimator).__module__}.{type(estimator).__qualname__}, kept as {kept}"],
        rows={"train": rows.height, "valid": 0},
    )


def ask(estimator: Any, rows: Any, task: Task, order: Sequence[int] = ()) -> Array:
    """Scores of an estimator as `Model` promises them; `order` puts its columns into the order of the classes."""
    if task == "regression":
        return np.asarray(estimator.predict(rows), dtype=np.float64).reshape(-1)
    if hasattr(estimator, "predict_proba"):
        chances = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
    else:
        # A native booster answers probabilities from `predict`.
        chances = np.asarray(estimator.predict(rows), dtype=np.float64)
    if task == "binary":
        return np.ascontiguousarray(chances[:, order[1] if order else 1]) if chances.ndim == 2 else chances
    return np.ascontiguousarray(chances[:, list(order)]) if order else chances


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


def _task(estimator: Any, rows: pl.DataFrame, target: str) -> Task:
    kind = getattr(estimator, "_estimator_type", None)
    known = getattr(estimator, "classes_", None)
    if known is not None:
        return "binary" if len(known) == 2 else "multiclass"
    if kind == "regressor" or not hasattr(estimator, "predict_proba"):
        inferred = infer_task(rows[target])
        if kind == "regressor" or inferred == "regression":
            return "regression"
        return inferred
    return infer_task(rows[target])


def _classes(known: list[Any] | None, rows: pl.DataFrame, target: str, task: Task) -> tuple[list[Json], list[int]]:
    """Classes in everloop's order, and where the estimator has each."""
    if task == "regression":
        return [], []
    if known is None:
        return find_classes(rows[target], task), []
    plain = [value.item() if isinstance(value, np.generic) else value for value in known]
    order = sorted(range(len(plain)), key=lambda k: plain[k])
    return [plain[k] for k in order], order


def _fitting_container(
    estimator: Any, probe: pl.DataFrame, task: Task, order: Sequence[int], asked: Container | None
) -> Container:
    import warnings

    failures = []
    for container in (asked,) if asked else _CONTAINERS:
        try:
            with warnings.catch_warnings():
                # An estimator that misses its column names says so by a warning; the next container has them.
                warnings.simplefilter("error")
                scores = ask(estimator, _contain(probe, container), task, order)
        except Exception as error:  # whatever a stranger's estimator raises
            failures.append(f"{container}: {type(error).__name__}: {error}")
            continue
        if len(scores) == probe.height and np.isfinite(scores).all():
            return container
        failures.append(f"{container}: {len(scores)} answers for {probe.height} rows, some of them no numbers")
    raise TrainingError(
        f"The {type(estimator).__name__} cannot answer the rows that it was trained on ({'; '.join(failures)}).",
        help="Return a fitted estimator that takes the prepared table's columns, or say `container`.",
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
