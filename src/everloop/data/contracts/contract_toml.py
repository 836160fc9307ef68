"""Write a contract as TOML that people can read and edit, and read it back."""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.contracts.bounds import BOUNDS, as_bound, is_known, read_bound, read_share
from everloop.data.contracts.toml_comments import END, TomlComments, read_comments
from everloop.data.table_inputs import nearest
from everloop.errors import UsageError
from everloop.records import Contract, Json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from everloop.stores import Store

_HEAD = """\
# This contract describes a table. New data is checked against it, and you can edit it.
# Errors: another type, nullable = false, unique, least and most, infinities, every rule, categories of the target.
# Warnings: max_nulls, min and max, ordered, pattern, future, other categories.
# To change that: severities = { unique = "warning", pattern = "error" }, and severity = "warning" in a rule.
"""
_BARE = re.compile(r"[A-Za-z0-9_-]+")

_NUMBER = (int, float)
COLUMN_KEYS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "type": (str,),
    "role": (str,),
    "required": (bool,),
    "nullable": (bool,),
    "nulls": _NUMBER,
    "max_nulls": _NUMBER,
    "distinct": (int,),
    "unique": (bool,),
    "ordered": (bool,),
    "min": (*_NUMBER, str),
    "max": (*_NUMBER, str),
    "least": (*_NUMBER, str),
    "most": (*_NUMBER, str),
    "infinite": (bool,),
    "quantiles": (list,),
    "pattern": (str,),
    "future": (bool,),
    "severities": (dict,),
    "categories": (dict,),
}
SHARES = ("nulls", "max_nulls")
COLUMN_RULES = (
    "nullable", "unique", "ordered", "min", "max", "least", "most", "infinite", "categories", "pattern", "future",
    "max_nulls",
)  # fmt: skip
SEVERITIES = ("error", "warning")
RULES: dict[str, dict[str, tuple[type, ...]]] = {
    "rows": {"least": (int,)},
    "fresh": {"column": (str,), "within": (str,)},
    "where": {"sql": (str,)},
    "unique": {"columns": (list,)},
    "relation": {"column": (str,), "table": (str,), "key": (str,)},
}
"""`rows`: the minimum number of rows. `fresh`: the newest time is not older than a duration. `where`: a SQL condition
for each row. `unique`: columns that together identify a row. `relation`: each value of a column occurs in the key
column of another table: a path, URL, dataset version, or a table passed to the check by name. Each may have a
`severity`."""


def contract_to_toml(contract: Contract, *, before: str | None = None) -> str:
    """The contract as TOML.

    Args:
        before: the present text of its file. Comments about keys and tables that still exist are kept, and values that
            have not changed stay as they are written there.
    """
    comments = read_comments(before, _name_of, set(_HEAD.splitlines())) if before else TomlComments()

    def pairs(path: tuple[str, ...], values: Mapping[str, Json]) -> list[str]:
        found = [line for name, value in values.items() for line in _pair(comments, (*path, name), value)]
        return found + comments.end(path)

    head = {
        "dataset": contract.dataset,
        "version": contract.version,
        "id": contract.id,
        "project": contract.project,
        "created_at": contract.created_at.isoformat(),
    }
    lines = [_HEAD, *pairs((), head)]
    for rule in contract.rules:
        path = ("rules", _name_of("rules", rule))
        lines += ["", *comments.line(path, "[[rules]]"), *pairs(path, rule)]
    for column in contract.columns:
        path = ("columns", _name_of("columns", column))
        plain = {name: value for name, value in column.items() if not isinstance(value, dict)}
        lines += ["", *comments.line(path, "[[columns]]"), *pairs(path, plain)]
        for name, table in column.items():
            if isinstance(table, dict):
                inner = (*path, name)
                lines += ["", *comments.line(inner, f"[columns.{_key(name)}]"), *pairs(inner, table)]
    if rest := comments.end(END):
        lines += ["", *rest]
    return "\n".join(lines) + "\n"


def load_contract(path: Path, store: Store | None = None) -> Contract:
    """The contract in a TOML file; see `contract_from_toml`.

    Raises:
        UsageError: the file is not UTF-8 text, not TOML, or contains something that does not belong in a contract.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"'{path}' is not text in UTF-8: {error.reason} at byte {error.start}.", help="Save it as UTF-8."
        ) from error
    return contract_from_toml(text, store)


def contract_from_toml(text: str, store: Store | None = None) -> Contract:
    """The contract that a TOML text describes.

    Args:
        store: needed if the text was written by hand and has no `id`.

    Raises:
        UsageError: the text is not TOML, or contains something that does not belong in a contract.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The contract is not valid TOML: {error}.") from error
    _check_keys("The contract", document, ("dataset", "version", "id", "project", "created_at", "columns", "rules"))
    columns, rules = document.get("columns"), document.get("rules", [])
    if not isinstance(document.get("dataset"), str) or not isinstance(columns, list) or not columns:
        raise UsageError('A contract needs dataset = "…" and at least one [[columns]].')
    for column in columns:
        _check_column(column)
    names = [column["name"] for column in columns]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"The contract describes the column '{repeated}' twice.", help="Remove one of them.")
    if not isinstance(rules, list):
        raise UsageError("The rules of a contract must be an array of tables.", help="Write each rule under [[rules]].")
    for rule in rules:
        _check_rule(rule, names)
    fields: dict[str, Any] = {
        "dataset": document["dataset"],
        "version": document.get("version", 1),
        "columns": tuple(columns),
        "rules": tuple(rules),
    }
    if {"id", "project", "created_at"} <= document.keys():
        try:
            created_at = datetime.fromisoformat(document["created_at"])
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"The contract has created_at = {document['created_at']!r}, which is not a time in ISO 8601.",
                help="Write for example 2026-03-01T12:00:00+00:00.",
            ) from error
        return Contract(id=document["id"], project=document["project"], created_at=created_at, **fields)
    if store is None:
        raise UsageError("The contract has no id, project and created_at.", help="Pass store= to get them.")
    return store.new(Contract, **fields)


