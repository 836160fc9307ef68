"""CSV files: types that hold for every row, and errors that name the file, the row and the column.

Polars guesses types from the first rows, so what stands further down would change a type without a word or fail in the
middle of a query. Here every value is looked at as text, streaming, before the lazy frame is handed out, and a
column's type follows from all of them (see `csv_values`): the first rows only decide what is looked for first.

Nothing is bent to fit: dates are parsed where they begin with the year, for 01/02/2026 is two days; texts such as 007
stay texts; a whole number that a column of fractions would round, a fraction too large for one and a time finer than
microseconds are errors. What is read as null, and what stays text among numbers, is told in notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.csv_rows import explain, refuse_short_rows
from everloop.data.sources.csv_text import has_no_rows, plain_text, refused_bytes, unnamed_places
from everloop.data.sources.csv_values import (
    KIND_NAMES,
    ColumnReading,
    Kind,
    Marks,
    Tally,
    ValueFormat,
    convert,
    count_kinds,
    counted,
    decide,
    find_marks,
    forms,
    has_decimal_comma,
    looks_typed,
    loses,
    marked,
    maybe_typed,
)
from everloop.data.sources.file_states import literal
from everloop.data.sources.reading_notes import note
from everloop.data.sources.reading_options import Advice, advice, named_types
from everloop.data.table_inputs import nearest, type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.data.sources.data_files import DataFile

_SAMPLE_ROWS = 1_000
# With other options the shape of a row is not ours to judge.
_PLAIN_OPTIONS = frozenset({"separator", "quote_char", "n_rows", "null_values"})
_OURS = frozenset(
    {"null_values", "schema_overrides", "schema", "dtypes", "try_parse_dates", "infer_schema_length", "infer_schema"}
    | {"ignore_errors", "decimal_comma", "drop_unnamed"}
)
_INT64_DIGITS = 18
_TYPES: dict[Kind, pl.DataType] = {
    "bool": pl.Boolean(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
    "moment": pl.Datetime("us", "UTC"),
    "time": pl.Time(),
    "text": pl.String(),
}


def scan_csv(files: list[DataFile], options: Mapping[str, Any]) -> list[pl.LazyFrame]:
    """Check every file and return the rows of each, in the order of `files`, with the same columns and types.

    Args:
        options: of `polars.scan_csv`, and `encoding`, such as `cp1252` or `utf-16`. `drop_unnamed=True` leaves out
            columns without a name in the header. `null_values` adds to the usual
            texts for a missing value; an empty list switches those off. Dates are parsed unless
            `try_parse_dates=False`, and nothing is where `infer_schema=False`.

    Raises:
        SourceError: a file is empty or ragged, a value does not fit its column's type, or files differ in columns.
        UsageError: an option does not exist, or names a column or a type that does not.
    """
    return _CsvTable(files, options).frames()


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that Polars would fail on without saying which."""
    for name in ("separator", "quote_char", "eol_char"):
        value = options.get(name)
        if value is not None and not (isinstance(value, str) and len(value.encode()) == 1):
            raise UsageError(f"{name}={value!r} is not one character.", **advice("Such as {}.", **{name: ";"}))
    for name in ("skip_rows", "skip_lines", "n_rows"):
        value = options.get(name)
        if value is not None and not (isinstance(value, int) and value >= 0):
            raise UsageError(f"{name}={value!r} is not a number of rows.", help=f"Such as {name}=1.")
    nulls = options.get("null_values")
    if not isinstance(nulls, str | list | tuple | dict | None):
        raise UsageError(f"null_values={nulls!r} is not a list of texts.", help=f"Write null_values=['{nulls}'].")
    told = [*nulls.values()] if isinstance(nulls, dict) else nulls if isinstance(nulls, list | tuple) else []
    wrong = next((each for each in told if not isinstance(each, str)), None)
    if wrong is not None:
        raise UsageError(f"null_values has {wrong!r}, which is not a text.", help=f"Write '{wrong}'.")
    for name in ("schema", "schema_overrides", "dtypes"):
        types = options.get(name)
        if types is not None and not hasattr(types, "keys"):
            raise UsageError(
                f"{name}={types!r} does not name columns and their types.", help=f"Write {name}={{'a': pl.String}}."
            )


def _odd_advice(name: str, value: str) -> Advice:
    """What to do about a value that does not fit: what has digits is hardly a missing value."""
    if looks_typed(value):
        return advice("Correct it, or take the column as text, with {}.", schema_overrides={name: pl.String()})
    return advice(
        "Correct it, or say what it means: {}.", null_values=[value.strip()], schema_overrides={name: pl.String()}
    )


