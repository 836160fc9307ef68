"""Check a table against its contract: find violations, separate good rows from bad ones, and store the bad ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import polars as pl

from everloop.data.contracts.bounds import outside, read_bound, read_share
from everloop.data.contracts.contract import category, missing
from everloop.data.snapshots.column_statistics import as_json
from everloop.data.snapshots.snapshots import take_snapshot
from everloop.data.sources.reading import read
from everloop.data.table_inputs import Frame, as_lazy, as_utc, is_moment, nearest, type_name
from everloop.errors import ContractError, UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from everloop.records import Contract, Json, Run, Snapshot
    from everloop.stores import Store

BROKEN = "_broken"
"""The column of the bad rows that lists the rules each row broke, as `column: rule`."""
_SAMPLES = 5

CheckSeverity = Literal["warning", "error"]


@dataclass(frozen=True)
class Violation:
    """One broken rule. An error about rows makes those rows bad; with a warning they stay good."""

    column: str | None
    rule: str
    severity: CheckSeverity
    rows: int
    """How many rows break the rule; 0 for a rule about the table."""
    message: str
    samples: tuple[Json, ...] = ()
    """Some of the values."""
    first_rows: tuple[int, ...] = ()
    """The numbers of the first of these rows, counted from 1."""


@dataclass(frozen=True)
class ContractReport:
    """The result of a check. Each row is either in `good` or in `bad`, both in the table's order."""

    contract: str
    rows: int
    bad_rows: int
    violations: tuple[Violation, ...]
    good: pl.LazyFrame
    bad: pl.LazyFrame

    @property
    def errors(self) -> tuple[Violation, ...]:
        return tuple(found for found in self.violations if found.severity == "error")

    @property
    def warnings(self) -> tuple[Violation, ...]:
        return tuple(found for found in self.violations if found.severity == "warning")

    @property
    def passed(self) -> bool:
        return not self.errors


@dataclass(frozen=True)
class _Rule:
    column: str | None
    name: str
    severity: CheckSeverity
    broken: pl.Expr
    singular: str
    """The problem after `1 value of 'x'` or `1 row`, such as `is infinite`."""
    plural: str
    """The problem after `2 values of 'x'` or `2 rows`, such as `are infinite`."""


def check_contract(
    frame: Frame, contract: Contract, *, now: datetime | None = None, tables: Mapping[str, Frame] | None = None
) -> ContractReport:
    """Check every row of a table.

    Args:
        now: the store's time, needed for `fresh` rules and to find times after the present.
        tables: the tables that `relation` rules refer to, by name. A name that is not here is read as a source.

    Raises:
        ContractError: a column is missing or has the wrong type, so that no row can be checked.
        UsageError: a rule of the contract cannot be applied.
    """
    rows = as_lazy(frame)
    schema = rows.collect_schema()
    _refuse_schema(schema, contract)
    rules = [*_column_rules(schema, contract, now), *_where_rules(schema, contract)]
    rules += _relation_rules(schema, contract, tables or {})
    rules += _unique_rules(schema, contract, _any_error(rules))
    broken = [rule.broken.fill_null(value=False).sum().alias(str(index)) for index, rule in enumerate(rules)]
    bad = _any_error(rules)
    present = [column for column in contract.columns if column["name"] in schema]
    nulls = [missing(name, schema[name]).sum().alias(f"null {name}") for name in (each["name"] for each in present)]
    counts = rows.select(pl.len().alias("rows"), bad.sum().alias("bad"), *broken, *nulls).collect().row(0, named=True)
    violations = [_violation(rule, counts[str(index)], rows) for index, rule in enumerate(rules) if counts[str(index)]]
    violations += _table_violations(rows, schema, contract, counts, now)
    named = [
        pl.when(rule.broken.fill_null(value=False)).then(
            pl.lit(f"{rule.column}: {rule.name}" if rule.column else rule.name)
        )
        for rule in rules
        if rule.severity == "error"
    ]
    reasons = pl.concat_list(named).list.drop_nulls() if named else pl.lit([], dtype=pl.List(pl.String))
    return ContractReport(
        contract=contract.key,
        rows=counts["rows"],
        bad_rows=counts["bad"],
        violations=tuple(violations),
        good=rows.filter(~bad),
        # Compute the reasons before filtering: among the bad rows alone, other values would count as repeated.
        bad=rows.with_columns(reasons.alias(BROKEN)).filter(pl.col(BROKEN).list.len() > 0),
    )


