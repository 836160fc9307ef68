"""The comments that people wrote into a TOML file, so that they are kept when the file is written again.

A comment belongs to the next key or table, or to the key on its line. After the last key of a table, comments up to the
first blank line belong to the end of that table:

    [[columns]]                    # beside the table
    # above the key
    name = "age"                   # beside the key
    # at the end of the table

    # above the next table
    [[columns]]
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger("everloop.data")

Path = tuple[str, ...]
"""Where a key or table is: the names of its tables, and its own."""


@dataclass
class TomlComments:
    """Comments and values of a file, each by its path."""

    above: dict[Path, list[str]] = field(default_factory=dict)
    beside: dict[Path, str] = field(default_factory=dict)
    """With the spaces before them."""
    at_end: dict[Path, list[str]] = field(default_factory=dict)
    """By the path of the table. The path `("", "")` is the end of the file."""
    values: dict[Path, tuple[Any, str]] = field(default_factory=dict)
    """The values that are not tables, as Python objects and as they are written, which may be on several lines."""

    def line(self, path: Path, text: str) -> list[str]:
        """The line of a key or table with its comments. Each comment is returned once."""
        array = path[:-1]
        # An array of inline tables may become several tables. Its comments come before the first one.
        of_array = [*self.above.pop(array, ()), self.beside.pop(array, "").strip()]
        above = [*filter(None, of_array), *self.above.pop(path, ())]
        return [*above, f"{text}{self.beside.pop(path, '')}"]

    def end(self, table: Path) -> list[str]:
        """The comments at the end of a table."""
        return self.at_end.pop(table, [])


END = ("", "")


def read_comments(text: str, name_of: Callable[[str, Mapping[str, Any]], str], ignored: set[str]) -> TomlComments:
    """Collect the comments of a TOML text.

    Args:
        name_of: names an element of an array of tables, from the name of the array and the element.
        ignored: comments that are left out, because the file gets them again.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError
    from tomlkit.items import AoT, Comment, Table, Whitespace

    found = TomlComments()
    waiting: list[str] = []
    table: Path = ()

    def take() -> list[str]:
        taken = [line for line in waiting if line not in ignored]
        waiting.clear()
        return _tidied(taken)

    def close_table() -> None:
        """Give the comments that follow the last key without a blank line to the table that ends here."""
        if waiting and waiting[0] and "" in waiting:
            blank = waiting.index("")
            found.at_end[table] = waiting[:blank]
            del waiting[:blank]

    def note(path: Path, item: Any) -> None:
        if above := take():
            found.above.setdefault(path, above)
        if item.trivia.comment:
            found.beside.setdefault(path, f"{item.trivia.comment_ws or ' '}{item.trivia.comment}")

    def enter(path: Path, item: Table) -> None:
        nonlocal table
        if not item.is_super_table():
            close_table()
            note(path, item)
            table = path
        walk(item.value.body, path)

    def walk(body: list[tuple[Any, Any]], path: Path) -> None:
        for key, item in body:
            if isinstance(item, Whitespace):
                waiting.extend([""] if "\n" in item.s else [])
            elif isinstance(item, Comment):
                waiting.append(item.trivia.comment)
            elif isinstance(item, AoT):
                for element in item.body:
                    enter((*path, key.key, name_of(key.key, element.unwrap())), element)
            elif isinstance(item, Table):
                enter((*path, key.key), item)
            elif key is not None:
                note((*path, key.key), item)
                found.values[*path, key.key] = item.unwrap(), item.as_string()

    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        _log.warning("The comments of the file were not kept, because they cannot be read: %s", error)
        return found
    walk(document.body, ())
    if waiting:
        waiting.append("")
        close_table()
    if rest := take():
        found.at_end[END] = rest
    return found


def _tidied(lines: list[str]) -> list[str]:
    """The lines without blank ones at the start and the end, and with at most one between others."""
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return kept[:-1] if kept and not kept[-1] else kept
