"""Bytes by what they are: the key is the SHA-256 of the content, and every read proves it.

Digests read `sha256:<64 hex>`; the object of `sha256:abcdef…` lies under the key `sha256/ab/cdef…`.
"""

from __future__ import annotations

import errno
import hashlib
import re
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import (
    CorruptionError,
    InsufficientStorageError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    UsageError,
)
from everloop.stores.full_disk import FULL, insufficient, storage_error, writing
from everloop.stores.objects.byte_stores import TEMPORARY, ByteStore, LocalBytes, open_bytes
from everloop.stores.objects.manifests import (
    DIGEST,
    MAGIC,
    PACK_BYTES,
    SMALL_BYTES,
    TreeEntry,
    decode_tree,
    encode_tree,
    walk_files,
)
from everloop.stores.permissions import file_mode, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

_CHUNK = 1 << 20
_REFERENCE = re.compile(rb"sha256:[0-9a-f]{64}")


class ContentStore:
    """Content-addressed bytes, files and folders over any `ByteStore`. Safe from any thread and process.

    Adding what is there already costs a look and no write. All adding verbs raise `InsufficientStorageError` where no
    space is left and `ReadOnlyError` where the store is a view of the past, or belongs to others.
    """

    def __init__(
        self, bytes_store: ByteStore | str | Path, *, cache: Path | None = None, read_only: bool = False
    ) -> None:
        """
        Args:
            cache: where `path` keeps copies of remote objects; a temporary folder where there is none.
        """
        self.bytes_store: ByteStore = open_bytes(bytes_store) if isinstance(bytes_store, (str, Path)) else bytes_store
        self._cache = cache
        self._read_only = read_only
        self._proved: dict[str, tuple[int, int, int]] = {}

    def read_only(self) -> ContentStore:
        """The same objects, without the verbs that add."""
        view = ContentStore(self.bytes_store, cache=self._cache, read_only=True)
        view._proved = self._proved
        return view

    def add(self, data: bytes) -> str:
        """Keep bytes and return their digest."""
        self._writable()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._keep(digest, data, len(data))
        return digest

    def add_file(self, path: Path | str) -> str:
        """Keep a file's bytes and return their digest; a large file is never whole in memory.

        Raises:
            NotFoundError: there is no such file.
        """
        self._writable()
        source = Path(path)
        try:
            if source.stat().st_size < SMALL_BYTES:
                return self.add(source.read_bytes())
            # The source may be written to meanwhile, so a copy is taken and named by what it holds.
            with _scratch(self._near()) as folder:
                copy = folder / "copy"
                digest, size = _copy(source, copy)
                self._keep(digest, copy, size)
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(f"There is no file '{source}' to add.") from None
        except OSError as error:
            raise _told(error, source) from error
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes of a digest, proved.

        Raises:
            NotFoundError: there is no such object.
            CorruptionError: the stored bytes are not those of the digest.
        """
        data = self._raw(digest)
        if hashlib.sha256(data).hexdigest() != digest[7:]:
            raise _corrupt(digest)
        return data

    def fetch(self, digest: str, path: Path | str) -> Path:
        """Copy an object to `path`, which appears whole and proved or not at all; replaces a file there."""
        target = Path(path)
        draft = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # By the umask, as every file that a user makes.
            with draft.open("xb") as file:
                hasher = hashlib.sha256()
                for chunk in self._chunks(digest):
                    hasher.update(chunk)
                    file.write(chunk)
            if hasher.hexdigest() != digest[7:]:
                raise _corrupt(digest)
            draft.replace(target)
        except OSError as error:
            raise _told(error, target) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return target

    def path(self, digest: str) -> Path:
        """A local file with the object's bytes, to be read and never written.

        Proved when first asked for, and again when the file is another than before; remote objects are copied.
        """
        if isinstance(self.bytes_store, LocalBytes):
            local = self.bytes_store.path(_key(digest))
        else:
            local = self._copied(digest)
        try:
            seen = local.stat()
        except FileNotFoundError:
            raise _missing(digest) from None
        mark = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
        if self._proved.get(digest) != mark:
            if _digest_of(local) != digest:
                raise _corrupt(digest)
            self._proved[digest] = mark
        return local

    def _copied(self, digest: str) -> Path:
        """A local copy of a remote object: in the home's cache, or elsewhere if the home takes no writes."""
        if self._cache is not None:
            local = self._cache / _key(digest)
            if local.exists():
                return local
            try:
                make_folder(local.parent)
            except (ReadOnlyError, InsufficientStorageError):
                self._cache = None
        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="everloop-objects-"))
        local = self._cache / _key(digest)
        make_folder(local.parent)
        if not local.exists():
            self.fetch(digest, local)
            local.chmod(file_mode(local.parent, read_only=True))
        return local

    def has(self, digest: str) -> bool:
        return self.size(digest) is not None

    def size(self, digest: str) -> int | None:
        """The object's size in bytes; None where there is none."""
        return self.bytes_store.size(_key(digest))

    def written_at(self, digest: str) -> datetime | None:
        """When the object was last added; `ByteStore.written_at` says by which clock."""
        return self.bytes_store.written_at(_key(digest))

    def digests(self) -> Iterator[tuple[str, int]]:
        """Every object's digest and size in bytes."""
        for key, size in self.bytes_store.list("sha256"):
            digest = "sha256:" + key.removeprefix("sha256/").replace("/", "", 1)
            if DIGEST.fullmatch(digest):
                yield digest, size

    def remove(self, digest: str, *, unless_since: datetime | None = None) -> bool:
        """Remove an object, whoever refers to it; `ByteStore.delete` says how. For the sweep; nobody else should."""
        self._writable()
        return self.bytes_store.delete(_key(digest), unless_since=unless_since)

    def prove(self, digest: str) -> None:
        """Read an object from end to end, whatever its size.

        Raises:
            NotFoundError: there is no such object.
            CorruptionError: the stored bytes are not those of the digest.
        """
        hasher = hashlib.sha256()
        for chunk in self._chunks(digest):
            hasher.update(chunk)
        if hasher.hexdigest() != digest[7:]:
            raise _corrupt(digest)

    def add_tree(self, folder: Path | str, ignore: Iterable[str] = ()) -> str:
        """Keep a folder and return its manifest's digest: the same for the same paths, bytes and execute bits.

        Args:
            ignore: patterns (`*.pyc`, `__pycache__`) of names, or of paths relative to the folder, to leave out.

        Raises:
            UsageError: a symbolic link or another thing that is neither file nor folder, or a name that is no text.
            NotFoundError: there is no such folder.
        """
        self._writable()
        top = Path(folder)
        if not top.is_dir():
            raise NotFoundError(f"There is no folder '{top}' to add.")
        entries: list[TreeEntry] = []
        waiting: list[tuple[TreeEntry, bytes]] = []
        held = 0
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
            held += len(data)
            if held >= PACK_BYTES:
                entries += self._pack(waiting)
                waiting, held = [], 0
        entries += self._pack(waiting)
        return self.add(encode_tree(entries))

    def tree(self, digest: str) -> list[TreeEntry]:
        """The files of a tree, in the order of their paths.

        Raises:
            UsageError: the object is no tree.
        """
        return decode_tree(self.read(digest), digest)

    def is_tree(self, digest: str) -> bool:
        """Whether an object says that it is a tree."""
        return self.bytes_store.get(_key(digest), 0, len(MAGIC)) == MAGIC

    def read_entry(self, entry: TreeEntry) -> bytes:
        """The bytes of one file of a tree, proved."""
        if entry.pack is None:
            return self.read(entry.digest)
        data = self.bytes_store.get(_key(entry.pack), entry.offset, entry.size_bytes)
        if hashlib.sha256(data).hexdigest() != entry.digest[7:]:
            raise _corrupt(entry.digest)
        return data

    def restore_tree(self, digest: str, folder: Path | str) -> Path:
        """Write a tree's files into a folder that is absent or empty.

        The folder appears whole: the files are written beside it and moved.

        Raises:
            UsageError: the folder holds something.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"'{target}' is not empty.", help="Name a new folder.")
        entries = self.tree(digest)
        with writing(target), _scratch(target.parent) as scratch:
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
                    # Who may read it by the umask may run it.
                    path.chmod(mode | (mode & 0o444) >> 2)
            if target.exists():
                target.rmdir()
            draft.rename(target)
        return target

    def references(self, digest: str) -> set[str]:
        """The digests of the objects that an object points to.

        For a tree, what holds its files; for any other object that begins like JSON, every digest in its text,
        so that manifests of other makes keep their objects through a sweep.
        """
        head = self.bytes_store.get(_key(digest), 0, len(MAGIC))
        if head == MAGIC:
            return {entry.holder for entry in self.tree(digest)}
        if not head.lstrip().startswith((b"{", b"[")):
            return set()
        found: set[str] = set()
        tail = b""
        for chunk in self._chunks(digest):
            window = tail + chunk
            found.update(match.decode() for match in _REFERENCE.findall(window))
            # A digest may lie across two chunks.
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

    def _keep(self, digest: str, data: bytes | Path, size: int) -> None:
        key = _key(digest)
        if isinstance(data, Path) and isinstance(self.bytes_store, LocalBytes):
            kept = self.bytes_store.adopt(key, data)
        else:
            kept = self.bytes_store.put(key, data)
        if not kept and self.bytes_store.size(key) != size:
            # A power cut may have left the name without the bytes: what is added now heals it.
            self.bytes_store.put(key, data, if_absent=False)

    def _raw(self, digest: str) -> bytes:
        try:
            return self.bytes_store.get(_key(digest))
        except NotFoundError:
            raise _missing(digest) from None

    def _chunks(self, digest: str) -> Iterator[bytes]:
        size = self.size(digest)
        if size is None:
            raise _missing(digest)
        key = _key(digest)
        for start in range(0, size, 8 * _CHUNK):
            yield self.bytes_store.get(key, start, 8 * _CHUNK)

    def _near(self) -> Path | None:
        """A folder on the store's own device, where a draft is a rename away from its place and swept if left."""
        if not isinstance(self.bytes_store, LocalBytes):
            return None
        folder = self.bytes_store.folder / TEMPORARY
        make_folder(folder)
        return folder

    def _writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError("These objects are open as of a moment and take no writes.")


def _key(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise UsageError(f"'{digest}' is no digest.", help="A digest reads sha256:<64 hexadecimal digits>.")
    return f"sha256/{digest[7:9]}/{digest[9:]}"


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"There is no object {digest}.", help="See: everloop verify")


def _corrupt(digest: str) -> CorruptionError:
    return CorruptionError(f"The bytes stored as {digest} are others.", help="See: everloop verify")


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file and return the digest and the size of what was copied."""
    hasher = hashlib.sha256()
    size = 0
    # Buffered, because an unbuffered write may take a part only and say so by nothing but its count.
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            hasher.update(chunk)
            writer.write(chunk)
            size += len(chunk)
    return f"sha256:{hasher.hexdigest()}", size


def _told(error: OSError, path: Path) -> StoreError:
    if error.errno in FULL:
        return insufficient(f"to keep '{path}'")
    if error.errno == errno.EROFS:
        return storage_error(error, path)
    return StoreError(f"'{path}' cannot be copied: {error}.")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


@contextmanager
def _scratch(near: Path | None) -> Iterator[Path]:
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".everloop-", dir=near))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
