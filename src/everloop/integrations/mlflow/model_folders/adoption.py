"""A model folder becomes a package, by the way that every model takes: described, packed, proved equal, compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, DataError
from everloop.integrations.mlflow.model_folders.flavors import (
    OWN_LOADER,
    Fitted,
    brings_code,
    libraries_of,
    load_fitted,
)
from everloop.integrations.mlflow.model_folders.mlmodel_file import LARGEST_FILE, Description, read_description

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from everloop.packages.time_budget import PackagingProgress
    from everloop.records import ModelVersion, Package
    from everloop.stores import Store

FLAVOR, ROWS = "mlflow.flavor", "mlflow.proved_on"


def import_folder(
    store: Store,
    folder: Path,
    model: str,
    *,
    allow_code: bool = False,
    example: Any = None,
    progress: Callable[[PackagingProgress], None] | None = None,
) -> ModelVersion:
    """Register a model folder as the next version of a model.

    Args:
        allow_code: read pickles and Python models, too. Their code runs, here and wherever they answer.
        example: rows to prove the package on; default: the example that was logged, else rows made up by the
            signature.
        progress: called as packaging moves on.

    Raises:
        TrustError: the folder holds code, and that is not allowed, or its model names something outside of itself.
        CorruptionError: its model does not hold together.
        DataError: it is no model folder, leads out of itself, or says nothing of its columns.
        ParityError: the package does not answer as the model does.
    """
    from everloop.registry.model_versions import register

    package, tags = _package(store, read_description(folder), allow_code, example, progress)
    return register(store, model, package, tags=tags)


def adopt_version(
    store: Store,
    version: ModelVersion,
    folder: Path,
    *,
    allow_code: bool = False,
    example: Any = None,
    progress: Callable[[PackagingProgress], None] | None = None,
) -> ModelVersion:
    """Give a version that came over MLflow's protocol its package; number, lineage, tags and aliases stay.

    Raises:
        ConflictError: it has one.
        TrustError, CorruptionError, DataError, ParityError: as `import_folder`.
    """
    if version.package:
        raise ConflictError(
            f"'{version.key}' has its package already.", help=f"See: everloop models show {version.key}"
        )
    package, tags = _package(store, read_description(folder), allow_code, example, progress)
    changed = replace(version, package=package.digest, signature=package.signature, tags={**tags, **version.tags})
    return store.records.update(changed, verb="adopted", data={"package": package.digest})[0]


def _package(
    store: Store,
    found: Description,
    allow_code: bool,
    example: Any,
    progress: Callable[[PackagingProgress], None] | None,
) -> tuple[Package, dict[str, str]]:
    flavor = found.flavors.get("python_function", {})
    if flavor.get("loader_module") == OWN_LOADER:
        from everloop.packages.archive import import_package

        return import_package(store, found.file(flavor.get("data", "everloop"))), {FLAVOR: "everloop"}
    from everloop.packages.package import build_package
    from everloop.registry.saving import describe

    if not brings_code(found):
        _try(found, example)
    fitted = load_fitted(found, allow_code=allow_code)
    rows, proved_on = _rows(found, fitted, example)
    classes = list(range(fitted.classes)) or None
    trained, frame = describe(fitted.model, rows, y=classes, task=fitted.task)
    package = build_package(trained, store=store, sample=frame, progress=progress)
    return package, {FLAVOR: fitted.flavor, ROWS: proved_on}


def probe_folder(folder: Path, example: Any) -> None:
    """Read the model of a folder and ask it, as a child process does on trial.

    Raises:
        TrustError, CorruptionError, DataError: as `import_folder`.
    """
    from everloop.packages.formats.estimator_structure import check_structure
    from everloop.packages.isolation.child_process import predict_edges
    from everloop.packages.package import signature_of
    from everloop.registry.saving import describe

    found = read_description(folder)
    fitted = load_fitted(found)
    check_structure(fitted.model, boosters=True)
    rows, _ = _rows(found, fitted, example)
    trained, frame = describe(fitted.model, rows, y=list(range(fitted.classes)) or None, task=fitted.task)
    predict_edges(trained.model, signature_of(trained), frame)


def _try(found: Description, example: Any) -> None:
    """Have a child process read the folder first: it came from elsewhere, and libraries crash on what is damaged."""
    from everloop.packages.isolation.isolated_load import IsolatedJob, ProcessLimits, run

    files = [place for place in found.folder.rglob("*") if place.is_file() and not place.is_symlink()]
    size = min(sum(place.stat().st_size for place in files), LARGEST_FILE)
    arguments = {
        "format": "mlflow",
        "libraries": libraries_of(found),
        "folder": found.folder.resolve(),
        "example": example,
    }
    run(
        IsolatedJob(name="folder", arguments=arguments, limits=ProcessLimits.of(size)), f"The model in '{found.folder}'"
    )


def _rows(found: Description, fitted: Fitted, example: Any) -> tuple[Any, str]:
    if example is not None:
        return example, "given rows"
    logged = found.example()
    if logged is not None:
        return logged, "the logged example"
    model = fitted.model
    names = getattr(model, "feature_names_in_", None)
    if names is None and callable(getattr(model, "feature_name", None)):
        names = model.feature_name()
    width = getattr(model, "n_features_in_", None)
    made = found.made_up([] if names is None else [str(name) for name in names], None if width is None else int(width))
    if made is None:
        raise DataError(
            f"The model in '{found.folder}' came without an example and without a signature that tells its columns.",
            help="Give some of its rows: --example rows.parquet, or log it with input_example=.",
        )
    return made, "made-up rows"
