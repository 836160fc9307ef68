"""The kind of table that an estimator was fitted on, and how to build such a table from decoded rows.

An estimator predicts correctly only if it gets the same kind of table as in fitting: pandas with its category columns,
an array in single precision, Polars. The description of the table is JSON and is stored in the package.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from everloop.errors import CorruptionError, MissingExtraError, RequestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.records import Json

Container = Literal["polars", "pandas", "numpy", "series", "vector", "list"]
"""A frame, an array of two dimensions, or one column alone: a pandas Series, an array of one dimension, a list."""
_SCALARS = {"Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """One column: its Polars type in everloop, and its type in the estimator's table."""

    name: str
    type: str
    """Polars type, as text: `Float64`, `Int64`, `String`, `Boolean`, `Date`, `Datetime` (microseconds, UTC)."""
    pandas: str = ""
    """pandas' name of the type: `float32`, `category`, `str`, …; empty if the example was not a pandas frame."""
    categories: tuple[Any, ...] | None = None
    """Categories of a pandas column, in the order that determines their codes."""
    ordered: bool = False
    none: bool = False
    """A missing text is None rather than NaN; some encoders distinguish the two."""
    polars: str = ""
    """Polars' name of the type, if the example was a Polars frame with another type than `type`."""
    number: bool = False
    """The column's name in pandas is an integer, as in a frame whose columns were never named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKind:
    """Columns in order, and the container that the estimator takes."""

    container: Container
    columns: tuple[TableColumn, ...]
    dtype: str = ""
    """NumPy's name of the array's type; empty if the example was not an array."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def cast(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns of `frame` that the estimator reads, with their types.

        Raises:
            RequestError: a column is missing or cannot be converted to its type.
        """
        import polars as pl

        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise RequestError(f"Column '{absent[0]}' is missing.", help=f"Given: {', '.join(frame.columns[:30])}")
        try:
            return frame.select(_cast(frame[column.name], polars_type(column.type)) for column in self.columns)
        except pl.exceptions.PolarsError as error:
            raise RequestError(f"The rows do not have the types that the model expects: {error}") from error

    def fill(self, frame: pl.DataFrame) -> Any:
        """Convert a frame from `cast` to the table that the estimator takes."""
        if self.container == "polars":
            return frame.with_columns(
                frame[column.name].cast(_polars_type_of(column), strict=False)
                for column in self.columns
                if column.polars
            )
        if self.container in ("numpy", "vector"):
            array = _as_array(frame, self.dtype)
            return array if self.container == "numpy" else array[:, 0]
        if self.container == "list":
            return frame.to_series().to_list()
        try:
            import pandas as pd
        except ImportError:
            raise MissingExtraError.of("This estimator", "pandas", "pandas") from None
        if self.container == "series":
            (column,) = self.columns
            return pd.Series(_to_pandas(frame[column.name], column), name=column.name)
        made = pd.DataFrame({column.name: _to_pandas(frame[column.name], column) for column in self.columns})
        if any(column.number for column in self.columns):
            made.columns = [int(column.name) if column.number else column.name for column in self.columns]
        return made

    def from_rows(self, rows: Sequence[Mapping[str, object]]) -> pl.DataFrame:
        """Return decoded rows as a frame with the columns' types.

        Raises:
            RequestError: a column is missing, or a value does not fit its column.
        """
        import polars as pl

        try:
            columns = [
                pl.Series(column.name, [row[column.name] for row in rows], dtype=_wide(column.type))
                for column in self.columns
            ]
        except KeyError as error:
            raise RequestError(f"Column {error} is missing.") from error
        except (TypeError, OverflowError, pl.exceptions.PolarsError) as error:
            raise RequestError(f"The rows do not have the types that the model expects: {error}") from error
        return self.cast(pl.DataFrame(columns))

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableKind:
        try:
            columns = [
                TableColumn(**{**item, "categories": None if item["categories"] is None else tuple(item["categories"])})
                for item in data["columns"]
            ]
            return cls(container=data["container"], columns=tuple(columns), dtype=data.get("dtype", ""))
        except (KeyError, TypeError) as error:
            raise CorruptionError(
                f"This is not the description of a table: {error!r}.", help="Package the model again."
            ) from error


def read_example(example: Any) -> tuple[pl.DataFrame, TableKind]:
    """Return an example table of any kind as a Polars frame, and the description of its columns.

    Args:
        example: a pandas frame (its index is not read), a Polars frame, an array of shape (n, columns), or any object
            with the Arrow C stream interface.

    Raises:
        UsageError: it is none of these, has no rows or columns, or has a column that cannot be a model input.
    """
    import numpy as np
    import polars as pl

    if isinstance(example, pl.LazyFrame):
        example = example.collect()
    dtype = ""
    columns: dict[str, TableColumn]
    container: Container
    if isinstance(example, list) and example and all(isinstance(row, list | tuple) for row in example):
        # scikit-learn does the same.
        example = np.asarray(example)
    if hasattr(example, "tocsr") and hasattr(example, "nnz"):
        raise UsageError(
            f"The example is a sparse matrix of {example.shape[1]} columns, which a request cannot pass by name.",
            help="Put the vectorizer into the pipeline and pass its input: make_pipeline(vectorizer, model).",
        )
    if (alone := _column_alone(example)) is not None:
        frame, columns, container = alone
        dtype = str(example.dtype) if container == "vector" else ""
    elif type(example).__module__.partition(".")[0] == "pandas" and hasattr(example, "columns"):
        frame, columns = _read_pandas(example)
        container = "pandas"
    elif isinstance(example, np.ndarray):
        if example.ndim != 2:
            raise UsageError(
                f"The example is an array of {example.ndim} dimensions.",
                help="Pass shape (rows, columns), as in fit.",
            )
        names = [f"x{index}" for index in range(example.shape[1])]
        frame = pl.DataFrame([_array_column(name, example[:, index]) for index, name in enumerate(names)])
        columns, container, dtype = {}, "numpy", _array_type(example)
    elif isinstance(example, pl.DataFrame) or hasattr(example, "__arrow_c_stream__"):
        frame, container = pl.DataFrame(example), "polars"
        columns = {name: TableColumn(name=name, type="", polars=str(kind)) for name, kind in frame.schema.items()}
    else:
        raise UsageError(
            f"The example is a {type(example).__name__}.", help="Pass the table that the model was fitted on (its X)."
        )
    if not frame.height or not frame.width:
        raise UsageError(
            f"The example has {frame.height} rows and {frame.width} columns.",
            help="Pass rows that the model was fitted on: they determine columns, types and categories.",
        )
    frame = frame.select(_plain(series) for series in frame.get_columns())
    known = []
    for name, kind in frame.schema.items():
        column = replace(columns.get(name, TableColumn(name=name, type="")), type=_type_name(kind))
        known.append(replace(column, polars=_original_polars_type(column, kind)))
    return frame, TableKind(container=container, columns=tuple(known), dtype=dtype)


def polars_type(name: str) -> pl.DataType:
    """Return the Polars type for a `TableColumn.type`."""
    import polars as pl

    if name == "Datetime":
        return pl.Datetime("us", "UTC")
    if name == "NaiveDatetime":
        return pl.Datetime("us")
    if name == "Duration":
        return pl.Duration("us")
    return cast("pl.DataType", getattr(pl, name)())


def _wide(name: str) -> pl.DataType:
    """Return the Polars type of decoded values, before they are converted to the column's type."""
    return polars_type({"Float32": "Float64", "NaiveDatetime": "Datetime"}.get(name, name))


