"""Matching texts with LIKE patterns in Python, in linear time for every pattern.

`%` stands for any characters and `_` for one character. The `%` split a pattern into pieces, and it is always best to
match each piece as early in the text as possible. Plain pieces and short pieces with `_` are found in linear time.
Patterns with longer pieces run as an automaton whose states are the bits of an integer (the Shift-And algorithm of
Baeza-Yates and Gonnet, 1992, with states that stay set at a `%`). It takes one step per character of the text.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import lru_cache

SHORT = 64
"""Length up to which a piece with `_` is compared separately at each position of the text."""
_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def is_like(text: str, pattern: str, *, any_case: bool = False) -> bool:
    """Whether a whole text matches a pattern.

    Args:
        any_case: ignore the case of ASCII letters, as databases do.
    """
    if any_case:
        text, pattern = text.translate(_FOLD), pattern.translate(_FOLD)
    first, *others = pattern.split("%")
    if longest_piece(pattern) > SHORT:
        return _automaton(pattern).accepts(text)
    if not others:
        return len(text) == len(first) and _begins(text, first, 0)
    if not _begins(text, first, 0):
        return False
    at = len(first)
    for part in others[:-1]:
        # The earliest match leaves the most text for the following pieces.
        found = _find(text, part, at)
        if found < 0:
            return False
        at = found + len(part)
    last = len(text) - len(others[-1])
    return last >= at and _begins(text, others[-1], last)


def longest_piece(pattern: str) -> int:
    """Length of the longest piece that contains a `_`, or 0 if there is none."""
    return max((len(piece) for piece in pattern.split("%") if "_" in piece), default=0)


def _begins(text: str, part: str, at: int) -> bool:
    if "_" not in part:
        return text.startswith(part, at)
    return _expression(part).match(text, at) is not None


def _find(text: str, part: str, at: int) -> int:
    if "_" not in part:
        return text.find(part, at)
    found = _expression(part).search(text, at)
    return -1 if found is None else found.start()


@lru_cache(maxsize=256)
def _expression(part: str) -> re.Pattern[str]:
    """A regular expression without repetitions. At each position it takes at most as many steps as its length."""
    return re.compile("".join("." if sign == "_" else re.escape(sign) for sign in part), re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Automaton:
    """Bit n of a state is set if the first n characters of the pattern, without `%`, match the text read so far."""

    takes: dict[str, int]
    """For each character of the pattern, the bits that can be set when it is read."""
    takes_any: int
    """The bits that can be set by any character."""
    keeps: int
    """The bits at a `%`, which stay set."""
    last: int

    def accepts(self, text: str) -> bool:
        state = 1
        takes, takes_any, keeps = self.takes, self.takes_any, self.keeps
        for sign in text:
            state = ((state << 1) & takes.get(sign, takes_any)) | (state & keeps)
            if not state:
                return False
        return bool(state & self.last)


@lru_cache(maxsize=64)
def _automaton(pattern: str) -> _Automaton:
    takes: dict[str, int] = {}
    takes_any = keeps = 0
    at = 0
    for sign in pattern:
        if sign == "%":
            keeps |= 1 << at
            continue
        at += 1
        if sign == "_":
            takes_any |= 1 << at
        else:
            takes[sign] = takes.get(sign, 0) | 1 << at
    return _Automaton({sign: bits | takes_any for sign, bits in takes.items()}, takes_any, keeps, 1 << at)
