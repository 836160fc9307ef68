"""The options of reading as people write them: arguments in Python, options of a command, and types by their names.

An error of reading is shown to somebody who wrote `el.read(…)`, or to somebody who typed a command. `advice` writes one
piece of advice for both.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, TypedDict

import polars as pl

from everloop.data.table_inputs import type_name
from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("string", "str", "text", "utf8"), pl.String()),
    **dict.fromkeys(("int", "integer", "int64"), pl.Int64()),
    **dict.fromkeys(("float", "double", "float64"), pl.Float64()),
    **dict.fromkeys(("bool", "boolean"), pl.Boolean()),
    **dict.fromkeys(("date", "date32"), pl.Date()),
    "time": pl.Time(),
    "categorical": pl.Categorical(),
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "uint8": pl.UInt8(),
    "uint16": pl.UInt16(),
    "uint32": pl.UInt32(),
    "uint64": pl.UInt64(),
    "float32": pl.Float32(),
}
_SHOWN = ("string", "int64", "float64", "bool", "date", "datetime", "time", "categorical", "decimal[12, 2]")
_TIMES = re.compile(r"(?:datetime|timestamp)(?:\[(ms|us|ns)(?:, *([A-Za-z0-9_+\-/]+))?\])?", re.IGNORECASE)
_DECIMAL = re.compile(r"decimal(?:128)?[\[(](\d+), *(\d+)[\])]", re.IGNORECASE)


class Advice(TypedDict):
    """What to type next, in Python and on the command line: keywords of an `EverloopError`."""

    help: str
    option_help: str


def advice(sentence: str, *, otherwise: str = "", **options: Any) -> Advice:
    """One piece of advice for both readers.

    Args:
        sentence: `{}` stands where the options are named, as in `Read it with {}.`
        otherwise: what to say on the command line where none of the options can be typed there.
        options: of `read`, with the values to give them.
    """
    typed = [_typed(name, value) for name, value in options.items() if name in _TYPED]
    return {
        "help": sentence.format(", or ".join(_written(name, value) for name, value in options.items())),
        "option_help": sentence.format(", or ".join(typed)) if typed else otherwise,
    }


def named_type(name: str) -> pl.DataType:
    """The type that people call `string`, `int64`, `timestamp[us, UTC]`, `decimal[12, 2]`, …

    Raises:
        UsageError: there is no such type.
    """
    known = _TYPES.get(name.strip().lower())
    if known is not None:
        return known
    if found := _TIMES.fullmatch(name.strip()):
        unit, zone = (found[1] or "us").lower(), found[2]
        return pl.Datetime(unit, zone)  # type: ignore[arg-type]
    if found := _DECIMAL.fullmatch(name.strip()):
        return pl.Decimal(int(found[1]), int(found[2]))
    raise UsageError(f"There is no type '{name}'.", help=f"Such as: {', '.join(_SHOWN)}.")


def named_types(given: Mapping[str, Any]) -> dict[str, pl.DataType]:
    """Columns and their types; a type may be a Polars type or its name.

    Raises:
        UsageError: what stands for a type is none.
    """
    types: dict[str, pl.DataType] = {}
    for column, kind in given.items():
        if isinstance(kind, str):
            types[column] = named_type(kind)
        elif isinstance(kind, pl.DataType):
            types[column] = kind
        elif isinstance(kind, type) and issubclass(kind, pl.DataType):
            types[column] = kind()
        elif kind in _PYTHON_TYPES:
            types[column] = _PYTHON_TYPES[kind]
        else:
            raise UsageError(f"The type of column '{column}' is {kind!r}, which is not a type.", help="Use pl.String.")
    return types


_PYTHON_TYPES: dict[Any, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
_TYPED = {
    "separator": "--separator",
    "encoding": "--encoding",
    "null_values": "--null-values",
    "format": "--format",
    "schema_overrides": "--schema",
    "skip_rows": "--skip-rows",
    "comment_prefix": "--comment-prefix",
    "decimal_comma": "--decimal-comma",
    "drop_unnamed": "--drop-unnamed",
}
"""The options of `read` that a command takes, see `everloop.cli.table_options`."""


def _written(name: str, value: Any) -> str:
    if name == "schema_overrides":
        types = ", ".join(f"{column!r}: pl.{kind!r}" for column, kind in value.items())
        return f"{name}={{{types}}}"
    return f"{name}={value!r}"


def _typed(name: str, value: Any) -> str:
    option = _TYPED[name]
    if value is True:
        return option
    if name == "schema_overrides":
        return " ".join(f"{option} {shlex.quote(f'{column}={type_name(kind)}')}" for column, kind in value.items())
    if name == "null_values":
        return " ".join(f"{option} {shlex.quote(_listed(each))}" for each in value)
    if value == "\t":
        return f"{option} tab"
    return f"{option} {shlex.quote(str(value))}"


def _listed(value: str) -> str:
    """One value as it stands in a list with commas."""
    return '"{}"'.format(value.replace('"', '""')) if {",", '"'} & set(value) else value
