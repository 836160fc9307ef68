"""Artifact locations that the operator allows, and the folder or bucket of a URI.

There are three kinds. `mlflow-artifacts:` URIs are served by the artifact proxy, for all clients. Local paths and
`file:` URIs are for clients on this machine's disk, and other URIs, such as `s3://bucket/team/`, for clients with
credentials for them; these clients read and write the files directly. The server also reads them, for listings and
presigned URLs, but only below folders and buckets that the operator has named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.artifact_location import UPLOADS, ArtifactLocation, safe_parts
from everloop.integrations.mlflow.tracking_api.files.bucket_files import ArtifactBucket
from everloop.integrations.mlflow.tracking_api.files.local_files import ArtifactRoot
from everloop.integrations.mlflow.tracking_api.files.multipart_uploads import Uploads, sweep

LONGEST_LOCATION = 2048
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


_PROXY = "/api/2.0/mlflow-artifacts/artifacts/"
"""The path of the artifact proxy, in case the operator gives this server's own URL as the default artifact root."""
_BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class _LocalFolder:
    """A local folder that the operator has named. `path`: as it was given, with symbolic links unresolved."""

    path: PurePosixPath
    folder: ArtifactRoot


class ArtifactLocations:
    """Artifact locations of new experiments, those that clients may choose, and those that this server reads.

    Args:
        proxied: the folder or bucket of `mlflow-artifacts:` URIs.
        default: a URI or folder in which each new experiment gets a subfolder; None: `mlflow-artifacts:`.
        allowed: more URI prefixes or folders that clients may choose as the artifact location of an experiment.
        working: the folder that relative paths start from; None: this process's working folder.

    If `default` or one of `allowed` is a folder, clients share this machine's disk. A relative location then means a
    path below the working folder; it is recorded for the clients, but the server does not read it.
    """

    def __init__(
        self,
        proxied: ArtifactLocation,
        default: str | None = None,
        allowed: Sequence[str] = (),
        working: Path | None = None,
    ) -> None:
        self.proxied = proxied
        self.uploads = Uploads(proxied)
        self._working = PurePosixPath((working or Path.cwd()).absolute())
        self._default = self._resolved(default) if default else "mlflow-artifacts:"
        locations = [self._default, *(self._resolved(location) for location in allowed)]
        local = [path for location in locations if (path := local_path(location)) is not None]
        self._local = tuple(_LocalFolder(PurePosixPath(path), ArtifactRoot(path)) for path in local)
        remote = (uri for uri in locations if local_path(uri) is None and relative_path(uri) is None)
        self._remote = tuple(uri.rstrip("/") + "/" for uri in remote)
        self._buckets: dict[str, ArtifactBucket] = {}

    def of_experiment(self, number: int) -> str:
        """Return the artifact location of a new experiment."""
        return f"{self._default.rstrip('/')}/{number}"

    def checked(self, uri: str) -> str:
        """Check the artifact location that a client chose, and make a relative path absolute.

        Raises:
            MlflowError: the operator does not allow this location.
        """
        if len(uri) > LONGEST_LOCATION:
            raise MlflowError(f"'artifact_location' exceeds the maximum length of {LONGEST_LOCATION} characters")
        within = relative_path(uri)
        if within is not None:
            safe_parts(within)
            return uri
        path = local_path(uri)
        if path is None:
            if any(uri.startswith(start) and _is_safe(uri.removeprefix(start)) for start in self._remote):
                return uri
        elif self._local and _is_safe(path.removeprefix("/")):
            if not path.startswith("/"):
                return str(self._working / path)
            roots = (self._working, *(folder.path for folder in self._local))
            if any(PurePosixPath(path).is_relative_to(root) for root in roots):
                return uri
        raise MlflowError(
            f"Invalid artifact_location: '{uri}'. This server allows locations below mlflow-artifacts:/"
            + "".join(f" and {root}" for root in (*(str(folder.path) for folder in self._local), *self._remote))
            + ". Its operator can allow more: everloop server --allow-artifact-root"
        )

    def find(self, uri: str, path: str = "") -> tuple[ArtifactLocation, str]:
        """Return the folder or bucket of a URI, and the path in it, for a path below the URI.

        Raises:
            MlflowError: only the clients can reach the files of this URI.
        """
        found = self._find(uri)
        if found is None:
            raise MlflowError(f"This server does not store the files at '{uri}'; only clients can reach them.")
        folder, within = found
        return folder, "/".join(part for part in (within.rstrip("/"), path) if part)

    def sweep(self, older_than_s: float) -> None:
        """Remove the files of abandoned uploads from the local folders."""
        for folder in (self.proxied, *(local.folder for local in self._local)):
            if isinstance(folder, ArtifactRoot) and (folder.root / UPLOADS).is_dir():
                sweep(folder.drafts(), older_than_s)

    def _find(self, uri: str) -> tuple[ArtifactLocation, str] | None:
        within = relative_path(uri)
        if within is not None:
            return self.proxied, within
        path = local_path(uri)
        if path is None:
            start = next((start for start in self._remote if uri.startswith(start)), None)
            if start is None:
                return None
            if urlsplit(start).path.startswith(_PROXY):
                return self.proxied, f"{urlsplit(start).path.removeprefix(_PROXY)}{uri.removeprefix(start)}"
            if urlsplit(start).scheme not in _BUCKETS:
                return None
            if start not in self._buckets:
                self._buckets[start] = ArtifactBucket(start)
            return self._buckets[start], uri.removeprefix(start)
        wanted = PurePosixPath(path)
        for local in self._local:
            if wanted.is_relative_to(local.path):
                return local.folder, str(wanted.relative_to(local.path))
        return None

    def _resolved(self, location: str) -> str:
        """Return a location as the operator gave it, with a relative path made absolute."""
        path = local_path(location)
        if path is None or path.startswith("/"):
            return location
        return str(self._working / path)


def open_folder(location: str | Path) -> ArtifactLocation:
    """Open the folder or bucket in which the server stores the files that clients send to it.

    Raises:
        UsageError: the kind of URL is not supported.
    """
    path = local_path(str(location))
    return ArtifactBucket(str(location)) if path is None else ArtifactRoot(path)


def relative_path(uri: str) -> str | None:
    """Return the path of a `mlflow-artifacts:` URI without a host, in the proxy's folder; None for any other URI."""
    split = urlsplit(uri)
    if split.scheme != "mlflow-artifacts" or split.netloc or split.query or split.fragment:
        return None
    return split.path.removeprefix("/")


def local_path(uri: str) -> str | None:
    """Return the path of a `file:` URI without a host, or a plain path itself; None for any other URI."""
    if not _SCHEME.match(uri):
        return uri
    split = urlsplit(uri)
    if split.scheme != "file" or split.netloc not in ("", "localhost") or split.query or split.fragment:
        return None
    return unquote(split.path)


def _is_safe(rest: str) -> bool:
    try:
        safe_parts(rest.removeprefix("/"))
    except MlflowError:
        return False
    return True
