"""Parser of MLflow's filter strings and `order_by` clauses.

A filter is a list of comparisons joined by AND:
`metrics.auc > 0.9 and params."model name" = 'a' and tags.t LIKE '%x%'`.
As in MLflow, a missing value meets no comparison except IS NULL.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.regex_filters import check_pattern, matches
from everloop.stores.records import like_patterns
from everloop.stores.records.expressions import PATTERN_LIMIT

Entity = Literal[
    "attribute", "metric", "param", "tag", "dataset", "metadata", "span", "feedback", "expectation", "issue"
]
Value = str | float | int | tuple[str, ...] | None

LONGEST_FILTER = 100_000
LONGEST_ORDER = 1_000
"""Characters of one entry of `order_by`."""
MOST_TERMS = 500
"""Comparisons of one filter."""
_ENTITIES: dict[str, Entity] = {
    **dict.fromkeys(("metric", "metrics"), "metric"),
    **dict.fromkeys(("param", "params", "parameter", "parameters"), "param"),
    **dict.fromkeys(("tag", "tags"), "tag"),
    **dict.fromkeys(("attribute", "attributes", "attr", "run"), "attribute"),
    **dict.fromkeys(("dataset", "datasets"), "dataset"),
}
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<op><=|>=|!=|<>|=|<|>)
    | (?P<number>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?(?![\w.])|[+-](?i:inf|infinity)(?![\w.]))
    | (?P<name>[A-Za-z_][\w\-/:]*(?:\.(?:[\w\-/:]+|`[^`]*`|"[^"]*"))*|`[^`]*`)
    | (?P<text>'(?:[^']|'')*'|"[^"]*")
    | (?P<sign>[(),;])
    )""",
    re.VERBOSE,
)
_TEXT_OPS = frozenset({"=", "!=", "LIKE", "ILIKE", "IS NULL", "IS NOT NULL"})
_NUMBER_OPS = frozenset({"=", "!=", "<", "<=", ">", ">=", "IS NULL", "IS NOT NULL"})
_EQUALITY = frozenset({"=", "!="})
_ODD_NUMBERS = frozenset({"nan", "inf", "infinity"})
"""Words that are read as numbers when a metric is compared. MLflow itself cannot search for them."""
_LIST_OPS = frozenset({"IN", "NOT IN"})
_ORDER_OPS = frozenset({"<", "<=", ">", ">="})
_LONGEST_WHOLE = 300


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a filter may compare for one kind of record."""

    texts: frozenset[str]
    numbers: frozenset[str] = frozenset()
    entities: frozenset[Entity] = frozenset({"attribute", "tag"})
    listed: frozenset[str] = frozenset()
    """Attributes that may be compared with IN."""
    aliases: tuple[tuple[str, str], ...] = ()
    heads: tuple[tuple[str, Entity], ...] = ()
    """Words before the dot that only this grammar allows."""
    patterns: bool = False
    """Whether strings may be compared with RLIKE."""


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison."""

    entity: Entity
    key: str
    op: str
    value: Value

    def holds(self, found: Any) -> bool:
        """Whether the comparison holds for a value; None: the record has no such value."""
        if self.op == "IS NULL":
            return found is None
        if found is None:
            return False
        match self.op:
            case "IS NOT NULL":
                return True
            case "=":
                return bool(found == self.value) or (found != found and self.value != self.value)
            case "!=":
                return bool(found != self.value) and (found == found or self.value == self.value)
            case "LIKE":
                return like_patterns.is_like(str(found), str(self.value))
            case "ILIKE":
                # Ignores the case of non-ASCII letters too, as MLflow's databases do.
                return like_patterns.is_like(str(found).lower(), str(self.value).lower())
            case "RLIKE":
                return matches(str(self.value), str(found))
            case "IN":
                return isinstance(self.value, tuple) and found in self.value
            case "NOT IN":
                return isinstance(self.value, tuple) and found not in self.value
        try:
            return bool(_COMPARE[self.op](found, self.value))
        except TypeError:
            return False


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def parse_filter(text: str, grammar: Grammar) -> list[Term]:
    """Parse a filter string into comparisons.

    Raises:
        MlflowError: the filter is malformed, or compares something that this grammar does not allow.
    """
    if len(text) > LONGEST_FILTER:
        raise MlflowError(f"Invalid filter: it has {len(text)} characters, at most {LONGEST_FILTER} are allowed.")
    tokens = list(_tokens(text))
    terms: list[Term] = []
    at = 0
    while at < len(tokens):
        if terms:
            kind, word = tokens[at]
            if kind != "name" or word.upper() != "AND":
                raise MlflowError(f"Invalid clause(s) in filter string: '{word}'")
            at += 1
        if len(terms) == MOST_TERMS:
            raise MlflowError(f"Invalid filter: it has more than {MOST_TERMS} comparisons.")
        term, at = _term(tokens, at, grammar, text)
        terms.append(term)
    return terms


