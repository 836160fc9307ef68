"""Refuses keys that would give the same name: the error names both, instead of one value being lost silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from everloop.errors import UsageError

Path = tuple[str, ...]


def merge_keywords(kind: str, values: Mapping[Any, Any] | None, more: Mapping[str, Any]) -> dict[Any, Any]:
    """Merge the values of a dict and of keyword arguments.

    Args:
        kind: the kind of the values, for messages: `metric`, `parameter`, `tag`.

    Raises:
        UsageError: a name is in both.
    """
    if not values or not more:
        return dict(values or more)
    duplicates = values.keys() & more.keys()
    if duplicates:
        name = min(duplicates)
        raise UsageError(
            f"The {kind} '{name}' is given twice: as {values[name]!r} in the dict and as {more[name]!r} by keyword.",
            help="Pass each name once.",
        )
    return {**values, **more}


def collision(kind: str, name: str, one: object, other: object) -> UsageError:
    """The error for two keys, as the user wrote them, that give the same name."""
    return UsageError(f"The keys {one} and {other} both give the {kind} '{name}'.", help="Rename one of them.")


def check_spellings(kind: str, values: Mapping[Any, Any], spell: Callable[[Any], str]) -> None:
    """Refuse a dict in which two keys give the same string, such as 1 and "1". `spell` makes the string.

    Raises:
        UsageError: two keys do.
    """
    seen: dict[str, object] = {}
    for key in values:
        name = spell(key)
        if name in seen:
            raise collision(kind, name, repr(seen[name]), repr(key))
        seen[name] = key


def check_paths(kind: str, paths: Iterator[tuple[Path, Any]], separators: str = "/", *, equal: bool = False) -> None:
    """Refuse values whose paths give the same name when their keys are joined by one of the separators.

    Args:
        paths: the keys that lead to each value, and the value.
        equal: allow it if the values are equal.

    Raises:
        UsageError: two paths give the same name.
    """
    seen: dict[tuple[str, str], tuple[Path, Any]] = {}
    for path, value in paths:
        for separator in separators:
            name = separator.join(path)
            first_path, first_value = seen.setdefault((separator, name), (path, value))
            if first_path != path and not (equal and type(first_value) is type(value) and first_value == value):
                raise collision(kind, name, shown(first_path), shown(path))


def leaves(values: Mapping[str, Any], before: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value that is not a dict, with its path."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*before, key))
        else:
            yield (*before, key), value


def shown(path: Path) -> str:
    """A path as Python code for the dict around a value: `{"a": {"b": …}}`."""
    text = "…"
    for key in reversed(path):
        text = f"{{{key!r}: {text}}}"
    return text
