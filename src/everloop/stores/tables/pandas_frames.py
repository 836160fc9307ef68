"""pandas frames as Polars frames: nothing is lost, and nothing is turned into something else without a word.

The index is data unless it only counts the rows:

| index | becomes |
|---|---|
| 0, 1, 2, … without a name | nothing |
| one with a name, also of several levels | columns of these names |
| one without a name that holds text, times, … | the column `index`; of several levels `level_0`, `level_1`, … |
| whole numbers without a name, as filtering and sorting leave them | an error: name them, or drop them |

Columns that Arrow has no type for are refused by name, with what to write instead. NaN is null, as pandas means it.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_WAYS_OUT = {
    "complex": "Split it: df[{0}].map(lambda z: z.real), and .imag.",
    "period": "Make it times: df[{0}].dt.to_timestamp(), or text: df[{0}].astype(str).",
    "interval": "Make it text: df[{0}].astype(str), or keep its ends apart: .map(lambda i: i.left), .right.",
    "longdouble": "Cast it: df[{0}].astype('float64').",
}
_LISTS = frozenset({"list", "tuple", "ndarray"})


def read_pandas(frame: Any) -> pl.DataFrame:
    """A pandas frame as a Polars frame, with its index.

    Raises:
        DataError: see above.
    """
    import polars as pl

    labels = _labels(frame)
    columns: dict[str, Any] = {}
    for name, values in _index(frame):
        if name in labels:
            raise DataError(
                f"The index is called '{name}', and so is a column.",
                help="Rename one: df.rename_axis('…'), or drop the index: df.reset_index(drop=True).",
            )
        columns[name] = values
    columns |= {label: frame.iloc[:, place] for place, label in enumerate(labels)}
    return pl.DataFrame([_column(name, values) for name, values in columns.items()])


def _labels(frame: Any) -> list[str]:
    """The columns' names as text."""
    labels: list[str] = []
    for label in frame.columns:
        # Whole numbers are what a frame made of an array has.
        whole = isinstance(label, int) or type(label).__name__.startswith(("int", "uint"))
        if not isinstance(label, str) and (not whole or isinstance(label, bool)):
            several = isinstance(label, tuple)
            raise DataError(
                f"A column is called {label!r}, which is {'several names' if several else 'not text'}.",
                help="Join them: df.columns = ['_'.join(map(str, names)) for names in df.columns]."
                if several
                else "Name it with text: df.columns = df.columns.astype(str).",
            )
        if str(label) in labels:
            raise DataError(
                f"Two columns are called '{label}'.",
                help="Rename one, or drop it: df.loc[:, ~df.columns.duplicated()].",
            )
        labels.append(str(label))
    return labels


def _index(frame: Any) -> list[tuple[str, Any]]:
    import numpy as np
    import pandas as pd

    index = frame.index
    if isinstance(index, pd.MultiIndex):
        names = [f"level_{place}" if name is None else name for place, name in enumerate(index.names)]
        found = [(name, index.get_level_values(place)) for place, name in enumerate(names)]
    elif index.name is not None:
        found = [(index.name, index)]
    elif not len(index) or (
        pd.api.types.is_integer_dtype(index.dtype) and np.array_equal(index, np.arange(len(index)))
    ):
        return []
    elif pd.api.types.is_integer_dtype(index.dtype):
        shown = ", ".join(str(value) for value in index[:3])
        raise DataError(
            f"The frame's index counts {shown}, … and has no name, so it cannot be told whether it is data.",
            help="Drop it: df.reset_index(drop=True), or keep it as a column: df.rename_axis('row').",
        )
    else:
        found = [("index", index)]
    for name, _ in found:
        if not isinstance(name, str):
            raise DataError(
                f"The index is called {name!r}, which is not text.", help="Name it with text: df.rename_axis('…')."
            )
        if [other for other, _ in found].count(name) > 1:
            raise DataError(f"Two levels of the index are called '{name}'.", help="Name them: df.rename_axis([…]).")
    return [(name, level.to_series().reset_index(drop=True)) for name, level in found]


def _column(name: str, values: Any) -> pl.Series:
    import pandas as pd
    import polars as pl

    values = _plain(name, values)
    try:
        made = pl.from_pandas(pd.DataFrame({name: values.reset_index(drop=True)}))
    except Exception as error:
        # pyarrow, pandas and polars have a dozen errors for values that do not fit together.
        raise DataError(
            f"The column '{name}' cannot be kept: {' '.join(str(error).split())}.",
            help=f"A column holds values of one type: df[{name!r}] = df[{name!r}].astype(…).",
        ) from error
    return made.to_series()


def _plain(name: str, values: Any) -> Any:
    """The values in a form that Arrow takes.

    Raises:
        DataError: they have none.
    """
    import pandas as pd

    dtype = values.dtype
    objects = pd.api.types.is_object_dtype(dtype)
    if isinstance(dtype, pd.SparseDtype):
        return _plain(name, values.sparse.to_dense())
    if isinstance(dtype, pd.CategoricalDtype):
        # What the categories are counts, not that they are listed.
        _plain(name, pd.Series(dtype.categories))
        return values
    kind = "period" if isinstance(dtype, pd.PeriodDtype) else "interval" if isinstance(dtype, pd.IntervalDtype) else ""
    if getattr(dtype, "kind", "") == "c":
        kind = "complex"
    if getattr(dtype, "kind", "") == "f" and dtype.itemsize > 8:
        kind = "longdouble"
    if objects:
        kind = _object_kind(name, values)
        if kind == "integer":
            return _whole_numbers(name, values)
    if kind in _WAYS_OUT:
        raise DataError(
            f"The column '{name}' holds {kind if objects else dtype} values, which no table here can hold.",
            help=_WAYS_OUT[kind].format(repr(name)),
        )
    return values


def _object_kind(name: str, values: Any) -> str:
    """What a column of Python objects holds, as pandas tells it.

    Raises:
        DataError: values of several types, of which Arrow would take the first or turn one into another.
    """
    import pandas as pd

    kind = str(pd.api.types.infer_dtype(values, skipna=True))
    if kind == "date" and any(isinstance(value, datetime) for value in values.dropna()):
        # pandas calls them dates after the first, and a date has no time of day.
        raise DataError(
            f"The column '{name}' holds both dates and times.", help=f"Make them one: pd.to_datetime(df[{name!r}])."
        )
    if kind in ("datetime", "datetime64"):
        zoned = {getattr(value, "tzinfo", None) is not None for value in values.dropna()}
        if len(zoned) > 1:
            raise DataError(
                f"The column '{name}' holds times with and without a time zone.",
                help=f"Give them one: pd.to_datetime(df[{name!r}], utc=True).",
            )
    if kind.startswith("mixed") and kind != "mixed-integer-float":
        types = {type(value).__name__ for value in values if not (pd.api.types.is_scalar(value) and pd.isna(value))}
        if len(types) > 1 and not types <= _LISTS:
            raise DataError(
                f"The column '{name}' holds values of several types: {', '.join(sorted(types))}.",
                help=f"Make them one: df[{name!r}].astype(str), or pd.to_numeric(df[{name!r}], errors='coerce').",
            )
    return kind


def _whole_numbers(name: str, values: Any) -> Any:
    known = values.dropna()
    least, most = int(known.min()), int(known.max())
    if least >= -(1 << 63) and most < 1 << 63:
        return values
    if least >= 0 and most < 1 << 64:
        return values.astype("UInt64")
    raise DataError(
        f"The column '{name}' holds {most if most >= 1 << 63 else least}, beyond 64 bits.",
        help=f"Keep it as text: df[{name!r}].astype(str), or as a float.",
    )
