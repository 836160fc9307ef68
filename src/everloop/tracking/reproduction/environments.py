"""An environment with the packages of a run: the present one if they are the same, otherwise a new one."""

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

_TIMEOUT_S = 1800
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]{0,98}")
_PYTHON = re.compile(r"\d{1,2}\.\d{1,2}(?:\.\d{1,3})?(?:(?:a|b|rc)\d{1,2})?\+?")


@dataclass(frozen=True, slots=True)
class Environment:
    """The Python to start, with remarks for the user."""

    python: Path
    remarks: tuple[str, ...] = ()


def other_packages(packages: Mapping[str, str]) -> list[str]:
    """The packages that this environment lacks or has in another version: `numpy 1.26.4 (here 2.0.0)`."""
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
    """The packages to install for a run, each as `name==version`.

    Raises:
        UsageError: the record has a name or a version that is not valid, such as `--index-url=…`, a path or a URL.
    """
    for name, version in source.packages.items():
        if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
            raise UsageError(
                f"The run has the package {name[:80]!r} in version {version[:80]!r}, which is not valid.",
                help="Use the packages of this environment: everloop reproduce RUN --reuse-environment",
            )
    return [f"{name}=={version}" for name, version in source.packages.items() if name != "everloop"]


def environment_for(source: Source, folder: Path, *, reuse: bool, foreign: bool = False) -> Environment:
    """This environment, if it has the packages of the run or `reuse` is set; otherwise a new one in `folder`.

    Packages come from the index that pip or uv is configured to use on this machine, never from the run's record.

    Args:
        foreign: ignore configuration files of pip and uv in the working folder, too.

    Raises:
        UsageError: the run has packages whose names or versions are not valid.
        UnavailableError: the packages could not be installed.
    """
    others = other_packages(source.packages)
    remarks = []
    if source.python is not None and source.python != _here():
        remarks.append(f"The run used Python {source.python}; this is Python {_here()}.")
    if not others:
        return Environment(Path(sys.executable), tuple(remarks))
    if reuse:
        remarks.append(f"This environment was used, although its packages differ: {', '.join(others)}.")
        return Environment(Path(sys.executable), tuple(remarks))
    return _make(source, folder, remarks, "/" if foreign else None)


def _make(source: Source, folder: Path, remarks: list[str], cwd: str | None) -> Environment:
    pinned = pinned_packages(source)
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if uv is not None:
        # uv can also find or download the same version of Python.
        wanted = source.python if _PYTHON.fullmatch(source.python or "") else None
        if wanted is None or not _succeeds([uv, "venv", "--python", wanted, str(folder)], cwd):
            _call([uv, "venv", "--python", sys.executable, str(folder)], cwd)
        _call([uv, "pip", "install", "--python", str(python), *_everloop_arguments(), "--", *pinned], cwd)
    else:
        _call([sys.executable, "-m", "venv", str(folder)], cwd)
        quiet = ["--quiet", "--disable-pip-version-check"]
        _call([str(python), "-m", "pip", "install", *quiet, *_everloop_arguments(), "--", *pinned], cwd)
    remarks.append(f"A new environment was created with {len(pinned)} packages in the versions of the run.")
    return Environment(python, tuple(remarks))


def _everloop_arguments() -> list[str]:
    """The arguments that install everloop itself: from its source if it runs from there, otherwise its release."""
    root = Path(__file__).parents[4]
    if (root / "pyproject.toml").is_file():
        return ["--editable", str(root)]
    return [f"everloop=={VERSION}"]


def _call(command: list[str], cwd: str | None) -> None:
    done = _run(command, cwd)
    if done is None or done.returncode != 0:
        if done is None:
            reason = "the installer is missing or took too long"
        else:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UnavailableError(
            f"The run's environment cannot be created: {reason}",
            help="Use this environment: everloop reproduce RUN --reuse-environment",
        )


def _succeeds(command: list[str], cwd: str | None) -> bool:
    done = _run(command, cwd)
    return done is not None and done.returncode == 0


def _run(command: list[str], cwd: str | None) -> subprocess.CompletedProcess[str] | None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=clean
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _here() -> str:
    return ".".join(map(str, sys.version_info[:3]))
