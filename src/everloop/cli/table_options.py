"""Options of commands that read a table: how its text is written, and what its columns hold.

A command is decorated with `reads_tables` and declares one parameter, `reading`. On the command line that parameter
becomes the options `--separator` to `--drop-unnamed`; the command receives them as arguments of `everloop.data.read`.
It reads inside `options_advised`, so that errors advise these options instead of Python arguments.
"""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from everloop.cli.output import messages
from everloop.errors import DataError, EverloopError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import polars as pl

    from everloop.data import ReadingNote

Returned = TypeVar("Returned")


def reading_arguments(
    *,
    separator: Annotated[
        str | None,
        typer.Option(metavar="CHAR", help="CSV: character between two values: ';', '|' or tab. Default: ','."),
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="CSV: text encoding, such as cp1252. Default: utf-8.")] = None,
    null_values: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT,…",
            help="CSV: texts to read as null in every column, in addition to the usual ones. '' turns those off.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="File format: csv, parquet, json, arrow or delta. Default: inferred from the file name."),
    ] = None,
    schema: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=TYPE", help="Type of a column, such as zip=string; repeatable."),
    ] = None,
    skip_rows: Annotated[
        int | None, typer.Option(min=0, help="CSV: number of lines to skip before the header.")
    ] = None,
    comment_prefix: Annotated[
        str | None, typer.Option(metavar="TEXT", help="CSV: ignore lines that start with this text, such as '#'.")
    ] = None,
    decimal_comma: Annotated[
        bool, typer.Option("--decimal-comma", help="CSV: numbers use a decimal comma: 1,5 instead of 1.5.")
    ] = False,
    drop_unnamed: Annotated[
        bool,
        typer.Option(
            "--drop-unnamed", help="CSV: drop columns that have no name in the header, such as the index of pandas."
        ),
    ] = False,
) -> dict[str, Any]:
    """Return the arguments of `everloop.data.read` for the options that were given; empty if none was.

    Raises:
        UsageError: `--schema` is not COLUMN=TYPE, or the type is unknown.
    """
    arguments: dict[str, Any] = {
        "separator": {"tab": "\t", "\\t": "\t"}.get(separator or "", separator),
        "encoding": encoding,
        "format": format,
        "skip_rows": skip_rows or None,
        "comment_prefix": comment_prefix,
        "decimal_comma": decimal_comma or None,
        "drop_unnamed": drop_unnamed or None,
    }
    if null_values is not None:
        arguments["null_values"] = [value for text in null_values for value in next(csv.reader([text]), [])]
    if schema:
        arguments["schema_overrides"] = dict(_column_type(pair) for text in schema for pair in _pairs(text))
    return {name: value for name, value in arguments.items() if value is not None}


_OPTIONS = tuple(inspect.signature(reading_arguments, eval_str=True).parameters.values())


def reads_tables(command: Callable[..., Returned]) -> Callable[..., Returned]:
    """Replace a command's parameter `reading` by the options of `reading_arguments`, at the same position."""

    @wraps(command)
    def with_options(*args: Any, **kwargs: Any) -> Returned:
        given = {option.name: kwargs.pop(option.name) for option in _OPTIONS if option.name in kwargs}
        return command(*args, **kwargs, reading=reading_arguments(**given))

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "reading":
            parameters += _OPTIONS
        else:
            parameters.append(parameter)
    # Typer reads both.
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def read_table(data: str, options: Mapping[str, Any]) -> pl.DataFrame:
    """Read the table that a command names: a file, a glob or a URL.

    Args:
        data: as on the command line.
        options: arguments of `everloop.data.read`.

    Raises:
        NotFoundError: there is no such file.
        DataError: the file cannot be read, or has another separator.
    """
    from everloop.data import read

    is_path = "://" not in data and not data.startswith("everloop:")
    if is_path and not any(character in data for character in "*?[") and not Path(data).exists():
        from everloop.data.table_inputs import nearest

        parent = Path(data).absolute().parent
        siblings = [item.name for item in sorted(parent.iterdir()) if item.is_file()] if parent.is_dir() else []
        raise NotFoundError(f"There is no file '{data}'.", help=nearest(Path(data).name, siblings))
    rows = read(str(Path(data).absolute()) if is_path else data, **options).collect()
    if rows.width == 1 and (mark := next((mark for mark in (";", "\t", "|") if mark in rows.columns[0]), None)):
        separator = "tab" if mark == "\t" else f"'{mark}'"
        raise DataError(f"'{data}' has only one column: {rows.columns[0]!r}.", help=f"Add --separator {separator}")
    return rows


@contextmanager
def options_advised() -> Iterator[list[ReadingNote]]:
    """Let errors inside the block advise command-line options instead of Python arguments.

    Yields the notes about what is read in the block, for `print_notes`.
    """
    from everloop.data import collect_notes

    try:
        with collect_notes() as notes:
            yield notes
    except EverloopError as error:
        if error.option_help is not None:
            error.help = error.option_help or None
        raise


def print_notes(notes: list[ReadingNote]) -> None:
    """Print on standard error what reading decided, such as `'TotalCharges': 11 blank values read as null`."""
    for one in notes:
        messages().print(f"Note: {one} {one.option_help}".rstrip(), markup=False, soft_wrap=True)


def _pairs(text: str) -> list[str]:
    """Split `a=int64,b=decimal[12, 2]` into its pairs; a comma that no `=` follows belongs to a name or a type."""
    return re.split(r",\s*(?=[^,=\[\]]+=)", text)


def _column_type(pair: str) -> tuple[str, Any]:
    from everloop.data.sources.reading_options import named_type

    column, equals, kind = pair.rpartition("=")
    if not equals or not column or not kind:
        raise UsageError(f"--schema takes COLUMN=TYPE, not '{pair}'.", help="For example: --schema zip=string")
    return column, named_type(kind)
