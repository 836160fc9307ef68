"""Read options as users write them: Python arguments, command-line options, and type names.

Read errors are shown in Python, where the user called `el.read(…)`, and on the command line. `advice` phrases one hint
for both.
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
    """What to type next, in Python and on the command line: keyword arguments of an `EverloopError`."""

    help: str
    option_help: str


def advice(sentence: str, *, otherwise: str = "", all_of: bool = False, **options: Any) -> Advice:
    """Phrase one hint for Python and for the command line.

    Args:
        sentence: contains `{}` where the options go, as in `Read it with {}.`
        otherwise: the hint on the command line if none of the options exists there.
        all_of: all options are needed; by default they are alternatives.
        options: options of `read` with suggested values.
    """
    cli_options = [_cli_option(name, value) for name, value in options.items() if name in _CLI_OPTIONS]
    return {
        "help": sentence.format(
            (", " if all_of else ", or ").join(_python_argument(name, value) for name, value in options.items())
        ),
        "option_help": sentence.format((" " if all_of else ", or ").join(cli_options)) if cli_options else otherwise,
    }


def named_type(name: str) -> pl.DataType:
    """The type with a name such as `string`, `int64`, `timestamp[us, UTC]` or `decimal[12, 2]`.

    Raises:
        UsageError: the type does not exist.
    """
    known = _TYPES.get(name.strip().lower())
    if known is not None:
        return known
    if found := _TIMES.fullmatch(name.strip()):
        unit, zone = (found[1] or "us").lower(), found[2]
        return pl.Datetime(unit, zone)  # type: ignore[arg-type]
    if found := _DECIMAL.fullmatch(name.strip()):
        return pl.Decimal(int(found[1]), int(found[2]))
    raise UsageError(f"There is no type '{name}'.", help=f"Use for example one of: {', '.join(_SHOWN)}.")


def named_types(given: Mapping[str, Any]) -> dict[str, pl.DataType]:
    """Resolve the types of columns, each given as a Polars type, a Python type or a type name.

    Raises:
        UsageError: a value is not a type.
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
            raise UsageError(
                f"{kind!r} is not a type, but it is given as the type of column '{column}'.",
                help="Use a Polars type such as pl.String, or a name such as 'string'.",
            )
    return types


_PYTHON_TYPES: dict[Any, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
_CLI_OPTIONS = {
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
"""The options of `read` that exist on the command line, see `everloop.cli.table_options`."""


def _python_argument(name: str, value: Any) -> str:
    if name == "schema_overrides":
        types = ", ".join(f"{column!r}: pl.{kind!r}" for column, kind in value.items())
        return f"{name}={{{types}}}"
    return f"{name}={value!r}"


def _cli_option(name: str, value: Any) -> str:
    option = _CLI_OPTIONS[name]
    if value is True:
        return option
    if name == "schema_overrides":
        return " ".join(f"{option} {shlex.quote(f'{column}={type_name(kind)}')}" for column, kind in value.items())
    if name == "null_values":
        return " ".join(f"{option} {shlex.quote(_csv_quoted(each))}" for each in value)
    if value == "\t":
        return f"{option} tab"
    return f"{option} {shlex.quote(str(value))}"


def _csv_quoted(value: str) -> str:
    """One value, quoted as needed in a comma-separated list."""
    return '"{}"'.format(value.replace('"', '""')) if {",", '"'} & set(value) else value
