"""Outside state that a step has read by itself: how it is recorded, and how to look at it again.

Files are looked at as those of `el.read` are, through the plugin table. Environment variables are known by a digest:
too short to find a secret by trying, long enough to notice another value.
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
# Up to so many files, each is observed by itself, so that the one that changed can be named.
_SINGLE = 20
_ABSENT = "absent"
_UNLISTED = "__pycache__"


def observe_files(paths: Sequence[str], patterns: Sequence[str], torn: Sequence[str]) -> list[dict[str, Json]]:
    """Observations of files.

    Args:
        paths: absolute, of files that are as they were when they were read; one that is missing is missed.
        patterns: absolute globs.
        torn: files that somebody else wrote to while the step ran. What the step saw of them is not known.
    """
    groups = [[path] for path in paths] if len(paths) <= _SINGLE else [list(paths)]
    found: list[dict[str, Json]] = []
    for group in [*([_literal(path) for path in group] for group in groups), *([_relative(one)] for one in patterns)]:
        spec: dict[str, Json] = {"patterns": list(group)}
        found.append({"kind": "opened", "spec": spec, "state": opened_state(spec)})
    found += [{"kind": "opened", "spec": {"patterns": [_literal(path)]}, "state": TORN} for path in torn]
    return found


def observe_folder(folder: str, names: str, own: Collection[str]) -> dict[str, Json]:
    """An observation of what files a folder has, by their names.

    Args:
        names: what `names_of` said when the folder was listed.
        own: names that the step itself has added since.
    """
    now = names_of(folder)
    unchanged = names in (now, names_of(folder, without=own))
    return {"kind": "listed", "spec": {"path": _relative(folder)}, "state": now if unchanged else TORN}


def opened_state(spec: dict[str, Json], since: str | None = None) -> str:
    """What the files of `spec["patterns"]` hold now."""
    look = plugins.load("observation", "files")
    return str(look(spec, since=None if since == TORN else since))


def opened_change(before: str, after: str) -> str:
    """What happened to them, in words."""
    if before == TORN:
        return f"it {TORN}"
    return str(plugins.load("observation_change", "files")(before, after))


def listed_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The names in the folder `spec["path"]`."""
    return names_of(str(_root() / str(spec["path"])))


def listed_change(before: str, after: str) -> str:
    """What happened to a folder, in words."""
    return f"it {TORN}" if before == TORN else "other files in this folder"


def environment_state(spec: dict[str, Json], since: str | None = None) -> str:
    """A digest of the environment variable `spec["name"]`."""
    return digest_variable(str(spec["name"]))


def environment_change(before: str, after: str) -> str:
    """What happened to a variable, in words."""
    return "not set before" if before == _ABSENT else "not set now" if after == _ABSENT else "another value"


def unseen_state(spec: dict[str, Json], since: str | None = None) -> str:
    """Nothing to look at: what cannot be noticed is only said."""
    return ""


def digest_variable(name: str) -> str:
    """A short digest of an environment variable's value; the value itself is never kept."""
    # Not through `os.environ[…]`, which is watched.
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
    """A path as the project calls it, so that another machine finds its own."""
    found = Path(path)
    return str(found.relative_to(_root())) if found.is_relative_to(_root()) else path


def _literal(path: str) -> str:
    return glob.escape(_relative(path))