def quarantine(report: ContractReport, dataset: str, store: Store, *, run: Run | str | None = None) -> Snapshot | None:
    """Store the bad rows with the rules they broke as a snapshot of `quarantine/<dataset>`; None if all are good."""
    if not report.bad_rows:
        return None
    return take_snapshot(report.bad, f"quarantine/{dataset}", store, run=run, contract=report.contract)


def fits(dtype: pl.DataType, declared: str) -> bool:
    """Whether a column of this type can be checked against the declared type: both belong to the same family."""
    if isinstance(dtype, pl.Null):
        return True  # a column without values has none of a wrong type
    if declared.startswith(("int", "uint")):
        return dtype.is_integer()
    if declared.startswith("float"):
        return dtype.is_numeric()
    if declared.startswith("decimal"):
        return dtype.is_decimal() or dtype.is_integer()
    if declared in ("string", "categorical", "enum"):
        return isinstance(dtype, pl.String | pl.Categorical | pl.Enum)
    if declared.startswith("timestamp"):
        return isinstance(dtype, pl.Datetime)
    if declared.startswith("duration"):
        return isinstance(dtype, pl.Duration)
    return declared in ("null", type_name(dtype))


def _refuse_schema(schema: pl.Schema, contract: Contract) -> None:
    problems: list[str] = []
    hint = None
    for column in contract.columns:
        name = column["name"]
        if name not in schema:
            if column.get("required", True):
                problems.append(f"column '{name}' is missing")
                hint = hint or nearest(name, schema)
        elif not fits(schema[name], column["type"]):
            problems.append(f"column '{name}' is {type_name(schema[name])}, not {column['type']}")
    if problems:
        raise ContractError(f"The table does not fulfil '{contract.key}': {'; '.join(problems)}.", help=hint)


def _column_rules(schema: pl.Schema, contract: Contract, now: datetime | None) -> Iterator[_Rule]:
    for column in contract.columns:
        name = column["name"]
        if name not in schema:
            continue
        dtype = schema[name]
        if not column.get("nullable", True):
            severity = _severity(column, "nullable", "error")
            yield _Rule(name, "nullable", severity, missing(name, dtype), "is null or NaN", "are null or NaN")
        if "categories" in column and not isinstance(dtype, pl.Null):
            severity = _severity(column, "categories", "error" if column.get("role") == "target" else "warning")
            known = pl.Series(list(column["categories"]), dtype=pl.String)
            unknown = ~category(name).is_in(known.implode())
            problem = "not among the contract's categories"
            yield _Rule(name, "categories", severity, unknown, f"is {problem}", f"are {problem}")
        if "pattern" in column and not isinstance(dtype, pl.Null):
            matches = category(name).str.contains(column["pattern"])
            severity = _severity(column, "pattern", "warning")
            problem = f"not match {column['pattern']}"
            yield _Rule(name, "pattern", severity, ~matches, f"does {problem}", f"do {problem}")
        if column.get("role") == "time" and now is not None and not column.get("future") and is_moment(dtype):
            later = as_utc(name, dtype) > now
            severity = _severity(column, "future", "warning")
            problem = f"in the future (after {now.isoformat()})"
            yield _Rule(name, "future", severity, later, f"is {problem}", f"are {problem}")
        if dtype.is_float() and not column.get("infinite"):
            severity = _severity(column, "infinite", "error")
            yield _Rule(name, "infinite", severity, pl.col(name).is_infinite(), "is infinite", "are infinite")
        bounds: tuple[tuple[str, CheckSeverity], ...] = (
            ("least", "error"),
            ("most", "error"),
            ("min", "warning"),
            ("max", "warning"),
        )
        for bound, usual in bounds:
            if column.get(bound) is None:
                continue
            limit = read_bound(f"Column '{name}' of '{contract.key}'", bound, column[bound], column["type"])
            below = bound in ("least", "min")
            broken = outside(name, dtype, limit, below=below)
            if broken is not None:
                severity = _severity(column, bound, usual)
                problem = f"{'below' if below else 'above'} {column[bound]}"
                yield _Rule(name, bound, severity, broken, f"is {problem}", f"are {problem}")


