"""Checks the source of a model version.

The server does not read the source, but clients will. So it must not name files of another run or model than the
version's, and it may be a local path only if the files of its run or model are at a local path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus, urlsplit

from everloop.errors import EverloopError
from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.allowed_locations import local_path
from everloop.integrations.mlflow.tracking_api.logged_model_routes import find_logged_model
from everloop.integrations.mlflow.tracking_api.registry_lookup import get_model_version
from everloop.integrations.mlflow.tracking_api.run_routes import find_run
from everloop.integrations.mlflow.tracking_api.serializers import artifact_uri, wire_id

if TYPE_CHECKING:
    from everloop.stores import Store

LONGEST = 2048
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True, slots=True)
class SourceOrigin:
    """A source, and the run and logged model that it comes from according to the client; empty if not given."""

    source: str
    run_id: str = ""
    model_id: str = ""


def check_source(store: Store, origin: SourceOrigin) -> SourceOrigin:
    """Check a source, and add the run and model that follow from it.

    Raises:
        MlflowError: the source is a local path, has relative parts, or is not below its run's or model's files.
    """
    source = origin.source
    if len(source) > LONGEST:
        raise MlflowError(f"'source' exceeds the maximum length of {LONGEST} characters")
    split = urlsplit(source)
    if split.scheme == "file" and split.hostname and not split.hostname.startswith((".", "localhost", "127.0.0.1")):
        # The error code is MLflow's, whose tests check it.
        raise MlflowError(
            f"{source} is not a valid remote uri. A file: URI must not name another host.", "INTERNAL_ERROR"
        )
    if not _SCHEME.fullmatch(split.scheme) or split.scheme == "file":
        return _of_local(store, origin)
    _refuse_relative(source)
    match split.scheme:
        case "models":
            return _of_models(store, origin, split.netloc)
        case "runs":
            run = split.path.lstrip("/").partition("/")[0]
            if split.netloc or origin.model_id or run != origin.run_id:
                raise _misplaced(origin)
            return origin
        case "mlflow-artifacts" | "http" | "https":
            if split.scheme == "mlflow-artifacts" or _PROXY in unquote(split.path):
                return _of_proxy(store, origin)
    return _with_run(store, origin)


def _of_models(store: Store, origin: SourceOrigin, netloc: str) -> SourceOrigin:
    target = origin.source.removeprefix("models:/")
    if netloc:
        raise _misplaced(origin)
    if re.fullmatch(r"m-[0-9a-f]{32}", target):
        if origin.model_id != target:
            raise _misplaced(origin)
        return _with_run(store, origin)
    name, _, number = target.rpartition("/")
    if not name or not number.isdecimal():
        raise MlflowError(f"Not a proper models:/ URI: {origin.source}.")
    version = get_model_version(store, name, number)
    run, model = wire_id(version.run) if version.run else "", version.logged_model or ""
    if (origin.run_id and origin.run_id != run) or (origin.model_id and origin.model_id != model):
        raise MlflowError(
            f"Invalid model version source: '{origin.source}'. The run_id and model_id request parameters must match"
            " the referenced model version."
        )
    return SourceOrigin(origin.source, run, model)


def _of_local(store: Store, origin: SourceOrigin) -> SourceOrigin:
    """Check a local path: it must be inside the folder of its run or model, however it is written."""
    which = "model_id" if origin.model_id else "run_id"
    wrong = MlflowError(
        f"Invalid model version source: '{origin.source}'. To use a local path as a model version source, the {which}"
        " request parameter has to be specified and the local path has to be contained within the artifact"
        f" directory of the run specified by the {which}."
    )
    path, root = local_path(origin.source), local_path(_root_of(store, origin) or "models:")
    if path is None or root is None or not path.startswith("/"):
        raise wrong
    while True:
        # The path must stay inside even if a client decodes it once more.
        if any(character < " " for character in path) or not PurePosixPath(normpath(path)).is_relative_to(
            normpath(root)
        ):
            raise wrong
        further = unquote(path)
        if further == path:
            return _with_run(store, origin)
        path = further


def _of_proxy(store: Store, origin: SourceOrigin) -> SourceOrigin:
    root = _root_of(store, origin)
    if root is None:
        raise _misplaced(origin)
    source_parts, root_parts = _parts(origin.source), _parts(root)
    if source_parts[: len(root_parts)] != root_parts:
        raise _misplaced(origin)
    return _with_run(store, origin)


def _root_of(store: Store, origin: SourceOrigin) -> str | None:
    """Return the URI of the files of the source's run or model; None if there is no such run or model."""
    try:
        if origin.model_id:
            return find_logged_model(store, origin.model_id).artifacts_at
        return artifact_uri(find_run(store, origin.run_id)) if origin.run_id else None
    except EverloopError:
        return None


def _with_run(store: Store, origin: SourceOrigin) -> SourceOrigin:
    if origin.run_id or not origin.model_id:
        return origin
    model = find_logged_model(store, origin.model_id)
    return SourceOrigin(origin.source, wire_id(model.run) if model.run else "", origin.model_id)


def _parts(uri: str) -> tuple[str, ...]:
    split = urlsplit(uri)
    return (split.scheme, split.netloc, *(unquote(part) for part in split.path.split("/") if part))


def _refuse_relative(source: str) -> None:
    decoded = source
    for _ in range(10):
        further = unquote_plus(decoded)
        if further == decoded:
            break
        decoded = further
    if any(character < " " for character in decoded) or any(
        part in ("..", ".") for part in re.split(r"[/\\]", decoded)
    ):
        raise MlflowError(
            f"Invalid model version source: '{source}'. If supplying a source as an http, https, local file path, ftp,"
            " objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path references"
            " present. Please provide an absolute path."
        )


def _misplaced(origin: SourceOrigin) -> MlflowError:
    which = "model_id" if origin.model_id or origin.source.startswith("models:") else "run_id"
    return MlflowError(
        f"Invalid model version source: '{origin.source}'. The {which} request parameter must identify the resource"
        " that contains the source."
    )