def _type_name(dtype: pl.DataType) -> str:
    import polars as pl

    if isinstance(dtype, pl.Datetime):
        return "Datetime" if dtype.time_zone else "NaiveDatetime"
    if isinstance(dtype, pl.Duration):
        return "Duration"
    return str(dtype)


def _plain(series: pl.Series) -> pl.Series:
    """Convert a column to one of the types that this module distinguishes."""
    import polars as pl

    dtype = series.dtype
    if dtype.is_float():
        return series.fill_nan(None)
    if isinstance(dtype, pl.Decimal):
        return series.cast(pl.Float64)
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Null):
        return series.cast(pl.String)
    if isinstance(dtype, pl.Datetime):
        cut = series.dt.cast_time_unit("us")
        return cut.dt.convert_time_zone("UTC") if dtype.time_zone else cut
    if isinstance(dtype, pl.Duration):
        return series.dt.cast_time_unit("us")
    if dtype.is_integer():
        return series.cast(pl.Int64)
    if isinstance(dtype, pl.String | pl.Boolean | pl.Date | pl.Time):
        return series
    raise UsageError(
        f"The example's column '{series.name}' is of type {dtype}, which a model input cannot be.",
        help="Convert it to numbers, texts, booleans, dates or times, or drop it.",
    )


def _cast(series: pl.Series, dtype: pl.DataType) -> pl.Series:
    import polars as pl

    if isinstance(dtype, pl.Datetime) and isinstance(series.dtype, pl.Datetime):
        cut = series.dt.cast_time_unit("us")
        if dtype.time_zone is None and series.dtype.time_zone is not None:
            return cut.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        if dtype.time_zone is not None and series.dtype.time_zone is None:
            return cut.dt.replace_time_zone("UTC")
        return cut.dt.convert_time_zone("UTC") if dtype.time_zone else cut
    return series if series.dtype == dtype else series.cast(dtype, strict=not dtype.is_float())


