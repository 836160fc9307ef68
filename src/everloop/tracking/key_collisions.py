"""Keys that would become one name: refused, with both named, rather than one value lost without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from everloop.errors import UsageError

Path = tuple[str, ...]


def joined(what: str, values: Mapping[Any, Any] | None, more: Mapping[str, Any]) -> dict[Any, Any]:
    """The values of a dict and of keywords together.

    Raises:
        UsageError: both have a name.
    """
    if not values or not more:
        return dict(values or more)
    both = values.keys() & more.keys()
    if both:
        name = min(both)
        raise UsageError(
            f"The {what} '{name}' is given twice: as {values[name]!r} in the dict and as {more[name]!r} by keyword.",
            help="Give each name once.",
        )
    return {**values, **more}


def collision(what: str, name: str, one: object, other: object) -> UsageError:
    """The error for two keys, as they were written, that become one name."""
    return UsageError(f"The keys {one} and {other} are both the {what} '{name}'.", help="Rename one of them.")


def check_spellings(what: str, values: Mapping[Any, Any], spell: Callable[[Any], str]) -> None:
    """Refuse a dict of which two keys become one text, such as 1 and "1"; `spell` makes the text.

    Raises:
        UsageError: there are two.
    """
    seen: dict[str, object] = {}
    for key in values:
        name = spell(key)
        if name in seen:
            raise collision(what, name, repr(seen[name]), repr(key))
        seen[name] = key


def check_paths(what: str, paths: Iterator[tuple[Path, Any]], signs: str = "/", *, equal: bool = False) -> None:
    """Refuse values whose paths spell one name when they are joined by one of the signs.

    Args:
        paths: where each value is, key by key, and the value.
        equal: let equal values pass.

    Raises:
        UsageError: two paths spell one name.
    """
    seen: dict[tuple[str, str], tuple[Path, Any]] = {}
    for path, value in paths:
        for sign in signs:
            name = sign.join(path)
            known, there = seen.setdefault((sign, name), (path, value))
            if known != path and not (equal and type(there) is type(value) and there == value):
                raise collision(what, name, shown(known), shown(path))


def leaves(values: Mapping[str, Any], before: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value that is not a dict, with its path."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*before, key))
        else:
            yield (*before, key), value


def shown(path: Path) -> str:
    """A path as Python code spells the dict around a value: `{"a": {"b": …}}`."""
    text = "…"
    for key in reversed(path):
        text = f"{{{key!r}: {text}}}"
    return text
