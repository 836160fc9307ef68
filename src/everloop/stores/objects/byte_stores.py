"""Byte stores: bytes by key, in a local folder or in any object store that `obstore` supports."""

# Paths are strings here, because creating a Path would take longer than the call that uses it.
# ruff: noqa: PTH104, PTH108, PTH110, PTH116, PTH123

from __future__ import annotations

import errno
import itertools
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from everloop.errors import NotFoundError, UnavailableError, UsageError
from everloop.stores.clock import moment_of, system_micros
from everloop.stores.full_disk import insufficient, is_full, storage_error, writing
from everloop.stores.permissions import file_mode, make_folder, make_private
from everloop.stores.store_urls import BUCKETS, check_path, check_url, mask_text, mask_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from obstore import ObjectMeta

TEMPORARY = ".tmp"
"""Subfolder where local files are written first. `gc` removes what killed processes leave there."""

_CHUNK = 1 << 20
_FRESH_S = 600.0
"""The time of a file that is younger than this is not updated by another put. Far below the grace period of `gc`."""

_KEY = re.compile(r"(?!\.)[A-Za-z0-9_.=@+-]+(?:/(?!\.)[A-Za-z0-9_.=@+-]+)*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""Errors of file systems without hard links. There, the last of several simultaneous writers wins, which is harmless
if the key is the digest of the content."""

_counter = itertools.count()


class ByteStore(Protocol):
    """Six operations on bytes by key. Safe to use from any thread and process.

    A key consists of parts joined by `/`. Parts have letters, digits and `_.=@+-`, and do not begin with a dot.

    - Writes are atomic: no reader ever sees a part of a `put`, even after a crash.
    - If several callers `put` the same key with `if_absent`, `put` returns True for exactly one of them.
    - When `put` returns, all processes can read the bytes.
    """

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        """Store bytes, or the bytes of a file, and return whether they were written.

        Args:
            if_absent: if the key exists, leave it alone and return False. Otherwise replace it.

        Raises:
            InsufficientStorageError: no space is left.
        """

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        """The bytes of a key, or up to `length` bytes from `start` on.

        Raises:
            NotFoundError: the key does not exist.
        """

    def size(self, key: str) -> int | None:
        """The number of bytes of a key, or None if it does not exist."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """All keys in the folder `prefix` ("" for all) with their sizes in bytes, sorted by key."""

    def written_at(self, key: str) -> datetime | None:
        """When the key was last put, by the clock of the system or of the store; None if it does not exist.

        In a local folder, a `put` that found the key taken counts as well. Elsewhere, only a `put` that wrote does.
        """

    def delete(self, key: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a key and return whether it existed and is now removed.

        Args:
            unless_since: do not remove a key that was put at or after this moment.
        """


def open_bytes(where: str | Path) -> ByteStore:
    """Open the byte store at a folder or URL: `LocalBytes` for folders, `ObstoreBytes` for everything else."""
    text = str(where)
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return LocalBytes(unquote(urlsplit(text).path))
    if _URL.match(text):
        return ObstoreBytes(text)
    check_path(text, "The path of the objects")
    return LocalBytes(where)


class LocalBytes:
    """A `ByteStore` in a local folder, one read-only file per key.

    It does not use `obstore`, so it needs no import, can take in a finished file without copying it, and can update
    the time of a key that exists already, which protects it from `gc`. A file is written under a temporary name and
    then linked to its final one. The link is atomic, even if the process is killed. Files are not synced to the device:
    a power cut may leave a file without its bytes. Content-addressed stores notice that on reading, and repair it when
    the content is added again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self._root = str(self.folder)

    def path(self, key: str) -> Path:
        """The path of the key's file, whether it exists or not."""
        return Path(f"{self._root}/{_checked(key)}")

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        target = f"{self._root}/{_checked(key)}"
        if if_absent and self._refresh(target):
            return False
        draft = self._draft()
        try:
            self._write(draft, data)
            return self._publish(draft, target, if_absent)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        finally:
            # The draft is a second name after a link, and useless after a failure. After a rename it does not exist.
            with suppress(OSError):
                os.unlink(draft)

    def adopt(self, key: str, file: Path) -> bool:
        """As `put`, for a finished file on the same device: it is linked, not copied, and must not change later."""
        target = f"{self._root}/{_checked(key)}"
        if self._refresh(target):
            return False
        with writing(self.folder):
            file.chmod(file_mode(self._root, read_only=True))
            return self._publish(str(file), target, if_absent=True)

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        try:
            with open(f"{self._root}/{_checked(key)}", "rb", buffering=0) as file:
                if start:
                    file.seek(start)
                if length is None:
                    return file.readall()
                parts = []
                while length > 0 and (part := file.read(length)):
                    parts.append(part)
                    length -= len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(key, self._root) from None

    def size(self, key: str) -> int | None:
        try:
            stat = os.stat(f"{self._root}/{_checked(key)}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_size if (stat.st_mode & 0o170000) == 0o100000 else None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        top = f"{self._root}/{_checked(prefix)}" if prefix else self._root
        yield from self._walk(top, f"{prefix}/" if prefix else "")

    def written_at(self, key: str) -> datetime | None:
        try:
            stat = os.stat(f"{self._root}/{_checked(key)}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return moment_of(stat.st_mtime_ns // 1000)

    def delete(self, key: str, *, unless_since: datetime | None = None) -> bool:
        target = f"{self._root}/{_checked(key)}"
        try:
            if unless_since is None:
                os.unlink(target)
                return True
            return self._delete_older(target, unless_since.timestamp())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False

    def drafts(self) -> Iterator[Path]:
        """Unfinished files of processes that are running or were killed."""
        folder = self.folder / TEMPORARY
        yield from folder.iterdir() if folder.is_dir() else ()

    def __repr__(self) -> str:
        return f"LocalBytes({self._root!r})"

    def _refresh(self, target: str) -> bool:
        """Whether the file exists. If so, its time is updated, so that a running `gc` does not remove it."""
        try:
            if system_micros() / 1e6 - os.stat(target).st_mtime > _FRESH_S:
                os.utime(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _delete_older(self, target: str, since: float) -> bool:
        """Remove a file unless its key was put since then.

        The file is renamed first. If the key was put before the rename, the file has a newer time, and is moved back.
        If it is put after the rename, the file is written again.
        """
        if os.stat(target).st_mtime >= since:
            return False
        draft = self._draft()
        try:
            os.rename(target, draft)
        except FileNotFoundError:
            make_folder(Path(draft).parent)
            os.rename(target, draft)
        try:
            if os.stat(draft).st_mtime < since:
                return True
            self._publish(draft, target, if_absent=True)
            return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)

    def _draft(self) -> str:
        # Process id and counter make the name unique among running processes, the random part among leftovers.
        return f"{self._root}/{TEMPORARY}/{os.getpid()}-{next(_counter)}-{os.urandom(4).hex()}"

    def _write(self, draft: str, data: bytes | Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            descriptor = make_private(draft, flags, read_only=True)
        except FileNotFoundError:
            make_folder(Path(draft).parent)
            descriptor = make_private(draft, flags, read_only=True)
        try:
            if isinstance(data, Path):
                with data.open("rb", buffering=0) as source:
                    while chunk := source.read(_CHUNK):
                        _write_all(descriptor, chunk)
            else:
                _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def _publish(self, draft: str, target: str, if_absent: bool) -> bool:
        """Give a finished file its final name, and return whether that was done."""
        link_or_rename = os.link if if_absent else os.rename
        try:
            link_or_rename(draft, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            make_folder(Path(target).parent)
            return self._publish(draft, target, if_absent)
        except OSError as error:
            if not if_absent or error.errno not in _NO_LINKS:
                raise
            return not os.path.exists(target) and self._publish(draft, target, if_absent=False)
        return True

    def _walk(self, folder: str, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name + ("/" if entry.is_dir() else ""))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


class ObstoreBytes:
    """A `ByteStore` over `obstore`: `s3://bucket/prefix`, `gs://…`, `az://…`, `memory://`, `file:///…` or a folder.

    Credentials and regions are read from the same environment variables as by each provider's own tools.
    """

    def __init__(self, url: str | Path, **options: Any) -> None:
        """
        Args:
            options: passed to `obstore.store.from_url`, such as `retry_config` and `client_options`. Ignored for
                folders.
        """
        from obstore.store import LocalStore, from_url

        text = str(url)
        self.url = mask_url(text)
        self._store: Any
        if _URL.match(text) and not text.startswith("file://"):
            check_url(text, "The URL of the objects", (*BUCKETS, "https", "http"))
            self._store = from_url(text, **options)
        else:
            from urllib.parse import unquote, urlsplit

            folder = unquote(urlsplit(text).path) if _URL.match(text) else text
            check_path(folder, "The path of the objects")
            self._store = LocalStore(folder, automatic_cleanup=False, mkdir=True)

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if if_absent and isinstance(data, Path) and self.size(key) is not None:
            return False
        # A conditional put cannot be a multipart upload. Only a conditional put ensures that exactly one writer wins.
        options: dict[str, Any] = {"mode": "create", "use_multipart": False} if if_absent else {"mode": "overwrite"}
        try:
            obstore.put(self._store, _checked(key), data, **options)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise self._translated(error, key) from error
        return True

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        import obstore

        key = _checked(key)
        try:
            if start is None and length is None:
                return bytes(obstore.get(self._store, key).bytes())
            size = obstore.head(self._store, key)["size"]
            begin = min(start or 0, size)
            end = size if length is None else min(begin + length, size)
            if begin == end:
                return b""
            return bytes(obstore.get_range(self._store, key, start=begin, end=end))
        except Exception as error:
            raise self._translated(error, key) from error

    def size(self, key: str) -> int | None:
        meta = self._head(key)
        return None if meta is None else meta["size"]

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        import obstore

        found = []
        for page in obstore.list(self._store, prefix=_checked(prefix) if prefix else None):
            found += [(str(entry["path"]), int(entry["size"])) for entry in page]
        for key, size in sorted(found):
            if not any(part.startswith(".") for part in key.split("/")):
                yield key, size

    def written_at(self, key: str) -> datetime | None:
        meta = self._head(key)
        return None if meta is None else meta["last_modified"]

    def delete(self, key: str, *, unless_since: datetime | None = None) -> bool:
        import obstore

        try:
            # Most stores do not report whether a deleted key existed, so this is checked first.
            written = obstore.head(self._store, _checked(key))["last_modified"]
            if unless_since is not None and written >= unless_since:
                return False
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._translated(error, key) from error
        return True

    def __repr__(self) -> str:
        return f"ObstoreBytes({self.url!r})"

    def _head(self, key: str) -> ObjectMeta | None:
        import obstore

        try:
            return obstore.head(self._store, _checked(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._translated(error, key) from error

    def _translated(self, error: Exception, key: str) -> Exception:
        if isinstance(error, FileNotFoundError):
            return _missing(key, self.url)
        if is_full(error):
            return insufficient(f"in '{self.url}'")
        if type(error).__module__.startswith("obstore"):
            return UnavailableError(f"The object store '{self.url}' failed for '{key}': {mask_text(str(error))}")
        return error


def _write_all(descriptor: int, data: bytes) -> None:
    # If the device is nearly full, only a part is written, and only the returned count shows it.
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"'{key}' is not a valid key for an object.",
            help="A key consists of names joined by '/'. It does not begin with '/', and no name begins with '.'.",
        )
    return key


def _missing(key: str, where: str) -> NotFoundError:
    return NotFoundError(f"There is no object '{key}' in '{where}'.")
