"""Which values a request may hold, whatever its route: checked once, where a body, a path or a query is read.

A text that no store can keep (NUL characters, half of a surrogate pair), a number that no float can hold, and JSON
that is nested very deeply are refused with the name of their field. What a route does with its fields need not think
of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_DEPTH = 100
"""Levels of lists and objects."""
MOST_DIGITS = 300
"""Of a whole number; with more it is beyond every float."""
_MOST_NUMBER = 10**MOST_DIGITS

Name = Annotated[str, msgspec.Meta(max_length=600)]
"""A field that names something: a user, a token, a version."""
Text = Annotated[str, msgspec.Meta(max_length=200_000)]
"""A field that people write in."""
Url = Annotated[str, msgspec.Meta(max_length=4_000)]
Secret = Annotated[str, msgspec.Meta(max_length=1_024)]
LONGEST_NAME = 200
"""Characters of a parameter's name in a query."""
LONGEST_PARAMETER = 2000
"""Characters of one part of a path or one value of a query."""
MOST_PARAMETERS = 100


def check_json(value: Any, *, texts: bool = True, depth: int = MOST_DEPTH) -> None:
    """Check what a JSON text was decoded to.

    Args:
        texts: whether texts have to be looked at. Without it only depth and numbers are checked.
        depth: levels of lists and objects.

    Raises:
        UsageError: it holds a value that cannot be used; the message names the field.
    """
    # Without recursion: the value may be as deep as the decoder goes. Each entry knows its parent, for the message.
    root = _Place(None, "", 0)
    stack: list[tuple[Any, _Place]] = [(value, root)]
    if type(value) is not dict and type(value) is not list:
        _check_one(value, root, "", texts)
        return
    while stack:
        held, place = stack.pop()
        is_object = type(held) is dict
        if place.depth >= depth:
            raise UsageError(
                f"'{place.shown()[:200]}' is nested more than {depth} levels deep.", help="Send flatter JSON."
            )
        if is_object and texts:
            for name in held:
                _check_one(name, place, name, texts)
        for name, item in held.items() if is_object else enumerate(held):
            kind = type(item)
            if kind is dict or kind is list:
                if item:
                    stack.append((item, _Place(place, name, place.depth + 1)))
            elif kind is int:
                if not -_MOST_NUMBER < item < _MOST_NUMBER:
                    raise _too_many_digits(place.below(name))
            elif texts and kind is str:
                _check_one(item, place, name, texts)


def check_text(name: str, text: str, most: int = LONGEST_PARAMETER) -> None:
    """Check one text of a path or a query.

    Raises:
        UsageError: it has more than `most` characters, or one that no store can keep.
    """
    if len(text) > most:
        raise UsageError(f"'{name}' has {len(text):,} characters.", help=f"At most {most:,} are taken.")
    if (why := _unkeepable(text)) is not None:
        raise UsageError(f"'{name}' {why}.", help="Leave it out.")


def check_parameters(found: Iterable[tuple[str, str]]) -> None:
    """Check the names and values of a query, or the parts of a path by their names.

    Raises:
        UsageError: there are too many, or one of them cannot be used.
    """
    count = 0
    for name, value in found:
        count += 1
        check_text("the name of a parameter", name, LONGEST_NAME)
        check_text(name, value)
    if count > MOST_PARAMETERS:
        raise UsageError(f"The query has {count:,} parameters.", help=f"At most {MOST_PARAMETERS} are taken.")


class _Place:
    """Where in a JSON text a value is."""

    __slots__ = ("depth", "name", "parent")

    def __init__(self, parent: _Place | None, name: str | int, depth: int) -> None:
        self.parent = parent
        self.name = name
        self.depth = depth

    def shown(self) -> str:
        names: list[str | int] = []
        place: _Place | None = self
        while place is not None and place.parent is not None:
            names.append(place.name)
            place = place.parent
        return "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in reversed(names)).lstrip(".") or "body"

    def below(self, name: str | int) -> str:
        return _Place(self, name, self.depth + 1).shown()


def _check_one(value: Any, place: _Place, name: str | int, texts: bool) -> None:
    if isinstance(value, str) and texts:
        if (why := _unkeepable(value)) is not None:
            shown = place.below(name) if name != "" else place.shown()
            raise UsageError(f"'{_readable(shown)[:200]}' {why}.", help="Leave it out.")
    elif isinstance(value, int) and not isinstance(value, bool) and not -_MOST_NUMBER < value < _MOST_NUMBER:
        raise _too_many_digits(place.shown())


def _unkeepable(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character, which no store can keep"
    if not text.isascii() and not _is_unicode(text):
        return "has half of a surrogate pair, which is not a character"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many_digits(shown: str) -> UsageError:
    return UsageError(f"'{_readable(shown)[:200]}' is a number of more than {MOST_DIGITS} digits.", help="Send a text.")


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
