"""The language in which people search for runs, and how it becomes an expression.

    metrics.auc > 0.9 and (params.lr < 0.01 or tags.team in ("a", "b")) and not archived
    started_at > "7d" and name ilike "%xgb%" and tags.`my tag` is not null

Fields are `name state loop trigger parent started_at ended_at seconds archived id project`, and `metrics.<name>`,
`params.<name>`, `tags.<name>`; a name with spaces stands in "…" or `…`. Operations are `= == != < <= > >=`, `in`,
`like`, `ilike`, `is null`, `is nan`, each of the last five also with `not`. `and` binds closer than `or`. A time is an
ISO text, or a span back from now: `7d`, "12h". Whether a number or a text is compared is said by the constant: `0.1`
compares numbers, "0.1" compares texts. `nan`, `inf` and `-inf` are numbers: `metrics.loss = nan` holds where the loss
is NaN. A state that does not exist is an error.
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
_DEPTH = 100
_LENGTH = 20_000

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
    """The expression that a text spells; the empty text holds for every run.

    Args:
        now: from when spans of time count back; without it the text may name none.

    Raises:
        UsageError: the text does not follow the language; the message says where.
    """
    if len(text) > _LENGTH:
        raise UsageError(f"A filter of {len(text):,} characters is too long.", help=f"At most {_LENGTH:,}.")
    if not text.strip():
        return And(())
    return _Parser(text, now).parse()


def field_path(name: str) -> tuple[str, ...]:
    """The path of a field as people write it: `started_at`, `metrics.auc`, ``tags.`my tag` ``.

    Raises:
        UsageError: runs have no such field; the message names the nearest.
    """
    head, dot, rest = name.partition(".")
    head = _ALIASES.get(head, head)
    if head in MAPS:
        key = _unquoted(rest)
        if not key:
            raise UsageError(f"'{name[:100]}' names no single value.", help=f"Write {head}.<name>, such as {head}.x")
        return (head, key)
    if not dot and (head in FIELDS or head in TIMES):
        return (head,)
    near = get_close_matches(head, [*FIELDS, *TIMES, *MAPS, "archived"], n=3)
    raise UsageError(
        f"A run has no field '{name[:100]}'." + (f" Nearest: {', '.join(near)}." if near else ""),
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
    """Refuse a comparison with a state that no run ever has, rather than find nothing.

    Raises:
        UsageError: it is one; the message lists the states.
    """
    if compare.path != ("state",) or compare.op not in ("=", "!=", "in", "not in"):
        return
    for value in compare.value if isinstance(compare.value, tuple) else (compare.value,):
        if value not in STATES:
            near = get_close_matches(str(value).lower(), STATES, n=1)
            raise UsageError(
                f"There is no state {value!r}." + (f" Nearest: {near[0]}." if near else ""),
                help=f"States: {', '.join(STATES)}",
            )


class _Parser:
    """Recursive descent over the tokens; one token of look-ahead."""

    def __init__(self, text: str, now: datetime | None) -> None:
        self._text = text
        self._now = now
        self._tokens = list(self._scan())
        self._next = 0
        self._depth = 0

    def parse(self) -> Expression:
        found = self._either()
        if self._token.kind != "end":
            raise self._wrong(f"'{self._token.text}' is not expected", "Join comparisons by and, or.")
        return found

    def _scan(self) -> list[_Token]:
        tokens, at = [], 0
        end = len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                while self._text[at].isspace():
                    at += 1
                raise self._fault(at, f"'{self._text[at : at + 12]}' cannot be read", "Put texts in quotes.")
            kind = cast("str", found.lastgroup)
            tokens.append(_Token(kind, found.group(kind), found.start(kind)))
            at = found.end()
        return [*tokens, _Token("end", "the end", end)]

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _word(self) -> str:
        """The keyword that comes next, or the empty text."""
        token = self._token
        word = token.text.lower()
        return word if token.kind == "field" and word in _WORDS else ""

    def _took(self, *words: str) -> bool:
        if self._word() in words or (self._token.kind == "sign" and self._token.text in words):
            self._next += 1
            return True
        return False

    def _either(self) -> Expression:
        parts = [self._all()]
        while self._took("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Expression:
        parts = [self._one()]
        while self._took("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Expression:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self._wrong("the brackets are too deep", f"At most {_DEPTH}.")
        try:
            if self._took("not"):
                return Not(self._one())
            if self._took("("):
                found = self._either()
                self._expect(")")
                return found
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Expression:
        token = self._token
        if token.kind != "field" or self._word():
            raise self._wrong(f"a field is expected, not {self._shown(token)}", "Begin with one, such as metrics.auc")
        self._next += 1
        if token.text == "archived":
            return self._archived()
        try:
            path = field_path(token.text)
        except UsageError as error:
            raise self._fault(token.at, error.message.removesuffix("."), error.help or "") from None
        at = self._token.at
        found = self._compared(token, path)
        try:
            check_state(found)
        except UsageError as error:
            raise self._fault(at, error.message.removesuffix("."), error.help or "") from None
        return found

    def _compared(self, token: _Token, path: tuple[str, ...]) -> Compare:
        if self._took("is"):
            denied = self._took("not")
            if self._token.kind == "number" and self._token.text.lower() == "nan":
                self._next += 1
                return Compare(path, "!=" if denied else "=", math.nan)
            if not self._took("null", "none"):
                raise self._wrong(
                    f"null is expected, not {self._shown(self._token)}",
                    "Write: is null, is not null, is nan, is not nan",
                )
            return Compare(path, "is not null" if denied else "is null")
        denied = self._took("not")
        for word in ("in", "like", "ilike"):
            if self._took(word):
                op = cast("CompareOp", f"not {word}" if denied else word)
                return Compare(path, op, self._several(path) if word == "in" else self._pattern())
        if denied or self._token.kind != "op":
            raise self._wrong(
                f"a comparison is expected after '{token.text}', not {self._shown(self._token)}",
                "Use =, !=, <, <=, >, >=, in, like, ilike or is null.",
            )
        sign = self._token.text
        self._next += 1
        if self._took("null", "none"):
            if sign in ("=", "=="):
                return Compare(path, "is null")
            if sign in ("!=", "<>"):
                return Compare(path, "is not null")
            raise self._wrong("null has no order", "Write: is null, is not null")
        at = self._token.at
        value = self._value(path)
        if is_nan(value) and sign in ("<", "<=", ">", ">="):
            raise self._fault(at, "nan has no order", "Write: = nan, != nan, is nan, is not nan")
        return Compare(path, cast("CompareOp", {"==": "=", "<>": "!="}.get(sign, sign)), value)

    def _archived(self) -> Expression:
        path = ("archived_at",)
        if self._token.kind != "op":
            return Compare(path, "is not null")
        sign = self._token.text
        self._next += 1
        if sign not in ("=", "==", "!=", "<>") or self._word() not in ("true", "false"):
            raise self._wrong("'archived' is true or false", "Write: archived, not archived")
        wanted = self._word() == "true"
        self._next += 1
        return Compare(path, "is not null" if wanted == (sign in ("=", "==")) else "is null")

    def _several(self, path: tuple[str, ...]) -> tuple[Scalar, ...]:
        self._expect("(")
        found: list[Scalar] = []
        while not self._took(")"):
            if found:
                self._expect(",")
                if self._took(")"):
                    break
            found.append(self._value(path))
        return tuple(found)

    def _pattern(self) -> str:
        if self._token.kind != "text":
            raise self._wrong(f"a text is expected, not {self._shown(self._token)}", "Write % for any characters.")
        self._next += 1
        return _unquoted(self._tokens[self._next - 1].text)

    def _value(self, path: tuple[str, ...]) -> Scalar:
        token = self._token
        if token.kind == "field" and self._word() in ("true", "false"):
            self._next += 1
            return self._word_before() == "true"
        if token.kind not in ("text", "number", "span"):
            raise self._wrong(
                f"a text, number or time is expected, not {self._shown(token)}", 'Put texts in quotes: "a b".'
            )
        self._next += 1
        if path[0] in TIMES:
            return self._time(token)
        if token.kind == "text":
            return _unquoted(token.text)
        if token.kind == "span":
            return parse_duration(token.text).total_seconds()
        return int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text)

    def _word_before(self) -> str:
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
                raise UsageError("there is no now to count back from")
            return self._now - span
        except (UsageError, OverflowError):
            raise self._fault(
                token.at, f"'{text}' is no time", 'Write "2026-03-01", "2026-03-01T12:00" or a span back, "7d".'
            ) from None

    def _expect(self, sign: str) -> None:
        if not self._took(sign):
            raise self._wrong(f"'{sign}' is expected, not {self._shown(self._token)}", "Close every bracket.")

    def _shown(self, token: _Token) -> str:
        return token.text if token.kind == "end" else f"'{token.text}'"

    def _wrong(self, what: str, help: str) -> UsageError:
        return self._fault(self._token.at, what, help)

    def _fault(self, at: int, what: str, help: str) -> UsageError:
        return UsageError(f"In the filter at character {at + 1}: {what}. Filter: {self._text[:200]}", help=help)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "`":
        return text[1:-1]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text
