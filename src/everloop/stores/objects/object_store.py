"""Content-addressed objects: the key of an object is the SHA-256 of its bytes, which every read verifies.

Digests have the form `sha256:<64 hex>`. The object `sha256:abcdef…` has the key `sha256/ab/cdef…`.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from everloop.errors import (
    CorruptionError,
    InsufficientStorageError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    UsageError,
)
from everloop.stores.full_disk import FULL, insufficient, storage_error
from everloop.stores.objects.byte_stores import TEMPORARY, ByteStore, LocalBytes, open_bytes
from everloop.stores.objects.manifests import DIGEST, SMALL_BYTES
from everloop.stores.permissions import file_mode, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

_CHUNK = 1 << 20


class ObjectStore:
    """Content-addressed bytes and files over any `ByteStore`. Safe to use from any thread and process.

    Adding an object that exists already writes nothing. Methods that add raise `InsufficientStorageError` if no space
    is left, and `ReadOnlyError` if the store is a view of the past or this user may not write to it.
    """

    def __init__(
        self, bytes_store: ByteStore | str | Path, *, cache: Path | None = None, read_only: bool = False
    ) -> None:
        """
        Args:
            cache: where `path` stores copies of remote objects. Default: a temporary folder.
        """
        self.bytes_store: ByteStore = open_bytes(bytes_store) if isinstance(bytes_store, (str, Path)) else bytes_store
        self._cache = cache
        self._read_only = read_only
        self._verified: dict[str, tuple[int, int, int]] = {}

    def read_only(self) -> Self:
        """The same objects without the possibility to add or remove any."""
        view = type(self)(self.bytes_store, cache=self._cache, read_only=True)
        view._verified = self._verified
        return view

    def add(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        self._writable()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._put(digest, data, len(data))
        return digest

    def add_file(self, path: Path | str) -> str:
        """Store a file's bytes and return their digest. Large files are not loaded into memory.

        Raises:
            NotFoundError: the file does not exist.
        """
        self._writable()
        source = Path(path)
        try:
            if source.stat().st_size < SMALL_BYTES:
                return self.add(source.read_bytes())
            # Another process may write to the source meanwhile, so the digest is computed from a copy.
            with scratch_folder(self._temporary_folder()) as folder:
                copy = folder / "copy"
                digest, size = _copy(source, copy)
                self._put(digest, copy, size)
        except (FileNotFoundError, IsADirectoryError):
            raise NotFoundError(f"There is no file '{source}' to add.") from None
        except OSError as error:
            raise _copy_error(error, source) from error
        return digest

    def read(self, digest: str) -> bytes:
        """Return an object's bytes after comparing them with the digest.

        Raises:
            NotFoundError: the object does not exist.
            CorruptionError: the stored bytes differ from the digest.
        """
        try:
            data = self.bytes_store.get(object_key(digest))
        except NotFoundError:
            raise _missing(digest) from None
        if hashlib.sha256(data).hexdigest() != digest[7:]:
            raise corrupt_object(digest)
        return data

    def fetch(self, digest: str, path: Path | str) -> Path:
        """Copy an object to `path`, replacing a file there. The file appears only when it is complete and verified."""
        target = Path(path)
        draft = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # The mode follows the umask, as for every file that a user creates.
            with draft.open("xb") as file:
                hasher = hashlib.sha256()
                for chunk in self._chunks(digest):
                    hasher.update(chunk)
                    file.write(chunk)
            if hasher.hexdigest() != digest[7:]:
                raise corrupt_object(digest)
            draft.replace(target)
        except OSError as error:
            raise _copy_error(error, target) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return target

    def path(self, digest: str) -> Path:
        """A local file with the object's bytes, which must not be written to.

        It is verified at the first use, and again if the file has changed. Remote objects are copied.
        """
        if isinstance(self.bytes_store, LocalBytes):
            local = self.bytes_store.path(object_key(digest))
        else:
            local = self._cached_copy(digest)
        try:
            seen = local.stat()
        except FileNotFoundError:
            raise _missing(digest) from None
        mark = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
        if self._verified.get(digest) != mark:
            if _digest_of(local) != digest:
                raise corrupt_object(digest)
            self._verified[digest] = mark
        return local

    def _cached_copy(self, digest: str) -> Path:
        """A local copy of a remote object: in the home's cache, or in a temporary folder if the home is read-only."""
        if self._cache is not None:
            local = self._cache / object_key(digest)
            if local.exists():
                return local
            try:
                make_folder(local.parent)
            except (ReadOnlyError, InsufficientStorageError):
                self._cache = None
        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="everloop-objects-"))
        local = self._cache / object_key(digest)
        make_folder(local.parent)
        if not local.exists():
            self.fetch(digest, local)
            local.chmod(file_mode(local.parent, read_only=True))
        return local

    def has(self, digest: str) -> bool:
        return self.size(digest) is not None

    def size(self, digest: str) -> int | None:
        """The object's size in bytes, or None if it does not exist."""
        return self.bytes_store.size(object_key(digest))

    def written_at(self, digest: str) -> datetime | None:
        """When the object was last added, by the clock that `ByteStore.written_at` describes."""
        return self.bytes_store.written_at(object_key(digest))

    def digests(self) -> Iterator[tuple[str, int]]:
        """The digest and size in bytes of every object."""
        for key, size in self.bytes_store.list("sha256"):
            digest = "sha256:" + key.removeprefix("sha256/").replace("/", "", 1)
            if DIGEST.fullmatch(digest):
                yield digest, size

    def remove(self, digest: str, *, unless_since: datetime | None = None) -> bool:
        """Remove an object as `ByteStore.delete` does, even if something refers to it. Only `gc` should call this."""
        self._writable()
        return self.bytes_store.delete(object_key(digest), unless_since=unless_since)

    def prove(self, digest: str) -> None:
        """Read an object of any size to its end and compare it with its digest.

        Raises:
            NotFoundError: the object does not exist.
            CorruptionError: the stored bytes differ from the digest.
        """
        hasher = hashlib.sha256()
        for chunk in self._chunks(digest):
            hasher.update(chunk)
        if hasher.hexdigest() != digest[7:]:
            raise corrupt_object(digest)

    def _put(self, digest: str, data: bytes | Path, size: int) -> None:
        key = object_key(digest)
        if isinstance(data, Path) and isinstance(self.bytes_store, LocalBytes):
            written = self.bytes_store.adopt(key, data)
        else:
            written = self.bytes_store.put(key, data)
        if not written and self.bytes_store.size(key) != size:
            # A power cut may have left a file without its bytes. Writing it again repairs that.
            self.bytes_store.put(key, data, if_absent=False)

    def _chunks(self, digest: str) -> Iterator[bytes]:
        size = self.size(digest)
        if size is None:
            raise _missing(digest)
        key = object_key(digest)
        for start in range(0, size, 8 * _CHUNK):
            yield self.bytes_store.get(key, start, 8 * _CHUNK)

    def _temporary_folder(self) -> Path | None:
        """A folder on the store's own device, so that drafts can be renamed into the store. `gc` removes leftovers."""
        if not isinstance(self.bytes_store, LocalBytes):
            return None
        folder = self.bytes_store.folder / TEMPORARY
        make_folder(folder)
        return folder

    def _writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError(
                "These objects are open as of a moment and cannot be changed.", help="Open the store without as_of."
            )


def object_key(digest: str) -> str:
    """The key of an object in its byte store.

    Raises:
        UsageError: `digest` is malformed.
    """
    if not DIGEST.fullmatch(digest):
        raise UsageError(f"'{digest}' is not a digest.", help="A digest has the form sha256:<64 hexadecimal digits>.")
    return f"sha256/{digest[7:9]}/{digest[9:]}"


def corrupt_object(digest: str) -> CorruptionError:
    return CorruptionError(f"The bytes of the object {digest} differ from its digest.", help="See: everloop verify")


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A temporary folder, removed afterwards. Default parent: the system's temporary folder."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".everloop-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"There is no object {digest}.", help="See: everloop verify")


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file and return the digest and the size of the copy."""
    hasher = hashlib.sha256()
    size = 0
    # The writer is buffered, because an unbuffered write may write only a part without an error.
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            hasher.update(chunk)
            writer.write(chunk)
            size += len(chunk)
    return f"sha256:{hasher.hexdigest()}", size


def _copy_error(error: OSError, path: Path) -> StoreError:
    if error.errno in FULL:
        return insufficient(f"to store '{path}'")
    if error.errno == errno.EROFS:
        return storage_error(error, path)
    return StoreError(f"Cannot copy '{path}': {error}.")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
