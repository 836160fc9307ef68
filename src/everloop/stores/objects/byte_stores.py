"""Bytes by key: the protocol of six verbs, over a local folder or over anything that `obstore` reaches."""

# Paths as texts: here a Path would cost more than the call that it is for.
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
"""The folder, beside the keys, in which local files come to be. What a killed process leaves there is swept by gc."""

_CHUNK = 1 << 20
_FRESH_S = 600.0
"""A file put to within so many seconds need not be marked as put to again; far less than any sweep's grace."""

_KEY = re.compile(r"(?!\.)[A-Za-z0-9_.=@+-]+(?:/(?!\.)[A-Za-z0-9_.=@+-]+)*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""What file systems without hard links answer. There the last of several who put at once wins, which does no harm
to a key that is named by its content."""

_counter = itertools.count()


class ByteStore(Protocol):
    """Six verbs over bytes by key. Keys are parts of letters, digits and `_.=@+-`, joined by `/`; no part begins
    with a dot. Safe from any thread and process.

    - A key holds either all of its bytes or nothing: no reader and no crash ever sees half of a `put`.
    - Of several who put to one key with `if_absent`, exactly one is told that it wrote.
    - What was put is there for everybody when `put` returns.
    """

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        """Store bytes, or the bytes of a file, and return whether they were written.

        Args:
            if_absent: leave a key that holds something alone and return False; else replace it.

        Raises:
            InsufficientStorageError: no space left.
        """

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        """The bytes of a key, or `length` of them from `start` on; fewer where they end before.

        Raises:
            NotFoundError: the key holds nothing.
        """

    def size(self, key: str) -> int | None:
        """How many bytes the key holds; None where it holds nothing."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every key below the folder `prefix` ("" for all) with its size in bytes, in the order of keys."""

    def written_at(self, key: str) -> datetime | None:
        """When the key was last put to, by the system's clock or the store's own; None where it holds nothing. In a
        local folder a put that found the key taken counts as well; elsewhere only one that wrote does."""

    def delete(self, key: str, *, unless_since: datetime | None = None) -> bool:
        """Remove a key and return whether it held something that is now gone.

        Args:
            unless_since: leave a key alone that was put to at or after this moment.
        """


def open_bytes(where: str | Path) -> ByteStore:
    """The byte store at a folder or URL: `LocalBytes` for folders, `ObstoreBytes` for everything else."""
    text = str(where)
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        return LocalBytes(unquote(urlsplit(text).path))
    if _URL.match(text):
        return ObstoreBytes(text)
    check_path(text, "The place of the objects")
    return LocalBytes(where)


class LocalBytes:
    """A `ByteStore` in a local folder, one read-only file per key.

    By hand and not through `obstore`: nothing is imported for it, a finished file is taken in without a copy, and a
    put that finds its key taken leaves a mark that a sweep sees. A file is written under another name and linked to
    its own, which either happens or does not, also for a process that is killed. Nothing is forced to the device: a
    power cut may leave a name without its bytes, which whoever names by content notices on reading and heals by
    adding.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        self._root = str(self.folder)

    def path(self, key: str) -> Path:
        """Where the key's file is or would be."""
        return Path(f"{self._root}/{_checked(key)}")

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        target = f"{self._root}/{_checked(key)}"
        if if_absent and self._refresh(target):
            return False
        draft = self._draft()
        try:
            self._write(draft, data)
            return self._name(draft, target, if_absent)
        except OSError as error:
            raise storage_error(error, self.folder) from error
        finally:
            # After a link this is a second name, after a rename it is gone, after a failure it is rubbish. Where
            # nothing can be written, it was never made.
            with suppress(OSError):
                os.unlink(draft)

    def adopt(self, key: str, file: Path) -> bool:
        """As `put` of a file that lies in this folder, is finished and will not be written to again: it is linked
        and not copied."""
        target = f"{self._root}/{_checked(key)}"
        if self._refresh(target):
            return False
        with writing(self.folder):
            file.chmod(file_mode(self._root, read_only=True))
            return self._name(str(file), target, if_absent=True)

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
            raise _absent(key, self._root) from None

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
            return self._discard(target, unless_since.timestamp())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False

    def drafts(self) -> Iterator[Path]:
        """Unfinished files, of living processes and of dead ones."""
        folder = self.folder / TEMPORARY
        yield from folder.iterdir() if folder.is_dir() else ()

    def __repr__(self) -> str:
        return f"LocalBytes({self._root!r})"

    def _refresh(self, target: str) -> bool:
        """Whether the file is there; if so it counts as put now, so that a sweep under way does not take it."""
        try:
            if system_micros() / 1e6 - os.stat(target).st_mtime > _FRESH_S:
                os.utime(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _discard(self, target: str, since: float) -> bool:
        """Remove a file that nobody has put to since. It is moved out of sight first: whoever puts to it before the
        move leaves a newer time, and it is moved back; whoever comes after writes it anew."""
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
            self._name(draft, target, if_absent=True)
            return False
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)

    def _draft(self) -> str:
        # The process id and a count make the name unique among the living; a random part, among the dead.
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

    def _name(self, draft: str, target: str, if_absent: bool) -> bool:
        name = os.link if if_absent else os.rename
        try:
            name(draft, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            make_folder(Path(target).parent)
            return self._name(draft, target, if_absent)
        except OSError as error:
            if not if_absent or error.errno not in _NO_LINKS:
                raise
            return not os.path.exists(target) and self._name(draft, target, if_absent=False)
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

    Credentials and regions come from the environment, as each provider's own tools read it.
    """

    def __init__(self, url: str | Path, **options: Any) -> None:
        """Open.

        Args:
            options: for `obstore.store.from_url`, such as `retry_config` and `client_options`; not for folders.
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
            check_path(folder, "The place of the objects")
            self._store = LocalStore(folder, automatic_cleanup=False, mkdir=True)

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if if_absent and isinstance(data, Path) and self.size(key) is not None:
            return False
        # Conditional puts go up in one piece; only they can promise that one of several writers wins.
        options: dict[str, Any] = {"mode": "create", "use_multipart": False} if if_absent else {"mode": "overwrite"}
        try:
            obstore.put(self._store, _checked(key), data, **options)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise self._told(error, key) from error
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
            raise self._told(error, key) from error

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
            # Most stores delete what is not there without a word, so a look comes first.
            written = obstore.head(self._store, _checked(key))["last_modified"]
            if unless_since is not None and written >= unless_since:
                return False
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._told(error, key) from error
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
            raise self._told(error, key) from error

    def _told(self, error: Exception, key: str) -> Exception:
        if isinstance(error, FileNotFoundError):
            return _absent(key, self.url)
        if is_full(error):
            return insufficient(f"in '{self.url}'")
        if type(error).__module__.startswith("obstore"):
            return UnavailableError(f"The object store '{self.url}' failed at '{key}': {mask_text(str(error))}")
        return error


def _write_all(descriptor: int, data: bytes) -> None:
    # A device that is nearly full takes a part, and says so only by the count.
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise UsageError(f"'{key}' is no key of an object.", help="Keys are names joined by '/', none in front.")
    return key


def _absent(key: str, where: str) -> NotFoundError:
    return NotFoundError(f"There is no object '{key}' in '{where}'.")
