"""The filter language for searching runs, and its parser.

    metrics.auc > 0.9 and (params.lr < 0.01 or tags.team in ("a", "b")) and not archived
    started_at > "7d" and name ilike "%xgb%" and tags.`my tag` is not null

Fields are `name state loop trigger parent started_at ended_at seconds archived id project`, and `metrics.<name>`,
`params.<name>`, `tags.<name>`; a name with spaces is quoted with "…" or `…`. Operators are `= == != < <= > >=`, `in`,
`like`, `ilike`, `is null`, `is nan`; the last five can be negated with `not`. `and` binds tighter than `or`. A time is
an ISO string, or a duration before now: `7d`, "12h". The constant decides how values are compared: `0.1` compares
numbers, "0.1" compares strings. `nan`, `inf` and `-inf` are numbers: `metrics.loss = nan` matches runs whose loss is
NaN. A state that does not exist is an error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast, get_args

from everloop.errors import UsageError
from everloop.records import RunState
from everloop.stores.durations import parse_duration
from everloop.stores.records.expressions import And, Compare, CompareOp, Expression, Not, Or, Scalar, is_nan, matches

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "And",
    "Compare",
    "Expression",
    "Not",
    "Or",
    "check_state",
    "field_path",
    "leaves",
    "matches",
    "parse_filter",
]

FIELDS = ("name", "state", "loop", "trigger", "parent", "seconds", "id", "project", "error", "experiment", "user")
TIMES = ("started_at", "ended_at", "archived_at", "created_at")
MAPS = ("metrics", "params", "tags")
STATES: tuple[str, ...] = get_args(RunState)
_ALIASES = {
    "metric": "metrics", "param": "params", "parameters": "params", "parameter": "params", "tag": "tags",
    "run_id": "id", "status": "state", "run_name": "name", "start_time": "started_at", "end_time": "ended_at",
}  # fmt: skip
_WORDS = frozenset({"and", "or", "not", "in", "like", "ilike", "is", "null", "none", "true", "false"})
_MAX_DEPTH = 100
_MAX_LENGTH = 20_000

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<span>\d+(?:\.\d+)?[smhdw](?:\d+(?:\.\d+)?[smhdw])*(?![\w.]))
      | (?P<number>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?(?![\w.])|(?i:[-+]?inf(?:inity)?|nan)(?![\w.]))
      | (?P<op>==|!=|<>|<=|>=|=|<|>)
      | (?P<sign>[(),])
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<field>[A-Za-z_]\w*(?:\.(?:"(?:[^"\\]|\\.)*"|`[^`]*`|[\w./:@+-]+))?)
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse_filter(text: str, *, now: datetime | None = None) -> Expression:
    """Parse a filter. The empty string matches every run.

    Args:
        now: the present time, for durations such as `7d`. Without it, the filter may not contain durations.

    Raises:
        UsageError: the filter is not valid; the message has the position of the error.
    """
    if len(text) > _MAX_LENGTH:
        raise UsageError(
            f"The filter has {len(text):,} characters, which is too long.", help=f"At most {_MAX_LENGTH:,} are allowed."
        )
    if not text.strip():
        return And(())
    return _Parser(text, now).parse()


def field_path(name: str) -> tuple[str, ...]:
    """Parse the name of a field: `started_at`, `metrics.auc`, ``tags.`my tag` ``.

    Raises:
        UsageError: runs have no such field; the message suggests similar ones.
    """
    head, dot, rest = name.partition(".")
    head = _ALIASES.get(head, head)
    if head in MAPS:
        key = _unquoted(rest)
        if not key:
            raise UsageError(
                f"'{name[:100]}' is not the name of a single value.", help=f"Write {head}.<name>, such as {head}.x"
            )
        return (head, key)
    if not dot and (head in FIELDS or head in TIMES):
        return (head,)
    similar = get_close_matches(head, [*FIELDS, *TIMES, *MAPS, "archived"], n=3)
    raise UsageError(
        f"A run has no field '{name[:100]}'."
        + (f" Did you mean {' or '.join(map(repr, similar))}?" if similar else ""),
        help=f"Fields: {', '.join([*FIELDS, *TIMES, 'archived'])}, metrics.<name>, params.<name>, tags.<name>",
    )


def leaves(expression: Expression) -> Iterator[Compare]:
    """Every comparison in an expression."""
    match expression:
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part)
        case Not(part):
            yield from leaves(part)
        case Compare():
            yield expression


def check_state(compare: Compare) -> None:
    """Refuse a comparison with a state that does not exist, instead of finding nothing.

    Raises:
        UsageError: the state does not exist; the message lists the states.
    """
    if compare.path != ("state",) or compare.op not in ("=", "!=", "in", "not in"):
        return
    for value in compare.value if isinstance(compare.value, tuple) else (compare.value,):
        if value not in STATES:
            similar = get_close_matches(str(value).lower(), STATES, n=1)
            raise UsageError(
                f"There is no state {value!r}." + (f" Did you mean {similar[0]!r}?" if similar else ""),
                help=f"States: {', '.join(STATES)}",
            )


class _Parser:
    """A recursive-descent parser with one token of look-ahead."""

    def __init__(self, text: str, now: datetime | None) -> None:
        self._text = text
        self._now = now
        self._tokens = list(self._scan())
        self._next = 0
        self._depth = 0

    def parse(self) -> Expression:
        expression = self._or()
        if self._token.kind != "end":
            raise self._error(f"'{self._token.text}' is not expected", "Join comparisons with and, or.")
        return expression

    def _scan(self) -> list[_Token]:
        tokens, position = [], 0
        end = len(self._text.rstrip())
        while position < end:
            found = _TOKEN.match(self._text, position)
            if found is None:
                while self._text[position].isspace():
                    position += 1
                raise self._error_at(
                    position, f"'{self._text[position : position + 12]}' cannot be read", "Put strings in quotes."
                )
            kind = cast("str", found.lastgroup)
            tokens.append(_Token(kind, found.group(kind), found.start(kind)))
            position = found.end()
        return [*tokens, _Token("end", "the end", end)]

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _word(self) -> str:
        """The next token if it is a keyword, otherwise the empty string."""
        token = self._token
        word = token.text.lower()
        return word if token.kind == "field" and word in _WORDS else ""

    def _accept(self, *words: str) -> bool:
        """Skip the next token if it is one of these words or signs."""
        if self._word() in words or (self._token.kind == "sign" and self._token.text in words):
            self._next += 1
            return True
        return False

    def _or(self) -> Expression:
        parts = [self._and()]
        while self._accept("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Expression:
        parts = [self._term()]
        while self._accept("and"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _term(self) -> Expression:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error("the brackets are nested too deep", f"At most {_MAX_DEPTH} levels are allowed.")
        try:
            if self._accept("not"):
                return Not(self._term())
            if self._accept("("):
                expression = self._or()
                self._expect(")")
                return expression
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Expression:
        token = self._token
        if token.kind != "field" or self._word():
            raise self._error(f"a field is expected, not {self._shown(token)}", "Write a field, such as metrics.auc")
        self._next += 1
        if token.text == "archived":
            return self._archived()
        try:
            path = field_path(token.text)
        except UsageError as error:
            raise self._error_at(token.at, error.message.removesuffix("."), error.help or "") from None
        at = self._token.at
        comparison = self._operator_and_value(token, path)
        try:
            check_state(comparison)
        except UsageError as error:
            raise self._error_at(at, error.message.removesuffix("."), error.help or "") from None
        return comparison

    def _operator_and_value(self, token: _Token, path: tuple[str, ...]) -> Compare:
        if self._accept("is"):
            negated = self._accept("not")
            if self._token.kind == "number" and self._token.text.lower() == "nan":
                self._next += 1
                return Compare(path, "!=" if negated else "=", math.nan)
            if not self._accept("null", "none"):
                raise self._error(
                    f"null is expected, not {self._shown(self._token)}",
                    "Write: is null, is not null, is nan, is not nan",
                )
            return Compare(path, "is not null" if negated else "is null")
        negated = self._accept("not")
        for word in ("in", "like", "ilike"):
            if self._accept(word):
                op = cast("CompareOp", f"not {word}" if negated else word)
                return Compare(path, op, self._list(path) if word == "in" else self._pattern())
        if negated or self._token.kind != "op":
            raise self._error(
                f"a comparison is expected after '{token.text}', not {self._shown(self._token)}",
                "Use =, !=, <, <=, >, >=, in, like, ilike or is null.",
            )
        sign = self._token.text
        self._next += 1
        if self._accept("null", "none"):
            if sign in ("=", "=="):
                return Compare(path, "is null")
            if sign in ("!=", "<>"):
                return Compare(path, "is not null")
            raise self._error("null has no order", "Write: is null, is not null")
        at = self._token.at
        value = self._value(path)
        if is_nan(value) and sign in ("<", "<=", ">", ">="):
            raise self._error_at(at, "nan has no order", "Write: = nan, != nan, is nan, is not nan")
        return Compare(path, cast("CompareOp", {"==": "=", "<>": "!="}.get(sign, sign)), value)

    def _archived(self) -> Expression:
        path = ("archived_at",)
        if self._token.kind != "op":
            return Compare(path, "is not null")
        sign = self._token.text
        self._next += 1
        if sign not in ("=", "==", "!=", "<>") or self._word() not in ("true", "false"):
            raise self._error("'archived' can only be compared with true or false", "Write: archived, not archived")
        wanted = self._word() == "true"
        self._next += 1
        return Compare(path, "is not null" if wanted == (sign in ("=", "==")) else "is null")

    def _list(self, path: tuple[str, ...]) -> tuple[Scalar, ...]:
        self._expect("(")
        values: list[Scalar] = []
        while not self._accept(")"):
            if values:
                self._expect(",")
                if self._accept(")"):
                    break
            values.append(self._value(path))
        return tuple(values)

    def _pattern(self) -> str:
        if self._token.kind != "text":
            raise self._error(
                f"a string is expected, not {self._shown(self._token)}",
                'Put the pattern in quotes; % stands for any characters: "%xgb%".',
            )
        self._next += 1
        return _unquoted(self._tokens[self._next - 1].text)

    def _value(self, path: tuple[str, ...]) -> Scalar:
        token = self._token
        if token.kind == "field" and self._word() in ("true", "false"):
            self._next += 1
            return self._previous_word() == "true"
        if token.kind not in ("text", "number", "span"):
            raise self._error(
                f"a string, number or time is expected, not {self._shown(token)}", 'Put strings in quotes: "a b".'
            )
        self._next += 1
        if path[0] in TIMES:
            return self._time(token)
        if token.kind == "text":
            return _unquoted(token.text)
        if token.kind == "span":
            return parse_duration(token.text).total_seconds()
        return int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text)

    def _previous_word(self) -> str:
        return self._tokens[self._next - 1].text.lower()

    def _time(self, token: _Token) -> datetime:
        text = _unquoted(token.text) if token.kind == "text" else token.text
        try:
            moment = datetime.fromisoformat(text.strip())
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except ValueError:
            pass
        try:
            span = parse_duration(text.strip().lower().removesuffix("ago").removeprefix("-"))
            if self._now is None:
                raise UsageError("durations need the present time")
            return self._now - span
        except (UsageError, OverflowError):
            raise self._error_at(
                token.at,
                f"'{text}' is not a time",
                'Write "2026-03-01", "2026-03-01T12:00", or a duration before now, such as "7d".',
            ) from None

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise self._error(f"'{sign}' is expected, not {self._shown(self._token)}", "Close every bracket.")

    def _shown(self, token: _Token) -> str:
        return token.text if token.kind == "end" else f"'{token.text}'"

    def _error(self, message: str, help: str) -> UsageError:
        return self._error_at(self._token.at, message, help)

    def _error_at(self, at: int, message: str, help: str) -> UsageError:
        end = "" if message.endswith((".", "?")) else "."
        return UsageError(f"In the filter at character {at + 1}: {message}{end} Filter: {self._text[:200]}", help=help)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "`":
        return text[1:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text
