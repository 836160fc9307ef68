"""Names and identities of Delta tables in a bucket, read with few requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from everloop.errors import CorruptionError, StoreError
from everloop.stores.tables.table_digests import FOLDER, LOG
from everloop.stores.tables.table_rows import checked_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore import ObjectMeta
    from obstore.store import ObjectStore as ObjectStoreClient


def local_folder(root: str) -> Path | None:
    """The folder that a path or a `file` URL names; None for other URLs."""
    if root.startswith("file://"):
        return Path(unquote(urlsplit(root).path))
    return None if "://" in root else Path(root)


class BucketTables:
    """The tables below a URL. The client is made when it is first needed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._store: ObjectStoreClient | None = None

    def names(self) -> Iterator[str]:
        """One request for each folder above the tables, however many objects the tables have."""
        import obstore

        folders = [""]
        while folders:
            prefixes = obstore.list_with_delimiter(self._client(), folders.pop() or None)["common_prefixes"]
            for prefix in (str(one).rstrip("/") for one in prefixes):
                parent, _, last = prefix.rpartition("/")
                if last == LOG:
                    yield parent
                elif last != FOLDER and "=" not in last:
                    # Folders of digests, and of partitions such as `day=2026-01-31`, contain no tables.
                    folders.append(prefix)

    def _client(self) -> ObjectStoreClient:
        if self._store is None:
            from obstore.store import LocalStore, from_url

            folder = local_folder(self._root)
            self._store = from_url(self._root) if folder is None else LocalStore(folder, mkdir=True)
        return self._store

    def has_checkpoint(self, name: str) -> bool:
        """Whether a table has a checkpoint. The first commits of an old table may have been cleaned up."""
        return self._head(name, f"{LOG}/_last_checkpoint") is not None

    def identity(self, name: str) -> tuple[object, ...] | None:
        """Tag and time of a table's first commit, with one request. They change if the table is created again."""
        found = self._head(name, f"{LOG}/{0:020}.json")
        return None if found is None else (found["e_tag"], found["last_modified"])

    def _head(self, name: str, path: str) -> ObjectMeta | None:
        import obstore

        try:
            return obstore.head(self._client(), f"{checked_name(name)}/{path}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise unreadable_log(error, name) from error


def unreadable_log(error: Exception, name: str) -> StoreError:
    """The error for a table whose log cannot be read."""
    text = str(error).partition("\n")[0]
    if "ermission denied" in text:
        return StoreError(
            f"Cannot read the table '{name}': {text}", help="Check who owns its folder (ls -ld) and its permissions."
        )
    return CorruptionError(f"Cannot read the log of the table '{name}': {text}", help="See: everloop verify")
