"""The code of a run, as it was: its commit with its uncommitted changes, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, UsageError
from everloop.tracking.reproduction.code_patches import check_patch, completed
from everloop.tracking.reproduction.execution_plan import COMMIT, below

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.records import Source
    from everloop.stores import Store


_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "submodule.recurse=false",
    "protocol.allow=never",
    "protocol.file.allow=always",
)
"""A commit is data: checking it out executes nothing and fetches nothing."""
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
}


def check_out(
    store: Store,
    source: Source,
    folder: Path,
    *,
    repository: Path | None = None,
    given: Mapping[str, str] | None = None,
    links: bool = False,
) -> Path:
    """Make `folder` the repository as the run had it; the user's own is only read. Returns the working folder in it.

    Nothing of the repository is executed: no hooks, no filters of `.gitattributes`, no submodules; git's settings are
    those of this function, not the user's, and no other place is contacted.

    Args:
        repository: where the repository is now, if not where it was.
        given: secrets that were masked in the changes, by name.
        links: the changes may make symbolic links.

    Raises:
        NotFoundError: the repository or the commit is not there.
        UsageError: the changes do not apply, or lead out of the repository.
    """
    root = repository or Path(source.git_root or "")
    if source.git_commit is None or not COMMIT.fullmatch(source.git_commit) or not root.is_absolute():
        raise NotFoundError("The run names no commit of a repository on this machine.")
    if not root.is_dir():
        raise NotFoundError(
            f"The repository '{root}' of the run is not here.",
            help="Say where: everloop reproduce RUN --repository DIR",
        )
    # The clone borrows the repository's objects: nothing is copied, and nothing is left behind in it.
    cloned = _git(["clone", "--quiet", "--template=", "--shared", "--no-checkout", "--", str(root), str(folder)])
    if cloned is not None:
        raise NotFoundError(f"'{root}' cannot be cloned: {cloned}")
    missing = _git(["-C", str(folder), "checkout", "--quiet", "--detach", source.git_commit, "--"])
    if missing is not None:
        raise NotFoundError(
            f"The commit {source.git_commit[:12]} is not in '{root}': {missing}", help="Fetch it there: git fetch"
        )
    if source.changes is not None:
        patch = store.objects.read(source.changes)
        if check_patch(patch, links=links):
            failed = _git(
                ["-C", str(folder), "apply", "--whitespace=nowarn", "-"], completed(patch, folder, given or {})
            )
            if failed is not None:
                raise UsageError(f"The changes of the run do not apply to its commit: {failed}")
    working = folder / below(source.folder, source.git_root)
    if not working.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"The run's folder '{source.folder}' is a link that leads out of its repository.")
    return working


def link_files(names: Iterable[str], original: Path, folder: Path) -> list[str]:
    """Links in `folder` to files that git does not keep, such as data; returns the names.

    Raises:
        UsageError: a name leads out of the repository.
        NotFoundError: there is no such file.
    """
    linked = []
    for name in names:
        source, target = original / name, folder / name
        if not source.resolve().is_relative_to(original.resolve()):
            raise UsageError(f"'{name}' is not in '{original}'.", help="Name files and folders of the repository.")
        if not source.exists():
            raise NotFoundError(f"There is no '{name}' in '{original}'.")
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"'{name}' lies behind a link in the commit.", help="Link the folder that it leads to.")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
            linked.append(name)
    return linked


@cache
def _safe_folders() -> tuple[str, ...]:
    """Repositories of other users that this user has declared safe: the one setting of theirs that counts here."""
    try:
        done = subprocess.run(
            ["git", "config", "--global", "--get-all", "safe.directory"], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(f"safe.directory={line}" for line in done.stdout.decode(errors="replace").splitlines() if line)


def _git(words: list[str], sent: bytes | None = None) -> str | None:
    """None if all went well, else the last line of what git said."""
    settings = [word for setting in (*_SETTINGS, *_safe_folders()) for word in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _ENVIRONMENT
    try:
        done = subprocess.run(
            ["git", *settings, *words], input=sent, env=environment, capture_output=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"git ended with {done.returncode}"
