"""Coerces rows that do not fit the signature, if the endpoint's setting `unfit` is `flag`.

A missing input becomes null if it may be null. An unknown field is dropped. A text that reads as the expected number,
boolean or time is converted, and a value of a wrong type becomes null if the input may be null. The response flags
each change with `row`, `input`, and `missing`, `extra`, `converted` or `wrong_type`. Rows that still do not fit are
refused as usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.packages.signature import Input, Signature
    from everloop.records import Json

MOST_FLAGS = 100_000
"""Changes in one request. The response lists each."""
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def coerce_rows(
    rows: Sequence[Mapping[str, Any]], signature: Signature
) -> tuple[list[dict[str, Any]], list[dict[str, Json]]]:
    """The rows, changed to fit the signature where possible, and a flag for each change."""
    coerced: list[dict[str, Any]] = []
    flags: list[dict[str, Json]] = []
    types = {field.encode_name: field.type for field in msgspec.structs.fields(signature.row_type)}
    known = set(signature.names) | set(signature.ignored)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"rows[{number}]: expected an object with the inputs by name.")
        if len(flags) > MOST_FLAGS:
            raise RequestError(
                f"More than {MOST_FLAGS} values do not fit the signature.",
                help="Correct them, or send fewer rows at once.",
            )
        fixed: dict[str, Any] = {}
        for name in row:
            if name not in known:
                flags.append({"row": number, "input": str(name)[:200], "flag": "extra"})
        for item in signature.inputs:
            if item.name not in row:
                if item.nullable:
                    fixed[item.name] = None
                    flags.append({"row": number, "input": item.name, "flag": "missing"})
                continue
            value = row[item.name]
            if _fits(types[item.name], item, value):
                fixed[item.name] = value
                continue
            fixed[item.name], flag = _converted(types[item.name], item, value)
            flags.append({"row": number, "input": item.name, "flag": flag})
        coerced.append(fixed)
    return coerced, flags


def _fits(kind: Any, item: Input, value: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return not (item.type == "int" and type(value) is float and not value.is_integer())


def _converted(kind: Any, item: Input, value: Any) -> tuple[Any, str]:
    found: Any = None
    if item.type == "string" and type(value) in (int, float, bool):
        found = str(value).lower() if type(value) is bool else str(value)
    elif item.type == "bool":
        found = _BOOLEANS.get(str(value).strip().lower())
    elif type(value) is str and item.type in ("float", "int"):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        found = None if number != number or abs(number) == float("inf") else number
        if item.type == "int" and found is not None:
            found = int(found) if found.is_integer() and abs(found) < 2**63 else None
    if found is not None and _fits(kind, item, found):
        return found, "converted"
    return (None, "wrong_type") if item.nullable else (value, "wrong_type")