def _check_column(column: Any) -> None:
    if not isinstance(column, dict) or not isinstance(column.get("name"), str):
        raise UsageError("Each [[columns]] needs a name.", help='Write for example name = "age".')
    where = f"Column '{column['name']}' of the contract"
    if "type" not in column:
        raise UsageError(f"{where} has no type.", help='Write for example type = "int64".')
    for bound in BOUNDS:
        if bound in column:
            column[bound] = as_bound(column[bound])
    _check_values(where, column, COLUMN_KEYS)
    for share in SHARES:
        if share in column:
            read_share(where, share, column[share])
    if is_known(column["type"]):
        limits = {each: read_bound(where, each, column[each], column["type"]) for each in BOUNDS if each in column}
        for low, high in (("least", "most"), ("min", "max")):
            if low in limits and high in limits and limits[low] > limits[high]:
                raise UsageError(
                    f"{where} has {low} = {column[low]!r}, above {high} = {column[high]!r}, so no value can satisfy "
                    f"both.",
                    help="Correct one of them.",
                )
    for rule, severity in column.get("severities", {}).items():
        if rule not in COLUMN_RULES:
            raise UsageError(
                f"{where} sets a severity for '{rule}', but there is no rule '{rule}'.",
                help=nearest(rule, COLUMN_RULES),
            )
        _check_severity(where, severity)
    if "pattern" in column:
        try:
            pl.Series([""]).str.contains(column["pattern"])
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"{where} has a pattern that is not a valid regular expression: {str(error).splitlines()[0]}."
            ) from error


def _check_rule(rule: Any, columns: list[str]) -> None:
    name = rule.get("rule") if isinstance(rule, dict) else None
    if name not in RULES:
        raise UsageError(f"There is no rule {name!r} for a contract.", help=f"Use one of: {', '.join(RULES)}.")
    where = f"Rule '{name}' of the contract"
    if missing := RULES[name].keys() - rule.keys():
        raise UsageError(f"{where} needs '{min(missing)}', which is missing.")
    _check_values(where, rule, {"rule": (str,), "severity": (str,), **RULES[name]})
    _check_severity(where, rule.get("severity", "error"))
    for each in rule.get("columns", []):
        if each not in columns:
            raise UsageError(
                f"{where} names the column {each!r}, which the contract does not describe.",
                help=nearest(str(each), columns),
            )
    if "column" in rule and rule["column"] not in columns:
        raise UsageError(
            f"{where} names the column '{rule['column']}', which the contract does not describe.",
            help=nearest(rule["column"], columns),
        )


def _check_severity(where: str, severity: Json) -> None:
    if severity not in SEVERITIES:
        raise UsageError(
            f"{where} has the severity {severity!r}, which does not exist.",
            help=f"Use one of: {', '.join(SEVERITIES)}.",
        )


def _check_values(where: str, table: Mapping[str, Json], allowed: Mapping[str, tuple[type, ...]]) -> None:
    _check_keys(where, table, tuple(allowed))
    for name, value in table.items():
        fits = isinstance(value, allowed[name]) and (bool in allowed[name] or not isinstance(value, bool))
        if not fits:
            kinds = " or ".join(kind.__name__ for kind in allowed[name])
            raise UsageError(f"{where} has {name} = {value!r}, where {kinds} is expected.")


def _check_keys(where: str, table: Mapping[str, Json], allowed: tuple[str, ...]) -> None:
    for name in table:
        if name not in allowed:
            raise UsageError(f"{where} has an unknown key '{name}'.", help=nearest(name, allowed))


def _name_of(array: str, element: Mapping[str, Json]) -> str:
    """What identifies a column or a rule: a column keeps its name, and a rule is never changed."""
    if array == "columns":
        return str(element.get("name"))
    return json.dumps(element, sort_keys=True, default=str)


def _pair(comments: TomlComments, path: tuple[str, ...], value: Json) -> list[str]:
    """The line of a key. A value that has not changed stays as it was written: a literal string, or a long list."""
    text = _value(value)
    if path in comments.values:
        before, written = comments.values[path]
        with suppress(UsageError):
            text = written if _value(before) == text else text
    return comments.line(path, f"{_key(path[-1])} = {text}")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Json) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case dict():
            return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())} }}"
        case float():
            # Works for subclasses as well, such as NumPy's.
            return float.__repr__(value)
        case int():
            return int.__repr__(value)
    raise UsageError(f"A contract cannot contain {value!r}.", help="Use strings, numbers, booleans, lists and dicts.")


def _text(value: str) -> str:
    # TOML's basic strings are JSON strings, except that they may not contain DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
