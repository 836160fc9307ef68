"""What an image does for `serve`: find the package, register it in a temporary store, open the log and serve it.

Sources: SageMaker, "Use your own inference code"; Vertex AI, "Custom container requirements"; KServe, "Custom
predictor".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.deploy.image_environment import container_root, port_of
from everloop.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from everloop.records import ModelVersion
    from everloop.stores import Store


def serve_image(
    work: Path,
    *,
    report: Callable[[str], None],
    host: str,
    port: int | None = None,
    workers: int = 1,
    log: str | None = None,
    endpoint: str | None = None,
    model: str | None = None,
) -> None:
    """Serve the package that the platform provides, until the process is stopped.

    Args:
        work: a temporary folder; holds the store of this container.
        report: receives each line of progress, with its line break.
        port: None takes the platform's.
        log: URL of the prediction log, or `none`; None takes the environment's.
        endpoint: `[PROJECT/]NAME` under which predictions are logged; None derives a name from the version.
        model: name of the model; None takes the one in the package.

    Raises:
        UsageError: no log is configured, or a setting is invalid.
        NotFoundError: no package was found.
        UnavailableError: the log's store cannot be reached, or part of the log was not shipped.
    """
    from everloop.deploy.image_log import open_log, ship_rest
    from everloop.serving import serve_endpoint
    from everloop.serving.resolve_endpoint import find_endpoint
    from everloop.stores import open_store

    # The log comes first: a container that cannot keep one must fail before it fetches a model.
    options = open_log(log, report)
    path = find_model(work, os.environ)
    port = port if port is not None else port_of(os.environ)
    project, _, name = (endpoint or "").rpartition("/")
    with open_store(work / "home", project=project or "default", create=True) as store:
        version = _register(store, path, model)
        name = _create_endpoint(store, version, name) if name else find_endpoint(store, version.key)
        home, project = store.home, store.project

    def announce(url: str) -> None:
        report(f"Endpoint '{name}' of project '{project}' is ready at {url} and serves {version.key} from {path}.\n")

    # The container does not check who sends a request: only its platform can reach it.
    serve_endpoint(name, home, host, port, project=project, workers=workers, exposed=True, on_ready=announce)
    if options is not None:
        ship_rest(options, report, again=workers > 1)


def find_model(work: Path, environment: Mapping[str, str]) -> Path:
    """Return the path of the package to serve.

    Raises:
        NotFoundError: none of the platform's folders holds a package.
    """
    from everloop.deploy.azure_ml import find_package

    root = container_root(environment)
    folders = [
        root / "opt/ml/model",
        *([_fetch(uri, work)] if (uri := environment.get("AIP_STORAGE_URI")) else []),
        *([Path(azure)] if (azure := environment.get("AZUREML_MODEL_DIR")) else []),
        root / "mnt/models",
        *([Path(image)] if (image := environment.get("EVERLOOP_IMAGE")) else []),
    ]
    for candidate in folders:
        if (found := find_package(candidate)) is not None:
            return found
    raise NotFoundError(
        f"There is no package in {', '.join(map(str, folders))}.",
        help="Export one with `everloop models export` and mount it in one of these folders.",
    )


def _create_endpoint(store: Store, version: ModelVersion, name: str) -> str:
    """Create an endpoint that sends all its traffic to the version."""
    from everloop.records import EndpointRecord, Route
    from everloop.serving.endpoint_state import check_endpoint_name

    check_endpoint_name(name)
    routes = (Route(version=version.key, percent=100.0),)
    store.records.put(store.new(EndpointRecord, name=name, model=version.model, routes=routes))
    return name


def _register(store: Store, path: Path, name: str | None) -> ModelVersion:
    """Register the package under the version number that it had in the store it was exported from."""
    from everloop.packages import import_package
    from everloop.packages.archive import open_archive
    from everloop.records import ModelVersion
    from everloop.registry import register

    package = import_package(store, path)
    _, _, signature, _ = open_archive(path)
    model, _, number = str(signature.get("version", "")).partition("@")
    model = name or model or "model"
    if not number.isdecimal() or store.records.find(ModelVersion, ("model", "=", model), limit=1):
        return register(store, model, package)
    version = store.new(
        ModelVersion, model=model, version=int(number), package=package.digest, signature=package.signature
    )
    store.records.put(version, verb="registered", data={"package": package.digest, "run": None})
    return version


def _fetch(uri: str, work: Path) -> Path:
    """Copy a remote folder (`gs://…`, `s3://…`, `az://…`) into `work`; return a local path unchanged."""
    if "://" not in uri:
        return Path(uri)
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    from everloop.stores.objects.byte_stores import open_bytes

    bucket, copy = open_bytes(uri), work / "fetched"
    for name, _ in bucket.list():
        target = (copy / name).resolve()
        if target.is_relative_to(copy.resolve()):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bucket.get(name))
    return copy
