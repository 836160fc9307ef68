"""Matching a text with a LIKE pattern, in Python, in a time that no pattern can make long.

`%` stands for any characters and `_` for one. Between its `%` a pattern is a sequence of pieces, and the earliest
place of each is the best one. Plain pieces are found in linear time, and so are short ones with `_`. A pattern with
longer ones runs as an automaton whose states are the bits of one whole number (the Shift-And algorithm of Baeza-Yates
and Gonnet, 1992, with states that stay set at a `%`): each character of the text costs one step, whatever the pattern.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import lru_cache

SHORT = 64
"""Characters of a piece with `_` that are compared anew at each place of the text."""
_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def is_like(text: str, pattern: str, *, any_case: bool = False) -> bool:
    """Whether the whole of a text matches a pattern.

    Args:
        any_case: whether small and capital letters of ASCII are equal, as databases have it.
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
        # The earliest place leaves the most room for what follows.
        found = _find(text, part, at)
        if found < 0:
            return False
        at = found + len(part)
    last = len(text) - len(others[-1])
    return last >= at and _begins(text, others[-1], last)


def longest_piece(pattern: str) -> int:
    """Characters of the longest piece between `%` that has a `_`; 0 where none has."""
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
    """A piece without repetitions: from each place it takes as many steps as it has characters, which are few."""
    return re.compile("".join("." if sign == "_" else re.escape(sign) for sign in part), re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Automaton:
    """Bit n of a state says that the first n characters of the pattern, without its `%`, match what was read."""

    takes: dict[str, int]
    """For a character of the pattern, the bits that are reached by reading it."""
    takes_any: int
    """The bits that any character reaches."""
    keeps: int
    """The bits before which a `%` stands: once set they stay."""
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
