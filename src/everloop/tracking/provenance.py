"""What made a run: the command, the commit, the machine and the packages in use."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.records import Source
from everloop.tracking.journal.journal_frames import text
from everloop.tracking.reproduction.code_patches import mask_patch
from everloop.tracking.secrets.masking import mask_arguments, masks_secrets

if TYPE_CHECKING:
    from everloop.stores import Store

_log = logging.getLogger("everloop.tracking")

_GIT_FRESH_S = 10.0
_git_seen: dict[Path, tuple[float, GitState]] = {}
_patches: dict[Path, tuple[GitState, bytes | None]] = {}
_MOST_NEWS = 50
_PATCH = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--ignore-submodules=all",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
MOST_PATCH_BYTES = 10 << 20
"""A larger patch is not kept: somebody has data in the repository."""
_packages_seen: tuple[int, dict[str, str]] = (-1, {})


@dataclass(frozen=True, slots=True)
class GitState:
    """What git says of a folder; all None outside of a repository."""

    commit: str | None = None
    dirty: bool | None = None
    """Whether tracked files differ from the commit."""
    branch: str | None = None
    root: Path | None = None
    news: tuple[str, ...] = ()
    """Python files that git does not know and does not ignore, from the root on."""


def capture_source() -> Source:
    """Return what is running now, and where. Takes some milliseconds once, then tens of microseconds."""
    state = git_state(code_folder())
    return Source(
        git_commit=state.commit,
        git_dirty=state.dirty,
        git_branch=state.branch,
        git_root=None if state.root is None else text(state.root),
        launch=_launch(),
        folder=_working_folder(),
        python=platform.python_version(),
        platform=_platform(),
        host=platform.node(),
        packages=dict(imported_packages()),
    )


def stored_source(store: Store) -> Source:
    """What `capture_source` says, with what differs from the commit kept in the store."""
    source = capture_source()
    if source.git_commit is None:
        return source
    state = git_state(code_folder())
    try:
        patch = uncommitted(state)
        return source if patch is None else replace(source, changes=_kept_patch(store, patch))
    except (EverloopError, OSError) as trouble:
        _log.warning("What differs from the commit could not be kept: %s", trouble)
        return source


def _launch() -> tuple[str, ...]:
    words = tuple(text(word) for word in getattr(sys, "orig_argv", sys.argv))
    return mask_arguments(words) if masks_secrets() else words


_patch: tuple[str, bytes, str] = ("", b"", "")


def _kept_patch(store: Store, patch: bytes) -> str:
    """The patch's digest. A process that starts many runs keeps the same patch once."""
    global _patch
    if _patch[0] != store.urls.objects or _patch[1] is not patch:
        _patch = (store.urls.objects, patch, store.objects.add(patch))
    return _patch[2]


def code_folder() -> Path:
    """Where the code that runs is: the project's folder, else the working folder."""
    return Path(os.environ.get("EVERLOOP_PROJECT") or _working_folder() or "/")


def git_state(folder: Path) -> GitState:
    """What git says of the folder. An answer is good for ten seconds: loops that start a run a second would pay
    10 ms each time."""
    now = time.monotonic()
    seen = _git_seen.get(folder)
    if seen is not None and now - seen[0] < _GIT_FRESH_S:
        return seen[1]
    state = _ask_git(folder)
    _git_seen[folder] = (now, state)
    return state


def imported_packages() -> dict[str, str]:
    """Name and version of every installed distribution of which a module is imported now."""
    global _packages_seen
    if _packages_seen[0] != len(sys.modules):
        tops = {name.partition(".")[0] for name in list(sys.modules)}
        found = dict(distribution for top in tops if (distribution := _distribution_of(top)) is not None)
        _packages_seen = (len(sys.modules), dict(sorted(found.items())))
    return _packages_seen[1]


def uncommitted(state: GitState) -> bytes | None:
    """What differs from the commit as a patch that `git apply` takes; None where nothing does, or too much.

    New Python files are in it, other files that git does not know are not.
    """
    if state.root is None or not (state.dirty or state.news):
        return None
    seen = _patches.get(state.root)
    if seen is None or seen[0] is not state:
        _patches[state.root] = seen = (state, _ask_patch(state, state.root))
    return seen[1]


def _ask_patch(state: GitState, root: Path) -> bytes | None:
    patch = _git(root, "diff", "HEAD", *_PATCH) or b""
    for name in state.news[:_MOST_NEWS]:
        words = ["diff", "--no-index", "--binary", "--no-color", "--no-ext-diff", "--", os.devnull, name]
        patch += _git(root, *words, fine=(0, 1)) or b""
    if len(patch) <= MOST_PATCH_BYTES and masks_secrets():
        patch = mask_patch(patch)
    return patch if 0 < len(patch) <= MOST_PATCH_BYTES else None


def _working_folder() -> str | None:
    try:
        return text(Path.cwd())
    except OSError:
        return None  # it was removed under this process


def _ask_git(folder: Path) -> GitState:
    answer = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if answer is None:
        return GitState()
    status = answer.decode(errors="replace")
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", status, re.MULTILINE)
    if commit is None:
        return GitState()
    branch = re.search(r"^# branch\.head (\S+)$", status, re.MULTILINE)
    root = (_git(folder, "rev-parse", "--show-toplevel") or b"").decode(errors="replace").strip()
    if not root:
        return GitState()
    news = _git(Path(root), "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or b""
    return GitState(
        commit=commit[1],
        dirty=any(not line.startswith("#") for line in status.splitlines()),
        branch=None if branch is None or branch[1] == "(detached)" else text(branch[1]),
        root=Path(root),
        news=tuple(name for name in news.decode(errors="replace").split("\0") if name),
    )


def _git(folder: Path, *words: str, fine: tuple[int, ...] = (0,)) -> bytes | None:
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "--no-optional-locks"]
    try:
        answer = subprocess.run([*command, "-C", str(folder), *words], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # No git, or a repository too slow to ask: the run is worth more than its commit.
        return None
    return answer.stdout if answer.returncode in fine else None


@cache
def _platform() -> str:
    return platform.platform()


@cache
def _distribution_of(top: str) -> tuple[str, str] | None:
    """Distribution and version that installed the imported top-level module, None for Python's and the user's own."""
    if top in sys.stdlib_module_names or top.startswith("_"):
        return None
    installed = _installed()
    if (plain := _normal(top)) in installed:
        return installed[plain][:2]
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    if not any(f"{os.sep}site-packages{os.sep}" in place or "dist-packages" in place for place in places):
        return None
    # A module named unlike its distribution, such as sklearn of scikit-learn: look into what each has installed.
    return next(((name, version) for name, version, folder in installed.values() if top in _tops(folder)), None)


@cache
def _installed() -> dict[str, tuple[str, str, Path]]:
    """Normal name to name, version and folder. A listing of folders: reading every METADATA takes 100 ms."""
    found: dict[str, tuple[str, str, Path]] = {}
    for place in sys.path:
        for folder in Path(place).glob("*.dist-info") if place else ():
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            found.setdefault(_normal(name), (name.replace("_", "-"), version, folder))
    return found


@cache
def _tops(folder: Path) -> frozenset[str]:
    """The top-level modules that a distribution has installed."""
    listed = folder / "top_level.txt"
    if listed.is_file():
        return frozenset(listed.read_text(encoding="utf-8").split())
    record = folder / "RECORD"
    if not record.is_file():
        return frozenset()
    first = {line.partition(",")[0].partition("/")[0] for line in record.read_text(encoding="utf-8").splitlines()}
    return frozenset(name.partition(".")[0] for name in first)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
