"""The state of files as a text that changes if, and only if, their paths or contents change.

    files 1 <digest over paths and contents>
    <size> <mtime ns> <ctime ns> <sha256, 32 hex> <path as a JSON string>
    …

There is one line per file, sorted by path. With the stat numbers, a later check need not hash files that the file
system reports as unchanged. If a later check finds the same contents with new stat numbers (a touched file, a fresh
checkout), it returns the earlier text, so two states can be compared as strings.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from everloop.errors import SourceError
from everloop.stores.clock import SystemClock, micros

if TYPE_CHECKING:
    from everloop.records import Json

_HEADER = "files 1 "
_CHUNK = 1 << 20
_MAGIC = "*?["

# The stamp of a file that was written a moment ago proves nothing yet: a second write within the same tick of the file
# system's clock leaves the same stamp. Ticks last up to 10 ms, and whole seconds on old file systems.
_SETTLED_NS = 50_000_000
_SETTLED_COARSE_NS = 2_000_000_000


class _Stamp(NamedTuple):
    """What stat reports about a file. The change time reveals a replacement with the same size and mtime."""

    size: int
    modified_ns: int
    changed_ns: int


_UNPROVEN = _Stamp(-1, 0, 0)
_hashed: dict[tuple[str, _Stamp], str] = {}


def project_folder() -> Path:
    """The folder that relative paths start from: that of `loop.py`, or else the current folder."""
    return Path(os.environ.get("EVERLOOP_PROJECT") or Path.cwd())


def match_files(pattern: str) -> list[str]:
    """The files that match a path or glob, sorted. Relative paths stay relative to the project folder."""
    folder = project_folder()
    if (folder / pattern).is_file():
        return [pattern]
    if not any(character in pattern for character in _MAGIC):
        return []
    found = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(path for path in found if (folder / path).is_file())


def files_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The current state of the files that match `spec["patterns"]`.

    Args:
        spec: `patterns`: paths and globs; relative ones start from the project folder.
        since: an earlier state of the same files. Its hashes are reused for unchanged files.
    """
    known = _parse(since) if since is not None else {}
    folder = project_folder()
    paths = sorted({path for pattern in spec["patterns"] for path in match_files(pattern)})
    with ThreadPoolExecutor(max_workers=min(4, max(1, len(paths)))) as pool:
        states = list(pool.map(lambda path: _file_state(folder / path, known.get(path)), paths))
    seen = {path: found for path, found in zip(paths, states, strict=True) if found is not None}
    if since is not None and {path: content for path, (_, content) in seen.items()} == {
        path: content for path, (_, content) in known.items()
    }:
        return since
    lines = [
        f"{stamp.size} {stamp.modified_ns} {stamp.changed_ns} {content} {json.dumps(path)}"
        for path, (stamp, content) in seen.items()
    ]
    digest = hashlib.sha256("\n".join(f"{content} {json.dumps(path)}" for path, (_, content) in seen.items()).encode())
    return "\n".join([_HEADER + digest.hexdigest(), *lines])


def files_change(before: str, after: str) -> str:
    """Describe the change between two states: `1 new file`, `2 files changed, 1 file gone`; empty if there is none."""
    old, new = _parse(before), _parse(after)
    parts = []
    for count, word in (
        (len(new.keys() - old.keys()), "new"),
        (sum(old[path][1] != new[path][1] for path in old.keys() & new.keys()), "changed"),
        (len(old.keys() - new.keys()), "gone"),
    ):
        if count:
            noun = f"file{'s' if count > 1 else ''}"
            parts.append(f"{count} new {noun}" if word == "new" else f"{count} {noun} {word}")
    return ", ".join(parts)


def torn_files(spec: dict[str, Json], before: str) -> list[str]:
    """The files of an earlier state that have changed or disappeared since. New files do not count."""
    after = files_state(spec, since=before)
    if after == before:
        return []
    old, new = _parse(before), _parse(after)
    return sorted(path for path, (_, content) in old.items() if path not in new or new[path][1] != content)


def literal(path: Path) -> str:
    """The path, escaped for readers that would treat its brackets and stars as a glob."""
    return glob.escape(str(path))


def write_stamp(path: Path) -> str:
    """Size and write time of one file as text; `gone` if it does not exist, `-` while the time proves nothing yet."""
    now_ns = micros(SystemClock().now()) * 1000
    try:
        found = path.stat()
    except FileNotFoundError:
        return "gone"
    return f"{found.st_size}:{found.st_mtime_ns}" if is_settled(found.st_mtime_ns, now_ns) else "-"


def _file_state(path: Path, known: tuple[_Stamp, str] | None) -> tuple[_Stamp, str] | None:
    """Stamp and content hash of one file, None if it is gone. A file with an unchanged stamp is not read."""
    try:
        return _existing_file_state(path, known)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"'{path}' cannot be read: {error.strerror}.") from error


def _existing_file_state(path: Path, known: tuple[_Stamp, str] | None) -> tuple[_Stamp, str]:
    stamp = _stamp(path)
    if stamp is None:
        return _UNPROVEN, content_hash(path)
    if known is not None and known[0] == stamp:
        return known
    key = (str(path), stamp)
    if (content := _hashed.get(key)) is None:
        content = _hashed[key] = content_hash(path)
    return stamp, content


def _stamp(path: Path) -> _Stamp | None:
    """The stamp of a file, or None if the file was written so recently that the stamp proves nothing."""
    now_ns = micros(SystemClock().now()) * 1000
    found = path.stat()
    last_ns = max(found.st_mtime_ns, found.st_ctime_ns)
    if not is_settled(last_ns, now_ns):
        return None
    return _Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def is_settled(last_ns: int, now_ns: int) -> bool:
    """Whether a stamp from `last_ns` proves at `now_ns` that the file was not written since."""
    return now_ns - last_ns >= (_SETTLED_COARSE_NS if last_ns % 1_000_000_000 == 0 else _SETTLED_NS)


def content_hash(path: Path) -> str:
    """A short digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:32]


def _parse(state: str) -> dict[str, tuple[_Stamp, str]]:
    seen = {}
    for line in state.split("\n")[1:]:
        size, modified, changed, content, path = line.split(" ", 4)
        seen[json.loads(path)] = (_Stamp(int(size), int(modified), int(changed)), content)
    return seen
