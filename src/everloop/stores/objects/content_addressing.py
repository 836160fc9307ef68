"""Content-addressed folders: a folder becomes a manifest, which is an object like any other."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, UsageError
from everloop.stores.full_disk import writing
from everloop.stores.objects.manifests import (
    MAGIC,
    PACK_BYTES,
    SMALL_BYTES,
    TreeEntry,
    decode_tree,
    encode_tree,
    walk_files,
)
from everloop.stores.objects.object_store import ObjectStore, corrupt_object, object_key, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

_REFERENCE = re.compile(rb"sha256:[0-9a-f]{64}")


class ContentStore(ObjectStore):
    """Content-addressed bytes, files and folders over any `ByteStore`. See `ObjectStore` for bytes and files."""

    def add_tree(self, folder: Path | str, ignore: Iterable[str] = ()) -> str:
        """Store a folder and return the digest of its manifest: the same for the same paths, bytes and execute bits.

        Args:
            ignore: patterns (`*.pyc`, `__pycache__`) of names, or of paths relative to the folder, to leave out.

        Raises:
            UsageError: the folder has a symbolic link or another entry that is neither a file nor a folder, or a name
                that is not valid text.
            NotFoundError: the folder does not exist.
        """
        self._writable()
        top = Path(folder)
        if not top.is_dir():
            raise NotFoundError(f"There is no folder '{top}' to add.")
        entries: list[TreeEntry] = []
        waiting: list[tuple[TreeEntry, bytes]] = []
        waiting_bytes = 0
        for path, mode in sorted(walk_files(top, tuple(ignore))):
            source = top / path
            if source.stat().st_size >= SMALL_BYTES:
                digest = self.add_file(source)
                size = self.size(digest) or 0
                entries.append(TreeEntry(path=path, mode=mode, size_bytes=size, digest=digest))
                continue
            data = source.read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            waiting.append((TreeEntry(path=path, mode=mode, size_bytes=len(data), digest=digest), data))
            waiting_bytes += len(data)
            if waiting_bytes >= PACK_BYTES:
                entries += self._pack(waiting)
                waiting, waiting_bytes = [], 0
        entries += self._pack(waiting)
        return self.add(encode_tree(entries))

    def tree(self, digest: str) -> list[TreeEntry]:
        """The files of a tree, in the order of their paths.

        Raises:
            UsageError: the object is not a tree.
        """
        return decode_tree(self.read(digest), digest)

    def is_tree(self, digest: str) -> bool:
        """Whether an object begins as the manifest of a tree."""
        return self.bytes_store.get(object_key(digest), 0, len(MAGIC)) == MAGIC

    def read_entry(self, entry: TreeEntry) -> bytes:
        """Return the bytes of one file of a tree after comparing them with the file's digest."""
        if entry.pack is None:
            return self.read(entry.digest)
        data = self.bytes_store.get(object_key(entry.pack), entry.offset, entry.size_bytes)
        if hashlib.sha256(data).hexdigest() != entry.digest[7:]:
            raise corrupt_object(entry.digest)
        return data

    def restore_tree(self, digest: str, folder: Path | str) -> Path:
        """Write a tree's files into a folder that does not exist or is empty.

        The folder appears only when it is complete: the files are written to a temporary folder beside it first.

        Raises:
            UsageError: the folder is not empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"The folder '{target}' is not empty.", help="Use a new folder.")
        entries = self.tree(digest)
        with writing(target), scratch_folder(target.parent) as scratch:
            draft = scratch / "tree"
            draft.mkdir()
            for entry in entries:
                path = draft / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                if entry.pack is None:
                    self.fetch(entry.digest, path)
                else:
                    path.write_bytes(self.read_entry(entry))
                if entry.mode & 0o100:
                    mode = path.stat().st_mode
                    # All who may read the file by the umask may execute it.
                    path.chmod(mode | (mode & 0o444) >> 2)
            if target.exists():
                target.rmdir()
            draft.rename(target)
        return target

    def references(self, digest: str) -> set[str]:
        """The digests of the objects that an object refers to.

        For a tree, these are the objects with the bytes of its files. For any other object that begins like JSON, they
        are all digests in its text, so that garbage collection also follows manifests of other formats.
        """
        head = self.bytes_store.get(object_key(digest), 0, len(MAGIC))
        if head == MAGIC:
            return {entry.holder for entry in self.tree(digest)}
        if not head.lstrip().startswith((b"{", b"[")):
            return set()
        found: set[str] = set()
        tail = b""
        for chunk in self._chunks(digest):
            window = tail + chunk
            found.update(match.decode() for match in _REFERENCE.findall(window))
            # A digest may span two chunks.
            tail = window[-70:]
        return found

    def _pack(self, waiting: list[tuple[TreeEntry, bytes]]) -> list[TreeEntry]:
        if not waiting:
            return []
        pack = self.add(b"".join(data for _, data in waiting))
        packed = []
        offset = 0
        for entry, data in waiting:
            packed.append(replace(entry, pack=pack, offset=offset))
            offset += len(data)
        return packed
