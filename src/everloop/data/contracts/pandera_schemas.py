"""Convert a pandera schema to a contract.

Everything that a contract can express is converted: types, nulls, uniqueness (of single columns and of several
together), required columns, bounds, categories and patterns, each with the severity of its check. Any other check, such
as a custom function, is refused by name instead of being left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.data.contracts.bounds import BOUNDS, as_bound, read_bound
from everloop.data.contracts.contract import find_contract
from everloop.data.table_inputs import nearest, type_name
from everloop.errors import MissingExtraError, UsageError
from everloop.records import Contract, Json

if TYPE_CHECKING:
    from everloop.stores import Store

_KINDS = {
    "str": "string",
    "string": "string",
    "object": "string",
    "category": "categorical",
    "boolean": "bool",
    "int": "int64",
    "float": "float64",
    "double": "float64",
}


def contract_from_pandera(
    schema: Any,
    dataset: str,
    store: Store,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
) -> Contract:
    """The contract for a pandera `DataFrameSchema` or `DataFrameModel`. It is not stored yet: see `save_contract`.

    Raises:
        MissingExtraError: pandera is not installed.
        UsageError: `schema` is not a pandera schema, or it has a check that a contract cannot express.
    """
    try:
        import pandera  # noqa: F401
    except ImportError as error:
        raise MissingExtraError.of("Converting a pandera schema", "pandera", "pandera") from error
    if isinstance(schema, type) and hasattr(schema, "to_schema"):
        schema = schema.to_schema()
    if not hasattr(schema, "columns") or not hasattr(schema, "checks"):
        raise UsageError(f"{schema!r} is not a pandera schema.", help="Pass a DataFrameSchema or a DataFrameModel.")
    if schema.checks:
        raise _unsupported(schema.checks[0], "the table")
    roles = {name: role for role, name in (("target", target), ("time", time), ("key", key)) if name is not None}
    columns = tuple(_column(name, column, roles.get(name)) for name, column in schema.columns.items())
    missing = roles.keys() - schema.columns.keys()
    if missing:
        raise UsageError(f"The schema has no column '{min(missing)}'.", help=nearest(min(missing), schema.columns))
    unique = schema.unique
    rules: list[dict[str, Json]] = []
    if unique:
        rules.append({"rule": "unique", "columns": [unique] if isinstance(unique, str) else list(unique)})
    newest = find_contract(dataset, store)
    version = newest.version + 1 if newest else 1
    return store.new(Contract, dataset=dataset, version=version, columns=columns, rules=tuple(rules))


def _column(name: str, column: Any, role: str | None) -> dict[str, Json]:
    if getattr(column, "regex", False):
        raise UsageError(
            f"The schema selects columns by the pattern '{name}', but a contract names each column.",
            help="Write one Column per column.",
        )
    found: dict[str, Json] = {"name": name, "type": _kind(name, column.dtype)}
    if role is not None:
        found["role"] = role
    if not column.required:
        found["required"] = False
    found["nullable"] = bool(column.nullable)
    if column.unique:
        found["unique"] = True
    severities: dict[str, Json] = {}
    for check in column.checks:
        for rule, value in _rules_of(check, name, found["type"]).items():
            found[rule] = value
            if rule in BOUNDS:
                found[rule] = as_bound(value)
                read_bound(f"Column '{name}' of the schema", rule, found[rule], found["type"])
            usual = "error" if rule in ("least", "most") else "warning"
            wanted = "warning" if getattr(check, "raise_warning", False) else "error"
            if wanted != usual:
                severities[rule] = wanted
    if severities:
        found["severities"] = severities
    return found


def _rules_of(check: Any, column: str, kind: str) -> dict[str, Json]:
    given = getattr(check, "statistics", None) or {}
    whole = kind.startswith(("int", "uint"))
    match check.name:
        case "greater_than_or_equal_to" | "ge":
            return {"least": given["min_value"]}
        case "less_than_or_equal_to" | "le":
            return {"most": given["max_value"]}
        case "greater_than" | "gt" if whole:
            return {"least": given["min_value"] + 1}
        case "less_than" | "lt" if whole:
            return {"most": given["max_value"] - 1}
        case "in_range" | "between" if given.get("include_min", True) and given.get("include_max", True):
            return {"least": given["min_value"], "most": given["max_value"]}
        case "isin":
            return {"categories": {_text(value): 0 for value in given["allowed_values"]}}
        case "equal_to" | "eq":
            return {"categories": {_text(given["value"]): 0}}
        case "str_matches":
            # pandera matches from the beginning of the text.
            pattern = _pattern(given["pattern"])
            return {"pattern": pattern if pattern.startswith("^") else f"^(?:{pattern})"}
        case "str_contains":
            return {"pattern": _pattern(given["pattern"])}
        case "str_startswith":
            return {"pattern": f"^{_escaped(given['string'])}"}
        case "str_endswith":
            return {"pattern": f"{_escaped(given['string'])}$"}
        case "str_length" if given.get("exact_value") is None:
            least, most = given.get("min_value"), given.get("max_value")
            return {"pattern": f"^(?s:.){{{least or 0},{'' if most is None else most}}}$"}
    raise _unsupported(check, f"column '{column}'")


def _unsupported(check: Any, where: str) -> UsageError:
    return UsageError(
        f"A contract cannot express the check '{check.name or check}' of {where}.",
        help='Remove it from the schema, and add a rule to the contract instead: rule = "where", sql = "…"',
    )


def _kind(name: str, dtype: Any) -> str:
    if dtype is None:
        raise UsageError(f"The schema has no type for '{name}'.", help="Write for example Column(int, …).")
    inner = getattr(dtype, "type", None)
    try:
        import polars as pl

        if isinstance(inner, pl.DataType):
            return type_name(inner)
        if isinstance(inner, type) and issubclass(inner, pl.DataType):
            return type_name(inner())
    except TypeError:
        pass
    text = str(dtype).lower()
    if text.startswith("datetime64"):
        inside = text.partition("[")[2].rstrip("]")
        unit, _, zone = inside.partition(",")
        return f"timestamp[{unit or 'ns'}, {zone.strip().upper()}]" if zone else f"timestamp[{unit or 'ns'}]"
    if text.startswith("timedelta64"):
        return f"duration[{text.partition('[')[2].rstrip(']') or 'ns'}]"
    if text.startswith("string"):
        return "string"
    return _KINDS.get(text, text)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pattern(given: Any) -> str:
    return given if isinstance(given, str) else str(given.pattern)


def _escaped(text: str) -> str:
    import re

    return re.escape(text)
