"""Import of a project's modules from the present text of their files.

Python recognises a stale compiled file by the size of the source and its time in whole seconds. So after two edits
within a second, the compiled file of the first edit may be used for the second, and the code that runs differs from the
code that is recorded. To prevent that, a project's own files are compiled at every import, and fingerprints are made
from exactly the text that was compiled.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.source_files import remember_imported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType, ModuleType


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module at each import; it neither reads nor writes compiled files."""

    def path_stats(self, path: str | bytes) -> Mapping[str, Any]:
        # If the time of the source is not known, the base class neither reads nor writes a compiled file.
        raise OSError

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        code: CodeType = super().source_to_code(data, path, _optimize=_optimize)
        if isinstance(data, bytes):
            remember_imported(str(path), data)
        return code


class ProjectFinder(importlib.abc.MetaPathFinder):
    """Finds modules by their registered files, and compiles every module that lies in a project's folder."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: set[str] = set()

    def add(self, files: Mapping[str, str], folders: Sequence[str] = ()) -> None:
        """Register modules and folders of a project.

        Args:
            files: name of a module to its file, which need not be on the search path.
            folders: every module that the search path finds below these belongs to the project.
        """
        self._files.update(files)
        self._folders.update(folders, (str(Path(file).parent) for file in files.values()))
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        filename = self._files.get(fullname)
        if filename is not None and Path(filename).is_file():
            package = [str(Path(filename).parent)] if Path(filename).name == "__init__.py" else None
            return importlib.util.spec_from_file_location(
                fullname, filename, loader=SourceLoader(fullname, filename), submodule_search_locations=package
            )
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None
        if not self._is_project(spec.origin):
            return None
        spec.loader = SourceLoader(fullname, spec.origin)
        return spec

    def _is_project(self, origin: str) -> bool:
        # A virtual environment may lie inside the project's folder.
        if "site-packages" in origin:
            return False
        return any(str(parent) in self._folders for parent in Path(origin).parents)


finder = ProjectFinder()

__all__ = ["ProjectFinder", "SourceLoader", "finder"]
