"""Checks of request values that hold for every route.

Three kinds of values are refused, with the name of their field: text that no store can keep (NUL characters, unpaired
surrogates), numbers that no float can hold, and deeply nested JSON. Bodies, paths and queries are checked where they
are read, so routes need not repeat it.
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
"""Digits of a whole number. A longer one is larger than every float."""
_MOST_NUMBER = 10**MOST_DIGITS

Name = Annotated[str, msgspec.Meta(max_length=600)]
"""A field that names something: a user, a token, a version."""
Text = Annotated[str, msgspec.Meta(max_length=200_000)]
"""A field of free text."""
Url = Annotated[str, msgspec.Meta(max_length=4_000)]
Secret = Annotated[str, msgspec.Meta(max_length=1_024)]
LONGEST_NAME = 200
"""Characters of a parameter's name in a query."""
LONGEST_PARAMETER = 2000
"""Characters of one part of a path or one value of a query."""
MOST_PARAMETERS = 100


def check_json(value: Any, *, texts: bool = True, depth: int = MOST_DEPTH) -> None:
    """Check a decoded JSON value.

    Args:
        texts: whether to check strings as well. Otherwise only depth and numbers are checked.
        depth: most levels of lists and objects.

    Raises:
        UsageError: a value cannot be used; the message names its field.
    """
    # No recursion, as the value may be as deep as the decoder allows. Each entry knows its parent, for the message.
    root = _Position(None, "", 0)
    stack: list[tuple[Any, _Position]] = [(value, root)]
    if type(value) is not dict and type(value) is not list:
        _check_one(value, root, "", texts)
        return
    while stack:
        container, position = stack.pop()
        is_object = type(container) is dict
        if position.depth >= depth:
            raise UsageError(
                f"'{position.path()[:200]}' is nested more than {depth} levels deep.", help="Send flatter JSON."
            )
        if is_object and texts:
            for name in container:
                _check_one(name, position, name, texts)
        for name, item in container.items() if is_object else enumerate(container):
            kind = type(item)
            if kind is dict or kind is list:
                if item:
                    stack.append((item, _Position(position, name, position.depth + 1)))
            elif kind is int:
                if not -_MOST_NUMBER < item < _MOST_NUMBER:
                    raise _too_many_digits(position.below(name))
            elif texts and kind is str:
                _check_one(item, position, name, texts)


def check_text(name: str, text: str, most: int = LONGEST_PARAMETER) -> None:
    """Check one part of a path or one value of a query.

    Raises:
        UsageError: it has more than `most` characters, or a character that no store can keep.
    """
    if len(text) > most:
        raise UsageError(f"'{name}' has {len(text):,} characters.", help=f"At most {most:,} are allowed.")
    if (why := _unkeepable(text)) is not None:
        raise UsageError(f"'{name}' {why}.", help="Remove that character.")


def check_parameters(found: Iterable[tuple[str, str]]) -> None:
    """Check the names and values of a query's parameters.

    Raises:
        UsageError: there are too many, or one of them cannot be used.
    """
    count = 0
    for name, value in found:
        count += 1
        check_text("the name of a parameter", name, LONGEST_NAME)
        check_text(name, value)
    if count > MOST_PARAMETERS:
        raise UsageError(f"The query has {count:,} parameters.", help=f"At most {MOST_PARAMETERS} are allowed.")


class _Position:
    """The position of a value in a JSON document."""

    __slots__ = ("depth", "name", "parent")

    def __init__(self, parent: _Position | None, name: str | int, depth: int) -> None:
        self.parent = parent
        self.name = name
        self.depth = depth

    def path(self) -> str:
        names: list[str | int] = []
        position: _Position | None = self
        while position is not None and position.parent is not None:
            names.append(position.name)
            position = position.parent
        return "".join(f"[{n}]" if isinstance(n, int) else f".{n}" for n in reversed(names)).lstrip(".") or "body"

    def below(self, name: str | int) -> str:
        return _Position(self, name, self.depth + 1).path()


def _check_one(value: Any, position: _Position, name: str | int, texts: bool) -> None:
    if isinstance(value, str) and texts:
        if (why := _unkeepable(value)) is not None:
            path = position.below(name) if name != "" else position.path()
            raise UsageError(f"'{_readable(path)[:200]}' {why}.", help="Remove that character.")
    elif isinstance(value, int) and not isinstance(value, bool) and not -_MOST_NUMBER < value < _MOST_NUMBER:
        raise _too_many_digits(position.path())


def _unkeepable(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character, which no store can keep"
    if not text.isascii() and not _is_unicode(text):
        return "has an unpaired surrogate, which is not a character"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many_digits(path: str) -> UsageError:
    return UsageError(
        f"'{_readable(path)[:200]}' is a number of more than {MOST_DIGITS} digits.", help="Send it as a string."
    )


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
