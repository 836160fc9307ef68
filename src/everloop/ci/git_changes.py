"""What a branch changes in a git repository, and a copy of the project as it was before.

Names of branches come from people who may not be trusted. They are only ever passed to git as arguments, after
`--end-of-options`, and never to a shell.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from everloop.errors import NotFoundError, ProjectError, UsageError

_TIMEOUT_S = 120.0
_DOCUMENTS = (".md", ".rst", ".adoc", ".license")
_ENVIRONMENT_FILES = (
    "pyproject.toml",
    "uv.lock",
    "poetry.lock",
    "pdm.lock",
    "setup.cfg",
    "setup.py",
    "environment.yml",
)


@dataclass(frozen=True, slots=True)
class GitChange:
    """The change from the point where a branch left its base to the branch's newest commit."""

    base: str
    """Full id of the commit where the branch left the base."""
    head: str
    files: tuple[str, ...]
    """Changed files, relative to the project's folder. Those outside of it begin with `../`."""
    dirty: tuple[str, ...] = ()
    """Files with changes that are not committed. They are part of what is checked."""

    @property
    def environment(self) -> tuple[str, ...]:
        """Changed files that decide which packages are installed."""
        return tuple(name for name in self.files if _kind(name) == "environment")

    @property
    def data(self) -> tuple[str, ...]:
        """Changed files that are neither Python code, documents, tests, CI settings nor the environment."""
        return tuple(name for name in self.files if _kind(name) == "data")


def find_change(folder: Path, base: str) -> GitChange:
    """Find what the present branch changes in a project.

    Args:
        folder: the project's folder, in a git repository.
        base: a branch, tag or commit, such as `origin/main`.

    Raises:
        ProjectError: the folder is not in a git repository, or git is missing.
        NotFoundError: the commit does not exist, or the branches have no commit in common.
    """
    top = Path(git(folder, "rev-parse", "--show-toplevel").strip())
    head = git(folder, "rev-parse", "--verify", "HEAD^{commit}").strip()
    start = resolve(folder, base)
    try:
        left = git(folder, "merge-base", start, head).split()[0]
    except (ProjectError, IndexError) as error:
        raise NotFoundError(
            f"'{base}' and the present commit have no commit in common.",
            help="A shallow clone lacks it. In GitHub Actions: fetch-depth: 0; in GitLab: GIT_DEPTH: '0'.",
        ) from error
    changed = git(folder, "diff", "--name-only", "--no-renames", "-z", left, head, "--")
    dirty = git(folder, "diff", "--name-only", "--no-renames", "-z", "HEAD", "--")
    untracked = git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", "-z")
    own = [_seen_from(folder, top, name) for name in (*dirty.split("\0"), *untracked.split("\0")) if name]
    files = [_seen_from(folder, top, name) for name in changed.split("\0") if name]
    return GitChange(left, head, tuple(dict.fromkeys([*files, *own])), tuple(dict.fromkeys(own)))


def resolve(folder: Path, name: str) -> str:
    """Return the full id of a commit.

    Raises:
        UsageError: the name is empty or contains control characters.
        NotFoundError: the commit does not exist.
    """
    if not name.strip() or any(letter < " " for letter in name):
        raise UsageError(f"{name!r} is not the name of a commit.", help="For example: --base origin/main")
    try:
        found = git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except ProjectError as error:
        raise NotFoundError(
            f"The repository has no branch, tag or commit '{name}'.",
            help="Fetch it first: git fetch origin. Or name another: --base BRANCH",
        ) from error
    return found.strip()


def export_project(folder: Path, commit: str, target: Path) -> Path:
    """Write the project as it was at a commit into an empty folder, and return the project's folder there.

    Raises:
        NotFoundError: the project's folder did not exist at that commit.
    """
    prefix = git(folder, "rev-parse", "--show-prefix").strip()
    try:
        packed = _run(folder, "archive", "--format=tar", f"{commit}:{prefix}" if prefix else commit)
    except ProjectError as error:
        raise NotFoundError(f"The project's folder does not exist at commit {commit[:12]}.") from error
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(target, filter="data")
    return target


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints.

    Raises:
        ProjectError: git is missing, takes too long or reports an error.
    """
    return _run(folder, *arguments).decode("utf-8", "surrogateescape")


def _run(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-c", "core.quotePath=false", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=_TIMEOUT_S, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProjectError(f"git cannot be used here: {error}.", help="Install git, and run inside a clone.") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ProjectError(
            f"git {arguments[0]} failed in '{folder}': {said[-1] if said else f'exit code {done.returncode}'}.",
            help="Run the command inside a clone of the project's repository.",
        )
    return done.stdout


def _seen_from(folder: Path, top: Path, name: str) -> str:
    return Path(os.path.relpath(top / name, folder.resolve())).as_posix()


def _kind(name: str) -> str:
    path = Path(name)
    if path.name in _ENVIRONMENT_FILES or (path.name.startswith("requirements") and path.suffix in (".txt", ".in")):
        return "environment"
    first = path.parts[0]
    ignored = first in ("docs", "tests", ".github", ".gitignore", ".gitlab-ci.yml") or first == ".."
    documents = path.suffix.lower() in _DOCUMENTS or path.name.upper() in ("LICENSE", "NOTICE", "CODEOWNERS")
    if ignored or documents:
        return "quiet"
    return "code" if path.suffix == ".py" else "data"
