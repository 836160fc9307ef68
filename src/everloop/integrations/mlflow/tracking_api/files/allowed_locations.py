"""Where clients' files may be: what the operator has decided, and which folder or bucket a URI leads to.

Three kinds of places. `mlflow-artifacts:` URIs lead to what is behind the artifact proxy, for clients anywhere. A
local path or `file:` URI is for clients that share this machine's disk, and any other, `s3://bucket/team/`, for those
that have credentials for it: they read and write there themselves. This server looks there, too, for pages and
addresses, but only below the folders and buckets that the operator has named.
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
"""How the proxy is called where the operator names this server's own address as the place of new experiments."""
_BUCKETS = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")


@dataclass(frozen=True, slots=True)
class _Local:
    """A folder of this machine that the operator has named, and how: links in the name are kept."""

    named: PurePosixPath
    folder: ArtifactRoot


class ArtifactLocations:
    """Where new experiments keep their files, which places clients may name, and which of them this server reads.

    Args:
        proxied: what `mlflow-artifacts:` URIs lead to.
        default: a URI or folder below which each new experiment gets a place of its own; None: `mlflow-artifacts:`.
        allowed: further beginnings of URIs, or folders, that a client may give an experiment for its files.
        working: what relative paths are resolved against; None: this process's own working folder.

    Where `default` or one of `allowed` is a folder, clients share this machine's disk, and a relative location is
    taken below the working folder; it is recorded for them, and not read by the server.
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
        named = [self._default, *(self._resolved(place) for place in allowed)]
        local = [path for place in named if (path := local_path(place)) is not None]
        self._local = tuple(_Local(PurePosixPath(path), ArtifactRoot(path)) for path in local)
        remote = (place for place in named if local_path(place) is None and relative_path(place) is None)
        self._remote = tuple(place.rstrip("/") + "/" for place in remote)
        self._buckets: dict[str, ArtifactBucket] = {}

    def of_experiment(self, number: int) -> str:
        """Where a new experiment keeps its files."""
        return f"{self._default.rstrip('/')}/{number}"

    def checked(self, uri: str) -> str:
        """The place that a client wants for an experiment's files, a relative path made absolute.

        Raises:
            MlflowError: the operator does not allow it.
        """
        if len(uri) > LONGEST_LOCATION:
            raise MlflowError(f"'artifact_location' exceeds the maximum length of {LONGEST_LOCATION} characters")
        within = relative_path(uri)
        if within is not None:
            safe_parts(within)
            return uri
        path = local_path(uri)
        if path is None:
            if any(uri.startswith(start) and _stays(uri.removeprefix(start)) for start in self._remote):
                return uri
        elif self._local and _stays(path.removeprefix("/")):
            if not path.startswith("/"):
                return str(self._working / path)
            places = (self._working, *(place.named for place in self._local))
            if any(PurePosixPath(path).is_relative_to(place) for place in places):
                return uri
        raise MlflowError(
            f"Invalid artifact_location: '{uri}'. This server keeps artifacts below mlflow-artifacts:/"
            + "".join(f" and {place}" for place in (*(str(one.named) for one in self._local), *self._remote))
            + ". Its operator can allow more: everloop server --allow-artifact-root"
        )

    def find(self, uri: str, path: str = "") -> tuple[ArtifactLocation, str]:
        """The folder that this server reads a URI in, and the path below it, for a path below the URI.

        Raises:
            MlflowError: the URI leads elsewhere: only the clients can reach those files.
        """
        found = self._find(uri)
        if found is None:
            raise MlflowError(f"The files at '{uri}' are not kept by this server.")
        folder, within = found
        return folder, "/".join(part for part in (within.rstrip("/"), path) if part)

    def sweep(self, older_than_s: float) -> None:
        """Remove drafts of uploads that nobody will finish from the folders of this machine."""
        for folder in (self.proxied, *(place.folder for place in self._local)):
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
        for place in self._local:
            if wanted.is_relative_to(place.named):
                return place.folder, str(wanted.relative_to(place.named))
        return None

    def _resolved(self, place: str) -> str:
        """A place as the operator wrote it, a relative path made absolute."""
        path = local_path(place)
        if path is None or path.startswith("/"):
            return place
        return str(self._working / path)


def open_folder(place: str | Path) -> ArtifactLocation:
    """The folder or bucket that the operator has named for what clients send to this server.

    Raises:
        UsageError: there is no such kind of place.
    """
    path = local_path(str(place))
    return ArtifactBucket(str(place)) if path is None else ArtifactRoot(path)


def relative_path(uri: str) -> str | None:
    """The path below the proxy's folder that a `mlflow-artifacts:` URI without a host names; None for any other."""
    split = urlsplit(uri)
    if split.scheme != "mlflow-artifacts" or split.netloc or split.query or split.fragment:
        return None
    return split.path.removeprefix("/")


def local_path(uri: str) -> str | None:
    """The path that a `file:` URI without a host, or a text without a scheme, names; None for any other URI."""
    if not _SCHEME.match(uri):
        return uri
    split = urlsplit(uri)
    if split.scheme != "file" or split.netloc not in ("", "localhost") or split.query or split.fragment:
        return None
    return unquote(split.path)


def _stays(rest: str) -> bool:
    try:
        safe_parts(rest.removeprefix("/"))
    except MlflowError:
        return False
    return True
