"""Checkout of a run's code: its commit with its uncommitted changes, in a separate folder."""

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
"""The commit is not trusted: checking it out must not execute or fetch anything."""
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
    """Clone the run's repository into `folder` and check out its code. Returns the run's working folder in the clone.

    The user's repository is only read. Nothing in it is executed: no hooks, no filters of `.gitattributes`, no
    submodules. git runs with the settings of this module instead of the user's, and contacts no server.

    Args:
        repository: the present path of the repository, if it has moved.
        given: secrets that were masked in the changes, by name.
        links: whether the changes may create symbolic links.

    Raises:
        NotFoundError: the repository or the commit does not exist here.
        UsageError: the changes cannot be applied, or change something outside of the repository.
    """
    root = repository or Path(source.git_root or "")
    if source.git_commit is None or not COMMIT.fullmatch(source.git_commit) or not root.is_absolute():
        raise NotFoundError("The run has no commit of a repository on this machine.")
    if not root.is_dir():
        raise NotFoundError(
            f"The repository of the run, '{root}', does not exist here.",
            help="Pass its present path: everloop reproduce RUN --repository DIR",
        )
    # The clone shares the objects of the repository: nothing is copied, and the repository is not changed.
    clone_error = _git(["clone", "--quiet", "--template=", "--shared", "--no-checkout", "--", str(root), str(folder)])
    if clone_error is not None:
        raise NotFoundError(f"'{root}' cannot be cloned: {clone_error}")
    checkout_error = _git(["-C", str(folder), "checkout", "--quiet", "--detach", source.git_commit, "--"])
    if checkout_error is not None:
        raise NotFoundError(
            f"The commit {source.git_commit[:12]} is not in '{root}': {checkout_error}",
            help="Fetch it there: git fetch",
        )
    if source.changes is not None:
        patch = store.objects.read(source.changes)
        if check_patch(patch, links=links):
            apply_error = _git(
                ["-C", str(folder), "apply", "--whitespace=nowarn", "-"], completed(patch, folder, given or {})
            )
            if apply_error is not None:
                raise UsageError(f"The changes of the run cannot be applied to its commit: {apply_error}")
    working = folder / below(source.folder, source.git_root)
    if not working.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"The run's folder '{source.folder}' is a link to a folder outside of its repository.")
    return working


def link_files(names: Iterable[str], original: Path, folder: Path) -> list[str]:
    """Create links in `folder` to files that are not in git, such as data. Returns the names.

    Raises:
        UsageError: a name is outside of the repository.
        NotFoundError: a file does not exist.
    """
    linked = []
    for name in names:
        source, target = original / name, folder / name
        if not source.resolve().is_relative_to(original.resolve()):
            raise UsageError(f"'{name}' is not in '{original}'.", help="Link files and folders of the repository only.")
        if not source.exists():
            raise NotFoundError(f"There is no '{name}' in '{original}'.")
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"In the commit, '{name}' is below a symbolic link.", help="Link the folder that it points to."
            )
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
            linked.append(name)
    return linked


@cache
def _safe_folders() -> tuple[str, ...]:
    """The user's `safe.directory` settings, for repositories of other users. No other setting of the user applies."""
    try:
        done = subprocess.run(
            ["git", "config", "--global", "--get-all", "safe.directory"], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(f"safe.directory={line}" for line in done.stdout.decode(errors="replace").splitlines() if line)


def _git(words: list[str], stdin: bytes | None = None) -> str | None:
    """Run git. Returns None on success, otherwise the last line of its error output."""
    settings = [word for setting in (*_SETTINGS, *_safe_folders()) for word in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _ENVIRONMENT
    try:
        done = subprocess.run(
            ["git", *settings, *words], input=stdin, env=environment, capture_output=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"git exited with code {done.returncode}"
