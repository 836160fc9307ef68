"""Turns a model folder into a package, by the same steps as any model: describe, pack, verify, compile."""

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
        allow_code: also read pickles and Python models. Their code runs here and wherever the model is used.
        example: rows to verify the package on; default: the logged input example, else rows generated from the
            signature.
        progress: called after each step of packaging.

    Raises:
        TrustError: the folder has code, which is not allowed, or its model refers to something outside the folder.
        CorruptionError: the model's files are damaged or inconsistent.
        DataError: it is not a model folder, a path leads out of it, or it does not describe the columns.
        ParityError: the package's predictions differ from the model's.
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
    """Add the package to a version that an MLflow client registered. Number, lineage, tags and aliases stay.

    Raises:
        ConflictError: the version already has a package.
        TrustError, CorruptionError, DataError, ParityError: as `import_folder`.
    """
    if version.package:
        raise ConflictError(
            f"'{version.key}' already has a package.", help=f"Show it: everloop models show {version.key}"
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
        _load_in_child_process(found, example)
    fitted = load_fitted(found, allow_code=allow_code)
    rows, proved_on = _rows(found, fitted, example)
    classes = list(range(fitted.classes)) or None
    trained, frame = describe(fitted.model, rows, y=classes, task=fitted.task)
    package = build_package(trained, store=store, sample=frame, progress=progress)
    return package, {FLAVOR: fitted.flavor, ROWS: proved_on}


def probe_folder(folder: Path, example: Any) -> None:
    """Read the model of a folder and make test predictions. Runs in a child process.

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


def _load_in_child_process(found: Description, example: Any) -> None:
    """Read the folder in a child process first, as libraries may crash on damaged or malicious files."""
    from everloop.packages.isolation.isolated_load import IsolatedJob, ProcessLimits, run

    files = [path for path in found.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    size = min(sum(path.stat().st_size for path in files), LARGEST_FILE)
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
    generated = found.generated_rows(
        [] if names is None else [str(name) for name in names], None if width is None else int(width)
    )
    if generated is None:
        raise DataError(
            f"The model in '{found.folder}' has no input example, and no signature that describes its columns.",
            help="Give example rows with --example rows.parquet (in Python: example=), or log it with input_example=.",
        )
    return generated, "made-up rows"
