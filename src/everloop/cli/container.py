"""What an image of everloop runs: `serve` and `train`, as the platforms ask for them.

    serve   port: $AIP_HTTP_PORT, $SAGEMAKER_BIND_TO_PORT, $PORT, else 8080
            model: the first package in /opt/ml/model (SageMaker), $AIP_STORAGE_URI (Vertex AI), $AZUREML_MODEL_DIR
            (Azure ML), /mnt/models (KServe), else the one that was built into the image
            log: $EVERLOOP_STORE, a mounted folder, a bucket or a PostgreSQL database, where everything that is answered
            is shipped; without it `serve` refuses to start, unless $EVERLOOP_LOG or --log is `none`
            endpoint: $EVERLOOP_ENDPOINT, [PROJECT/]NAME, under which the log is read there
    train   channels: /opt/ml/input/data/<channel>/ (SageMaker), $AIP_TRAINING_DATA_URI and $AIP_VALIDATION_DATA_URI
            (Vertex AI), --train and --valid; hyperparameters: /opt/ml/input/config/hyperparameters.json, --set
            model: /opt/ml/model, and $AIP_MODEL_DIR; why it failed: /opt/ml/output/failure

`$EVERLOOP_CONTAINER_ROOT` stands for `/`. Sources: SageMaker, "Use your own inference code" and "How SageMaker runs
your training image"; Vertex AI, "Custom container requirements"; KServe, "Custom predictor".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.records import ModelVersion
    from everloop.stores import Store

PORTS = ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT")
MOST_FAILURE = 1024
"""SageMaker shows no more of a failure's text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status is the error's, 0 after a stop that was asked for."""
    parser = argparse.ArgumentParser(prog="everloop.cli.container", description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve")
    serve.add_argument("--http_port", "--port", type=int, help="before the environment's")
    serve.add_argument("--model_name", default=os.environ.get("EVERLOOP_MODEL"))
    serve.add_argument("--host", default=os.environ.get("EVERLOOP_HOST", "0.0.0.0"))  # noqa: S104 - a container's
    serve.add_argument("--workers", type=int, default=int(os.environ.get("EVERLOOP_WORKERS", "1")))
    serve.add_argument("--log", help="where the prediction log goes, before the environment's; none: nowhere")
    serve.add_argument("--endpoint", default=os.environ.get("EVERLOOP_ENDPOINT"), help="[PROJECT/]NAME of the log")
    train = verbs.add_parser("train")
    train.add_argument("--train", help="files to learn from")
    train.add_argument("--valid", help="files to be judged by")
    train.add_argument("--model", help="where the model goes")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyperparameter")
    given = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="everloop-"))
    try:
        _trust(work)
        if given.verb == "serve":
            _serve(work, given)
        else:
            _train(work, given)
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def port_of(environment: Mapping[str, str]) -> int:
    """The port that a platform asks for.

    Raises:
        UsageError: what it says is no number.
    """
    name = next((name for name in PORTS if environment.get(name)), None)
    if name is None:
        return 8080
    if not environment[name].isdecimal():
        raise UsageError(f"${name} is '{environment[name]}', which is no port.")
    return int(environment[name])


def find_model(work: Path, environment: Mapping[str, str]) -> Path:
    """The package to serve.

    Raises:
        NotFoundError: none of the places holds one.
    """
    from everloop.deploy.azure_ml import find_package

    top = root(environment)
    places = [
        top / "opt/ml/model",
        *([_fetched(uri, work)] if (uri := environment.get("AIP_STORAGE_URI")) else []),
        *([Path(folder)] if (folder := environment.get("AZUREML_MODEL_DIR")) else []),
        top / "mnt/models",
        *([Path(image)] if (image := environment.get("EVERLOOP_IMAGE")) else []),
    ]
    for place in places:
        if (found := find_package(place)) is not None:
            return found
    raise NotFoundError(
        f"There is no package in {', '.join(map(str, places))}.",
        help="Mount what `everloop models export` wrote at one of them.",
    )


def root(environment: Mapping[str, str]) -> Path:
    """What stands for `/`."""
    return Path(environment.get("EVERLOOP_CONTAINER_ROOT", "/"))


def _trust(work: Path) -> None:
    """Trust what the image trusts, in a folder that can be written to: an image's own may not be."""
    if os.environ.get("EVERLOOP_KEYS"):
        return
    image = os.environ.get("EVERLOOP_IMAGE")
    if image and Path(image, "keys").is_dir():
        shutil.copytree(Path(image, "keys"), work / "keys")
    os.environ["EVERLOOP_KEYS"] = str(work / "keys")


