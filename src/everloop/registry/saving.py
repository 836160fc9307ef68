"""Package a fitted model of any library and register it as a version, in one call."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from everloop.errors import EverloopError, NotFoundError, TrainingError, UsageError
from everloop.packages.formats.input_tables import TableKind, read_example
from everloop.packages.time_budget import PROOF_S, TimeBudget, one_thread
from everloop.training.trained_model import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl

    from everloop.packages.formats.input_tables import Container
    from everloop.packages.time_budget import PackagingProgress
    from everloop.records import Json
    from everloop.registry.saved_model import SavedVersion
    from everloop.stores import Store
    from everloop.training.estimator_scores import EstimatorScores
    from everloop.training.trained_model import Model, Trained

PROBE_ROWS = 20
CLASS_ROWS = 10_000
"""Rows whose predictions are searched for the classes of a model that does not name them."""
MOST_CATEGORIES = 1000
"""The categories of a text column are listed only up to this number of distinct values."""


def save_model(
    model: Any,
    name: str,
    example: Any,
    *,
    y: Any = None,
    task: Task | None = None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    store: Store | None = None,
    compile: bool = True,
    before: Callable[[Any], Any] | None = None,
    after: Callable[[Any], Any] | None = None,
    weights: Sequence[float] | None = None,
    artifacts: Mapping[str, Path | str] | None = None,
    lookups: Sequence[str] = (),
    proof_s: float = PROOF_S,
    progress: Callable[[PackagingProgress], None] | None = None,
) -> SavedVersion:
    """Package a fitted model and register it as the next version of `name`.

        version = el.save_model(pipeline, "churn", example=X_train)
        print(version)             # churn@1, its format, how fast it predicts, whether it needs trust
        # everloop serve churn@1

    Args:
        model: a fitted estimator or scikit-learn `Pipeline`; an XGBoost, LightGBM or CatBoost model; a PyTorch module
            or exported program; a Keras model; an ONNX model or an H2O MOJO, as bytes or as the path of its file; an
            object with `predict(context, table)`, like MLflow's `PythonModel`; a plain function from the table to
            predictions: shape (n,) numbers, or (n, classes) probabilities; or a list of such models to average.
        example: the table that it was fitted on, or some of its rows: pandas, Polars, NumPy or Arrow. It determines
            names, types, nulls, categories and ranges of the inputs, and the packaged model is verified on it.
        y: the target of the same rows; needed only if the model does not name its classes.
        task: `binary`, `multiclass` or `regression`; None infers it from the model.
        store: None opens the one that `open_store()` finds.
        compile: try faster forms; one is used only if its predictions are proved equal to the model's.
        before: a function from the example's table to the table that the model takes.
        after: a function from scores to scores of the same shape.
        weights: one weight for each model of a list; None weights them equally.
        artifacts: files and folders by name; they are stored in the package, and an object that predicts with a
            context finds them in `context.artifacts`.
        lookups: names of feature views: a request contains their entity, and their features are looked up online. The
            example must then have the entity's columns as well.
        proof_s: seconds that verifying and measuring may take after the model's first prediction. What could not be
            verified in time is listed on the card; the version is registered all the same.
        progress: called with a `PackagingProgress` (stage, done, total, seconds) during saving.

    Returns:
        The version. Printing it shows a summary of the package.

    Raises:
        UsageError: the model is not fitted or predicts several targets, or the example is empty or lacks columns
            that the model was fitted on.
        TrainingError: the model cannot predict the example.
        ParityError: the packaged model does not predict the same as the original.
    """
    from everloop.packages.package import build_package
    from everloop.registry.model_versions import register
    from everloop.registry.saved_model import SavedVersion
    from everloop.stores import open_store

    parts = {"before": before, "after": after, "weights": weights, "artifacts": artifacts}
    if proof_s < 0:
        raise UsageError(
            f"`proof_s` is {proof_s}; it cannot be negative.", help="Pass 0 to verify the minimum that is safe."
        )
    effort = TimeBudget(proof_s, progress)
    effort.report("predicting the first rows", 0, 1)
    with ExitStack() as closing:
        closing.enter_context(one_thread())
        trained, frame = describe(model, example, y=y, task=task, **parts)
        effort.start()
        opened = store if store is not None else closing.enter_context(open_store())
        sample = read_example(example)[0] if lookups else frame
        package = build_package(trained, store=opened, sample=sample, compile=compile, lookups=lookups, effort=effort)
        version = register(opened, name, package, tags=tags, description=description)
        return SavedVersion.of(version, package, str(opened.home))


def is_estimator(model: Any) -> bool:
    """Whether `training.adopt` takes a fitted model: it is not a network, a file, a list or a model with a context."""
    from everloop.packages.formats.keras import is_keras
    from everloop.packages.formats.pyfunc import is_pyfunc
    from everloop.packages.formats.pytorch import is_torch

    if isinstance(model, bytes | bytearray | list | tuple):
        return False
    return not (is_torch(model) or is_keras(model) or is_pyfunc(model))


def describe(
    model: Any, example: Any, *, y: Any = None, task: Task | None = None, **parts: Any
) -> tuple[Trained, pl.DataFrame]:
    """Return the model with everything that a package needs to know about it, and the example as a Polars frame.

    Args:
        parts: `before`, `after`, `weights` and `artifacts` of `save_model`.

    Raises:
        UsageError: as `save_model`.
        TrainingError: as `save_model`.
    """
    from everloop.packages.formats.estimator import EstimatorModel
    from everloop.packages.input_fidelity import prove_faithful
    from everloop.training.encoding import arrow_type
    from everloop.training.metrics import metrics_of
    from everloop.training.trained_model import Trained

    if task is not None and task not in get_args(Task):
        raise UsageError(f"There is no task '{task}'.", help=f"Tasks: {', '.join(get_args(Task))}")
    frame, table = read_example(example)
    made, classes, origin = _read(model, table, frame, task, _target_values(y), parts)
    if isinstance(made, EstimatorModel):
        prove_faithful(made.estimator, made, example, frame)
    frame = frame.select(made.inputs)
    categories = {
        column.name: sorted(column.drop_nulls().unique().to_list())
        for column in frame.get_columns()
        if arrow_type(column.dtype) == "string" and column.n_unique() <= MOST_CATEGORIES
    }
    trained = Trained(
        model=made,
        task=made.task,
        target=str(getattr(y, "name", None) or "target"),
        features={column: arrow_type(dtype) for column, dtype in frame.schema.items()},
        nullable={column.name: column.null_count() > 0 for column in frame.get_columns()},
        categories=categories,
        classes=classes,
        metric=metrics_of(made.task)[0],
        notes=[f"saved {origin}, stored as {made.format}", *_notes(made)],
        rows={"example": frame.height},
    )
    return trained, frame


def _notes(made: Model) -> list[str]:
    scoring = getattr(made, "question", None)
    if scoring is not None and scoring.choice == "votes":
        return ["gives no probabilities: the score of the predicted class is 1, of the others 0"]
    return []


def _read(
    model: Any,
    table: TableKind,
    frame: pl.DataFrame,
    task: Task | None,
    target: pl.Series | None,
    parts: Mapping[str, Any],
) -> tuple[Model, list[Json], str]:
    """Return a model of any kind as a `Model`, its classes, and a description of the original."""
    from everloop.packages.formats import composite_models as composed

    before, after = parts.get("before"), parts.get("after")
    if before is not None or after is not None:
        given: Any = table.fill(table.cast(frame)) if before is None else composed.prepared(before, table, frame)
        inner_frame, inner_table = read_example(given)
        inner = {**parts, "before": None, "after": None}
        made, classes, origin = _read(model, inner_table, inner_frame, task, target, inner)
        return (
            cast("Model", composed.processed(made, table, before, after)),
            classes,
            f"{origin} with functions around it",
        )
    if isinstance(model, list | tuple):
        members = [_read(member, table, frame, task, target, {}) for member in model]
        if any(member[1] != members[0][1] for member in members):
            raise UsageError(
                "These models have different classes, so they cannot be averaged.",
                help="Pass models that were trained on the same target.",
            )
        made = cast("Model", composed.average([member[0] for member in members], parts.get("weights")))
        return made, members[0][1] if members else [], " + ".join(member[2] for member in members)
    if parts.get("weights") is not None:
        raise UsageError("`weights` needs a list of models.", help="Pass the models as a list, or leave it out.")
    if isinstance(model, str | Path):
        model = _file(Path(model))
    if isinstance(model, bytes | bytearray):
        return _of_bytes(bytes(model), table, frame, task, target)
    made, classes = _of_object(model, table, frame, task, target, parts)
    return made, classes, f"{type(model).__module__}.{type(model).__qualname__}"


def _file(path: Path) -> bytes:
    if not path.is_file():
        raise NotFoundError(
            f"There is no file '{path}'.", help="Pass a model, or the path of an ONNX model or of a MOJO."
        )
    return path.read_bytes()


def _of_bytes(
    blob: bytes, table: TableKind, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> tuple[Model, list[Json], str]:
    from everloop.packages.formats.mojo import adopt_mojo, is_mojo
    from everloop.packages.formats.onnx import adopt_onnx

    if is_mojo(blob):
        mojo, classes = adopt_mojo(blob, table)
        return cast("Model", mojo), classes, f"H2O MOJO ({mojo.mojo.info['algo']})"
    graph, classes = adopt_onnx(blob, table, frame, task, target)
    return cast("Model", graph), classes, "ONNX model"


def _of_object(
    model: Any,
    table: TableKind,
    frame: pl.DataFrame,
    task: Task | None,
    target: pl.Series | None,
    parts: Mapping[str, Any],
) -> tuple[Model, list[Json]]:
    from everloop.packages.formats.keras import adopt_keras, is_keras
    from everloop.packages.formats.neural_networks import describe_network
    from everloop.packages.formats.pyfunc import adopt_pyfunc, is_pyfunc
    from everloop.packages.formats.pytorch import adopt_torch, is_torch

    if is_torch(model) or is_keras(model):
        # With PyTorch as its backend, a Keras model is a PyTorch module as well.
        network = (adopt_keras if is_keras(model) else adopt_torch)(model, table, task or "regression")
        return cast("Model", network), describe_network(network, frame, task, target)
    if is_pyfunc(model):
        made = adopt_pyfunc(model, table, task or "regression", parts.get("artifacts") or {})
        made.question, container, classes = _choose_scoring(made.scorer, table, frame, task, target)
        made.task, made.table = made.question.task, replace(table, container=container)
        return cast("Model", made), classes
    if parts.get("artifacts"):
        raise UsageError(
            "`artifacts` needs an object with predict(context, table).", help="Leave it out, or pass such an object."
        )
    return _adopt(model, table, frame, task, target)


def _adopt(
    model: Any, table: TableKind, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> tuple[Model, list[Json]]:
    from everloop.packages.formats.estimator import EstimatorModel, PickledEstimator, dump_estimator
    from everloop.packages.formats.plain_function import Function
    from everloop.training.estimator_tasks import check_one_output

    if isinstance(model, type):
        raise UsageError(f"{model.__name__} is a class, not a fitted model.", help="Pass an instance after fit().")
    if not hasattr(model, "predict") and not hasattr(model, "predict_proba"):
        if not callable(model):
            raise UsageError(
                f"A {type(model).__name__} is not a model.",
                help="Pass a fitted estimator (with predict), ONNX bytes, or a function from a table to predictions.",
            )
        model = Function(model)
    if task == "regression" and hasattr(model, "classes_"):
        raise UsageError(f"The {type(model).__name__} is a classifier.", help="Leave `task` out.")
    _check_fitted(model)
    check_one_output(model)
    table = _columns_of(model, table)
    chosen = frame.select(table.names)
    scoring, container, classes = _choose_scoring(model, table, chosen, task, target)
    table = replace(table, container=container)
    stored_as, blob = dump_estimator(model)
    kind = PickledEstimator if stored_as == "python" else EstimatorModel
    return cast("Model", kind(model, format=stored_as, blob=blob, question=scoring, table=table)), classes


def _check_fitted(model: Any) -> None:
    name = type(model).__name__
    fix = "Call fit() first, and save the fitted object."
    inner = getattr(model, "is_fitted", None)
    if callable(inner) and type(model).__module__.startswith("catboost") and not inner():
        raise UsageError(f"The {name} is not fitted.", help=fix)
    if not hasattr(model, "fit") or not hasattr(model, "get_params"):
        return
    if type(model).__module__.startswith("catboost"):
        return
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError:
        return
    try:
        check_is_fitted(model[-1] if hasattr(model, "steps") else model)
    except NotFittedError as error:
        raise UsageError(f"The {name} is not fitted.", help=fix) from error
    except (TypeError, ValueError):
        # Some estimators cannot be checked; they fail when they predict the example.
        return


def _columns_of(model: Any, table: TableKind) -> TableKind:
    """Select the columns that the model was fitted on, in its order."""
    fitted = getattr(model, "feature_names_in_", None)
    if fitted is None and type(model).__module__.startswith(("catboost", "lightgbm")):
        fitted = getattr(model, "feature_names_", None) or getattr(model, "feature_name_", None)
    width = getattr(model, "n_features_in_", None)
    names = table.names
    if fitted is not None and table.container != "numpy":
        fitted_names = [str(name) for name in fitted]
        if type(model).__module__.startswith("lightgbm"):
            fitted_names = _original_names(fitted_names, names)
        absent = [name for name in fitted_names if name not in names]
        if absent and not type(model).__module__.startswith("lightgbm") and hasattr(model, "feature_names_in_"):
            raise UsageError(
                f"The example lacks the columns {', '.join(map(repr, absent[:8]))}, which the model was fitted on.",
                help=f"It has: {', '.join(names[:30])}. Pass the table that was given to fit().",
            )
        if not absent:
            by_name = {column.name: column for column in table.columns}
            return replace(table, columns=tuple(by_name[name] for name in fitted_names))
    if width is not None and int(width) != len(names):
        raise UsageError(
            f"The model was fitted on {width} columns, but the example has {len(names)}.",
            help="Pass the table that was given to fit(), without the target.",
        )
    return table


def _original_names(fitted: list[str], names: Sequence[str]) -> list[str]:
    """Undo LightGBM's renaming of columns: it replaces each space by an underscore."""
    original = {re.sub(r"\s", "_", name): name for name in names}
    return [original.get(name, name) for name in fitted] if len(original) == len(names) else fitted


