"""An environment with the packages that a run had: this one where they are the same, else a new one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import UnavailableError, UsageError
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Source

_LONGEST_S = 1800
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]{0,98}")
_PYTHON = re.compile(r"\d{1,2}\.\d{1,2}(?:\.\d{1,3})?(?:(?:a|b|rc)\d{1,2})?\+?")


@dataclass(frozen=True, slots=True)
class Environment:
    """Which Python to start, and what is worth saying about it."""

    python: Path
    remarks: tuple[str, ...] = ()


def other_packages(packages: Mapping[str, str]) -> list[str]:
    """The packages that this environment has not, or has in another version: `numpy 1.26.4 (here 2.0.0)`."""
    found = []
    for name, version in packages.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = None
        if here != version:
            found.append(f"{name} {version} (here {here or 'none'})")
    return found


def pinned_packages(source: Source) -> list[str]:
    """What is installed for a run: a name and a version each, as the record says, and nothing else.

    Raises:
        UsageError: a name or a version is none, such as `--index-url=…`, a path or a URL.
    """
    for name, version in source.packages.items():
        if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
            raise UsageError(
                f"The run names a package {name[:80]!r} of version {version[:80]!r}, which cannot be installed.",
                help="Use the packages that are here: everloop reproduce RUN --reuse-environment",
            )
    return [f"{name}=={version}" for name, version in source.packages.items() if name != "everloop"]


def environment_for(source: Source, folder: Path, *, reuse: bool, foreign: bool = False) -> Environment:
    """This environment where its packages are those of the run or `reuse` is set; else a new one in `folder`.

    Packages come from where pip and uv of this machine are configured to look, whatever the run says.

    Args:
        foreign: also do not read a configuration that lies beside the working folder.

    Raises:
        UsageError: the run names packages that cannot be.
        UnavailableError: the packages could not be installed.
    """
    others = other_packages(source.packages)
    remarks = []
    if source.python is not None and source.python != _here():
        remarks.append(f"It ran on Python {source.python}; this is {_here()}.")
    if not others:
        return Environment(Path(sys.executable), tuple(remarks))
    if reuse:
        remarks.append(f"Packages differ, and this environment was used all the same: {', '.join(others)}.")
        return Environment(Path(sys.executable), tuple(remarks))
    return _make(source, folder, remarks, "/" if foreign else None)


def _make(source: Source, folder: Path, remarks: list[str], cwd: str | None) -> Environment:
    pinned = pinned_packages(source)
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if uv is not None:
        # uv also finds or fetches the very Python, where it can.
        wanted = source.python if _PYTHON.fullmatch(source.python or "") else None
        if wanted is None or not _succeeds([uv, "venv", "--python", wanted, str(folder)], cwd):
            _call([uv, "venv", "--python", sys.executable, str(folder)], cwd)
        _call([uv, "pip", "install", "--python", str(python), *_own(), "--", *pinned], cwd)
    else:
        _call([sys.executable, "-m", "venv", str(folder)], cwd)
        quiet = ["--quiet", "--disable-pip-version-check"]
        _call([str(python), "-m", "pip", "install", *quiet, *_own(), "--", *pinned], cwd)
    remarks.append(f"A new environment was made with {len(pinned)} packages of the versions that it had.")
    return Environment(python, tuple(remarks))


def _own() -> list[str]:
    """How to install everloop: from its source where it runs from there, else its release."""
    root = Path(__file__).parents[4]
    if (root / "pyproject.toml").is_file():
        return ["--editable", str(root)]
    return [f"everloop=={VERSION}"]


def _call(command: list[str], cwd: str | None) -> None:
    done = _run(command, cwd)
    if done is None or done.returncode != 0:
        said = "it took too long" if done is None else (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UnavailableError(
            f"The run's environment cannot be made: {said}",
            help="Use the one that is here: everloop reproduce RUN --reuse-environment",
        )


def _succeeds(command: list[str], cwd: str | None) -> bool:
    done = _run(command, cwd)
    return done is not None and done.returncode == 0


def _run(command: list[str], cwd: str | None) -> subprocess.CompletedProcess[str] | None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_LONGEST_S, check=False, env=clean
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _here() -> str:
    return ".".join(map(str, sys.version_info[:3]))
