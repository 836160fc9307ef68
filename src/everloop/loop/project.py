"""Find a project's folder, import its `loop.py` and collect the loops declared there."""

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
from everloop.loop.project_folder import FILE, find_folder
from everloop.pipeline.code.project_modules import SourceLoader, finder

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Project:
    """A loaded project: its loops and feature views by name, in the order of their declaration."""

    folder: Path
    loops: dict[str, Loop]
    views: dict[str, FeatureView] = field(default_factory=dict)

    def loop(self, name: str | None = None) -> Loop:
        """Return the loop called `name`. Without a name, return the project's only loop.

        Raises:
            NotFoundError: no loop has this name, or `name` is None and the project declares several.
        """
        known = ", ".join(self.loops)
        if name is None:
            if len(self.loops) == 1:
                return next(iter(self.loops.values()))
            raise NotFoundError(f"{self.folder / FILE} declares several loops.", help=f"Name one of: {known}")
        if name not in self.loops:
            raise NotFoundError(f"{self.folder / FILE} declares no loop '{name}'.", help=f"It declares: {known}")
        return self.loops[name]


def load_project(folder: Path | None = None) -> Project:
    """Import `loop.py` and collect its loops.

    The project's folder is added to `sys.path`, so that `loop.py` can import the modules beside it. `el.read` resolves
    relative paths against it.

    Raises:
        ProjectError: there is no `loop.py`, importing it failed (the message has file and line), or it declares no
            loop.
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
    # The module gets the name of the file, so that a worker process can resolve pickled references to it.
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
        position = f"{error.filename}, line {error.lineno}"
        line = f": {error.text.strip()}" if error.text else ""
        raise ProjectError(f"Syntax error in {position}: {error.msg}{line}") from error
    except (Exception, SystemExit) as error:
        # Otherwise a module that calls sys.exit would end the command as if it had succeeded.
        _restore(name, known)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _inside(frame.filename, path.parent)]
        position = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)
        raise ProjectError(f"{type(error).__name__} in {position}: {error}") from error
    return module


def _restore(name: str, known: ModuleType | None) -> None:
    if known is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = known


def _inside(filename: str, folder: Path) -> bool:
    return Path(filename).is_relative_to(folder)