def _serve(work: Path, given: argparse.Namespace) -> None:
    from everloop.deploy.image_log import open_log, ship_rest
    from everloop.serving import serve_endpoint
    from everloop.serving.resolve_endpoint import find_endpoint
    from everloop.stores import open_store

    # First of all: a container that cannot keep its promise says so before it fetches a model.
    log = open_log(given.log)
    path = find_model(work, os.environ)
    port = given.http_port if given.http_port is not None else port_of(os.environ)
    project, _, name = (given.endpoint or "").rpartition("/")
    with open_store(work / "home", project=project or "default", create=True) as store:
        version = _registered(store, path, given.model_name)
        place = _endpoint(store, version, name) if name else find_endpoint(store, version.key)
        where, project = store.home, store.project
    sys.stderr.write(
        f"everloop serves {version.key} out of {path} at port {port}, as the endpoint {project}/{place}.\n"
    )
    # Who may ask is decided before the container: it is reached through its platform only.
    serve_endpoint(place, where, given.host, port, project=project, workers=given.workers, exposed=True)
    if log is not None:
        ship_rest(log, again=given.workers > 1)


def _endpoint(store: Store, version: ModelVersion, name: str) -> str:
    """The endpoint of this name, which gives the version all the traffic."""
    from everloop.records import EndpointRecord, Route
    from everloop.serving.endpoint_state import check_endpoint_name

    check_endpoint_name(name)
    routes = (Route(version=version.key, percent=100.0),)
    store.records.put(store.new(EndpointRecord, name=name, model=version.model, routes=routes))
    return name


def _registered(store: Store, path: Path, name: str | None) -> ModelVersion:
    """The package in the store, as the version that it was where it came from."""
    from everloop.packages import import_package
    from everloop.packages.archive import open_archive
    from everloop.records import ModelVersion
    from everloop.registry import register

    package = import_package(store, path)
    _, _, told, _ = open_archive(path)
    model, _, number = str(told.get("version", "")).partition("@")
    model = name or model or "model"
    if not number.isdecimal() or store.records.find(ModelVersion, ("model", "=", model), limit=1):
        return register(store, model, package)
    version = store.new(
        ModelVersion, model=model, version=int(number), package=package.digest, signature=package.signature
    )
    store.records.put(version, verb="registered", data={"package": package.digest, "run": None})
    return version


def _fetched(uri: str, work: Path) -> Path:
    """A local copy of a folder at an address: `gs://…`, `s3://…`, `az://…`; a path is taken as it is."""
    if "://" not in uri:
        return Path(uri)
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    from everloop.stores.objects.byte_stores import open_bytes

    bucket, copy = open_bytes(uri), work / "fetched"
    for name, _ in bucket.list():
        place = (copy / name).resolve()
        if place.is_relative_to(copy.resolve()):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bucket.get(name))
    return copy


def _train(work: Path, given: argparse.Namespace) -> None:
    """Train, and say why not where SageMaker looks for it."""
    top = root(os.environ)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        told = _trained(work, given, top)
    except KeyboardInterrupt:
        _fail(top, "Stopped before training had ended.")
        raise UsageError("Stopped before training had ended.") from None
    except Exception as error:
        _fail(top, f"{type(error).__name__}: {error}")
        raise
    for name, value in sorted(told.items()):
        # One line each, for the platforms' regular expressions.
        sys.stdout.write(f"{name}={value:.6g}\n")
    sys.stdout.flush()