def _read_pandas(example: Any) -> tuple[pl.DataFrame, dict[str, TableColumn]]:
    import numpy as np
    import pandas as pd
    import polars as pl

    columns: dict[str, TableColumn] = {}
    series = []
    # The index is not read: no estimator learns from it.
    if not example.columns.is_unique:
        doubled = example.columns[example.columns.duplicated()][0]
        raise UsageError(f"Two columns of the example are called {doubled!r}.", help="Rename one before fitting.")
    names = [str(label) for label in example.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"The example has the column '{twice}' twice.", help="Give every column a different name.")
    for index, original in enumerate(example.columns):
        number = isinstance(original, int | np.integer) and not isinstance(original, bool)
        if not isinstance(original, str) and not number:
            raise UsageError(
                f"The name of the example's column {original!r} is neither a text nor an integer.",
                help="Name the columns before fitting: X.columns = [...], or fit on X.to_numpy().",
            )
        label, values = str(original), example.iloc[:, index]
        kind = str(values.dtype)
        categories: tuple[Any, ...] | None = None
        if kind == "category":
            categories = tuple(
                value.item() if hasattr(value, "item") else value for value in values.cat.categories.tolist()
            )
        none = kind == "object" and any(value is None for value in values)
        columns[label] = TableColumn(
            name=label,
            type="",
            pandas=kind,
            categories=categories,
            ordered=bool(categories is not None and values.cat.ordered),
            none=none,
            number=number,
        )
        try:
            if kind == "float16":
                series.append(pl.Series(label, values.to_numpy().astype(np.float32), nan_to_null=True))
            elif kind.startswith(("datetime64", "timedelta64")) and "," not in kind:
                # Polars has no unit of seconds; times are converted to microseconds anyway.
                unit = "datetime64[us]" if kind.startswith("datetime64") else "timedelta64[us]"
                series.append(pl.Series(label, values.to_numpy().astype(unit), nan_to_null=True))
            elif kind in ("object", "category", "str", "string", "bool", "boolean") or kind in _SCALARS:
                missing = pd.isna(values).to_numpy()
                plain = [None if null else value for null, value in zip(missing, values.tolist(), strict=True)]
                series.append(pl.Series(label, plain, strict=True))
            elif "datetime" in kind and getattr(values.dtype, "tz", None) is not None:
                naive = values.dt.tz_convert("UTC").dt.tz_localize(None)
                series.append(pl.Series(label, naive.to_numpy().astype("datetime64[us]")).dt.replace_time_zone("UTC"))
            else:
                series.append(pl.Series(label, values.to_numpy(), nan_to_null=True))
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            raise UsageError(
                f"The example's column '{label}' cannot be read: {error}.",
                help="Convert its values to one type before fitting.",
            ) from error
    return pl.DataFrame(series), columns


def _array_column(name: str, values: Any) -> pl.Series:
    import polars as pl

    if values.dtype != object:
        return pl.Series(name, values, nan_to_null=True)
    try:
        return pl.Series(name, [None if value != value else value for value in values.tolist()])
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise UsageError(
            f"The example's column '{name}' cannot be read: {error}.",
            help="Convert its values to one type before fitting.",
        ) from error


