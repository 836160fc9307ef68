"""Where clients' files may be: what the operator has decided, and which folder of this machine a URI leads to.

Three kinds of places. `mlflow-artifacts:` URIs lead to the folder behind the artifact proxy, for clients anywhere. A
local path or `file:` URI is for clients that share this machine's disk: they read and write there themselves, and
this server reads only below the folders that the operator has named. Any other URI, `s3://bucket/team/`, is the
clients' own affair; this server passes it on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from everloop.server.mlflow.artifact_root import ArtifactRoot, safe_parts
from everloop.server.mlflow.wire import MlflowError

LONGEST_LOCATION = 2048
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True, slots=True)
class _Local:
    """A folder of this machine that the operator has named, and how: links in the name are kept."""

    named: PurePosixPath
    folder: ArtifactRoot


class ArtifactPlaces:
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
        proxied: ArtifactRoot,
        default: str | None = None,
        allowed: Sequence[str] = (),
        working: Path | None = None,
    ) -> None:
        self.proxied = proxied
        self._working = PurePosixPath((working or Path.cwd()).absolute())
        self._default = self._resolved(default) if default else "mlflow-artifacts:"
        named = [self._default, *(self._resolved(place) for place in allowed)]
        local = [path for place in named if (path := local_path(place)) is not None]
        self._local = tuple(_Local(PurePosixPath(path), ArtifactRoot(path)) for path in local)
        self._remote = tuple(place for place in named if local_path(place) is None and relative_path(place) is None)

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

    def find(self, uri: str, path: str = "") -> tuple[ArtifactRoot, str]:
        """The folder that this server reads a URI in, and the path below it, for a path below the URI.

        Raises:
            MlflowError: the URI leads elsewhere: only the clients can reach those files.
        """
        folder, within = self.proxied, relative_path(uri)
        if within is None and (local := local_path(uri)) is not None:
            wanted = PurePosixPath(local)
            for place in self._local:
                if wanted.is_relative_to(place.named):
                    folder, within = place.folder, str(wanted.relative_to(place.named))
                    break
        if within is None:
            raise MlflowError(f"The files at '{uri}' are not kept by this server.")
        return folder, f"{within.rstrip('/')}/{path}" if path else within

    def _resolved(self, place: str) -> str:
        """A place as the operator wrote it, a relative path made absolute."""
        path = local_path(place)
        if path is None or path.startswith("/"):
            return place
        return str(self._working / path)


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
