"""Print results and errors: a table for people, or JSON for machines.

Results go to standard output and everything else to standard error, so that a pipe receives results only. Names,
messages and descriptions are untrusted text: control characters in them are escaped wherever text goes to a terminal.
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

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Home = Annotated[Path | None, typer.Option("--home", help="Store folder. Default: as set in everloop.toml.")]
ProjectFolder = Annotated[
    Path | None,
    typer.Option("--dir", help="Project folder. Default: the nearest one, from here upwards, with a loop.py."),
]
EndpointName = Annotated[str, typer.Argument(help="Name of the endpoint.")]
OnlyEndpoint = Annotated[str | None, typer.Argument(help="Show only this endpoint. Default: all.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
MaxBytes = Annotated[
    int | None,
    typer.Option(min=1, help="Limit for the unpacked size, in bytes. Default: 100 times the size of the file."),
]

PROSE = ("why", "what", "evidence", "metrics", "routes", "trigger", "answered by", "by", "answers", "votes")
"""Columns whose text may wrap."""


_SIGNS = str.maketrans("", "", ",.-+%")
PIPE_COLUMNS = 180
PROSE_COLUMNS = 20
ROOMY_COLUMNS = 40
LONGEST_WORD = 40
_CONTROL_CHARACTERS = (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_JSON_ESCAPES = {number: f"\\u{number:04x}" for number in _CONTROL_CHARACTERS}
"""JSON itself escapes the other control characters. The characters here can occur only inside strings."""


@lru_cache(maxsize=1)
def console() -> Console:
    """Return the console for results, on standard output."""
    return _console(stderr=False)


@lru_cache(maxsize=1)
def messages() -> Console:
    """Return the console for progress and remarks, on standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    import os

    from rich.console import Console as RichConsole

    class Console(RichConsole):
        """Escapes terminal control characters in every text that it prints; its own colours are not affected."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    stream = sys.stderr if stderr else sys.stdout
    # Rich itself would still print bold and italic text.
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    # A pipe has no line width: prose is not wrapped, and tables may be wide.
    if stream.isatty() or "COLUMNS" in os.environ:
        return Console(stderr=stderr, highlight=False, emoji=False, color_system=colours)
    return Console(
        stderr=stderr, highlight=False, emoji=False, soft_wrap=True, width=PIPE_COLUMNS, color_system=colours
    )


def emit(value: Any, as_json: bool, draw: Callable[[], None]) -> None:
    """Print `value` as JSON, or call `draw`."""
    if as_json:
        sys.stdout.write(to_json(value) + "\n")
    else:
        draw()


def to_json(value: Any) -> str:
    """Encode `value` as indented JSON. Accepts records, times and paths; NaN and infinities become null."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(_plain(value)), indent=2).decode().translate(_JSON_ESCAPES)


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
    """Print a table, or the message `empty` if there are no rows.

    If the terminal is too narrow, the columns in `spare` are left out. If that is not enough, each row becomes a block
    of lines, so that nothing is cut off. Text wraps only in the columns in `wrap` and in `PROSE`.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows = [[cell(item) for item in row] for row in rows]
    if not rows:
        console().print(empty)
        return
    wraps = {*PROSE, *wrap}
    # Spare columns are shown only if the prose columns stay wide enough to read comfortably.
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
        no_wrap = column not in wraps
        drawn.add_column(escape(column), justify=justify, overflow="fold", no_wrap=no_wrap, min_width=least[index])
    for row in rows:
        drawn.add_row(*(row[index] for index in shown))
    console().print(drawn)


def _least_width(column: str, cells: Sequence[str], room: int | None) -> int:
    """Return the smallest readable width of a column, in characters.

    Args:
        room: the width in which text may wrap; None if it must not wrap.
    """
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
    """Print one record: its title, then one line per name and value. Empty values are left out."""
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
    """Format one value for people, as rich markup."""
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
    """Print a line of plain text; control characters in it are escaped."""
    typer.echo(printable(str(text)), nl=nl, err=err)


def short(id: str) -> str:
    """Shorten an id for display: commands accept any unique prefix."""
    return id[:18] if len(id) == 36 else id


def unique_prefixes(ids: Sequence[str]) -> dict[str, str]:
    """Shorten ids as far as they stay unique: ids of one moment share a long prefix."""
    shortened = {}
    for each in ids:
        length = len(short(each))
        while length < len(each) and sum(other.startswith(each[:length]) for other in ids) > 1:
            length += 1
        shortened[each] = each[:length]
    return shortened


def count(number: int, noun: str) -> str:
    """Format a count with its noun in the right number: `1 run`, `2,000 runs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def main_metrics(metrics: dict[str, float]) -> str:
    """Format the first two quality metrics of a version or run."""
    shown = {name: value for name, value in metrics.items() if not name.endswith(("_rows", "trials"))}
    return "  ".join(f"{name} {value:.3f}" for name, value in list(shown.items())[:2])


def _is_number(text: str) -> bool:
    return text == "-" or text.translate(_SIGNS).strip().isdigit()


def report(error: EverloopError, as_json: bool) -> None:
    """Print an error and its help."""
    if as_json:
        content = {"error": {"type": type(error).__name__, "message": error.message, "help": error.help}}
        sys.stdout.write(to_json(content) + "\n")
        return
    from rich.markup import escape

    messages().print(f"[bold red]Error:[/bold red] {escape(error.message)}")
    if error.help:
        messages().print(f"  {escape(error.help)}")


def opened(home: Path | None, *, create: bool = False) -> Store:
    """Open the store that a command works on."""
    from everloop.stores import open_store

    return open_store(home, create=create)