def _choose_scoring(
    model: Any, table: TableKind, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> tuple[EstimatorScores, Container, list[Json]]:
    """Find out how to get scores from a model, which container it takes, and its classes.

    The container of the example is tried first.
    """
    import warnings

    import numpy as np

    from everloop.training.estimator_tasks import first_answers

    first_rows = table.cast(frame.head(PROBE_ROWS))
    failures = []
    first: Exception | None = None
    for container in dict.fromkeys((table.container, "pandas", "polars", "numpy")):
        kind = replace(table, container=cast("Any", container))
        try:
            with warnings.catch_warnings():
                # A model that misses its column names warns; another container has them.
                warnings.simplefilter("error" if container != table.container else "ignore")
                found, classes, order, labels = _task_and_classes(model, kind, frame, task, target)
                scoring, predictions = first_answers(model, kind.fill(first_rows), found, order, classes, labels=labels)
        except EverloopError as error:
            if isinstance(error, UsageError):
                raise
            failures.append(f"as {container}: {error.message}")
            first = first or error
            continue
        except Exception as error:  # a foreign model can raise anything
            failures.append(f"as {container}: {type(error).__name__}: {error}")
            first = first or error
            continue
        scores, width = predictions.scores, len(classes)
        expected = (first_rows.height, width) if found == "multiclass" and width else (first_rows.height,)
        if found == "multiclass" and not classes and scores.ndim == 2:
            classes, expected = list(range(scores.shape[1])), scores.shape
        if scores.shape != expected:
            failures.append(f"as {container}: scores of shape {scores.shape} for {first_rows.height} rows")
        elif not np.isfinite(scores).all():
            failures.append(f"as {container}: a score is not a finite number")
        else:
            return scoring, container, classes
    name = getattr(model, "name", type(model).__name__)
    raise TrainingError(
        f"The {name} cannot predict the example ({'; '.join(failures)}).",
        help="Pass the table that was given to fit(), or pass the missing preparation as before=.",
    ) from first


def _task_and_classes(
    model: Any, table: TableKind, frame: pl.DataFrame, task: Task | None, target: pl.Series | None
) -> tuple[Task, list[Json], list[int], bool]:
    """Find out what a model predicts.

    Returns:
        The task; the classes in everloop's order; the index at which the model has each class; and whether `predict`
        returns classes although the model does not say so.
    """
    from everloop.packages.formats.plain_function import Function
    from everloop.packages.formats.pyfunc import PyfuncScores
    from everloop.training.estimator_tasks import arranged, decides, found_classes, kind_of, known_classes, task_for
    from everloop.training.targets import find_classes

    known = None if task == "regression" else known_classes(model)
    if known is not None:
        classes, order = arranged(known)
        return task or task_for(classes), classes, order, False
    first_rows = table.fill(table.cast(frame.head(PROBE_ROWS)))
    if task != "regression" and not isinstance(model, Function | PyfuncScores) and hasattr(model, "predict"):
        if decides(model, model.predict(first_rows)):
            width = model.predict_proba(first_rows).shape[1] if hasattr(model, "predict_proba") else None
            predicted = model.predict(table.fill(table.cast(frame.head(CLASS_ROWS))))
            found = found_classes(model, predicted, width, target)
            if found is None:
                raise UsageError(
                    f"The {type(model).__name__} does not name its classes.",
                    help="Pass the target of the example's rows as y=, or set `classes_` on the model.",
                )
            return task or task_for(found), found, [], False
        if task is None and target is not None and kind_of(model) is None:
            return _by_target(model, model.predict(table.fill(table.cast(frame.head(CLASS_ROWS)))), target)
        if hasattr(model, "fit") or task is None:
            return "regression", [], [], False
    if task is None:
        task = _task_by_prediction(model, first_rows, target)
    if task == "regression":
        return task, [], [], False
    if target is not None:
        return task, list(find_classes(target, task)), [], False
    return task, [False, True] if task == "binary" else [], [], False


def _by_target(model: Any, predicted: Any, target: pl.Series) -> tuple[Task, list[Json], list[int], bool]:
    """Find out from the target what a model that says nothing predicts; as `_task_and_classes`."""
    from everloop.training.estimator_tasks import predicted_meaning
    from everloop.training.targets import find_classes, infer_task

    try:
        task = infer_task(target)
    except TrainingError:  # a few rows of one class, for example
        return "regression", [], [], False
    if task == "regression":
        return task, [], [], False
    classes = find_classes(target, task)
    meaning = predicted_meaning(model, predicted, target, task, classes)
    return ("regression", [], [], False) if meaning == "amounts" else (task, classes, [], meaning == "labels")


def _task_by_prediction(model: Any, first_rows: Any, target: pl.Series | None) -> Task:
    """Infer the task of a function, or of a model that only gives probabilities."""
    import numpy as np

    from everloop.training.targets import infer_task

    prediction = np.asarray(model.predict(first_rows) if hasattr(model, "predict") else model.predict_proba(first_rows))
    if prediction.ndim == 2 and prediction.shape[1] > 1:
        return "binary" if prediction.shape[1] == 2 else "multiclass"
    return "regression" if target is None else infer_task(target)


def _target_values(y: Any) -> pl.Series | None:
    import numpy as np
    import polars as pl

    if y is None or isinstance(y, pl.Series):
        return y
    values = y.to_list() if hasattr(y, "to_list") else np.asarray(y).reshape(-1).tolist()
    return pl.Series("target", values)
