"""A contract as TOML that people read and edit, and back."""

from __future__ import annotations

import json
import re
import tomllib
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.contracts.bounds import BOUNDS, as_bound, is_known, read_bound
from everloop.data.table_inputs import nearest
from everloop.errors import UsageError
from everloop.records import Contract, Json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from everloop.stores import Store

_HEAD = """\
# What a table looks like. Edit it: new data is checked against it.
# Breaks the contract: another type, nullable = false, unique, least and most, infinities, every rule.
# Warns only: max_nulls, min and max, ordered, pattern, future, categories (in the target they bind).
# Otherwise than that: severities = { unique = "warning", pattern = "error" }, and in a rule severity = "warning".
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
"""`rows`: at least so many. `fresh`: the newest time lies within a duration. `where`: SQL that holds for each row.
`unique`: columns that together name a row. `relation`: each value of a column stands in the key of another table, which
is a path, an address or a dataset version, or what a check is given under that name. Each may have a `severity`."""


def contract_to_toml(contract: Contract) -> str:
    lines = [_HEAD]
    head = {
        "dataset": contract.dataset,
        "version": contract.version,
        "id": contract.id,
        "project": contract.project,
        "created_at": contract.created_at.isoformat(),
    }
    lines += [f"{name} = {_value(value)}" for name, value in head.items()]
    for rule in contract.rules:
        lines += ["", "[[rules]]", *(f"{_key(name)} = {_value(value)}" for name, value in rule.items())]
    for column in contract.columns:
        plain = {name: value for name, value in column.items() if not isinstance(value, dict)}
        lines += ["", "[[columns]]", *(f"{_key(name)} = {_value(value)}" for name, value in plain.items())]
        for name, table in column.items():
            if isinstance(table, dict):
                lines += [
                    "",
                    f"[columns.{_key(name)}]",
                    *(f"{_key(key)} = {_value(each)}" for key, each in table.items()),
                ]
    return "\n".join(lines) + "\n"


def load_contract(path: Path, store: Store | None = None) -> Contract:
    """The contract in a TOML file; see `contract_from_toml`.

    Raises:
        UsageError: the file is not text in UTF-8, not TOML, or says something that a contract does not.
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
        store: needed for a text that was not written by `contract_to_toml` and so has no `id`.

    Raises:
        UsageError: it is no TOML, or says something that a contract does not.
    """
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The contract is no TOML: {error}.") from error
    _check_keys("The contract", said, ("dataset", "version", "id", "project", "created_at", "columns", "rules"))
    columns, rules = said.get("columns"), said.get("rules", [])
    if not isinstance(said.get("dataset"), str) or not isinstance(columns, list) or not columns:
        raise UsageError('A contract needs dataset = "…" and at least one [[columns]].')
    for column in columns:
        _check_column(column)
    names = [column["name"] for column in columns]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"The contract describes the column '{doubled}' twice.")
    if not isinstance(rules, list):
        raise UsageError("Rules are written as [[rules]].")
    for rule in rules:
        _check_rule(rule, names)
    fields: dict[str, Any] = {
        "dataset": said["dataset"],
        "version": said.get("version", 1),
        "columns": tuple(columns),
        "rules": tuple(rules),
    }
    if {"id", "project", "created_at"} <= said.keys():
        try:
            created_at = datetime.fromisoformat(said["created_at"])
        except (TypeError, ValueError) as error:
            raise UsageError(f"created_at = {said['created_at']!r} is no time in ISO 8601.") from error
        return Contract(id=said["id"], project=said["project"], created_at=created_at, **fields)
    if store is None:
        raise UsageError("The contract has no id, project and created_at.", help="Read it with a store.")
    return store.new(Contract, **fields)


def _check_column(column: Any) -> None:
    if not isinstance(column, dict) or not isinstance(column.get("name"), str):
        raise UsageError("Each [[columns]] needs a name.")
    where = f"Column '{column['name']}' of the contract"
    if "type" not in column:
        raise UsageError(f"{where} has no type.", help='Such as type = "int64".')
    for bound in BOUNDS:
        if bound in column:
            column[bound] = as_bound(column[bound])
    _check_values(where, column, COLUMN_KEYS)
    if is_known(column["type"]):
        limits = {each: read_bound(where, each, column[each], column["type"]) for each in BOUNDS if each in column}
        for low, high in (("least", "most"), ("min", "max")):
            if low in limits and high in limits and limits[low] > limits[high]:
                raise UsageError(f"{where} has {low} = {column[low]!r}, above {high} = {column[high]!r}.")
    for rule, severity in column.get("severities", {}).items():
        if rule not in COLUMN_RULES:
            raise UsageError(f"{where} has no rule '{rule}' to be severe about.", help=nearest(rule, COLUMN_RULES))
        _check_severity(where, severity)
    if "pattern" in column:
        try:
            pl.Series([""]).str.contains(column["pattern"])
        except pl.exceptions.PolarsError as error:
            raise UsageError(f"{where} has a pattern that is none: {str(error).splitlines()[0]}.") from error


def _check_rule(rule: Any, columns: list[str]) -> None:
    name = rule.get("rule") if isinstance(rule, dict) else None
    if name not in RULES:
        raise UsageError(f"The contract has no rule {name!r}.", help=f"There are: {', '.join(RULES)}.")
    where = f"Rule '{name}' of the contract"
    if missing := RULES[name].keys() - rule.keys():
        raise UsageError(f"{where} needs '{min(missing)}'.")
    _check_values(where, rule, {"rule": (str,), "severity": (str,), **RULES[name]})
    _check_severity(where, rule.get("severity", "error"))
    for each in rule.get("columns", []):
        if each not in columns:
            raise UsageError(f"{where} names the column {each!r}.", help=nearest(str(each), columns))
    if "column" in rule and rule["column"] not in columns:
        raise UsageError(f"{where} names the column '{rule['column']}'.", help=nearest(rule["column"], columns))


def _check_severity(where: str, severity: Json) -> None:
    if severity not in SEVERITIES:
        raise UsageError(f"{where} has the severity {severity!r}.", help=f"There are: {', '.join(SEVERITIES)}.")


def _check_values(where: str, table: Mapping[str, Json], allowed: Mapping[str, tuple[type, ...]]) -> None:
    _check_keys(where, table, tuple(allowed))
    for name, value in table.items():
        fits = isinstance(value, allowed[name]) and (bool in allowed[name] or not isinstance(value, bool))
        if not fits:
            kinds = " or ".join(kind.__name__ for kind in allowed[name])
            raise UsageError(f"{where} has {name} = {value!r}, where {kinds} belongs.")


def _check_keys(where: str, table: Mapping[str, Json], allowed: tuple[str, ...]) -> None:
    for name in table:
        if name not in allowed:
            raise UsageError(f"{where} has an unknown '{name}'.", help=nearest(name, allowed))


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
            # Also of a subclass, such as NumPy's.
            return float.__repr__(value)
        case int():
            return int.__repr__(value)
    raise UsageError(f"A contract cannot hold {value!r}.", help="Use text, numbers, booleans, lists and tables.")


def _text(value: str) -> str:
    # TOML's basic strings are JSON's, except that DEL may not stand in them.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
