"""The folder of a project. Finding it imports neither the project's code nor any library."""

from __future__ import annotations

import os
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


def enter_folder(folder: Path, home: Path | None = None) -> Path | None:
    """Make a project's folder the current one, so that its `everloop.toml` names the project in the store.

    The store stays the one that `home` or `EVERLOOP_STORE` names, also if that is a relative path.

    Returns:
        `home` as an absolute path.
    """
    named = os.environ.get("EVERLOOP_STORE")
    if home is None and named is not None and "://" not in named:
        os.environ["EVERLOOP_STORE"] = str(Path(named).expanduser().absolute())
    home = None if home is None else home.expanduser().absolute()
    os.chdir(folder)
    return home
