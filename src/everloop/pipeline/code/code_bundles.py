"""Code bundles: the text of a project's modules as one object in the store, for machines that do not have its folder.

A bundle holds the modules that the steps depend on, and every other module of the project that is imported, because
importing one of the former imports the latter. Equal texts give the same digest.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError
from everloop.pipeline.code.code_origin import origin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.stores import ContentStore


@dataclass(frozen=True, slots=True)
class CodeBundle:
    """Modules of a project: `files` maps a relative path to its text, `modules` a module to its path."""

    files: dict[str, str]
    modules: dict[str, str]

    def to_bytes(self) -> bytes:
        data = {"files": self.files, "modules": self.modules}
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CodeBundle:
        """The inverse of `to_bytes`.

        Raises:
            CorruptionError: the data is not a bundle, or a path in it leaves the bundle's folder.
        """
        try:
            found: dict[str, Any] = json.loads(data)
            bundle = cls(dict(found["files"]), dict(found["modules"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"This is not a code bundle: {error}.", help="See: everloop verify") from error
        for path in bundle.files:
            pure = PurePosixPath(path)
            if pure.is_absolute() or ".." in pure.parts or not pure.parts:
                raise CorruptionError(f"A code bundle holds the path '{path}'.", help="See: everloop verify")
        return bundle

    def unpack(self, folder: Path) -> dict[str, str]:
        """Write the files below `folder`, unless they are there. Returns module name to absolute file name.

        Safe to call in several processes at once: the folder appears with all of its files, or not at all.
        """
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
            try:
                for path, text in self.files.items():
                    target = draft / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(text.encode("utf-8", "surrogateescape"))
                # Another process may have been faster; its files are the same.
                with suppress(OSError):
                    os.rename(draft, folder)  # noqa: PTH104 - must fail if the folder exists with files
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return {module: str(folder / path) for module, path in self.modules.items()}


def collect_bundle(modules: Iterable[str]) -> tuple[CodeBundle, dict[str, str]]:
    """Collect a bundle from this process's modules. Returns it, and each module's file on this machine.

    Args:
        modules: names of the imported modules that the steps of a plan depend on.
    """
    wanted = {name: file for name in modules if (file := _file_of(name)) is not None}
    roots = {_root_of(name, file) for name, file in wanted.items()}
    for name in list(sys.modules):
        file = _file_of(name)
        if file is None or name in wanted or not file.endswith(".py"):
            continue
        if _root_of(name, file) in roots and origin_of(name, file) == "project":
            wanted[name] = file
    texts: dict[str, str] = {}
    paths: dict[str, str] = {}
    for name, file in sorted(wanted.items()):
        path = _path_of(name, file)
        with suppress(OSError):
            texts[path] = Path(file).read_bytes().decode("utf-8", "surrogateescape")
            paths[name] = path
    return CodeBundle(texts, paths), {name: wanted[name] for name in paths}


def keep_bundle(modules: Iterable[str], objects: ContentStore) -> str:
    """Store the bundle of these modules. Returns its digest."""
    return objects.add(collect_bundle(modules)[0].to_bytes())


def same_files(bundle: CodeBundle, files: Mapping[str, str]) -> bool:
    """Whether this machine has every module of the bundle in the given file, with the same text."""
    for module, path in bundle.modules.items():
        try:
            here = Path(files[module]).read_bytes()
        except (OSError, KeyError):
            return False
        if here != bundle.files[path].encode("utf-8", "surrogateescape"):
            return False
    return True


def roots_of(files: Mapping[str, str]) -> set[str]:
    """The folders on the search path that modules are in, given as names and files."""
    return {str(_root_of(name, file)) for name, file in files.items()}


def _file_of(name: str) -> str | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return None if file is None or name in ("__main__", "__mp_main__") else str(Path(file).absolute())


def _path_of(name: str, file: str) -> str:
    """The path of a module in a bundle, from its name: its file may be anywhere."""
    base = name.replace(".", "/")
    return f"{base}/__init__.py" if Path(file).name == "__init__.py" else f"{base}.py"


def _root_of(name: str, file: str) -> Path:
    """The folder on the search path that a module was found in."""
    levels = name.count(".") + (Path(file).name == "__init__.py")
    above = Path(file).parents
    return above[min(levels, len(above) - 1)]
