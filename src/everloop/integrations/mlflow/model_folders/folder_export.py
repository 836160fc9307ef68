"""Writes a package as an MLflow model folder.

The folder contains the complete package, in its subfolder `everloop`, and everloop's loader module reads it wherever
everloop is installed. If the model's file is in one of MLflow's native formats, `MLmodel` names that flavour too, so
that MLflow can read it without everloop.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.integrations.mlflow.model_folders.flavors import OWN_LOADER
from everloop.integrations.mlflow.model_folders.mlmodel_file import FILE, need_yaml, signature_out
from everloop.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.packages.package_manifest import Manifest
    from everloop.records import ModelVersion
    from everloop.stores import Store

PACKAGE = "everloop"
MLFLOW_VERSION = "3.17.2"
"""The version of MLflow whose folder format is written."""


def write_folder(store: Store, ref: str, folder: Path) -> Path:
    """Write a version's model folder. The same version always gives the same bytes.

    Raises:
        NotFoundError: there is no such version, or it has no package.
        UsageError: the folder exists.
        MissingExtraError: PyYAML is not installed.
    """
    from everloop.packages.package import read_package
    from everloop.registry.model_versions import get_version
    from everloop.registry.version_packages import export_package

    if folder.exists():
        raise UsageError(f"'{folder}' already exists.", help="Choose another name, or remove it.")
    version = get_version(store, ref)
    manifest, files = read_package(store, version.package)
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        export_package(store, version.package, draft / PACKAGE)
        lines = [f"everloop=={VERSION}", *files["requirements.txt"].decode().splitlines()]
        needed = [line for line in dict.fromkeys(lines) if line.strip() and not line.startswith("#")]
        rows = json.loads(files["example.json"])["rows"]
        split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        _write(draft, "input_example.json", json.dumps(split))
        _write(draft, "serving_input_example.json", json.dumps({"dataframe_split": split}, indent=2))
        _write(draft, "requirements.txt", "\n".join(needed))
        python = manifest.environment.python
        _write_yaml(draft, "python_env.yaml", {"python": python, "dependencies": ["-r requirements.txt"]})
        conda = {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": needed}],
        }
        _write_yaml(draft, "conda.yaml", conda)
        _write_yaml(draft, FILE, _description(version, manifest, python, files))
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    draft.replace(folder)
    return folder


def _description(version: ModelVersion, manifest: Manifest, python: str, files: dict[str, bytes]) -> dict[str, Any]:
    env = {"conda": "conda.yaml", "virtualenv": "python_env.yaml"}
    flavors: dict[str, Any] = {
        "python_function": {"loader_module": OWN_LOADER, "data": PACKAGE, "env": env, "python_version": python}
    }
    native = _native(manifest, files)
    if native is not None:
        flavors[native[0]] = native[1]
    return {
        "flavors": flavors,
        "mlflow_version": MLFLOW_VERSION,
        "model_uuid": version.package.removeprefix("sha256:")[:32],
        "model_size_bytes": sum(map(len, files.values())),
        "metadata": {"everloop_version": version.key, "everloop_package": version.package},
        "saved_input_example_info": {
            "artifact_path": "input_example.json",
            "pandas_orient": "split",
            "serving_input_path": "serving_input_example.json",
            "type": "dataframe",
        },
        "signature": signature_out(manifest.read_signature()),
        "utc_time_created": f"{version.created_at:%Y-%m-%d %H:%M:%S.%f}",
    }


def _native(manifest: Manifest, files: dict[str, bytes]) -> tuple[str, dict[str, Any]] | None:
    """Return the flavour by which MLflow can read the model without everloop, if there is one."""
    model_folder = f"{PACKAGE}/model"
    pinned = manifest.environment.packages
    if manifest.format == "sklearn":
        import skops.io as skops

        types = sorted(skops.get_untrusted_types(data=files["model/model.skops"]))
        fields = {"pickled_model": f"{model_folder}/model.skops", "serialization_format": "skops", "code": None}
        return "sklearn", {**fields, "sklearn_version": pinned.get("scikit-learn", ""), "skops_trusted_types": types}
    state = json.loads(files["model/estimator.json"]) if "model/estimator.json" in files else {}
    if manifest.format == "xgboost":
        fields = {
            "data": f"{model_folder}/model.ubj",
            "model_class": f"xgboost.sklearn.{state['class']}",
            "model_format": "ubj",
        }
        return "xgboost", {**fields, "xgb_version": pinned.get("xgboost", ""), "code": None}
    if manifest.format == "catboost":
        fields = {"data": f"{model_folder}/model.cbm", "model_type": state["class"], "save_format": "cbm"}
        return "catboost", {**fields, "catboost_version": pinned.get("catboost", ""), "code": None}
    if manifest.format == "onnx":
        name = next(name for name in files if name.startswith("model/") and name.endswith(".onnx"))
        return "onnx", {"data": f"{PACKAGE}/{name}", "onnx_version": pinned.get("onnx", ""), "code": None}
    return None


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _write_yaml(folder: Path, name: str, value: Any) -> None:
    _write(folder, name, need_yaml().safe_dump(value, sort_keys=True, allow_unicode=True))