@dataclass
class _Settled:
    """What one column is."""

    dtype: pl.DataType
    native: bool = False
    """Polars reads the type itself."""
    form: ValueFormat | None = None
    """How all its values are written, where that is known."""


class _CsvTable:
    """The files of one set, and what is known of their columns."""

    def __init__(self, files: list[DataFile], options: Mapping[str, Any]) -> None:
        _check_options(options)
        prepared = [plain_text(file, options) for file in files]
        self.files = [file for file, _ in prepared]
        left = prepared[0][1]
        nulls = left.get("null_values")
        self.reading = ColumnReading(
            usual_nulls=not (isinstance(nulls, list | tuple | dict) and not nulls),
            dates=bool(left.get("try_parse_dates", True)),
            comma=bool(left.get("decimal_comma", False)),
        )
        self.guesses = left.get("infer_schema", True) is not False and left.get("infer_schema_length", 1) != 0
        self.lenient = bool(left.get("ignore_errors", False))
        self.options = {name: value for name, value in left.items() if name not in _OURS}
        if nulls:
            self.options["null_values"] = list(nulls) if isinstance(nulls, tuple) else nulls
        self.named = named_types({**(left.get("dtypes") or {}), **(left.get("schema_overrides") or {})})
        schema = left.get("schema")
        if schema is not None:
            self.named |= named_types(dict(schema))
            self.options["schema"] = dict.fromkeys(schema, pl.String())
        self.columns = [self._open(file) for file in self.files]
        drop = bool(left.get("drop_unnamed", False))
        places = [unnamed_places(file, left) if drop else [] for file in self.files]
        self.kept = [
            [name for place, name in enumerate(columns) if place not in without]
            for columns, without in zip(self.columns, places, strict=True)
        ]
        self.names = self.kept[0]
        self._compare()
        self.tallies: dict[str, list[Tally]] = {}
        self.marks: dict[str, Marks] = {}

    def frames(self) -> list[pl.LazyFrame]:
        """The rows of each file."""
        texts = [name for name in self.names if isinstance(self.columns[0][name], pl.String)]
        free = [name for name in texts if name not in self.named] if self.guesses else []
        settled = self._settle(free)
        for name in texts:
            if name in self.named:
                settled[name] = self._named(name)
        return [self._frame(place, settled) for place in range(len(self.files))]

    # Opening.

    def _open(self, file: DataFile) -> dict[str, pl.DataType]:
        try:
            return dict(self._scan(file).collect_schema())
        except pl.exceptions.NoDataError as error:
            raise SourceError(
                f"'{file}' is empty: it has not even a header.", help="Remove it, or write the header."
            ) from error
        except TypeError as error:
            raise UsageError(f"Reading csv failed: {error}.", help="Options are those of polars.scan_csv.") from error
        except pl.exceptions.ColumnNotFoundError as error:
            raise UsageError(f"'{file}' cannot be read so: {str(error).splitlines()[0]}.") from error
        except pl.exceptions.PolarsError as error:
            raise self._explained(file, None, error) from error

    def _scan(self, file: DataFile, **more: Any) -> pl.LazyFrame:
        options: dict[str, Any] = {"infer_schema": False, **self.options, **more}
        if "schema" in options:
            options.pop("infer_schema", None)
        return pl.scan_csv(literal(file.path), **options)

    def _compare(self) -> None:
        """All files have the same columns, in any order, and every column that is named exists."""
        for file, columns in zip(self.files[1:], self.kept[1:], strict=True):
            for name in (
                *(name for name in self.names if name not in columns),
                *(name for name in columns if name not in self.names),
            ):
                lacking, having = (file, self.files[0]) if name not in columns else (self.files[0], file)
                known = columns if name not in columns else self.names
                raise SourceError(
                    f"'{lacking}' has no column '{name}', which '{having}' has.", help=nearest(name, known)
                )
        nulls = self.options.get("null_values")
        for name in (*self.named, *(nulls if isinstance(nulls, dict) else ())):
            if name not in self.names:
                raise UsageError(
                    f"'{self.files[0]}' has no column '{name}', which an option names.", help=nearest(name, self.names)
                )

    # Looking at values.

    def _likely(self, names: list[str]) -> dict[str, ValueFormat | None]:
        """How the first rows are written, None for texts; only decides what is looked for first."""
        if not names:
            return {}
        first = next((file for file in self.files if not has_no_rows(file)), self.files[0])
        rows = self._collected(first, self._scan(first).select(names).head(_SAMPLE_ROWS))
        known = forms(self.reading)
        asked = [form.fits(name).alias(f"{place} {name}") for name in names for place, form in enumerate(known)] + [
            pl.col(name).count().alias(f"all {name}") for name in names
        ]
        found = rows.select(asked).row(0, named=True)
        return {
            name: next(
                (form for place, form in enumerate(known) if 0 < found[f"all {name}"] == found[f"{place} {name}"]), None
            )
            for name in names
        }

    def _settle(self, names: list[str]) -> dict[str, _Settled]:
        """Look at every value once, for what its column is likely to be; then again where that was wrong."""
        likely = self._likely(names)
        others, texts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for file, columns in zip(self.files, self.columns, strict=True):
            last = list(columns)[-1]
            asked = [pl.col(last).is_null().any().alias("short")]
            for name, form in likely.items():
                unlike = maybe_typed(name) if form is None else pl.col(name).count() - form.fits(name)
                asked += [unlike.alias(f"others {name}")]
                if form is None:
                    text = self.reading.trimmed(name)
                    asked += [(~self.reading.is_null(text)).any().alias(f"texts {name}")]
                    asked += [(pl.col(name) != "").any().alias(f"filled {name}")]
            row = self._collected(file, self._scan(file).select(asked), width=len(columns)).row(0, named=True)
            if self.options.keys() <= _PLAIN_OPTIONS and len(columns) > 1 and row["short"]:
                refuse_short_rows(file, len(columns), self.options)
            for name in names:
                others[name] += row[f"others {name}"]
                # Blanks and usual nulls alone are not texts.
                texts[name] += bool(row.get(f"texts {name}")) - bool(row.get(f"filled {name}"))
        self._tally([name for name in names if others[name] or texts[name]])
        settled: dict[str, _Settled] = {}
        for name in names:
            form = likely[name]
            if name in self.tallies:
                settled[name] = self._decided(name)
            elif form is None:
                settled[name] = _Settled(pl.String(), native=True)
            else:
                settled[name] = _Settled(form.dtype, native=form.native, form=form)
        return settled

    def _mark(self, names: list[str], row: dict[str, Any]) -> None:
        for name in names:
            self.marks[name] = self.marks.get(name, Marks()) | marked(name, row)

    def _tally(self, names: list[str]) -> None:
        if not names:
            return
        asked = [each for name in names for each in count_kinds(name, self.reading)]
        asked += [each for name in names for each in find_marks(name, self.reading)]
        for file in self.files:
            row = self._collected(file, self._scan(file).select(asked)).row(0, named=True)
            for name in names:
                self.tallies.setdefault(name, []).append(counted(name, row, self.reading))
            self._mark(names, row)

    # Deciding.

    def _decided(self, name: str) -> _Settled:
        tallies = self.tallies[name]
        self._refuse_conflict(name, tallies)
        tally = tallies[0]
        for other in tallies[1:]:
            tally = tally + other
        verdict, kind = decide(tally, lambda kind: self._distinct_others(name, kind))
        if verdict == "odd":
            if not self.lenient:
                raise self._odd(name, kind)
            verdict = "typed"
        if verdict == "typed":
            self._note_nulls(name, tally)
            return self._typed(name, kind)
        if verdict == "empty" and tally.filled:
            self._note_nulls(name, tally)
            return _Settled(pl.Null())
        if verdict in ("names", "mixed"):
            self._note_text(name, kind, tally)
        elif verdict == "text":
            self._note_commas(name, tally)
        return _Settled(pl.String(), native=True)

    def _refuse_conflict(self, name: str, tallies: list[Tally]) -> None:
        """Files whose values are of one kind each, and not of the same."""
        first: tuple[DataFile, Kind] | None = None
        for file, tally in zip(self.files, tallies, strict=True):
            kind = tally.pure
            if kind is None:
                continue
            if first is None:
                first = file, kind
            elif kind != first[1]:
                one, other = (self._kind_name(name, *each) for each in (first, (file, kind)))
                raise SourceError(
                    f"Column '{name}' holds {one} in '{first[0]}' but {other} in '{file}'.",
                    **advice("Take it as it is written, with {}.", schema_overrides={name: pl.String()}),
                )

    def _kind_name(self, name: str, file: DataFile, kind: Kind) -> str:
        if kind != "number":
            return type_name(_TYPES[kind])
        text = self.reading.trimmed(name)
        number = self.reading.is_number(text) & ~self.reading.is_whole(text)
        fractions = self._collected(file, self._scan(file).select(number.any())).item()
        return "float64" if fractions else "int64"

    def _distinct_others(self, name: str, kind: Kind) -> int:
        text = self.reading.trimmed(name)
        others = [self._scan(file).select(text.filter(self._is_other(text, kind))) for file in self.files]
        counted = pl.concat(others).select(pl.col(name).approx_n_unique())
        return int(counted.collect(engine="streaming").item())

    def _is_other(self, text: pl.Expr, kind: Kind) -> pl.Expr:
        named = self.reading.is_name(text) if kind == "number" else pl.lit(value=False)
        fits = self.reading.is_kind(text, kind) | named | self.reading.is_null(text)
        return text.is_not_null() & ~fits

    def _odd(self, name: str, kind: Kind) -> SourceError:
        wrong = self._is_other(self.reading.trimmed(name), kind)
        file, row, value = self._first(name, wrong)
        held = type_name(self._number_type(name)) if kind == "number" else type_name(_TYPES[kind])
        return SourceError(
            f"Column '{name}' holds {held}, but row {row} of '{file}' says '{value}'.",
            **_odd_advice(name, value),
        )

    def _typed(self, name: str, kind: Kind) -> _Settled:
        dtype = self._number_type(name) if kind == "number" else _TYPES[kind]
        marks = self.marks[name]
        if (
            (dtype.is_float() and marks.risky)
            or (dtype.is_integer() and marks.digits > _INT64_DIGITS)
            or (isinstance(dtype, pl.Datetime) and marks.finer)
        ):
            self._refuse_loss(name, dtype, loses(self.reading, name, dtype))
        return _Settled(dtype)

    def _number_type(self, name: str) -> pl.DataType:
        marks = self.marks[name]
        if marks.fraction:
            return pl.Float64()
        if marks.digits <= _INT64_DIGITS:
            return pl.Int64()
        text = self.reading.trimmed(name)
        value = pl.when(self.reading.is_whole(text)).then(text).cast(pl.Int128, strict=False)
        ends = [value.min().alias("least"), value.max().alias("most")]
        rows = [self._collected(file, self._scan(file).select(ends)).row(0) for file in self.files]
        least = min((row[0] for row in rows if row[0] is not None), default=0)
        most = max((row[1] for row in rows if row[1] is not None), default=0)
        return pl.UInt64() if least >= 0 and most >= 1 << 63 else pl.Int64()

    def _refuse_loss(self, name: str, dtype: pl.DataType, wrong: pl.Expr) -> None:
        found = self._find(name, wrong)
        if found is None:
            return
        file, row, value = found
        finer = isinstance(dtype, pl.Datetime)
        other = pl.Datetime("ns", dtype.time_zone) if isinstance(dtype, pl.Datetime) else pl.Float64()
        options = [{name: pl.String()}, *([] if dtype.is_integer() else [{name: other}])]
        last = ", to have nanoseconds." if finer else ", to have it rounded."
        said = " or ".join(advice("{}", schema_overrides=each)["help"] for each in options)
        typed = " or ".join(advice("{}", schema_overrides=each)["option_help"] for each in options)
        end = "." if len(options) == 1 else last
        raise SourceError(
            f"Column '{name}' holds {type_name(dtype)}, but row {row} of '{file}' says '{value}', which no "
            f"{type_name(dtype)} can hold.",
            help=f"Name its type: {said}{end}",
            option_help=f"Name its type: {typed}{end}",
        )

    def _named(self, name: str) -> _Settled:
        """A column whose type the caller has named: every value must fit."""
        dtype = self.named[name]
        if isinstance(dtype, pl.String):
            return _Settled(dtype, native=True)
        if dtype.is_nested():
            raise UsageError(
                f"Column '{name}' cannot be read as {type_name(dtype)}: a csv has texts only.",
                help="Read it as text and convert it, for example with .str.json_decode().",
            )
        try:
            if not self.lenient:
                text = self.reading.trimmed(name)
                value = convert(self.reading, name, dtype)
                wrong = text.is_not_null() & ~self.reading.is_null(text) & value.is_null()
                found = self._find(name, wrong)
                if found is not None:
                    file, row, said = found
                    raise SourceError(
                        f"Column '{name}' holds {type_name(dtype)}, but row {row} of '{file}' says '{said}'.",
                        **_odd_advice(name, said),
                    )
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"Column '{name}' cannot be read as {type_name(dtype)}: {str(error).splitlines()[0]}.",
                help="Read it as text and convert it.",
            ) from error
        nulls = [pl.lit(value=0)] if self.lenient else count_kinds(name, self.reading)[1:3]
        if not self.lenient:
            rows = [self._collected(file, self._scan(file).select(nulls)).row(0) for file in self.files]
            blanks, usual = (sum(row[place] or 0 for row in rows) for place in (0, 1))
            self._note_nulls(name, Tally(0, int(blanks), int(usual), 0, 0))
        return _Settled(dtype)

    # Telling.

    def _note_nulls(self, name: str, tally: Tally) -> None:
        text = self.reading.trimmed(name)
        if tally.blanks:
            self._note(name, f"{tally.blanks:,} blank value{'' if tally.blanks == 1 else 's'} read as null")
        if not tally.nulls:
            return
        said = pl.concat(
            [self._scan(file).select(text.filter(self.reading.is_null(text)).unique()) for file in self.files]
        )
        shown = sorted(set(said.collect(engine="streaming").to_series().to_list()))
        listed = ", ".join(f"'{each}'" for each in shown)
        self._note(name, f"{tally.nulls:,} value{'' if tally.nulls == 1 else 's'} read as null: {listed}")

    def _note_text(self, name: str, kind: Kind, tally: Tally) -> None:
        text = self.reading.trimmed(name)
        if tally.names:
            file, row, value = self._first(name, self.reading.is_name(text))
            self._note(name, f"kept as text, because row {row} of '{file}' says '{value}'")
            return
        others = tally.valued - tally.most[1]
        file, row, value = self._first(name, self._is_other(text, kind))
        self._note(
            name,
            f"kept as text, because {others:,} of {tally.valued:,} values are not {KIND_NAMES[kind]}, "
            f"such as '{value}' in row {row} of '{file}'",
        )

    def _note_commas(self, name: str, tally: Tally) -> None:
        """A column of texts most of which are numbers with a decimal comma."""
        if self.reading.comma:
            return
        fits = has_decimal_comma(self.reading.trimmed(name))
        count = sum(int(self._collected(file, self._scan(file).select(fits.sum())).item() or 0) for file in self.files)
        if 2 * count > tally.valued:
            _, row, value = self._first(name, fits)
            said = f"kept as text, because numbers such as '{value}' in row {row} have a decimal comma"
            self._note(name, said, **advice("Read them with {}.", decimal_comma=True))

    def _note(self, name: str, message: str, help: str = "", option_help: str = "") -> None:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        note(f"{self.files[0]}{more}", name, message, help, option_help)

    # Reading.

    def _frame(self, place: int, settled: Mapping[str, _Settled]) -> pl.LazyFrame:
        columns = self.columns[place]
        types = {
            name: settled[name].dtype if name in settled and settled[name].native else dtype
            for name, dtype in columns.items()
        }
        given = {name: types[name] for name in columns if isinstance(columns[name], pl.String)}
        scan = self._scan(self.files[place], schema_overrides=given)
        converted = [self._converted(name, each) for name, each in settled.items() if not each.native]
        if converted:
            scan = scan.with_columns(converted)
        return scan if list(columns) == self.names else scan.select(self.names)

    def _converted(self, name: str, settled: _Settled) -> pl.Expr:
        if isinstance(settled.dtype, pl.Null):
            return pl.lit(None, pl.String()).alias(name)
        if settled.form is not None and settled.form.format is not None:
            return settled.form.value(name)
        return convert(self.reading, name, settled.dtype)

    def _find(self, name: str, wrong: pl.Expr) -> tuple[DataFile, int, str] | None:
        for file in self.files:
            rows = self._scan(file).select(name).with_row_index("__row").filter(wrong).head(1)
            found = self._collected(file, rows)
            if len(found):
                row, value = found.row(0)
                return file, int(row) + 1, str(value)
        return None

    def _first(self, name: str, wrong: pl.Expr) -> tuple[DataFile, int, str]:
        found = self._find(name, wrong)
        if found is None:
            raise SourceError(f"The values of column '{name}' changed while they were read.", help="Read again.")
        return found

    def _collected(self, file: DataFile, query: pl.LazyFrame, width: int | None = None) -> pl.DataFrame:
        try:
            return query.collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise self._explained(file, width, error) from error

    def _explained(self, file: DataFile, width: int | None, error: Exception) -> SourceError:
        said = str(error)
        if "utf-8" in said or "utf8" in said:
            found = refused_bytes(file)
            if found is not None:
                return found
        return explain(file, width, self.options, error)
