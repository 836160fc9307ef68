"""What kind of question a target column asks, and its values as numbers.

Labels come back months after training from other systems; they must turn into the same numbers then as now, so the
rule lives here once, for training, evaluation and monitoring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import DataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained_model import Json, Task

MOST_CLASSES = 20
"""Whole numbers with more distinct values than this are quantities, not classes."""


def infer_task(target: pl.Series) -> Task:
    """The task that a target column asks for.

    Booleans and anything with two distinct values are binary; strings are classes; whole numbers are classes up to
    `MOST_CLASSES` distinct values and quantities above; floats are quantities.

    Raises:
        TrainingError: one distinct value only, more string classes than can be learned, or a type without order.
    """
    import polars as pl

    distinct = target.drop_nulls().n_unique()
    kind = target.dtype
    if distinct == 0:
        raise TrainingError(f"Target '{target.name}' is null in all {len(target)} rows.", help="Wait for labels.")
    if distinct == 1:
        value = target.drop_nulls()[0]
        raise TrainingError(
            f"Target '{target.name}' has one value only ({value!r} in {len(target)} rows): nothing to learn.",
            help="Take a longer stretch of data, or check how the target is made.",
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
        help="Make it a boolean, a string, or a number (a duration: its seconds).",
    )


def find_classes(target: pl.Series, task: Task) -> list[Json]:
    """The distinct values in order, as plain Python; empty for regression. The last of a binary pair is positive.

    Raises:
        TrainingError: a binary task with more or fewer than two values.
    """
    if task == "regression":
        return []
    values = sorted(_plain(target).drop_nulls().unique().to_list())
    if task == "binary" and len(values) != 2:
        shown = ", ".join(repr(value) for value in values[:5])
        raise TrainingError(
            f"Target '{target.name}' has {len(values)} distinct values ({shown}), a binary task needs two.",
            help="Leave `task` out to have it inferred, or make the target a boolean.",
        )
    return [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]


def encode_target(target: pl.Series, task: Task, classes: Sequence[Any]) -> NDArray[np.float64]:
    """Labels as numbers, shape (n,): 0/1, the class index, or the value itself; NaN where the label is null.

    The label's type may differ from training's (`1` for `True`, `"1"` for `1`), its meaning may not.

    Raises:
        DataError: a label is none of the classes, or not a number in regression.
    """
    import polars as pl

    if task == "regression":
        if not (target.dtype.is_numeric() or target.dtype in (pl.Boolean, pl.Null)):
            raise DataError(
                f"'{target.name}' has type {target.dtype}, the model answers numbers.",
                help="Cast the labels to numbers.",
            )
        return target.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    series = _plain(target)
    out = np.full(len(series), np.nan)
    codes = {value: float(index) for index, value in enumerate(classes)}
    by_text = {_text(value): code for value, code in codes.items()}
    # The distinct values are few, the rows are many: look up the former, spread to the latter.
    for value in series.unique().to_list():
        if value is None or value != value:
            continue
        code = codes.get(value, by_text.get(_text(value)))
        if code is None:
            known = ", ".join(repr(c) for c in list(classes)[:10])
            raise DataError(f"'{target.name}' holds {value!r}, which is no class of the model.", help=f"Known: {known}")
        out[(series == value).fill_null(value=False).to_numpy()] = code
    return out


def class_place(value: Any, classes: Sequence[Any]) -> int | None:
    """Where a label stands among classes, whatever its type (`1` for `True`, `"1"` for `1`); None if nowhere."""
    for place, known in enumerate(classes):
        if known == value or _text(known) == _text(value):
            return place
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
