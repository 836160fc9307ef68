"""The provenance of a run: its command, commit, uncommitted changes, machine and packages."""

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

_GIT_CACHED_S = 10.0
_git_states: dict[Path, tuple[float, GitState]] = {}
_patches: dict[Path, tuple[GitState, bytes | None]] = {}
_MOST_UNTRACKED = 50
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
"""A larger patch is not stored: it most likely contains data."""
_imported: tuple[int, dict[str, str]] = (-1, {})
"""The number of modules when the packages were last determined, and the packages."""


@dataclass(frozen=True, slots=True)
class GitState:
    """The state of a folder's git repository; all fields are None or empty outside of a repository."""

    commit: str | None = None
    dirty: bool | None = None
    """Whether tracked files differ from the commit."""
    branch: str | None = None
    root: Path | None = None
    untracked: tuple[str, ...] = ()
    """Untracked Python files that are not ignored, relative to the root."""


def capture_source() -> Source:
    """Return the provenance of this process. Takes some milliseconds the first time, then tens of microseconds."""
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
    """The result of `capture_source`, with the uncommitted changes as a patch in the store."""
    source = capture_source()
    if source.git_commit is None:
        return source
    state = git_state(code_folder())
    try:
        patch = uncommitted(state)
        return source if patch is None else replace(source, changes=_store_patch(store, patch))
    except (EverloopError, OSError) as error:
        _log.warning("The uncommitted changes could not be stored: %s", error)
        return source


def _launch() -> tuple[str, ...]:
    words = tuple(text(word) for word in getattr(sys, "orig_argv", sys.argv))
    return mask_arguments(words) if masks_secrets() else words


_stored_patch: tuple[str, bytes, str] = ("", b"", "")
"""The patch that was stored last: URL of the objects, content and digest."""


def _store_patch(store: Store, patch: bytes) -> str:
    """Store a patch and return its digest. A process that starts many runs stores the same patch only once."""
    global _stored_patch
    if _stored_patch[0] != store.urls.objects or _stored_patch[1] is not patch:
        _stored_patch = (store.urls.objects, patch, store.objects.add(patch))
    return _stored_patch[2]


def code_folder() -> Path:
    """The folder of the running code: the project's folder, or else the working folder."""
    return Path(os.environ.get("EVERLOOP_PROJECT") or _working_folder() or "/")


def git_state(folder: Path) -> GitState:
    """The state of the folder's repository. Cached for ten seconds, since git takes 10 ms for each run."""
    now = time.monotonic()
    cached = _git_states.get(folder)
    if cached is not None and now - cached[0] < _GIT_CACHED_S:
        return cached[1]
    state = _read_git_state(folder)
    _git_states[folder] = (now, state)
    return state


def imported_packages() -> dict[str, str]:
    """Name and version of every installed distribution that has an imported module."""
    global _imported
    if _imported[0] != len(sys.modules):
        tops = {name.partition(".")[0] for name in list(sys.modules)}
        found = dict(distribution for top in tops if (distribution := _distribution_of(top)) is not None)
        _imported = (len(sys.modules), dict(sorted(found.items())))
    return _imported[1]


def uncommitted(state: GitState) -> bytes | None:
    """The uncommitted changes as a patch for `git apply`; None if there are none, or if the patch is too large.

    The patch includes untracked Python files, but no other untracked files.
    """
    if state.root is None or not (state.dirty or state.untracked):
        return None
    cached = _patches.get(state.root)
    if cached is None or cached[0] is not state:
        _patches[state.root] = cached = (state, _make_patch(state, state.root))
    return cached[1]


def _make_patch(state: GitState, root: Path) -> bytes | None:
    patch = _git(root, "diff", "HEAD", *_PATCH) or b""
    for name in state.untracked[:_MOST_UNTRACKED]:
        arguments = ["diff", "--no-index", "--binary", "--no-color", "--no-ext-diff", "--", os.devnull, name]
        patch += _git(root, *arguments, expected_codes=(0, 1)) or b""
    if len(patch) <= MOST_PATCH_BYTES and masks_secrets():
        patch = mask_patch(patch)
    return patch if 0 < len(patch) <= MOST_PATCH_BYTES else None


def _working_folder() -> str | None:
    try:
        return text(Path.cwd())
    except OSError:
        return None  # the working folder was removed


def _read_git_state(folder: Path) -> GitState:
    output = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if output is None:
        return GitState()
    status = output.decode(errors="replace")
    commit = re.search(r"^# branch\.oid ([0-9a-f]{40,64})$", status, re.MULTILINE)
    if commit is None:
        return GitState()
    branch = re.search(r"^# branch\.head (\S+)$", status, re.MULTILINE)
    root = (_git(folder, "rev-parse", "--show-toplevel") or b"").decode(errors="replace").strip()
    if not root:
        return GitState()
    untracked = _git(Path(root), "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or b""
    return GitState(
        commit=commit[1],
        dirty=any(not line.startswith("#") for line in status.splitlines()),
        branch=None if branch is None or branch[1] == "(detached)" else text(branch[1]),
        root=Path(root),
        untracked=tuple(name for name in untracked.decode(errors="replace").split("\0") if name),
    )


def _git(folder: Path, *arguments: str, expected_codes: tuple[int, ...] = (0,)) -> bytes | None:
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "--no-optional-locks"]
    try:
        done = subprocess.run([*command, "-C", str(folder), *arguments], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # git is missing or too slow. The run must start all the same, without its commit.
        return None
    return done.stdout if done.returncode in expected_codes else None


@cache
def _platform() -> str:
    return platform.platform()


@cache
def _distribution_of(top: str) -> tuple[str, str] | None:
    """Name and version of the distribution that installed a top-level module; None for Python's and the user's own."""
    if top in sys.stdlib_module_names or top.startswith("_"):
        return None
    installed = _installed()
    if (normalized := _normalized(top)) in installed:
        return installed[normalized][:2]
    module = sys.modules.get(top)
    paths = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
    if not any(f"{os.sep}site-packages{os.sep}" in path or "dist-packages" in path for path in paths):
        return None
    # The module has another name than its distribution, as sklearn of scikit-learn: search the metadata of each.
    return next(
        ((name, version) for name, version, folder in installed.values() if top in _top_level_modules(folder)), None
    )


@cache
def _installed() -> dict[str, tuple[str, str, Path]]:
    """Normalized name to name, version and metadata folder. Only folder names are read, since that is much faster."""
    found: dict[str, tuple[str, str, Path]] = {}
    for entry in sys.path:
        for folder in Path(entry).glob("*.dist-info") if entry else ():
            name, _, version = folder.name.removesuffix(".dist-info").partition("-")
            found.setdefault(_normalized(name), (name.replace("_", "-"), version, folder))
    return found


@cache
def _top_level_modules(folder: Path) -> frozenset[str]:
    """The top-level modules that a distribution has installed."""
    top_level = folder / "top_level.txt"
    if top_level.is_file():
        return frozenset(top_level.read_text(encoding="utf-8").split())
    record = folder / "RECORD"
    if not record.is_file():
        return frozenset()
    first = {line.partition(",")[0].partition("/")[0] for line in record.read_text(encoding="utf-8").splitlines()}
    return frozenset(name.partition(".")[0] for name in first)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