def _to_pandas(series: pl.Series, column: TableColumn) -> Any:
    import numpy as np
    import pandas as pd

    kind = column.pandas
    if kind == "category":
        known = set(column.categories or ())
        # Fitted estimators treat an unknown category as a null; newer versions of pandas do not convert it themselves.
        codes = [value if value in known else None for value in series.to_list()]
        return pd.Categorical(codes, categories=list(column.categories or ()), ordered=column.ordered)
    if kind == "object" or (not kind and column.type == "String"):
        missing = None if column.none else np.nan
        return pd.Series([missing if value is None else value for value in series.to_list()], dtype=object)
    if kind in ("str", "string", "boolean") or kind in _SCALARS:
        return pd.Series(series.to_list(), dtype=kind)
    if column.type == "Datetime":
        moments = pd.Series(series.dt.replace_time_zone(None).to_numpy()).dt.tz_localize("UTC")
        return moments.astype(kind) if kind else moments
    if column.type == "Boolean" and series.null_count():
        return pd.Series(series.to_list(), dtype=object)
    if kind.endswith("[pyarrow]"):
        return pd.Series(series.to_list(), dtype=kind)
    values = series.to_numpy()
    if kind.startswith(("datetime64", "timedelta64")):
        # In the unit of the example, because a user's code may depend on the unit.
        return _in_unit(values, kind)
    if kind.startswith(("int", "uint")) and values.dtype.kind == "i":
        return _narrowed(values, kind)
    # Integers with nulls become floats, as in pandas.
    return values.astype(kind) if kind.startswith("float") and values.dtype.kind == "f" else values


def _in_unit(values: Any, kind: str) -> Any:
    import numpy as np

    made = values.astype(kind)
    if (made.astype(values.dtype) != values)[~np.isnat(values)].any():
        raise RequestError(
            f"A time does not fit the type {kind} that the model was fitted on: it is out of range or too precise."
        )
    return made


def _narrowed(values: Any, kind: str) -> Any:
    """Convert integers to the width of the example, unless one of them does not fit."""
    import numpy as np

    bounds = np.iinfo(kind)
    fits = not len(values) or (values.min() >= bounds.min and values.max() <= bounds.max)
    return values.astype(kind) if fits else values


def _as_array(frame: pl.DataFrame, dtype: str) -> Any:
    """Convert a frame to an array with the example's type, if the values fit that type."""
    import numpy as np

    array = frame.to_numpy()
    if not dtype or str(array.dtype) == dtype:
        return array
    kind = np.dtype(dtype)
    if kind.kind in "iu" and array.dtype.kind in "iu":
        return _narrowed(array, dtype)
    if kind.kind in "Mm" and array.dtype.kind == kind.kind:
        return _in_unit(array, dtype)
    if kind.kind == "U":
        return array.astype(str) if not any(value is None for value in array.flat) else array
    if kind.kind in "fO" or (kind.kind == "b" and array.dtype.kind == "b"):
        return array.astype(dtype)
    return array


def _array_type(array: Any) -> str:
    return "U" if array.dtype.kind == "U" else str(array.dtype)


def _column_alone(example: Any) -> tuple[pl.DataFrame, dict[str, TableColumn], Container] | None:
    """Read an example that is a single column: a Series, an array of one dimension, or a list of values."""
    import numpy as np
    import polars as pl

    library = type(example).__module__.partition(".")[0]
    if library == "pandas" and hasattr(example, "to_frame") and not hasattr(example, "columns"):
        name = str(example.name) if example.name is not None else "value"
        frame, columns = _read_pandas(example.rename(name).to_frame())
        return frame, columns, "series"
    if isinstance(example, np.ndarray) and example.ndim == 1 and example.dtype.names is None:
        return pl.DataFrame([_array_column("value", example)]), {}, "vector"
    if isinstance(example, list) and example and all(isinstance(value, str | int | float) for value in example):
        return pl.DataFrame([pl.Series("value", example, strict=False)]), {}, "list"
    return None


def _original_polars_type(column: TableColumn, kind: pl.DataType) -> str:
    """Return the name of the example's type if it differs from ours and `_type_by_name` knows it; else empty."""
    original = column.polars
    if not original or original == str(kind):
        return ""
    return original if _type_by_name(original) is not None else ""


def _polars_type_of(column: TableColumn) -> pl.DataType:
    found = _type_by_name(column.polars)
    if found is None:
        raise CorruptionError(f"There is no Polars type {column.polars}.", help="Package the model again.")
    return found


def _type_by_name(name: str) -> pl.DataType | None:
    import polars as pl

    if name in ("Int8", "Int16", "Int32", "UInt8", "UInt16", "UInt32", "UInt64", "Categorical"):
        return cast("pl.DataType", getattr(pl, name)())
    for unit in ("ns", "us", "ms"):
        if name == f"Datetime(time_unit='{unit}', time_zone=None)":
            return pl.Datetime(unit)
        if name == f"Duration(time_unit='{unit}')":
            return pl.Duration(unit)
    return None
