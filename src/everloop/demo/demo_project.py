"""Create the demo's project, and write each week's data files to it at the time when they would arrive."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from everloop.demo.flight_world import BEGINS, OPENS, WEEK, FlightWorld
from everloop.errors import UsageError
from everloop.stores.home import CONFIG

if TYPE_CHECKING:
    from datetime import datetime
    from importlib.resources.abc import Traversable
    from pathlib import Path

    import polars as pl

MARK = ".everloop-demo"
"""Name of the file that marks a folder as created by the demo, so that the demo may resume in it."""


def make_project(folder: Path) -> bool:
    """Write the project's files, except its data.

    Returns:
        True if the files were written, False if the project existed already.

    Raises:
        UsageError: the folder has other content that the demo did not create.
    """
    if (folder / MARK).is_file():
        return False
    # The settings of the project may be there before it: where its store is, and where its steps run.
    if folder.exists() and any(entry.name != CONFIG for entry in folder.iterdir()):
        raise UsageError(
            f"The folder '{folder}' is not empty, and the demo did not create it.",
            help="Name a new folder: everloop demo DIR",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _copy(files("everloop.demo") / "project", folder)
    (folder / MARK).write_text("Created by `everloop demo`. Run it again to resume where it stopped.\n", "utf-8")
    return True


def _copy(source: Traversable, target: Path) -> None:
    for entry in source.iterdir():
        if entry.name.startswith("__") or entry.name.endswith(".pyc"):
            continue
        if entry.is_dir():
            (target / entry.name).mkdir(exist_ok=True)
            _copy(entry, target / entry.name)
        elif entry.name != CONFIG or not (target / CONFIG).exists():
            (target / entry.name).write_bytes(entry.read_bytes())


def land_history(world: FlightWorld, folder: Path) -> None:
    """Write the data that are known when the demo starts: planes, airports, and the weeks before."""
    data = folder / "data"
    _write(world.planes, data / "planes.parquet")
    _write(world.airports, data / "airports.parquet")
    monday = OPENS
    while monday > BEGINS:
        land_week(world, folder, monday)
        monday -= WEEK


def land_week(world: FlightWorld, folder: Path, until: datetime) -> None:
    """Write one file of flights and one of weather reports, for the week that ends at `until`, a Monday."""
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
    """Write a file atomically; a file that exists is left unchanged."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    frame.write_parquet(part)
    part.replace(path)
