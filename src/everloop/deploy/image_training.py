"""What an image does for `train`: read the channels and hyperparameters, fit, and write the package.

Sources: SageMaker, "How SageMaker runs your training image"; Vertex AI, "Training code requirements".
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.deploy.image_environment import container_root
from everloop.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MAX_FAILURE = 1024
"""SageMaker shows this many characters of a failure."""
_HYPERPARAMETERS = {"target", "features", "metric", "budget_s", "seed", "candidates", "latency_ms", "task", "trials",
                    "positive"}  # fmt: skip


def train_image(
    work: Path,
    *,
    report: Callable[[str], None],
    train: str | None = None,
    valid: str | None = None,
    model: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, float]:
    """Train a model on the platform's channels and write its package where the platform collects it.

    If training fails, the reason is also written to `/opt/ml/output/failure`, where SageMaker reads it.

    Args:
        work: a temporary folder.
        report: receives lines about problems, each with its line break.
        train: files of the training rows; None takes the platform's channel.
        valid: files of the validation rows; None takes the platform's channel.
        model: folder for the package; None takes `/opt/ml/model`.
        settings: further hyperparameters, each `NAME=VALUE`.

    Returns:
        The metrics on the validation rows by name; empty without validation rows.

    Raises:
        NotFoundError: there are no training rows.
        UsageError: a hyperparameter is invalid, or the platform stopped the training.
        TrainingError: no model could be trained on these rows.
    """
    root = container_root(os.environ)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        return _train(work, root, train, valid, model, settings)
    except KeyboardInterrupt:
        _write_failure(root, "Stopped before training had ended.", report)
        raise UsageError("Stopped before training had ended.") from None
    except Exception as error:
        _write_failure(root, f"{type(error).__name__}: {error}", report)
        raise


def hyperparameters(root: Path, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Return the hyperparameters by name; a text that is valid JSON is decoded.

    Args:
        root: the container's root folder, with `opt/ml/input/config/hyperparameters.json`.
        extra: further ones, each `NAME=VALUE`.

    Raises:
        UsageError: the file is not a JSON object, or an extra one is not `NAME=VALUE`.
    """
    path = root / "opt/ml/input/config/hyperparameters.json"
    found: dict[str, Any] = {}
    if path.exists():
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise UsageError(f"'{path}' is not valid JSON: {error}.") from error
        if not isinstance(content, dict):
            raise UsageError(f"'{path}' does not hold a JSON object.", help='Write {"NAME": "VALUE", …}.')
        found |= content
    for text in extra:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"'{text}' is not a hyperparameter.", help="Write NAME=VALUE.")
        found[name] = value
    # Platforms add their own, such as sagemaker_program or _tuning_objective_metric.
    return {name: _decode(value) for name, value in found.items() if not name.startswith(("sagemaker_", "_"))}


def fit(hyper: Mapping[str, Any], train: Any, valid: Any) -> Any:
    """Fit the recipe of the package in the image on new rows, or search if the hyperparameters ask for a search.

    Raises:
        UsageError: a hyperparameter is unknown, or the target is not given.
        TrainingError: no model could be trained on these rows.
    """
    from everloop.packages.package_manifest import FILE, Manifest
    from everloop.training import AutoTrain, Recipe, fit_recipe

    unknown = sorted(set(hyper) - _HYPERPARAMETERS)
    if unknown:
        known = ", ".join(sorted(_HYPERPARAMETERS))
        raise UsageError(f"There is no hyperparameter '{unknown[0]}'.", help=f"Hyperparameters: {known}")
    image = Path(os.environ.get("EVERLOOP_IMAGE", ""), "package", FILE)
    manifest = Manifest.from_bytes(image.read_bytes()) if image.is_file() else None
    target = hyper.get("target") or (manifest.target if manifest else None)
    if not target:
        raise UsageError("The column to predict is not given.", help="Set the hyperparameter target to its name.")
    features = hyper.get("features")
    features = features.split(",") if isinstance(features, str) else features
    recipe = manifest.training.get("recipe") if manifest else None
    if recipe and set(hyper) <= {"target", "features"}:
        if features is None and manifest is not None:
            features = [name for name in manifest.read_signature().names if name in train.columns]
        return fit_recipe(Recipe.from_dict(recipe), train, target=target, features=features)
    search = {name: value for name, value in hyper.items() if name not in ("target", "features")}
    if "candidates" in search and isinstance(search["candidates"], str):
        search["candidates"] = search["candidates"].split(",")
    return AutoTrain(**search).fit(train, valid, target=target, features=features)


def _train(
    work: Path, root: Path, train: str | None, valid: str | None, model: str | None, settings: Sequence[str]
) -> dict[str, float]:
    from everloop.packages import build_package
    from everloop.registry.version_packages import export_package
    from everloop.stores import open_store
    from everloop.training import evaluate

    hyper = hyperparameters(root, settings)
    train_rows = _read_rows(_channel(root, train, "AIP_TRAINING_DATA_URI", ("train", "training")))
    if train_rows is None:
        raise NotFoundError(
            f"There is no training data in {root / 'opt/ml/input/data/train'}.",
            help="Put csv, parquet or json files into the channel 'train'.",
        )
    valid_rows = _read_rows(_channel(root, valid, "AIP_VALIDATION_DATA_URI", ("validation", "valid")))
    trained = fit(hyper, train_rows, valid_rows)
    metrics = {}
    if valid_rows is not None:
        evaluation = evaluate(trained, valid_rows, trained.target)
        metrics = {name: metric.value for name, metric in evaluation.metrics.items()}
    with open_store(work / "training", create=True) as store:
        package = build_package(
            trained, store=store, sample=train_rows, evaluation={"metrics": metrics} if metrics else None
        )
        exported = export_package(store, package.digest, work / "model")
    folders = [Path(model) if model else root / "opt/ml/model"]
    uri = os.environ.get("AIP_MODEL_DIR", "")
    if uri and "://" not in uri:
        folders.append(Path(uri))
    for folder in folders:
        # The platform has created the folder, and it may be a mount, so the files are copied into it.
        shutil.copytree(exported, folder, dirs_exist_ok=True)
    if "://" in uri:
        from everloop.stores.objects.byte_stores import open_bytes

        bucket = open_bytes(uri)
        for path in sorted(exported.rglob("*")):
            if path.is_file():
                bucket.put(path.relative_to(exported).as_posix(), path, if_absent=False)
    return metrics


def _channel(root: Path, given: str | None, variable: str, names: Sequence[str]) -> str | None:
    """Return the source of a channel: the option, else a folder of SageMaker's, else Vertex AI's variable."""
    if given:
        return given
    for name in names:
        folder = root / "opt/ml/input/data" / name
        if folder.is_dir() and any(folder.iterdir()):
            return str(folder)
    return os.environ.get(variable) or None


def _read_rows(source: str | None) -> Any:
    """Read the rows of a channel: a folder with files of one format, a file, a glob or a URL."""
    if source is None:
        return None
    from everloop.data import read

    folder = Path(source)
    paths: Any = source
    if folder.is_dir():
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        if not files:
            return None
        paths = [str(path) for path in files]
    return read(paths).collect()


def _decode(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _write_failure(root: Path, reason: str, report: Callable[[str], None]) -> None:
    path = root / "opt/ml/output/failure"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason[:_MAX_FAILURE], encoding="utf-8")
    except OSError as error:
        report(f"Could not write '{path}': {error}\n")
