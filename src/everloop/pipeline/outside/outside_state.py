"""Outside state that a step has read without `el.read`: how it is recorded, and how its present state is read.

Files are compared as `el.read` compares them, through the plugin table. Environment variables are recorded as a digest:
too short to find a secret by guessing, long enough to notice another value.
"""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop import plugins
from everloop.pipeline.value_digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from everloop.records import Json

TORN = "changed while the step ran"
# Up to this number of files, each has its own observation, so that the one that changed can be named.
_MAX_SINGLE_FILES = 20
_ABSENT = "absent"
_UNLISTED = "__pycache__"


def observe_files(paths: Sequence[str], patterns: Sequence[str], torn: Sequence[str]) -> list[dict[str, Json]]:
    """Observations of files.

    Args:
        paths: absolute paths of files that have not changed since they were read. A file may be missing, if it was
            missing when the step looked for it.
        patterns: absolute globs.
        torn: files that another process wrote to while the step ran. It is not known what the step saw of them.
    """
    groups = [[path] for path in paths] if len(paths) <= _MAX_SINGLE_FILES else [list(paths)]
    found: list[dict[str, Json]] = []
    for group in [*([_literal(path) for path in group] for group in groups), *([_relative(one)] for one in patterns)]:
        spec: dict[str, Json] = {"patterns": list(group)}
        found.append({"kind": "opened", "spec": spec, "state": opened_state(spec)})
    found += [{"kind": "opened", "spec": {"patterns": [_literal(path)]}, "state": TORN} for path in torn]
    return found


def observe_folder(folder: str, names: str, added: Collection[str]) -> dict[str, Json]:
    """An observation of the names of the files in a folder.

    Args:
        names: what `names_of` returned when the folder was listed.
        added: names that the step itself has added since.
    """
    now = names_of(folder)
    unchanged = names in (now, names_of(folder, without=added))
    return {"kind": "listed", "spec": {"path": _relative(folder)}, "state": now if unchanged else TORN}


def opened_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The present state of the files of `spec["patterns"]`."""
    files_state = plugins.load("observation", "files")
    return str(files_state(spec, since=None if since == TORN else since))


def opened_change(before: str, after: str) -> str:
    """Describe how the files changed."""
    if before == TORN:
        return f"it {TORN}"
    return str(plugins.load("observation_change", "files")(before, after))


def listed_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The present names in the folder `spec["path"]`, as a digest."""
    return names_of(str(_root() / str(spec["path"])))


def listed_change(before: str, after: str) -> str:
    """Describe how the folder changed."""
    return f"it {TORN}" if before == TORN else "other files in this folder"


def environment_state(spec: dict[str, Json], since: str | None = None) -> str:
    """A digest of the environment variable `spec["name"]`."""
    return digest_variable(str(spec["name"]))


def environment_change(before: str, after: str) -> str:
    """Describe how the variable changed."""
    return "not set before" if before == _ABSENT else "not set now" if after == _ABSENT else "another value"


def unseen_state(spec: dict[str, Json], since: str | None = None) -> str:
    """Always the same: what cannot be tracked can only be named."""
    return ""


def digest_variable(name: str) -> str:
    """A short digest of an environment variable's value; the value itself is never stored."""
    # Not through `os.environ[…]`, which is tracked.
    data: dict[Any, Any] = os.environ._data  # type: ignore[attr-defined]
    value = data.get(os.environ.encodekey(name))
    if value is None:
        return _ABSENT
    return hashlib.sha256(name.encode("utf-8", "surrogatepass") + b"\0" + os.fsencode(value)).hexdigest()[:8]


def names_of(folder: str, *, without: Collection[str] = ()) -> str:
    """A digest of the names in a folder."""
    try:
        names = sorted(set(os.listdir(folder)) - set(without) - {_UNLISTED})  # noqa: PTH208 - names only
    except OSError:
        return _ABSENT
    return digest_text(*names)


def _root() -> Path:
    return Path(os.environ.get("EVERLOOP_PROJECT") or Path.cwd())


def _relative(path: str) -> str:
    """A path relative to the project if possible, so that it is valid on another machine too."""
    found = Path(path)
    return str(found.relative_to(_root())) if found.is_relative_to(_root()) else path


def _literal(path: str) -> str:
    return glob.escape(_relative(path))
