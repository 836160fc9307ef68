"""Artifact location in a bucket: S3, Google Cloud Storage, Azure, or another store that `obstore` supports.

Credentials and regions are read from the environment variables of each provider's own tools.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from everloop.errors import UnavailableError, UsageError
from everloop.integrations.mlflow.tracking_api.files.artifact_location import (
    Listed,
    invalid_path,
    no_artifact,
    safe_parts,
)
from everloop.stores import new_id
from everloop.stores.clock import SystemClock
from everloop.stores.store_urls import mask_text, mask_url

Found = TypeVar("Found")


class ArtifactBucket:
    """An `ArtifactLocation` below a URL, `s3://bucket/prefix`.

    Args:
        drafts: a local folder, created if missing; None: one in the system's temporary folder.

    Raises:
        UsageError: the kind of URL is not supported.
    """

    quick = False

    def __init__(self, url: str, drafts: Path | None = None) -> None:
        from obstore.store import from_url

        self.url = url
        try:
            self._store: Any = from_url(url)
        except Exception as error:
            raise UsageError(
                f"Cannot store files at '{mask_url(url)}': {mask_text(str(error), url)}",
                help="Use a URL that begins with s3://, gs:// or az://.",
            ) from None
        self._drafts = drafts

    def check(self, path: str) -> None:
        self._key(path)

    def drafts(self) -> Path:
        if self._drafts is None:
            self._drafts = Path(tempfile.mkdtemp(prefix="everloop-"))
        self._drafts.mkdir(parents=True, exist_ok=True)
        return self._drafts

    def keep(self, draft: Path, path: str) -> None:
        import obstore

        key = self._key(path)
        self._call(path, lambda: obstore.put(self._store, key, draft))
        draft.unlink()

    def open(self, path: str) -> BucketFile:
        import obstore

        key = self._key(path)
        size = self._call(path, lambda: obstore.head(self._store, key)["size"])
        return BucketFile(self._store, key, size)

    def list(self, path: str) -> list[Listed]:
        import obstore

        prefix = "/".join(safe_parts(path))
        found = self._call(path, lambda: obstore.list_with_delimiter(self._store, prefix or None))
        folders = [Listed(str(name).rsplit("/", 1)[-1], True, 0) for name in found["common_prefixes"]]
        files = [Listed(str(one["path"]).rsplit("/", 1)[-1], False, int(one["size"])) for one in found["objects"]]
        return sorted(folders + files, key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        import obstore

        key = self._key(path)
        keys = [str(one["path"]) for page in obstore.list(self._store, prefix=key) for one in page]
        if not keys and self._call(path, lambda: self._is_there(key)):
            keys = [key]
        if keys:
            self._call(path, lambda: obstore.delete(self._store, keys))

    def on_disk(self, path: str) -> Path:
        import obstore

        prefix = "/".join(safe_parts(path))
        target = self.drafts() / new_id(SystemClock().now())
        for page in obstore.list(self._store, prefix=prefix or None):
            for one in page:
                key = str(one["path"])
                names = safe_parts(key.removeprefix(prefix).lstrip("/"))
                file = target.joinpath(*names)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as opened:
                    for piece in obstore.get(self._store, key):
                        opened.write(piece)
        return target

    def presigned_url(self, method: Literal["GET", "PUT"], path: str, seconds: int) -> str | None:
        import obstore

        try:
            return str(obstore.sign(self._store, method, self._key(path), timedelta(seconds=seconds)))
        except (TypeError, ValueError):
            # Some kinds of stores cannot sign URLs.
            return None

    def _key(self, path: str) -> str:
        key = "/".join(safe_parts(path))
        if not key:
            raise invalid_path()
        return key

    def _is_there(self, key: str) -> bool:
        import obstore

        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def _call(self, path: str, work: Callable[[], Found]) -> Found:
        try:
            return work()
        except FileNotFoundError:
            raise no_artifact(path) from None
        except Exception as error:
            if type(error).__module__.startswith("obstore"):
                raise UnavailableError(f"The artifact store failed at '{path}': {type(error).__name__}.") from error
            raise


class BucketFile:
    """A file in a bucket, read in ranges."""

    def __init__(self, store: Any, key: str, size_bytes: int) -> None:
        self._store = store
        self._key = key
        self.size_bytes = size_bytes

    def read(self, at: int, length: int) -> bytes:
        import obstore

        return bytes(obstore.get_range(self._store, self._key, start=at, length=length))

    def close(self) -> None:
        return
