"""How a run is displayed in a notebook and in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.stores.printable import html_text, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.records import Json, Run

_MAX_PARAMS = 30
_MAX_CHARACTERS = 120


def html_of(run: Run, params: Mapping[str, Json], *, ended: bool) -> str:
    """A small HTML table. All values from users are escaped."""
    cells = [(html_text(name), html_text(value)) for name, value in _lines(run, params)]
    rows = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)
    state = "ended" if ended else "running"
    return f"<table><caption><b>{html_text(run.name)}</b> ({state})</caption><tbody>{rows}</tbody></table>"


def panel_of(run: Run, params: Mapping[str, Json], *, ended: bool) -> object:
    """The same as a panel of rich."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in _lines(run, params):
        grid.add_row(Text(printable(name, breaks=False), style="dim"), Text(printable(value, breaks=False)))
    state = "ended" if ended else "running"
    return Panel(grid, title=Text(f"{printable(run.name, breaks=False)} ({state})"), expand=False)


def _lines(run: Run, params: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    yield "run", run.id
    yield "started", f"{run.started_at:%Y-%m-%d %H:%M:%S} UTC"
    if run.parent is not None:
        yield "part of", run.parent
    for name, value in list(params.items())[:_MAX_PARAMS]:
        yield name, str(value)[:_MAX_CHARACTERS]
    if len(params) > _MAX_PARAMS:
        yield "…", f"and {len(params) - _MAX_PARAMS} more parameters"
