"""Which sources a model version may have.

The server reads none of them. A source is checked because others will: it must not name the files of another run or
model than the version says it comes from, and a path of this machine only where its run or model has one.
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
    """A source and the run and logged model that it is said to come from; empty where not said."""

    source: str
    run_id: str = ""
    model_id: str = ""


def check_source(store: Store, asked: SourceOrigin) -> SourceOrigin:
    """The origin with the run and model that follow from the source.

    Raises:
        MlflowError: the source is local, has relative parts, or does not lie where it should.
    """
    source = asked.source
    if len(source) > LONGEST:
        raise MlflowError(f"'source' exceeds the maximum length of {LONGEST} characters")
    split = urlsplit(source)
    if split.scheme == "file" and split.hostname and not split.hostname.startswith((".", "localhost", "127.0.0.1")):
        # The code is MLflow's, whose tests look for it.
        raise MlflowError(f"{source} is not a valid remote uri. A file: URI names no other machine.", "INTERNAL_ERROR")
    if not _SCHEME.fullmatch(split.scheme) or split.scheme == "file":
        return _of_local(store, asked)
    _refuse_relative(source)
    match split.scheme:
        case "models":
            return _of_models(store, asked, split.netloc)
        case "runs":
            run = split.path.lstrip("/").partition("/")[0]
            if split.netloc or asked.model_id or run != asked.run_id:
                raise _misplaced(asked)
            return asked
        case "mlflow-artifacts" | "http" | "https":
            if split.scheme == "mlflow-artifacts" or _PROXY in unquote(split.path):
                return _of_proxy(store, asked)
    return _with_run(store, asked)


def _of_models(store: Store, asked: SourceOrigin, netloc: str) -> SourceOrigin:
    named = asked.source.removeprefix("models:/")
    if netloc:
        raise _misplaced(asked)
    if re.fullmatch(r"m-[0-9a-f]{32}", named):
        if asked.model_id != named:
            raise _misplaced(asked)
        return _with_run(store, asked)
    name, _, number = named.rpartition("/")
    if not name or not number.isdecimal():
        raise MlflowError(f"Not a proper models:/ URI: {asked.source}.")
    version = get_model_version(store, name, number)
    run, model = wire_id(version.run) if version.run else "", version.logged_model or ""
    if (asked.run_id and asked.run_id != run) or (asked.model_id and asked.model_id != model):
        raise MlflowError(
            f"Invalid model version source: '{asked.source}'. The run_id and model_id request parameters must match"
            " the referenced model version."
        )
    return SourceOrigin(asked.source, run, model)


def _of_local(store: Store, asked: SourceOrigin) -> SourceOrigin:
    """A path that clients of this machine share: it lies in the folder of its run or model, however it is spelled."""
    which = "model_id" if asked.model_id else "run_id"
    wrong = MlflowError(
        f"Invalid model version source: '{asked.source}'. To use a local path as a model version source, the {which}"
        " request parameter has to be specified and the local path has to be contained within the artifact"
        f" directory of the run specified by the {which}."
    )
    path, root = local_path(asked.source), local_path(_root_of(store, asked) or "models:")
    if path is None or root is None or not path.startswith("/"):
        raise wrong
    while True:
        # Whoever decodes once more must still end up there.
        if any(sign < " " for sign in path) or not PurePosixPath(normpath(path)).is_relative_to(normpath(root)):
            raise wrong
        further = unquote(path)
        if further == path:
            return _with_run(store, asked)
        path = further


def _of_proxy(store: Store, asked: SourceOrigin) -> SourceOrigin:
    root = _root_of(store, asked)
    if root is None:
        raise _misplaced(asked)
    one, other = _parts(asked.source), _parts(root)
    if one[: len(other)] != other:
        raise _misplaced(asked)
    return _with_run(store, asked)


def _root_of(store: Store, asked: SourceOrigin) -> str | None:
    """Where the run or model keeps its files that the source is said to come from; None where there is none."""
    try:
        if asked.model_id:
            return find_logged_model(store, asked.model_id).artifacts_at
        return artifact_uri(find_run(store, asked.run_id)) if asked.run_id else None
    except EverloopError:
        return None


def _with_run(store: Store, asked: SourceOrigin) -> SourceOrigin:
    if asked.run_id or not asked.model_id:
        return asked
    model = find_logged_model(store, asked.model_id)
    return SourceOrigin(asked.source, wire_id(model.run) if model.run else "", asked.model_id)


def _parts(uri: str) -> tuple[str, ...]:
    split = urlsplit(uri)
    return (split.scheme, split.netloc, *(unquote(part) for part in split.path.split("/") if part))


def _refuse_relative(source: str) -> None:
    spelled = source
    for _ in range(10):
        further = unquote_plus(spelled)
        if further == spelled:
            break
        spelled = further
    if any(sign < " " for sign in spelled) or any(part in ("..", ".") for part in re.split(r"[/\\]", spelled)):
        raise MlflowError(
            f"Invalid model version source: '{source}'. If supplying a source as an http, https, local file path, ftp,"
            " objectstore, or mlflow-artifacts uri, an absolute path must be provided without relative path references"
            " present. Please provide an absolute path."
        )


def _misplaced(asked: SourceOrigin) -> MlflowError:
    which = "model_id" if asked.model_id or asked.source.startswith("models:") else "run_id"
    return MlflowError(
        f"Invalid model version source: '{asked.source}'. The {which} request parameter must identify the resource"
        " that contains the source."
    )
