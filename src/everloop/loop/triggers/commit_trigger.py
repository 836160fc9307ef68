"""Retrain when a commit changes files that a loop depends on.

The last commit that a run has answered is recorded with the run, as a mark. The present commit comes from the local git
repository, or from a call that names a commit, such as one of a webhook.
"""

from __future__ import annotations

import os
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ProjectError, UsageError
from everloop.loop.declaration_checks import check_text
from everloop.loop.triggers.trigger_calls import open_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.loop.triggers.retrain_limits import RetrainLimits
    from everloop.loop.triggers.trigger_protocol import Due, TriggerContext
    from everloop.records import TriggerCall

_TIMEOUT_S = 30.0
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class OnCommit:
    """Trigger: retrain when a new commit on a branch changes files that the loop depends on.

    The commits of the local repository are looked at, which something else must pull. A system that hosts the
    repository can report a commit instead: `POST /api/v1/loops/NAME/commits`. The worker runs the code that it has
    loaded, so restart it to train with changed code.

    Args:
        branch: name of the branch.
        path: files or folders whose changes count, relative to `repository`. Default: all in it.
        repository: the repository, or a folder inside it whose commits alone count. Default: the project's folder.
        limits: limits for this trigger.

    Raises:
        UsageError: `branch` or a path is not a text.

    Example:
        `OnCommit(branch="main", path=["features.py", "loop.py"])`
    """

    branch: str = "main"
    path: str | Sequence[str] = ()
    repository: str = "."
    limits: RetrainLimits | None = None

    def __post_init__(self) -> None:
        check_text("OnCommit(branch=)", self.branch, "OnCommit(branch='main')")
        if self.branch.startswith("-"):
            raise UsageError(
                f"OnCommit(branch=) is '{self.branch}', which cannot be a branch.", help="For example: 'main'"
            )
        paths = (self.path,) if isinstance(self.path, str) else tuple(self.path)
        for path in paths:
            check_text("OnCommit(path=)", path, "OnCommit(path='loop.py')")
        object.__setattr__(self, "path", paths)

    @property
    def urgent(self) -> bool:
        return True

    def check(self, context: TriggerContext) -> Due | None:
        calls = [call for call in open_calls(context.store, context.loop, context.last) if self._concerns(call)]
        if calls:
            newest = calls[-1]
            evidence = {"commit": newest.commit, "calls": [call.id for call in calls], "asked_by": newest.asked_by}
            return context.due(newest.reason or f"commit {str(newest.commit)[:10]}", evidence, newest.id)
        before = context.mark if isinstance(context.mark, str) else context.last.source.git_commit
        present = self._present(context)
        if before is None or present is None or present == before:
            return None
        changed = changed_files(self._folder(), before, present, tuple(self.path))
        if not changed:
            return None
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        return context.due(
            f"commit {present[:10]} on {self.branch} changes {', '.join(changed[:_SHOWN])}{more}",
            {"commit": present, "since": before, "files": list(changed[:100])},
            present,
        )

    def mark(self, context: TriggerContext) -> str | None:
        """Return the branch's newest commit now."""
        return self._present(context)

    def _concerns(self, call: TriggerCall) -> bool:
        """Whether a call reports a commit on the branch that changes one of the paths."""
        if call.commit is None or call.branch not in (None, self.branch):
            return False
        paths = [path.strip("/").removeprefix("./") for path in self.path]
        return (
            not call.files
            or not paths
            or any(file == path or file.startswith(f"{path}/") or path == "." for file in call.files for path in paths)
        )

    def _folder(self) -> str:
        return os.path.realpath(self.repository)

    def _present(self, context: TriggerContext) -> str | None:
        head = branch_head(self._folder(), self.branch)
        if head is None or not context.store.clock.simulated:
            return head
        times, commits = _history(self._folder(), head)
        known = bisect_right(times, context.now().timestamp())
        return commits[known - 1] if known else None


def branch_head(folder: str, branch: str) -> str | None:
    """Return the newest commit of a branch; None if the branch does not exist.

    The files of the repository are read, because starting git would take several milliseconds at each tick.

    Raises:
        ProjectError: the folder is not in a git repository.
    """
    git = _git_folder(folder)
    name = f"refs/heads/{branch}"
    with_ref = git / name
    try:
        return with_ref.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        pass
    try:
        packed = (git / "packed-refs").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((line.split(" ", 1)[0] for line in packed.splitlines() if line.endswith(f" {name}")), None)


@lru_cache(maxsize=256)
def changed_files(folder: str, before: str, after: str, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files that differ between two commits, below `paths` of `folder`.

    If the repository does not know `before`, for example after a rewrite of its history, all files of `after` count.

    Raises:
        ProjectError: git cannot compare the commits.
    """
    scope = ["--", *(paths or (".",))]
    if _git(folder, "cat-file", "-e", f"{before}^{{commit}}") is None:
        listed = _git(folder, "ls-tree", "-r", "--name-only", after, *scope)
    else:
        listed = _git(folder, "diff", "--name-only", "--relative", before, after, *scope)
    if listed is None:
        raise ProjectError(f"git cannot read the commit {after[:10]} in '{folder}'.", help="Check it with: git fsck")
    return tuple(listed.splitlines())


@lru_cache(maxsize=32)
def _history(folder: str, head: str) -> tuple[list[float], list[str]]:
    """Return the times and the commits of a branch's first parents, oldest first. The times never decrease."""
    listed = _git(folder, "log", "--first-parent", "--format=%ct %H", head)
    if listed is None:
        raise ProjectError(f"git cannot read the history of {head[:10]} in '{folder}'.", help="Check it with: git log")
    times: list[float] = []
    commits: list[str] = []
    for line in reversed(listed.splitlines()):
        time, commit = line.split()
        # Clocks of committers differ. A commit is not known before its parent.
        times.append(max(float(time), times[-1] if times else 0.0))
        commits.append(commit)
    return times, commits


@lru_cache(maxsize=32)
def _git_folder(folder: str) -> Path:
    found = _git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir")
    if found is None:
        raise ProjectError(
            f"'{folder}' is not in a git repository, so OnCommit cannot look at its commits.",
            help="Run git init there, or pass OnCommit(repository='folder').",
        )
    return Path(found.strip())


def _git(folder: str, *arguments: str) -> str | None:
    """Return the output of git; None if it fails.

    Raises:
        ProjectError: git is not installed, or does not answer.
    """
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise ProjectError(
            "OnCommit needs git, which is not installed.", help="Install git, or use el.OnCall()."
        ) from None
    except subprocess.TimeoutExpired:
        raise ProjectError(f"git did not answer within {_TIMEOUT_S:g} s in '{folder}'.") from None
    return done.stdout if done.returncode == 0 else None
