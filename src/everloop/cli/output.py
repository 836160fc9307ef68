"""How commands speak: one result, as a table for people or as JSON for machines, and errors that help.

Results go to standard output, everything else to standard error, so that a pipe gets results only. Names, messages
and descriptions come from others: control characters and the like are spelled out, wherever a text goes to a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from everloop.errors import EverloopError
from everloop.stores.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from everloop.stores import Store

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value for machines.")]
Home = Annotated[Path | None, typer.Option("--home", help="The store's folder. Default: as everloop.toml says.")]
MaxBytes = Annotated[
    int | None,
    typer.Option(min=1, help="How much your own file may unpack to. Default: a hundred times its size."),
]

PROSE = ("why", "what", "evidence", "metrics", "routes", "trigger", "answered by", "by", "answers")
"""Columns whose text may wrap."""


_SIGNS = str.maketrans("", "", ",.-+%")
PIPE_COLUMNS = 180
PROSE_COLUMNS = 20
ROOMY_COLUMNS = 40
LONGEST_WORD = 40
_OBEYED = (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SPELLED = {number: f"\\u{number:04x}" for number in _OBEYED}
"""JSON escapes the other control characters by itself. These stand in strings only."""


@lru_cache(maxsize=1)
def console() -> Console:
    """Standard output."""
    return _console(stderr=False)


@lru_cache(maxsize=1)
def messages() -> Console:
    """Standard error: progress and remarks."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    import os

    from rich.console import Console as RichConsole

    class Console(RichConsole):
        """Spells out what a terminal would obey in every text that it is given; its own colours are not texts."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    # In a pipe nobody's lines end at column 80: prose is not broken, and tables get room.
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(stderr=stderr, highlight=False, emoji=False)
    return Console(stderr=stderr, highlight=False, emoji=False, soft_wrap=True, width=PIPE_COLUMNS)


def emit(value: Any, as_json: bool, draw: Callable[[], None]) -> None:
    """Print `value` as JSON, or call `draw`."""
    if as_json:
        sys.stdout.write(to_json(value) + "\n")
    else:
        draw()


def to_json(value: Any) -> str:
    """Records, times and paths included; NaN and infinities become null."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(_plain(value)), indent=2).decode().translate(_SPELLED)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        key = getattr(value, "key", None)
        return plain if key is None or key == plain.get("id") else {"key": key, **plain}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    empty: str,
    spare: Sequence[str] = (),
    wrap: Sequence[str] = (),
) -> None:
    """Draw a table; `empty` says what to do when there is nothing to show.

    Where the terminal is too narrow for it, the columns in `spare` are left out; if that does not help, each row
    becomes a block of lines, so that nothing is cut off. Text in the columns in `wrap`, and in prose, may wrap.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows = [[cell(item) for item in row] for row in rows]
    if not rows:
        console().print(empty)
        return
    wraps = {*PROSE, *wrap}
    # What can be spared stays only where prose keeps the room that reading it well takes.
    for left_out, room in (((), ROOMY_COLUMNS), (spare, PROSE_COLUMNS)) if spare else (((), PROSE_COLUMNS),):
        shown = [index for index, column in enumerate(columns) if column not in left_out]
        least = {
            index: _least_width(columns[index], [row[index] for row in rows], room if columns[index] in wraps else None)
            for index in shown
        }
        if sum(least.values()) + 3 * len(shown) - 1 <= console().width:
            break
    else:
        _blocks(title, columns, rows)
        return
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    for index in shown:
        column = columns[index]
        numeric = all(_is_number(row[index]) for row in rows)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        whole = column not in wraps
        drawn.add_column(escape(column), justify=justify, overflow="fold", no_wrap=whole, min_width=least[index])
    for row in rows:
        drawn.add_row(*(row[index] for index in shown))
    console().print(drawn)


def _least_width(column: str, cells: Sequence[str], room: int | None) -> int:
    """The width below which a column cannot be read: prose may wrap in so much `room`, all else stays in one piece."""
    from rich.text import Text

    texts = [Text.from_markup(cell).plain for cell in cells]
    longest = max(len(text) for text in texts)
    if room is None:
        return max(len(column), longest)
    word = max((len(word) for text in texts for word in text.split()), default=0)
    return max(len(column), min(longest, max(room, min(word, LONGEST_WORD))))


def _blocks(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console().print(f"[italic]{escape(title)}[/italic]\n")
    for first, *others in rows:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, text in zip(columns[1:], others, strict=True):
            if text not in ("", "-"):
                grid.add_row(f"  {escape(name)}", text)
        console().print(f"[bold]{first}[/bold]")
        console().print(grid)
        console().print()


def facts(title: str, pairs: Iterable[tuple[str, Any]]) -> None:
    """Draw one thing: its name, then a line a fact."""
    from rich.markup import escape
    from rich.table import Table

    console().print(f"[bold]{escape(printable(title, breaks=False))}[/bold]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value not in (None, "", {}, [], ()):
            grid.add_row(f"  {escape(printable(str(name), breaks=False))}", cell(value))
    console().print(grid)


def cell(value: Any) -> str:
    """One value as people read it, as markup."""
    from rich.markup import escape

    return escape(printable(_plain_text(value), breaks=False))


def _plain_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "  ".join(f"{name}={_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain_text(item) for item in value)
    return str(value)


def say(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print a line of plain text; control characters in it are spelled out."""
    typer.echo(printable(str(text)), nl=nl, err=err)


def short(id: str) -> str:
    """As much of an id as people need: commands take any beginning of it that is unique."""
    return id[:18] if len(id) == 36 else id


def main_metrics(metrics: dict[str, float]) -> str:
    """The first few of a version's or run's quality metrics."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(("_rows", "trials"))}
    return "  ".join(f"{name} {value:.3f}" for name, value in list(shown.items())[:2])


def _is_number(text: str) -> bool:
    return text == "-" or text.translate(_SIGNS).strip().isdigit()


def report(error: EverloopError, as_json: bool) -> None:
    """Print an error and the way out."""
    if as_json:
        content = {"error": {"type": type(error).__name__, "message": error.message, "help": error.help}}
        sys.stdout.write(to_json(content) + "\n")
        return
    from rich.markup import escape

    messages().print(f"[bold red]Error:[/bold red] {escape(error.message)}")
    if error.help:
        messages().print(f"  {escape(error.help)}")


def opened(home: Path | None, *, create: bool = False) -> Store:
    """The store that a command speaks about."""
    from everloop.stores import open_store

    return open_store(home, create=create)