def _trained(work: Path, given: argparse.Namespace, top: Path) -> dict[str, float]:
    from everloop.packages import build_package
    from everloop.registry.version_packages import export_package
    from everloop.stores import open_store
    from everloop.training import evaluate

    hyper = hyperparameters(top, given.set)
    train = _rows(_channel(top, given.train, "AIP_TRAINING_DATA_URI", ("train", "training")))
    if train is None:
        raise NotFoundError(
            f"There is nothing to learn from in {top / 'opt/ml/input/data/train'}.",
            help="Fill the channel 'train' with csv, parquet or json files.",
        )
    valid = _rows(_channel(top, given.valid, "AIP_VALIDATION_DATA_URI", ("validation", "valid")))
    trained = fit(hyper, train, valid)
    told = {}
    if valid is not None:
        told = {name: found.value for name, found in evaluate(trained, valid, trained.target).metrics.items()}
    with open_store(work / "training", create=True) as store:
        package = build_package(trained, store=store, sample=train, evaluation={"metrics": told} if told else None)
        draft = export_package(store, package.digest, work / "model")
    places = [Path(given.model) if given.model else top / "opt/ml/model"]
    uri = os.environ.get("AIP_MODEL_DIR", "")
    if uri and "://" not in uri:
        places.append(Path(uri))
    for place in places:
        # The platform has made the folder, and it may be a mount of its own.
        shutil.copytree(draft, place, dirs_exist_ok=True)
    if "://" in uri:
        from everloop.stores.objects.byte_stores import open_bytes

        bucket = open_bytes(uri)
        for path in sorted(draft.rglob("*")):
            if path.is_file():
                bucket.put(path.relative_to(draft).as_posix(), path, if_absent=False)
    return told


def hyperparameters(top: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The hyperparameters by name, their texts read as JSON where they are JSON.

    Raises:
        UsageError: the file is no JSON object, or an extra one is not NAME=VALUE.
    """
    place = top / "opt/ml/input/config/hyperparameters.json"
    found: dict[str, Any] = {}
    if place.exists():
        try:
            told = json.loads(place.read_bytes())
        except ValueError as error:
            raise UsageError(f"'{place}' is no JSON: {error}.") from error
        if not isinstance(told, dict):
            raise UsageError(f"'{place}' holds no object.")
        found |= told
    for text in extra:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"'{text}' is no hyperparameter.", help="Write NAME=VALUE.")
        found[name] = value
    # The platform's own, such as sagemaker_program or _tuning_objective_metric, are no business of the training.
    return {name: _read(value) for name, value in found.items() if not name.startswith(("sagemaker_", "_"))}


def fit(hyper: Mapping[str, Any], train: Any, valid: Any) -> Any:
    """Fit the recipe of the image's own package on new rows, or search as the hyperparameters say.

    Raises:
        UsageError: a hyperparameter is not known, or nobody says what to predict.
        TrainingError: no model can be made of these rows.
    """
    from everloop.packages.package_manifest import FILE, Manifest
    from everloop.training import AutoTrain, Recipe, fit_recipe

    known = {"target", "features", "metric", "budget_s", "seed", "candidates", "latency_ms", "task", "trials"}
    strange = sorted(set(hyper) - known)
    if strange:
        raise UsageError(f"There is no hyperparameter '{strange[0]}'.", help=f"There are: {', '.join(sorted(known))}")
    image = Path(os.environ.get("EVERLOOP_IMAGE", ""), "package", FILE)
    manifest = Manifest.from_bytes(image.read_bytes()) if image.is_file() else None
    target = hyper.get("target") or (manifest.target if manifest else None)
    if not target:
        raise UsageError("What shall be predicted?", help="Give the hyperparameter target: the name of a column.")
    features = hyper.get("features")
    features = features.split(",") if isinstance(features, str) else features
    recipe = manifest.training.get("recipe") if manifest else None
    if recipe and set(hyper) <= {"target", "features"}:
        if features is None and manifest is not None:
            features = [name for name in manifest.read_signature().names if name in train.columns]
        return fit_recipe(Recipe.from_dict(recipe), train, target=target, features=features)
    asked = {name: value for name, value in hyper.items() if name not in ("target", "features")}
    if "candidates" in asked and isinstance(asked["candidates"], str):
        asked["candidates"] = asked["candidates"].split(",")
    return AutoTrain(**asked).fit(train, valid, target=target, features=features)


def _channel(top: Path, given: str | None, variable: str, names: Sequence[str]) -> str | None:
    if given:
        return given
    for name in names:
        folder = top / "opt/ml/input/data" / name
        if folder.is_dir() and any(folder.iterdir()):
            return str(folder)
    return os.environ.get(variable) or None


def _rows(source: str | None) -> Any:
    """The rows of a channel: a folder with files of one kind, a file, a glob or an address."""
    if source is None:
        return None
    from everloop.data import read

    folder = Path(source)
    where: Any = source
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not files:
            return None
        where = [str(path) for path in files]
    return read(where).collect()


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _fail(top: Path, why: str) -> None:
    place = top / "opt/ml/output/failure"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(why[:MOST_FAILURE], encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"Could not write '{place}': {error}\n")


if __name__ == "__main__":
    sys.exit(main())
