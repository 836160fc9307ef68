"""How a run shows itself in a notebook and in a terminal."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.records import Json, Run

_MOST = 30
_LONGEST = 120


def html_of(run: Run, params: Mapping[str, Json], *, ended: bool) -> str:
    """A small table. Everything that a user gave is escaped."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _lines(run, params))
    state = "ended" if ended else "running"
    return f"<table><caption><b>{escape(run.name)}</b> ({state})</caption><tbody>{rows}</tbody></table>"


def panel_of(run: Run, params: Mapping[str, Json], *, ended: bool) -> object:
    """The same for rich."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(run, params):
        grid.add_row(Text(name, style="dim"), Text(value))
    return Panel(grid, title=Text(f"{run.name} ({'ended' if ended else 'running'})"), expand=False)


def _lines(run: Run, params: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    yield "run", run.id
    yield "started", f"{run.started_at:%Y-%m-%d %H:%M:%S} UTC"
    if run.parent is not None:
        yield "part of", run.parent
    for name, value in list(params.items())[:_MOST]:
        yield name, str(value)[:_LONGEST]
    if len(params) > _MOST:
        yield "…", f"and {len(params) - _MOST} more parameters"
