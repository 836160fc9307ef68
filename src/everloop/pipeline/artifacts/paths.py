"""Files and folders that a step has made: stored as bytes, and loaded as a path to read from."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError
from everloop.stores.permissions import file_mode, is_shared, make_folder

if TYPE_CHECKING:
    from everloop.stores import ContentStore


class PathFormat:
    """`meta`: `name`, the last part of the path. Readers must not write to the path that they get."""

    name = "file"

    def accepts(self, value: object) -> bool:
        return isinstance(value, Path)

    def keep(self, value: Path, objects: ContentStore) -> Stored:
        path = value.absolute()
        meta = {"name": PurePath(path).name}
        if path.is_dir():
            try:
                digest = objects.add_tree(path)
            except EverloopError as error:
                raise UnkeepableError(str(error), final=True) from error
            size = sum(entry.size_bytes for entry in objects.tree(digest))
            return Stored("tree", digest, size, meta)
        if path.is_file():
            return Stored("file", objects.add_file(path), path.stat().st_size, meta)
        raise UnkeepableError(f"there is no file or folder '{path}'", final=True)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Path:
        # The object's file is named by its digest, but many readers need the suffix of the original name.
        target = _cache_folder(objects) / stored.digest.removeprefix("sha256:") / str(stored.meta.get("name", "file"))
        if target.is_file() and _is_complete(target, objects.path(stored.digest)):
            return target
        make_folder(target.parent)
        source = objects.path(stored.digest)
        draft = target.with_name(f".{target.name[:100]}.{os.getpid()}.{id(stored):x}")
        try:
            shutil.copyfile(source, draft)
            draft.chmod(file_mode(target.parent, read_only=True))
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target


class TreeFormat:
    """A folder. `PathFormat` stores both files and folders, since both are `Path` values; this format loads folders."""

    name = "tree"

    def accepts(self, value: object) -> bool:
        return False

    def keep(self, value: Path, objects: ContentStore) -> Stored:
        return PathFormat().keep(value, objects)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Path:
        parent = _cache_folder(objects) / stored.digest.removeprefix("sha256:")
        target = parent / str(stored.meta.get("name", "folder"))
        if target.is_dir():
            return target
        make_folder(parent)
        # Written to a draft folder and renamed: two steps may load it at the same time, and the first to finish wins.
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
        try:
            objects.restore_tree(stored.digest, draft / "tree")
            for path in (draft / "tree").rglob("*"):
                if path.is_file():
                    mode = path.stat().st_mode & 0o500
                    path.chmod(mode | mode >> 3 if is_shared(parent) else mode)
            try:
                (draft / "tree").rename(target)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return target


def _cache_folder(objects: ContentStore) -> Path:
    """The folder for loaded paths: next to the objects of a local store, otherwise in the user's cache folder."""
    local = getattr(objects.bytes_store, "folder", None)
    if local is not None:
        return Path(local).parent / "cache" / "paths"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everloop" / "paths"


def _is_complete(path: Path, source: Path) -> bool:
    return path.stat().st_size == source.stat().st_size
