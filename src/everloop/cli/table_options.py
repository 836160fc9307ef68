"""Options of commands that read a table: how its text is written, and what its columns hold.

A command takes them as parameters, `Separator` to `DropUnnamed`, turns them into arguments of `everloop.data.read`
with `reading_options`, and reads inside `options_advised`, so that an error names options and not arguments.
"""

from __future__ import annotations

import csv
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import messages
from everloop.errors import EverloopError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.data import ReadingNote

Separator = Annotated[
    str | None, typer.Option(metavar="CHAR", help="Csv: what stands between two values: ';', '|' or tab. Default: ','.")
]
Encoding = Annotated[str | None, typer.Option(help="Csv: the encoding of the text, such as cp1252. Default: utf-8.")]
NullValues = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT,…",
        help="Csv: texts that mean null in every column, besides the usual ones. '' switches those off.",
    ),
]
Format = Annotated[
    str | None, typer.Option(help="csv, parquet, json, arrow or delta, where the file's name does not say it.")
]
Schema = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=TYPE", help="The type of a column, such as zip=string. Repeat it for more columns."),
]
SkipRows = Annotated[int | None, typer.Option(min=0, help="Csv: skip this many lines before the header.")]
CommentPrefix = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Csv: leave out lines that begin with this, such as '#'.")
]
DecimalComma = Annotated[bool, typer.Option("--decimal-comma", help="Csv: numbers are written 1,5 and not 1.5.")]
DropUnnamed = Annotated[
    bool,
    typer.Option(
        "--drop-unnamed", help="Csv: leave out columns without a name in the header, such as the index of pandas."
    ),
]


def reading_options(
    *,
    separator: str | None = None,
    encoding: str | None = None,
    null_values: list[str] | None = None,
    format: str | None = None,
    schema: list[str] | None = None,
    skip_rows: int | None = None,
    comment_prefix: str | None = None,
    decimal_comma: bool = False,
    drop_unnamed: bool = False,
) -> dict[str, Any]:
    """Arguments of `everloop.data.read` for what was typed; empty where nothing was.

    Raises:
        UsageError: a column's type cannot be understood.
    """
    options: dict[str, Any] = {
        "separator": {"tab": "\t", "\\t": "\t"}.get(separator or "", separator),
        "encoding": encoding,
        "format": format,
        "skip_rows": skip_rows or None,
        "comment_prefix": comment_prefix,
        "decimal_comma": decimal_comma or None,
        "drop_unnamed": drop_unnamed or None,
    }
    if null_values is not None:
        options["null_values"] = [value for text in null_values for value in next(csv.reader([text]), [])]
    if schema:
        options["schema_overrides"] = dict(_column_type(pair) for text in schema for pair in _pairs(text))
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def options_advised() -> Iterator[list[ReadingNote]]:
    """Errors inside the block advise options of the command instead of arguments in Python.

    Yields the notes of what is read there, for `print_notes`.
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
    """Tell on standard error what reading decided, such as `'TotalCharges': 11 blank values read as null`."""
    for one in notes:
        messages().print(f"Note: {one} {one.option_help}".rstrip(), markup=False, soft_wrap=True)


def _pairs(text: str) -> list[str]:
    """`a=int64,b=decimal[12, 2]` as its pairs; a comma without a `=` behind it is part of a name or a type."""
    return re.split(r",\s*(?=[^,=\[\]]+=)", text)


def _column_type(pair: str) -> tuple[str, Any]:
    from everloop.data.sources.reading_options import named_type

    column, equals, kind = pair.rpartition("=")
    if not equals or not column or not kind:
        raise UsageError(f"--schema takes COLUMN=TYPE, not '{pair}'.", help="Such as: --schema zip=string")
    return column, named_type(kind)
