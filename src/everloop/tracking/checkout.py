"""The code of a run, as it was: its commit with its uncommitted changes, in a folder of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from everloop.records import Source
    from everloop.stores import Store


def check_out(store: Store, source: Source, folder: Path, *, repository: Path | None = None) -> Path:
    """Make `folder` the repository as the run had it; the user's own is only read. Returns the working folder in it.

    Args:
        repository: where the repository is now, if not where it was.

    Raises:
        NotFoundError: the repository or the commit is not there.
        UsageError: the changes do not apply.
    """
    root = repository or Path(source.git_root or "")
    if source.git_commit is None or not root.is_dir():
        raise NotFoundError(
            f"The repository '{root}' of the run is not here.",
            help="Say where: everloop reproduce RUN --repository DIR",
        )
    # The clone borrows the repository's objects: nothing is copied, and nothing is left behind in it.
    cloned = _git(["clone", "--quiet", "--shared", "--no-checkout", "--", str(root), str(folder)])
    if cloned is not None:
        raise NotFoundError(f"'{root}' cannot be cloned: {cloned}")
    missing = _git(["-C", str(folder), "checkout", "--quiet", "--detach", source.git_commit])
    if missing is not None:
        raise NotFoundError(
            f"The commit {source.git_commit[:12]} is not in '{root}': {missing}", help="Fetch it there: git fetch"
        )
    if source.changes is not None:
        patch = store.objects.read(source.changes)
        failed = _git(["-C", str(folder), "apply", "--whitespace=nowarn", "-"], patch)
        if failed is not None:
            raise UsageError(f"The changes of the run do not apply to its commit: {failed}")
    return folder / _below(source.folder, source.git_root)


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
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
            linked.append(name)
    return linked


def _below(folder: str | None, root: str | None) -> Path:
    if folder is None or root is None or not Path(folder).is_relative_to(root):
        return Path()
    return Path(folder).relative_to(root)


def _git(words: list[str], sent: bytes | None = None) -> str | None:
    """None if all went well, else the last line of what git said."""
    try:
        done = subprocess.run(["git", *words], input=sent, capture_output=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"git ended with {done.returncode}"
