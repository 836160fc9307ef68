"""Bring the target and prediction columns of plain tables into the form in which metrics take them.

The task follows from the reference: a target with texts, booleans or at most 20 different whole numbers has classes. A
prediction that is one of the classes is judged by accuracy, a number between 0 and 1 for two classes is the probability
of the second class in order and judged by the area under the ROC curve, and all others by the root mean squared error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    import polars as pl

MOST_CLASSES = 20


@dataclass(frozen=True, slots=True)
class LabelledTables:
    """Both tables with `score` and `actual`, in the order of their rows, and the metric that fits them.

    `current` is None if the current table has no target.
    """

    metric: str
    reference: pl.DataFrame
    current: pl.DataFrame | None
    remarks: list[str] = field(default_factory=list)


def label_tables(
    before: pl.DataFrame, now: pl.DataFrame, target: str, prediction: str, reference_name: str
) -> LabelledTables:
    """Return both tables for metrics.

    Raises:
        EmptySampleError: the reference has no labels.
        UsageError: the prediction is not of the kind that the target needs.
    """
    labels = before[target].drop_nulls()
    if labels.is_empty():
        raise EmptySampleError(
            f"The column '{target}' of {reference_name} has no labels.", help="Name another target, or leave it out."
        )
    has_target = target in now.columns
    if not _has_classes(labels):
        if not labels.dtype.is_numeric():
            raise UsageError(
                f"The target '{target}' is {labels.dtype}, which is neither numbers nor classes.",
                help="Name a column with numbers, texts or booleans.",
            )
        return _regression(before, now, target, prediction, has_target=has_target)
    known = _texts(labels)
    if known.n_unique() == 1 and has_target:
        # The current labels may name the other class.
        known = known.append(_texts(now[target].drop_nulls()))
    classes = known.unique().sort().to_list()
    if labels.dtype.is_numeric():
        classes = sorted(classes, key=float)
    predicted = _texts(before[prediction]).drop_nulls().unique().to_list()
    if set(predicted) <= set(classes):
        frames = [_hits(frame, target, prediction) for frame in ((before, now) if has_target else (before,))]
        return LabelledTables("accuracy", frames[0], frames[1] if has_target else None)
    if not before[prediction].dtype.is_numeric():
        odd = next(value for value in sorted(predicted) if value not in classes)
        raise UsageError(
            f"The prediction '{prediction}' has the value '{odd}', which is not a class of '{target}'.",
            help=f"Classes: {', '.join(classes[:MOST_CLASSES])}. Name a column with classes or probabilities.",
        )
    if len(classes) > 2 or not _are_probabilities(before[prediction]):
        if labels.dtype.is_numeric():
            return _regression(before, now, target, prediction, has_target=has_target)
        raise UsageError(
            f"The prediction '{prediction}' is a number, but '{target}' has {len(classes)} classes.",
            help="Name a column with the predicted class, or with probabilities of one of two classes.",
        )
    frames = [
        _probabilities(frame, target, prediction, classes[-1]) for frame in ((before, now) if has_target else (before,))
    ]
    remark = f"'{prediction}' is taken as the probability of '{classes[-1]}'."
    return LabelledTables("roc_auc", frames[0], frames[1] if has_target else None, [remark])


def _has_classes(labels: pl.Series) -> bool:
    import polars as pl

    if labels.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum):
        return True
    if not labels.dtype.is_numeric() or labels.n_unique() > MOST_CLASSES:
        return False
    numbers = labels.cast(pl.Float64)
    return bool((numbers.is_finite() & (numbers == numbers.floor())).all())


def _are_probabilities(values: pl.Series) -> bool:
    import polars as pl

    numbers = values.cast(pl.Float64).drop_nulls()
    return bool(numbers.is_finite().all()) and bool(numbers.is_between(0, 1).all())


def _texts(values: pl.Series) -> pl.Series:
    """Return classes as texts: `1`, `1.0` and `True` of a numeric or boolean column are all the same class."""
    import polars as pl

    if values.dtype == pl.Boolean:
        return values.cast(pl.Int64).cast(pl.String)
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64)
        whole = numbers.is_finite() & (numbers == numbers.floor()) & (numbers.abs() < 2**53)
        as_whole = numbers.set(~whole.fill_null(value=False), None).cast(pl.Int64).cast(pl.String)
        return as_whole.zip_with(whole.fill_null(value=False), numbers.cast(pl.String))
    return values.cast(pl.String)


def _hits(frame: pl.DataFrame, target: str, prediction: str) -> pl.DataFrame:
    """Return each row as right (1) or wrong (0): the share of right ones is the accuracy, however many classes."""
    import polars as pl

    known = frame[target].is_not_null() & frame[prediction].is_not_null()
    right = (_texts(frame[target]) == _texts(frame[prediction])).cast(pl.Float64)
    actual = pl.Series("actual", [1.0]).extend_constant(1.0, frame.height)[: frame.height].set(~known, None)
    return pl.DataFrame([right.rename("score"), actual.rename("actual")])


def _probabilities(frame: pl.DataFrame, target: str, prediction: str, positive: str) -> pl.DataFrame:
    import polars as pl

    actual = (_texts(frame[target]) == positive).cast(pl.Float64)
    return pl.DataFrame([_finite(frame[prediction]).rename("score"), actual.rename("actual")])


def _regression(
    before: pl.DataFrame, now: pl.DataFrame, target: str, prediction: str, *, has_target: bool
) -> LabelledTables:
    if not before[prediction].dtype.is_numeric():
        raise UsageError(
            f"The prediction '{prediction}' is {before[prediction].dtype}, but the target '{target}' has numbers.",
            help="Name a column with predicted numbers.",
        )
    frames = [_numbers(frame, target, prediction) for frame in ((before, now) if has_target else (before,))]
    return LabelledTables("rmse", frames[0], frames[1] if has_target else None)


def _numbers(frame: pl.DataFrame, target: str, prediction: str) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame([_finite(frame[prediction]).rename("score"), _finite(frame[target]).rename("actual")])


def _finite(values: pl.Series) -> pl.Series:
    import polars as pl

    numbers = values.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite().fill_null(value=False), None)