def _unique_rules(schema: pl.Schema, contract: Contract, bad: pl.Expr) -> Iterator[_Rule]:
    """Among rows with the same value the first one is good. Rows that are bad for other reasons do not count."""
    for column in contract.columns:
        name = column["name"]
        if column.get("unique") and name in schema:
            first = pl.struct(pl.col(name), bad.alias(BROKEN)).is_first_distinct()
            broken = ~first & ~bad & ~missing(name, schema[name])
            severity = _severity(column, "unique", "error")
            yield _Rule(name, "unique", severity, broken, "repeats an earlier one", "repeat earlier ones")
    for rule in contract.rules:
        if rule["rule"] == "unique":
            names = list(rule["columns"])
            _require(rule, names, schema)
            first = pl.struct(*names, bad.alias(BROKEN)).is_first_distinct()
            listed = ", ".join(names)
            singular, plural = (f"{verb} an earlier row in {listed}" for verb in ("repeats", "repeat"))
            yield _Rule(None, f"repeat in {listed}", rule.get("severity", "error"), ~first & ~bad, singular, plural)


def _relation_rules(schema: pl.Schema, contract: Contract, tables: Mapping[str, Frame]) -> Iterator[_Rule]:
    for rule in contract.rules:
        if rule["rule"] != "relation":
            continue
        name, table, key = rule["column"], rule["table"], rule["key"]
        _require(rule, [name], schema)
        other = as_lazy(tables[table]) if table in tables else read(table)
        known = other.collect_schema()
        if key not in known:
            raise UsageError(
                f"'{table}' has no column '{key}', which the relation of '{name}' refers to.",
                help=nearest(key, known),
            )
        if not isinstance(schema[name], pl.Null) and not fits(schema[name], type_name(known[key])):
            raise UsageError(
                f"'{name}' cannot be related to '{key}' of '{table}': their types are {type_name(schema[name])} and "
                f"{type_name(known[key])}."
            )
        keys = other.select(pl.col(key).cast(pl.String)).unique().collect().to_series()
        unknown = ~category(name).is_in(keys.implode()) & pl.col(name).is_not_null()
        severity: CheckSeverity = rule.get("severity", "error")
        problem = f"not occur in '{key}' of {table}"
        yield _Rule(name, f"relation to {table}", severity, unknown, f"does {problem}", f"do {problem}")


def _require(rule: dict[str, Json], names: list[str], schema: pl.Schema) -> None:
    for name in names:
        if name not in schema:
            raise ContractError(
                f"The table has no column '{name}', which a rule '{rule['rule']}' needs.", help=nearest(name, schema)
            )


def _severity(column: dict[str, Json], rule: str, usual: CheckSeverity) -> CheckSeverity:
    severity: CheckSeverity = column.get("severities", {}).get(rule, usual)
    return severity


def _where_rules(schema: pl.Schema, contract: Contract) -> Iterator[_Rule]:
    for rule in contract.rules:
        if rule["rule"] != "where":
            continue
        try:
            holds = pl.sql_expr(rule["sql"])
            kind = pl.LazyFrame(schema=schema).select(holds.alias("holds")).collect_schema()["holds"]
        except pl.exceptions.PolarsError as error:
            raise UsageError(f'The rule "{rule["sql"]}" cannot be used: {str(error).splitlines()[0]}.') from error
        if not isinstance(kind, pl.Boolean):
            raise UsageError(
                f'The rule "{rule["sql"]}" returns {type_name(kind)}, but it must be true or false.',
                help="Write a condition, such as: distance > 0",
            )
        singular, plural = (f"{verb} not satisfy {rule['sql']}" for verb in ("does", "do"))
        yield _Rule(None, rule["sql"], rule.get("severity", "error"), ~holds, singular, plural)


