"""Infer the task of a target column, and encode its values as numbers.

Labels may arrive from other systems months after training, and must be encoded as in training. So training, evaluation
and monitoring all use the functions of this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import DataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json
    from everloop.training.trained_model import Task

MOST_CLASSES = 20
"""Whole numbers with more distinct values than this are quantities, not classes."""


def infer_task(target: pl.Series) -> Task:
    """Infer the task from a target column.

    Booleans and columns with two distinct values are binary. Strings are classes. Whole numbers are classes if they
    have up to `MOST_CLASSES` distinct values, otherwise a regression. Floats are a regression.

    Raises:
        TrainingError: the target has a single value, too many distinct strings, or a type that cannot be predicted.
    """
    import polars as pl

    distinct = target.drop_nulls().n_unique()
    kind = target.dtype
    if distinct == 0:
        raise TrainingError(f"Target '{target.name}' is null in all {len(target)} rows.", help="Wait for labels.")
    if distinct == 1:
        value = target.drop_nulls()[0]
        raise TrainingError(
            f"Target '{target.name}' has one value only ({value!r} in {len(target)} rows).",
            help="Use data of a longer period, or check how the target is computed.",
        )
    if kind == pl.Boolean or (distinct == 2 and not kind.is_nested() and not kind.is_temporal()):
        return "binary"
    if kind in (pl.String, pl.Categorical, pl.Enum):
        if distinct > 10 * MOST_CLASSES:
            raise TrainingError(
                f"Target '{target.name}' has {distinct} distinct strings, too many to be classes.",
                help="Group the rare ones, or check that the target is the right column.",
            )
        return "multiclass"
    if kind.is_integer():
        return "multiclass" if distinct <= MOST_CLASSES else "regression"
    if kind.is_numeric():
        return "regression"
    raise TrainingError(
        f"Target '{target.name}' has type {kind}, which is neither a class nor a number.",
        help="Convert it to a boolean, a string or a number; a duration to seconds.",
    )


def find_classes(target: pl.Series, task: Task, positive: Json = None) -> list[Json]:
    """Return the sorted distinct values as plain Python values; empty for a regression.

    For a binary task, the second value is the positive class: the one that is given, or else the later one.

    Raises:
        TrainingError: the task is binary, but there are more or fewer than two values, or a positive class is given and
            is not one of them or the task is not binary.
    """
    if positive is not None and task != "binary":
        check_positive(positive, target.name, task, ())
    if task == "regression":
        return []
    values = sorted(_plain(target).drop_nulls().unique().to_list())
    if task == "binary" and len(values) != 2:
        shown = ", ".join(repr(value) for value in values[:5])
        raise TrainingError(
            f"Target '{target.name}' has {len(values)} distinct values ({shown}), but a binary task needs two.",
            help="Leave `task` out to have it inferred, or convert the target to a boolean.",
        )
    classes = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    if positive is None:
        return classes
    place = check_positive(positive, target.name, task, classes)
    return [classes[1 - place], classes[place]]


def check_positive(positive: Json, target: str, task: Task, classes: Sequence[Json]) -> int:
    """Return the index of the positive class.

    Raises:
        TrainingError: the task is not binary, or the positive class is not one of its classes.
    """
    if task != "binary":
        kind = "amounts" if task == "regression" else "more than two classes"
        raise TrainingError(
            f"positive= is {positive!r}, but the target '{target}' has {kind}.", help="Leave positive= out."
        )
    place = class_place(positive, classes)
    if place is None:
        raise TrainingError(
            f"positive= is {positive!r}, which is not a value of the target '{target}'.",
            help=f"Its values: {', '.join(map(repr, classes))}",
        )
    return place


def encode_target(target: pl.Series, task: Task, classes: Sequence[Any]) -> NDArray[np.float64]:
    """Return labels as numbers, shape (n,): 0/1, the class index, or the value itself; NaN for null.

    The type of a label may differ from training: `1` matches `True`, and `"1"` matches `1`.

    Raises:
        DataError: a label is not one of the classes or, for a regression, not a number.
    """
    import polars as pl

    if task == "regression":
        if not (target.dtype.is_numeric() or target.dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"'{target.name}' has type {target.dtype}, but the model predicts numbers.",
                help="Convert the labels to numbers.",
            )
        return target.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    series = _plain(target)
    out = np.full(len(series), np.nan)
    codes = {value: float(index) for index, value in enumerate(classes)}
    by_text = {_text(value): code for value, code in codes.items()}
    # There are few distinct values and many rows, so each distinct value is looked up once.
    for value in series.unique().to_list():
        if value is None or value != value:
            continue
        code = codes.get(value, by_text.get(_text(value)))
        if code is None:
            known = ", ".join(repr(c) for c in list(classes)[:10])
            raise DataError(
                f"'{target.name}' holds {value!r}, which is not a class of the model.", help=f"Its classes: {known}"
            )
        out[(series == value).fill_null(value=False).to_numpy()] = code
    return out


def class_place(value: Any, classes: Sequence[Any]) -> int | None:
    """Return the index of a label's class; None if it is not one. `1` matches `True`, and `"1"` matches `1`."""
    for index, known in enumerate(classes):
        if known == value or _text(known) == _text(value):
            return index
    return None


def _plain(target: pl.Series) -> pl.Series:
    import polars as pl

    return target.cast(pl.String) if target.dtype in (pl.Categorical, pl.Enum) else target


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return {"true": "1", "false": "0"}.get(text.lower(), text)
