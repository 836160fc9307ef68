"""Making the demo's project, and landing each week's files in it as they would arrive."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from everloop.demo.flight_world import BEGINS, OPENS, WEEK, FlightWorld
from everloop.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime
    from importlib.resources.abc import Traversable
    from pathlib import Path

    import polars as pl

MARK = ".everloop-demo"
"""A file that says: this folder was made by the demo, and the demo may go on in it."""


def make_project(folder: Path) -> bool:
    """Write the project's own files; returns whether they were written, or had been before.

    Raises:
        UsageError: the folder holds something that the demo did not make.
    """
    if (folder / MARK).is_file():
        return False
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"The folder '{folder}' is not empty, and the demo did not make it.",
            help="Name another folder: everloop demo DIR",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _copy(files("everloop.demo") / "project", folder)
    (folder / MARK).write_text("Made by `everloop demo`. Run it again to go on from where it stopped.\n", "utf-8")
    return True


def _copy(source: Traversable, target: Path) -> None:
    for entry in source.iterdir():
        if entry.name.startswith("__") or entry.name.endswith(".pyc"):
            continue
        if entry.is_dir():
            (target / entry.name).mkdir(exist_ok=True)
            _copy(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())


def land_history(world: FlightWorld, folder: Path) -> None:
    """Everything that was known when the demo opens: planes, airports, and the weeks before."""
    data = folder / "data"
    _write(world.planes, data / "planes.parquet")
    _write(world.airports, data / "airports.parquet")
    monday = OPENS
    while monday > BEGINS:
        land_week(world, folder, monday)
        monday -= WEEK


def land_week(world: FlightWorld, folder: Path, until: datetime) -> None:
    """The flights and the weather of the week that ends at `until`, a Monday, as one file each."""
    import polars as pl

    inside = (pl.lit(until - WEEK), pl.lit(until), "left")
    name = f"{(until - WEEK):%Y-%m-%d}.parquet"
    landed = world.flights.filter(pl.col("landed_at").is_between(*inside))  # type: ignore[arg-type]
    seen = world.weather.filter(pl.col("published_at").is_between(*inside))  # type: ignore[arg-type]
    if landed.height:
        _write(landed, folder / "data" / "flights" / name)
    if seen.height:
        _write(seen, folder / "data" / "weather" / name)


def _write(frame: pl.DataFrame, path: Path) -> None:
    """Write a file that is there whole or not at all; one that is there stays as it is."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    frame.write_parquet(part)
    part.replace(path)
