"""Open the CSV files of one source as text, check that their columns agree, and run queries over their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.csv_rows import explain, refuse_short_rows
from everloop.data.sources.csv_text import invalid_utf8, unnamed_columns
from everloop.data.sources.file_states import literal
from everloop.data.table_inputs import nearest
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.data.sources.data_files import DataFile

# Options that everloop handles itself. Polars gets the others.
_EVERLOOP_OPTIONS = frozenset(
    {"null_values", "schema_overrides", "schema", "dtypes", "try_parse_dates", "infer_schema_length", "infer_schema"}
    | {"ignore_errors", "decimal_comma", "drop_unnamed"}
)
# Any other option may change how a line becomes a row, so short rows are then not checked.
_ROW_CHECK_OPTIONS = frozenset({"separator", "quote_char", "n_rows", "null_values"})


class CsvScans:
    """The files of one source, with every value still text.

    Args:
        files: plain UTF-8 files, see `csv_text.plain_text`.
        options: the options of `read` that `plain_text` left over.

    Raises:
        SourceError: a file is empty or cannot be parsed, or the files differ in columns.
        UsageError: an option does not exist or has a bad value.
    """

    def __init__(self, files: list[DataFile], options: Mapping[str, Any]) -> None:
        self.files = files
        self._options = {name: value for name, value in options.items() if name not in _EVERLOOP_OPTIONS}
        nulls = options.get("null_values")
        if nulls:
            self._options["null_values"] = list(nulls) if isinstance(nulls, tuple) else nulls
        if options.get("schema") is not None:
            self._options["schema"] = dict.fromkeys(options["schema"], pl.String())
        self.columns = [self._open(file) for file in files]
        """The columns of each file, including those that `drop_unnamed` leaves out."""
        drop = bool(options.get("drop_unnamed", False))
        self._names = [
            _without(list(columns), unnamed_columns(file, options) if drop else [])
            for file, columns in zip(files, self.columns, strict=True)
        ]
        self.names = self._names[0]
        """The columns of the result, in the order of the first file."""
        self._compare()

    @property
    def text_columns(self) -> list[str]:
        """The columns whose types are still to be decided."""
        return [name for name in self.names if isinstance(self.columns[0][name], pl.String)]

    def check_column_names(self, named: Iterable[str]) -> None:
        """Raise UsageError if `named` or `null_values` names a column that does not exist."""
        nulls = self._options.get("null_values")
        for name in (*named, *(nulls if isinstance(nulls, dict) else ())):
            if name not in self.names:
                raise UsageError(
                    f"'{self.files[0]}' has no column '{name}', which an option names.", help=nearest(name, self.names)
                )

    def scan(self, file: DataFile, **more: Any) -> pl.LazyFrame:
        options: dict[str, Any] = {"infer_schema": False, **self._options, **more}
        if "schema" in options:
            options.pop("infer_schema", None)
        return pl.scan_csv(literal(file.path), **options)

    def collect(self, file: DataFile, query: pl.LazyFrame, width: int | None = None) -> pl.DataFrame:
        """Run a query over one file.

        Args:
            width: how many fields each row should have, if known.

        Raises:
            SourceError: the file is malformed; the message names the row.
        """
        try:
            return query.collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise self._explained(file, width, error) from error

    def first(self, name: str, matches: pl.Expr) -> tuple[DataFile, int, str]:
        """Like `find_first`, for a value that is known to exist.

        Raises:
            SourceError: it no longer exists.
        """
        found = self.find_first(name, matches)
        if found is None:
            raise SourceError(f"The values of column '{name}' changed while they were read.", help="Read again.")
        return found

    def find_first(self, name: str, matches: pl.Expr) -> tuple[DataFile, int, str] | None:
        """The first value of a column that matches: its file, its row (counted from 1) and its text."""
        for file in self.files:
            rows = self.scan(file).select(name).with_row_index("__row").filter(matches).head(1)
            found = self.collect(file, rows)
            if len(found):
                row, value = found.row(0)
                return file, int(row) + 1, str(value)
        return None

    def refuse_short_rows(self, file: DataFile, width: int) -> None:
        """Raise SourceError if a row has fewer than `width` fields, unless an option allows such rows."""
        if self._options.keys() <= _ROW_CHECK_OPTIONS and width > 1:
            refuse_short_rows(file, width, self._options)

    def _open(self, file: DataFile) -> dict[str, pl.DataType]:
        try:
            return dict(self.scan(file).collect_schema())
        except pl.exceptions.NoDataError as error:
            raise SourceError(
                f"'{file}' is empty: it does not even have a header.", help="Remove it, or write the header."
            ) from error
        except TypeError as error:
            raise UsageError(
                f"Reading csv failed: {error}.", help="The options are those of polars.scan_csv."
            ) from error
        except pl.exceptions.ColumnNotFoundError as error:
            raise UsageError(f"'{file}' cannot be read with these options: {str(error).splitlines()[0]}.") from error
        except pl.exceptions.PolarsError as error:
            raise self._explained(file, None, error) from error

    def _compare(self) -> None:
        """All files must have the same columns, in any order."""
        for file, names in zip(self.files[1:], self._names[1:], strict=True):
            for name in (
                *(name for name in self.names if name not in names),
                *(name for name in names if name not in self.names),
            ):
                lacking, having = (file, self.files[0]) if name not in names else (self.files[0], file)
                known = names if name not in names else self.names
                raise SourceError(
                    f"'{lacking}' has no column '{name}', which '{having}' has.", help=nearest(name, known)
                )

    def _explained(self, file: DataFile, width: int | None, error: Exception) -> SourceError:
        message = str(error)
        if "utf-8" in message or "utf8" in message:
            found = invalid_utf8(file, self._options)
            if found is not None:
                return found
        return explain(file, width, self._options, error)


def _without(names: list[str], indexes: list[int]) -> list[str]:
    return [name for index, name in enumerate(names) if index not in indexes]
