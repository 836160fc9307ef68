"""Modules of a project, imported from what their files say now.

Python tells compiled files apart by whole seconds and size: one of an older edit within the same second passes for
the new one. What ran would then not be what was recorded, so a project's own files are compiled at every import, and
the very text that was compiled is the one that fingerprints are made of.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.source_files import keep_imported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType, ModuleType


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Neither reads nor writes compiled files."""

    def path_stats(self, path: str | bytes) -> Mapping[str, Any]:
        # Without a time of the source, the base class passes the compiled file by in both directions.
        raise OSError

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        code: CodeType = super().source_to_code(data, path, _optimize=_optimize)
        if isinstance(data, bytes):
            keep_imported(str(path), data)
        return code


class ProjectFinder(importlib.abc.MetaPathFinder):
    """Finds modules by the files they are known to come from, and compiles whatever lies in a project's folder."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: set[str] = set()

    def add(self, files: Mapping[str, str], folders: Sequence[str] = ()) -> None:
        """Args:
        files: name of a module to its file, which may not be where the search path would find it.
        folders: where everything found by the search path belongs to the project.
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
        # An environment may lie within the folder of the project that it is for.
        if "site-packages" in origin:
            return False
        return any(str(parent) in self._folders for parent in Path(origin).parents)


finder = ProjectFinder()

__all__ = ["ProjectFinder", "SourceLoader", "finder"]