def meets(terms: Iterable[Term], value_of: Callable[[Term], Any]) -> bool:
    """Whether all comparisons hold for the values that `value_of` returns."""
    return all(term.holds(value_of(term)) for term in terms)


def _tokens(text: str) -> Iterable[tuple[str, str]]:
    at = 0
    end = len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise MlflowError(f"Invalid clause(s) in filter string: '{text[at:].strip()[:200]}'")
        yield found.lastgroup, found.group(found.lastgroup)
        at = found.end()


def _term(tokens: Sequence[tuple[str, str]], at: int, grammar: Grammar, text: str) -> tuple[Term, int]:
    def take(*kinds: str) -> str:
        nonlocal at
        if at >= len(tokens) or tokens[at][0] not in kinds:
            shown = tokens[at][1] if at < len(tokens) else text.strip()
            raise MlflowError(f"Invalid clause(s) in filter string: '{shown[:200]}'")
        at += 1
        return tokens[at - 1][1]

    def word() -> str:
        return tokens[at][1].upper() if at < len(tokens) and tokens[at][0] == "name" else ""

    entity, key = parse_key(take("name", "text"), grammar)
    if word() in ("LIKE", "ILIKE", "RLIKE", "IN"):
        op = take("name").upper()
    elif word() == "NOT":
        take("name")
        if word() != "IN":
            raise MlflowError(f"Invalid clause(s) in filter string: '{text.strip()[:200]}'")
        take("name")
        op = "NOT IN"
    elif word() == "IS":
        take("name")
        op = "IS NULL"
        if word() == "NOT":
            take("name")
            op = "IS NOT NULL"
        if word() != "NULL":
            raise MlflowError(f"Invalid clause(s) in filter string: '{text.strip()[:200]}'")
        take("name")
        return Term(entity, key, op, None), at
    else:
        op = take("op").replace("<>", "!=")
    if op in _LIST_OPS:
        if entity != "span" and (entity != "attribute" or key not in grammar.listed):
            raise MlflowError(
                "Only the 'run_id' attribute, dataset digest, dataset name, and dataset context support comparison "
                "with a list of quoted string values."
                if "run_id" in grammar.listed
                else f"Invalid comparator for attribute: {op}"
            )
        if take("sign") != "(":
            raise MlflowError(f"Invalid clause(s) in filter string: '{text.strip()[:200]}'")
        items = []
        while True:
            items.append(_unquoted(take("text")))
            if take("sign") == ")":
                return Term(entity, key, op, tuple(items)), at
    return Term(entity, key, op, _value(entity, key, op, *_next(tokens, at, text), grammar)), at + 1


def _next(tokens: Sequence[tuple[str, str]], at: int, text: str) -> tuple[str, str]:
    if at >= len(tokens):
        raise MlflowError(f"Invalid clause(s) in filter string: '{text.strip()[:200]}'")
    return tokens[at]


