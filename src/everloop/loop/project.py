"""A project on disk: its folder, its `loop.py` and the loops declared there."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.data.features.feature_views import FeatureView
from everloop.errors import EverloopError, NotFoundError, ProjectError
from everloop.loop.loop_definition import Loop
from everloop.pipeline.code.project_modules import SourceLoader, finder

if TYPE_CHECKING:
    from types import ModuleType

FILE = "loop.py"


@dataclass(frozen=True, slots=True)
class Project:
    """A loaded project: `loops` and feature views by name, in the order of their declaration."""

    folder: Path
    loops: dict[str, Loop]
    views: dict[str, FeatureView] = field(default_factory=dict)

    def loop(self, name: str | None = None) -> Loop:
        """The loop called `name`, or the only one.

        Raises:
            NotFoundError: there is none of that name, or there are several and none was named.
        """
        known = ", ".join(self.loops)
        if name is None:
            if len(self.loops) == 1:
                return next(iter(self.loops.values()))
            raise NotFoundError(f"{self.folder / FILE} declares several loops.", help=f"Name one of: {known}")
        if name not in self.loops:
            raise NotFoundError(f"No loop '{name}' in {self.folder / FILE}.", help=f"There is: {known}")
        return self.loops[name]


def find_folder(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` that holds a `loop.py`.

    Raises:
        ProjectError: there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder
    raise ProjectError(
        f"No {FILE} in {start} or above it.",
        help="Make a project with: everloop init, or see one at work with: everloop demo",
    )


def load_project(folder: Path | None = None) -> Project:
    """Import `loop.py` and collect its loops.

    The project's folder joins `sys.path`, so that `loop.py` can import the modules beside it, and becomes the
    folder against which `el.read` resolves relative paths.

    Raises:
        ProjectError: no `loop.py`, an error while importing it (with file and line), or no `Loop` in it.
    """
    folder = find_folder(folder)
    os.environ["EVERLOOP_PROJECT"] = str(folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = _import(folder / FILE)
    loops: dict[str, Loop] = {}
    for value in vars(module).values():
        if isinstance(value, Loop):
            if value.name in loops and loops[value.name] is not value:
                raise ProjectError(f"{folder / FILE} declares two loops called '{value.name}'.", help="Rename one.")
            loops[value.name] = value
    if not loops:
        raise ProjectError(
            f"{folder / FILE} declares no loop.",
            help="Add: loop = el.Loop('name', data=…, train=…). See: everloop init",
        )
    views = {value.name: value for value in vars(module).values() if isinstance(value, FeatureView)}
    return Project(folder, loops, views)


def _import(path: Path) -> ModuleType:
    # The name is the file's own, so that pickled references find it again in a worker process.
    name = path.stem
    finder.add({}, [str(path.parent)])
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ProjectError(f"{path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except EverloopError:
        _restore(name, known)
        raise
    except SyntaxError as error:
        _restore(name, known)
        where = f"{error.filename}, line {error.lineno}"
        line = f": {error.text.strip()}" if error.text else ""
        raise ProjectError(f"Syntax error in {where}: {error.msg}{line}") from error
    except (Exception, SystemExit) as error:
        # A module that calls sys.exit would otherwise end the command as if it had succeeded.
        _restore(name, known)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _inside(frame.filename, path.parent)]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)
        raise ProjectError(f"{type(error).__name__} in {where}: {error}") from error
    return module


def _restore(name: str, known: ModuleType | None) -> None:
    if known is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = known


def _inside(filename: str, folder: Path) -> bool:
    return Path(filename).is_relative_to(folder)
