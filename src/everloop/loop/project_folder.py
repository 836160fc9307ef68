"""The folder of a project. Finding it imports neither the project's code nor any library."""

from __future__ import annotations

from pathlib import Path

from everloop.errors import ProjectError

FILE = "loop.py"


def find_folder(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` that contains a `loop.py`.

    Raises:
        ProjectError: no such folder exists.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder
    raise ProjectError(
        f"No {FILE} in {start} or any folder above it.",
        help="Create a project with: everloop init, or look at an example with: everloop demo",
    )
