"""No regular expression of ours takes more than linear time, whatever a client sends.

Every pattern in the sources is read as Python's own engine reads it. For each repetition in it, texts are made that
reach that repetition, feed it for very long, and then fail: what is called a ReDoS generator. A pattern that is
quadratic takes seconds of processor time on such a text where a linear one takes milliseconds, so the limit between
the two is far from either.
"""

from __future__ import annotations

import ast
import importlib
import re
import re._constants as codes  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import everloop

SOURCES = Path(everloop.__file__).parent
LENGTH = 100_000
LIMIT_S = 0.4
"""Processor seconds for all texts of one repetition. Linear patterns need about a thirtieth of it."""
APART = {"cli", "demo", "testing"}
"""Rooms that see no text of a client's."""
METHODS = {"match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
SAMPLES = " a0A.-_\"'`\\/:,;=(){}[]<>\n\t\0é"


class SlowPatternError(AssertionError):
    pass


class limited:  # noqa: N801 - reads as a verb
    """Fails where the block takes more than `LIMIT_S` of processor time. Python's engine lets signals in."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGVTALRM, self._stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, self.before)

    def _stop(self, *_: object) -> None:
        raise SlowPatternError(f"more than linear: {self.what}")


def attacks(pattern: str, flags: int) -> Iterator[str]:
    """Texts that reach each repetition, repeat what it repeats, and then end in something else."""
    for before, body in repetitions(list(parser.parse(pattern, flags)), ""):
        for pump in pumps(body, flags):
            fed = before + pump * (LENGTH // len(pump))
            for end in ("", "\0", "!x", "x", " b", ".-", "\n\0"):
                yield fed + end


def repetitions(items: list[Any], before: str) -> Iterator[tuple[str, list[Any]]]:
    """Each unbounded repetition with a shortest text that leads to it."""
    for op, value in items:
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            _, most, body = value
            yield from repetitions(list(body), before)
            if most > 1000:
                yield before, list(body)
        else:
            for inside in branches(op, value):
                yield from repetitions(inside, before)
        before += shortest([(op, value)])


def branches(op: Any, value: Any) -> list[list[Any]]:
    if op is codes.SUBPATTERN:
        return [list(value[-1])]
    if op is codes.BRANCH:
        return [list(one) for one in value[1]]
    if op is codes.ATOMIC_GROUP:
        return [list(value)]
    if op is codes.ASSERT:
        return [list(value[1])]
    return []


def shortest(items: list[Any]) -> str:
    text = ""
    for op, value in items:
        if op is codes.LITERAL:
            text += chr(value)
        elif op in (codes.IN, codes.NOT_LITERAL, codes.ANY):
            text += next((sign for sign in SAMPLES[1:] if matches(op, value, sign)), "a")
        elif op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            text += shortest(list(value[2])) * value[0]
        elif op is not codes.ASSERT and (inside := branches(op, value)):
            text += min(map(shortest, inside), key=len)
    return text


def pumps(body: list[Any], flags: int) -> list[str]:
    """What a repetition's body takes: its shortest text, and each sample sign if the body takes single signs."""
    compiled = [sign for sign in SAMPLES if any(matches(op, value, sign) for op, value in flat(body))]
    return list(dict.fromkeys(one for one in (shortest(body), *compiled) if one))


def flat(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    for op, value in items:
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
            yield from flat(list(value[2]))
        elif inside := branches(op, value):
            for one in inside:
                yield from flat(one)
        else:
            yield op, value


def matches(op: Any, value: Any, sign: str) -> bool:
    if op is codes.LITERAL:
        return chr(value) == sign
    if op is codes.NOT_LITERAL:
        return chr(value) != sign
    if op is codes.ANY:
        return sign != "\n"
    if op is not codes.IN:
        return False
    denied, found = False, False
    for kind, what in value:
        if kind is codes.NEGATE:
            denied = True
        elif kind is codes.LITERAL:
            found |= chr(what) == sign
        elif kind is codes.RANGE:
            found |= what[0] <= ord(sign) <= what[1]
        elif kind is codes.CATEGORY:
            found |= re.match(_CATEGORIES[what], sign) is not None
    return found != denied


_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}


def patterns() -> dict[tuple[str, int, str], str]:
    """Every pattern in the sources, with its flags and the method that it is used by, and a module that has it."""
    found: dict[tuple[str, int, str], str] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).parts
        text = path.read_text(encoding="utf-8")
        if parts[0] in APART or not re.search(r"^import re$", text, re.MULTILINE):
            continue
        name = ".".join(["everloop", *parts]).removesuffix(".py").removesuffix(".__init__")
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            match call:
                case ast.Call(ast.Attribute(ast.Name("re"), attr), [ast.Constant(str(pattern)), *_]) if attr in METHODS:
                    flags = eval(_flags(call), {"re": re})  # noqa: S307 - our own sources
                    found.setdefault((pattern, int(flags), attr), name)
        for kept in re.findall(r"^(\w+)(?:: [^=\n]+)? = re\.compile\(", text, re.MULTILINE):
            compiled = getattr(importlib.import_module(name), kept)
            flags = compiled.flags & ~re.UNICODE if isinstance(compiled.pattern, str) else compiled.flags
            uses = set(re.findall(rf"\b{kept}\.({'|'.join(METHODS)})\(", text)) or {"fullmatch", "search"}
            for use in sorted(uses):
                pattern = compiled.pattern if isinstance(compiled.pattern, str) else compiled.pattern.decode("latin-1")
                found.setdefault((pattern, flags, use), name)
    return found


def _flags(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "flags":
            return ast.unparse(keyword.value)
    position = {"sub": 4, "split": 3}.get(call.func.attr, 2)  # type: ignore[attr-defined]
    return ast.unparse(call.args[position]) if len(call.args) > position else "0"


PATTERNS = patterns()


def as_parameter(pattern: str, flags: int, use: str) -> Any:
    """A pattern with many repetitions and letters takes seconds."""
    found = repetitions(list(parser.parse(pattern, flags)), "")
    many = sum(len(pumps(body, flags)) for _, body in found) > 50
    name = f"{PATTERNS[pattern, flags, use]}:{use}"
    return pytest.param(pattern, flags, use, id=name, marks=[pytest.mark.slow] if many else [])


@pytest.mark.parametrize(("pattern", "flags", "use"), [as_parameter(*one) for one in PATTERNS])
def test_every_pattern_is_linear(pattern: str, flags: int, use: str) -> None:
    try_all(pattern, flags, use)


@pytest.mark.slow
def test_patterns_that_are_not_linear_are_noticed() -> None:
    slow = (r"\s*(.+?)(?:\s+(asc|desc))?\s*", r"\d+\.?\d*", r"(a|a)*b", r"x*y", r".*a.*b.*c")
    for pattern in slow:
        with pytest.raises(SlowPatternError):
            try_all(pattern, 0, "search" if pattern == "x*y" else "fullmatch")
    assert len(PATTERNS) > 50


def try_all(pattern: str, flags: int, use: str) -> None:
    compiled = re.compile(pattern, flags)
    run = {"sub": partial(compiled.sub, "")}.get(use, getattr(compiled, use))
    for text in attacks(pattern, flags):
        with limited(f"{pattern!r} by {use} on {text[:40]!r}…{text[-10:]!r}"):
            run(text)