def _value(entity: Entity, key: str, op: str, kind: str, token: str, grammar: Grammar) -> Value:
    if entity == "metric" and kind == "name" and token.lower() in _ODD_NUMBERS:
        _check_op(op, _NUMBER_OPS if "inf" in token.lower() else _EQUALITY)
        return float(token)
    if entity == "metric" or (entity == "attribute" and key in grammar.numbers):
        if kind != "number":
            what = "metric" if entity == "metric" else f"numeric attribute: {key}"
            raise MlflowError(f"Expected numeric value type for {what}. Found {token}")
        _check_op(op, _NUMBER_OPS)
        # Python parses integers of at most 4,300 digits; much shorter ones already exceed every metric.
        return int(token) if len(token) <= _LONGEST_WHOLE and token.lstrip("+-").isdigit() else float(token)
    ordered = entity in ("feedback", "expectation") and op in _ORDER_OPS
    if ordered and kind == "number":
        return float(token)
    if ordered:
        raise MlflowError(
            f"Expected a numeric value for {entity} when using comparator '{op}'. Got value {token[:200]}"
        )
    if kind != "text":
        if entity == "attribute":
            raise MlflowError(f"Expected a quoted string value for attributes. Got value {token}")
        named = "parameter" if entity == "param" else entity
        raise MlflowError(f"Expected a quoted string value for {named} (e.g. 'my-value'). Got value {token}")
    if entity != "span":
        _check_op(op, _TEXT_OPS | {"RLIKE"} if grammar.patterns else _TEXT_OPS)
    if op == "RLIKE":
        check_pattern(_unquoted(token))
    elif op in ("LIKE", "ILIKE") and len(token) > PATTERN_LIMIT + 2:
        raise MlflowError(f"Invalid pattern: it has {len(token) - 2} characters, at most {PATTERN_LIMIT} are allowed.")
    return _unquoted(token)


def _check_op(op: str, known: frozenset[str]) -> None:
    if op not in known:
        raise MlflowError(f"Invalid comparator '{op}' not one of '{sorted(known)}'")


def parse_key(token: str, grammar: Grammar) -> tuple[Entity, str]:
    """Parse an identifier into entity and key: `metrics.auc`, `tags."a b"`, `start_time`."""
    head, dot, rest = token.partition(".")
    known = {**_ENTITIES, **dict(grammar.heads)}
    entity = known.get(head.lower()) if dot and head[:1] not in "`\"'" else None
    if entity is None and dot and head[:1] not in "`\"'":
        raise MlflowError(f"Invalid entity type '{head}'. Valid values are {_shown(grammar)}")
    if entity is None:
        entity, rest = "attribute", token
    if entity not in grammar.entities:
        raise MlflowError(f"Invalid entity type '{head}'. Valid values are {_shown(grammar)}")
    key = _unquoted(rest)
    if entity != "attribute":
        return entity, key
    key = dict(grammar.aliases).get(key, key)
    keys = grammar.texts | grammar.numbers
    if key not in keys:
        raise MlflowError(f"Invalid attribute key '{key}' specified. Valid keys are '{sorted(keys)}'")
    return entity, key


def parse_order(text: str, grammar: Grammar) -> tuple[Entity, str, bool]:
    """Parse an `order_by` clause into entity, key and whether it is ascending: `metrics.auc DESC`."""
    token, direction = text.strip(), "asc"
    if not token or len(token) > LONGEST_ORDER:
        raise MlflowError(f"Invalid order_by clause '{text[:200]}'. Could not be parsed.")
    key, *last = token.rsplit(maxsplit=1)
    if last and last[0].lower() in ("asc", "desc"):
        token, direction = key, last[0].lower()
    if not re.fullmatch(r"""(?:\w+\.)?(?:`[^`]*`|"[^"]*"|[\w\-/:.]+)""", token):
        raise MlflowError(f"Invalid ordering key in order_by clause '{text[:200]}'.")
    entity, key = parse_key(token, grammar)
    return entity, key, direction == "asc"


def _shown(grammar: Grammar) -> list[str]:
    names = {"metric": "metric", "param": "parameter", "tag": "tag", "attribute": "attribute", "dataset": "dataset"}
    return [name for entity, name in names.items() if entity in grammar.entities]


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"`":
        inside = text[1:-1]
        return inside.replace("''", "'") if text[0] == "'" else inside
    return text
