"""Where code comes from: the project, the standard library or an installed package, and in which version.

Distributions are found by the names of their metadata folders. That is a hundred times faster than
`importlib.metadata.packages_distributions`, which reads the file list of everything that is installed.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

Origin: TypeAlias = Literal["project", "standard", "package"]

_INSTALLED = ("site-packages", "dist-packages")
_STANDARD_FOLDERS = tuple(
    {str(Path(path)) + "/" for name in ("stdlib", "platstdlib") if (path := sysconfig.get_paths().get(name))}
)


@lru_cache(maxsize=4096)
def origin_of(module: str, filename: str | None = None) -> Origin:
    """Where a module comes from. Anything outside of the standard library and site-packages belongs to the project."""
    top = module.partition(".")[0]
    if top == "everloop":
        return "package"
    if filename is None:
        if top in sys.stdlib_module_names:
            return "standard"
        loaded = sys.modules.get(module) or sys.modules.get(top)
        filename = getattr(loaded, "__file__", None)
        if filename is None:
            paths = list(getattr(loaded, "__path__", ()))
            filename = str(paths[0]) if paths else None
        if filename is None:
            return "project" if loaded is None or module == "__main__" else "package"
    if any(f"/{folder}/" in filename for folder in _INSTALLED):
        return "package"
    if filename.startswith(_STANDARD_FOLDERS) or filename.startswith("<frozen"):
        return "standard"
    return "project"


@lru_cache(maxsize=1024)
def find_distribution(module: str) -> tuple[str, str] | None:
    """Name and version of the distribution that provides a module, without importing it. None if unknown."""
    top = module.partition(".")[0]
    if top == "everloop":
        from everloop.version import VERSION

        return "everloop", VERSION
    folders = _metadata_folders()
    direct = folders.get(_normalized(top))
    if direct is not None:
        return _name_and_version(direct)
    for folder in folders.values():
        top_level = folder / "top_level.txt"
        if top_level.is_file() and top in top_level.read_text().split():
            return _name_and_version(folder)
    provided = re.compile(rf"^{re.escape(top)}(\.py|\.[\w-]+\.so|/[^,]*)?,", re.MULTILINE)
    for folder in folders.values():
        record = folder / "RECORD"
        if record.is_file() and provided.search(record.read_text(errors="replace")):
            return _name_and_version(folder)
    return None


@lru_cache(maxsize=1)
def _metadata_folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in sys.path:
        folder = Path(entry)
        if any(name in entry for name in _INSTALLED) and folder.is_dir():
            for path in folder.iterdir():
                if path.suffix == ".dist-info":
                    found.setdefault(_normalized(path.name.partition("-")[0]), path)
    return found


def _name_and_version(folder: Path) -> tuple[str, str]:
    name, _, version = folder.stem.partition("-")
    return name, version


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