def _any_error(rules: list[_Rule]) -> pl.Expr:
    # The literal gives the expression the length of the table even without rules.
    errors = [rule.broken.fill_null(value=False) for rule in rules if rule.severity == "error"]
    return pl.any_horizontal(pl.repeat(value=False, n=pl.len()), *errors)


def _violation(rule: _Rule, count: int, rows: pl.LazyFrame) -> Violation:
    samples: tuple[Json, ...] = ()
    if rule.column is not None and rule.name != "nullable":
        broken = rows.filter(rule.broken).select(rule.column).unique(maintain_order=True).head(_SAMPLES).collect()
        found = broken.to_series()
        if is_moment(found.dtype):
            # Python's dates end in the year 9999.
            found = found.filter(found.dt.year().is_between(1, 9999).fill_null(value=True))
        samples = tuple(_sample(value) for value in found)
    numbers = rows.select(pl.arg_where(rule.broken.fill_null(value=False)).head(_SAMPLES) + 1).collect().to_series()
    noun = "row" if rule.column is None else "value"
    subject = f"{noun}{'' if count == 1 else 's'}" + ("" if rule.column is None else f" of '{rule.column}'")
    shown = f": {', '.join(map(str, samples))}" if samples else ""
    problem = rule.singular if count == 1 else rule.plural
    message = f"{count} {subject} {problem}{shown} (first in row {numbers[0]})"
    return Violation(rule.column, rule.name, rule.severity, count, message, samples, tuple(numbers.to_list()))


def _sample(value: object) -> Json:
    try:
        return as_json(value)
    except TypeError:
        return str(value)


def _table_violations(
    rows: pl.LazyFrame, schema: pl.Schema, contract: Contract, counts: dict[str, int], now: datetime | None
) -> Iterator[Violation]:
    total = counts["rows"]
    known = {column["name"]: column for column in contract.columns}
    for name in schema:
        if name not in known:
            yield Violation(name, "unexpected", "warning", 0, f"The column '{name}' is not in the contract")
    for name, column in known.items():
        if name not in schema or not total:
            continue
        share = counts[f"null {name}"] / total
        most = read_share(f"Column '{name}' of '{contract.key}'", "max_nulls", column.get("max_nulls", 1.0))
        # A small sample may exceed the share by chance, so four standard errors are allowed.
        if share > most and (share == 1 or share - most > 4 * math.sqrt(most * (1 - most) / total)):
            message = f"{share:.1%} of '{name}' is null or NaN, more than {most:.1%}"
            severity = _severity(column, "max_nulls", "warning")
            yield Violation(name, "max_nulls", severity, counts[f"null {name}"], message)
        if column.get("ordered") and not rows.select(pl.col(name).drop_nulls()).collect().to_series().is_sorted():
            severity = _severity(column, "ordered", "warning")
            yield Violation(name, "ordered", severity, 0, f"The rows are not sorted by '{name}'")
    for rule in contract.rules:
        if rule["rule"] == "rows" and total < rule["least"]:
            message = f"The table has {total} row{'' if total == 1 else 's'}, fewer than {rule['least']}"
            yield Violation(None, "rows", rule.get("severity", "error"), 0, message)
        if rule["rule"] == "fresh":
            yield from _stale_violations(rows, schema, rule, now)


def _stale_violations(
    rows: pl.LazyFrame, schema: pl.Schema, rule: dict[str, Json], now: datetime | None
) -> Iterator[Violation]:
    name = rule["column"]
    if now is None:
        raise UsageError("The contract has a rule 'fresh', which needs the current time.", help="Pass now=store.now().")
    empty = isinstance(schema[name], pl.Null)
    if not empty and not is_moment(schema[name]):
        raise UsageError(f"The rule 'fresh' needs a column of times, but '{name}' is {type_name(schema[name])}.")
    newest = None if empty else rows.select(as_utc(name, schema[name]).max()).collect().item()
    if newest is None or now - newest > parse_duration(rule["within"]):
        problem = "has no time at all" if newest is None else f"ends at {newest.isoformat()}"
        message = f"'{name}' {problem}, but should reach to within {rule['within']} of {now.isoformat()}"
        yield Violation(name, "fresh", rule.get("severity", "error"), 0, message)
