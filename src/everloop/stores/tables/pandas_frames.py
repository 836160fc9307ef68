"""Converting pandas frames to Polars, without silently losing or changing anything.

The index is data unless it only counts the rows:

| index | becomes |
|---|---|
| 0, 1, 2, … without a name | nothing |
| one with a name, or with several named levels | columns with these names |
| one without a name that holds text, times, … | the column `index`; for several levels `level_0`, `level_1`, … |
| unnamed integers, as filtering and sorting leave them | an error: name the index or drop it |

A column without an Arrow type raises an error that names the column and a solution. NaN becomes null, as in pandas.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError

if TYPE_CHECKING:
    import polars as pl

_SOLUTIONS = {
    "complex": "Split it: df[{0}].map(lambda z: z.real), and .imag.",
    "period": "Convert it to times: df[{0}].dt.to_timestamp(), or to text: df[{0}].astype(str).",
    "interval": "Convert it to text: df[{0}].astype(str), or split it: .map(lambda i: i.left), .right.",
    "longdouble": "Cast it: df[{0}].astype('float64').",
}
_LISTS = frozenset({"list", "tuple", "ndarray"})


def read_pandas(frame: Any) -> pl.DataFrame:
    """Convert a pandas frame and its index to a Polars frame.

    Raises:
        DataError: the index or a column cannot be converted; see above.
    """
    import polars as pl

    labels = _labels(frame)
    columns: dict[str, Any] = {}
    for name, values in _index(frame):
        if name in labels:
            raise DataError(
                f"The index and a column are both called '{name}'.",
                help="Rename one: df.rename_axis('…'), or drop the index: df.reset_index(drop=True).",
            )
        columns[name] = values
    columns |= {label: frame.iloc[:, position] for position, label in enumerate(labels)}
    return pl.DataFrame([_column(name, values) for name, values in columns.items()])


def _labels(frame: Any) -> list[str]:
    """The columns' names as text."""
    labels: list[str] = []
    for label in frame.columns:
        # A frame that was created from an array has integers as column names.
        is_integer = isinstance(label, int) or type(label).__name__.startswith(("int", "uint"))
        if not isinstance(label, str) and (not is_integer or isinstance(label, bool)):
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
        names = [f"level_{level}" if name is None else name for level, name in enumerate(index.names)]
        found = [(name, index.get_level_values(level)) for level, name in enumerate(names)]
    elif index.name is not None:
        found = [(index.name, index)]
    elif not len(index) or (
        pd.api.types.is_integer_dtype(index.dtype) and np.array_equal(index, np.arange(len(index)))
    ):
        return []
    elif pd.api.types.is_integer_dtype(index.dtype):
        shown = ", ".join(str(value) for value in index[:3])
        raise DataError(
            f"The frame's index ({shown}, …) has no name, so it is unclear whether it is data.",
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
        converted = pl.from_pandas(pd.DataFrame({name: values.reset_index(drop=True)}))
    except Exception as error:
        # pyarrow, pandas and polars have a dozen exceptions for values of mixed types.
        raise DataError(
            f"The column '{name}' cannot be stored: {' '.join(str(error).split())}.",
            help=f"All values of a column must have one type: df[{name!r}] = df[{name!r}].astype(…).",
        ) from error
    return converted.to_series()


def _plain(name: str, values: Any) -> Any:
    """Convert values to a form that Arrow accepts.

    Raises:
        DataError: there is no such form.
    """
    import pandas as pd

    dtype = values.dtype
    objects = pd.api.types.is_object_dtype(dtype)
    if isinstance(dtype, pd.SparseDtype):
        return _plain(name, values.sparse.to_dense())
    if isinstance(dtype, pd.CategoricalDtype):
        # The type of the categories decides.
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
    if kind in _SOLUTIONS:
        raise DataError(
            f"The column '{name}' has {kind if objects else dtype} values, which tables do not support.",
            help=_SOLUTIONS[kind].format(repr(name)),
        )
    return values


def _object_kind(name: str, values: Any) -> str:
    """The type of values in a column of Python objects, as pandas infers it.

    Raises:
        DataError: the values have several types. Arrow would use the type of the first, or convert some of them.
    """
    import pandas as pd

    kind = str(pd.api.types.infer_dtype(values, skipna=True))
    if kind == "date" and any(isinstance(value, datetime) for value in values.dropna()):
        # pandas looks only at the first value, and a date has no time of day.
        raise DataError(
            f"The column '{name}' has both dates and times.",
            help=f"Convert all of them to times: pd.to_datetime(df[{name!r}]).",
        )
    if kind in ("datetime", "datetime64"):
        zoned = {getattr(value, "tzinfo", None) is not None for value in values.dropna()}
        if len(zoned) > 1:
            raise DataError(
                f"The column '{name}' has times with and without a time zone.",
                help=f"Give all of them a time zone: pd.to_datetime(df[{name!r}], utc=True).",
            )
    if kind.startswith("mixed") and kind != "mixed-integer-float":
        types = {type(value).__name__ for value in values if not (pd.api.types.is_scalar(value) and pd.isna(value))}
        if len(types) > 1 and not types <= _LISTS:
            raise DataError(
                f"The column '{name}' has values of several types: {', '.join(sorted(types))}.",
                help=f"Convert them: df[{name!r}].astype(str), or pd.to_numeric(df[{name!r}], errors='coerce').",
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
        f"The column '{name}' has the value {most if most >= 1 << 63 else least}, which does not fit into 64 bits.",
        help=f"Convert it to text: df[{name!r}].astype(str), or to a float.",
    )
