"""Loads a fitted model from the files of a flavour. Formats that run code when they are read need permission.

The folder's own list of trusted types (`skops_trusted_types`) is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, DataError, MissingExtraError, TrustError
from everloop.packages.formats.estimator import load_estimator
from everloop.packages.formats.file_checks import check_skops
from everloop.packages.formats.lightgbm_text import check_text
from everloop.packages.formats.xgboost_trees import check_trees

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from everloop.integrations.mlflow.model_folders.mlmodel_file import Description
    from everloop.training.trained_model import Task

_PICKLES = (".pkl", ".pickle")
OWN_LOADER = "everloop.integrations.mlflow.loading"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model loaded from a folder, in the form that `save_model` accepts."""

    model: Any
    flavor: str
    task: Task | None = None
    classes: int = 0
    """Number of classes, if the model itself does not list them."""


def load_fitted(found: Description, *, allow_code: bool = False) -> Fitted:
    """Load the model of the first flavour that can be read.

    Raises:
        TrustError: reading the model runs code, which is not allowed.
        DataError: everloop supports none of the flavours.
        CorruptionError: the files do not match the flavour.
        MissingExtraError: the flavour's library is not installed.
    """
    for name, load in _LOADERS.items():
        if name in found.flavors:
            return load(found, found.flavors[name], allow_code)
    raise DataError(
        f"The model in '{found.folder}' has no supported flavor; it has: {', '.join(found.flavors) or 'none'}.",
        help=f"Supported flavors: {', '.join(_LOADERS)}.",
    )


def brings_code(found: Description) -> bool:
    """Whether loading the model of the first flavour runs code from the folder."""
    name = next((name for name in _LOADERS if name in found.flavors), None)
    if name == "python_function":
        return True
    flavor = found.flavors.get(name, {}) if name else {}
    if name == "sklearn":
        return not _is_skops(_sklearn_file(found, flavor), flavor.get("serialization_format"))
    if name == "lightgbm":
        file = str(flavor.get("data", "model.lgb"))
        return _is_estimator(file, flavor) and not file.endswith(".skops")
    return name == "xgboost" and str(flavor.get("data", "model.ubj")).endswith(_PICKLES)


def libraries_of(found: Description) -> list[str]:
    """Return the package formats whose libraries are needed to load the folder's model."""
    name = next((name for name in _LOADERS if name in found.flavors), "")
    return [name if name in ("xgboost", "catboost", "onnx") else "sklearn"]


def _sklearn(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    return Fitted(
        _estimator(found, _sklearn_file(found, flavor), flavor.get("serialization_format"), allow_code), "sklearn"
    )


def _sklearn_file(found: Description, flavor: Mapping[str, Any]) -> object:
    return flavor.get("pickled_model") or found.flavors.get("python_function", {}).get("model_path")


def _is_skops(name: object, kind: object) -> bool:
    return str(name).endswith(".skops") or kind == "skops"


def _is_estimator(name: str, flavor: Mapping[str, Any]) -> bool:
    """Whether a file of LightGBM's flavour is an estimator rather than the text of a booster."""
    return str(flavor.get("model_class", "")).startswith("lightgbm.sklearn.") or name.endswith((".skops", ".pkl"))


def _lightgbm(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    name = str(flavor.get("data", "model.lgb"))
    if _is_estimator(name, flavor):
        kind = "skops" if name.endswith(".skops") else "pickle"
        return Fitted(_estimator(found, name, kind, allow_code), "lightgbm")
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtraError.of("A LightGBM model", "lightgbm", "ml") from error
    text = found.read(name)
    check_text(text)
    try:
        booster = lightgbm.Booster(model_str=text.decode("utf-8"))
        objective = str(booster.dump_model(num_iteration=1).get("objective", ""))
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise CorruptionError(f"'{found.folder / name}' is not a LightGBM model: {error}") from error
    if objective.startswith(("binary", "cross_entropy")):
        return Fitted(booster, "lightgbm", "binary", 2)
    if objective.startswith("multiclass"):
        return Fitted(booster, "lightgbm", "multiclass", booster.num_model_per_iteration())
    return Fitted(booster, "lightgbm", "regression")


def _xgboost(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    name = str(flavor.get("data", "model.ubj"))
    if name.endswith(_PICKLES):
        return Fitted(_estimator(found, name, "pickle", allow_code), "xgboost")
    kind = str(flavor.get("model_class", "")).rpartition(".")[2]
    blob = found.read(name)
    if kind not in ("Booster", "XGBClassifier", "XGBRegressor"):
        raise DataError(f"An XGBoost model of the class '{kind}' cannot be read.", help="Booster and XGB… can.")
    check_trees(blob)
    if kind == "Booster":
        kind = _wrapper_of(found, blob)
    return Fitted(load_estimator(blob, "xgboost", kind), "xgboost")


def _wrapper_of(found: Description, blob: bytes) -> str:
    """Return the name of the XGBoost estimator class that predicts like this booster."""
    import json

    try:
        import xgboost
    except ImportError as error:
        raise MissingExtraError.of("An XGBoost model", "xgboost", "boosters") from error
    try:
        booster = xgboost.Booster()
        booster.load_model(bytearray(blob))
        objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    except (xgboost.core.XGBoostError, KeyError, ValueError) as error:
        raise CorruptionError(f"The model in '{found.folder}' is not an XGBoost model: {error}") from error
    return "XGBClassifier" if objective in ("binary:logistic", "multi:softprob") else "XGBRegressor"


def _catboost(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    if flavor.get("save_format", "cbm") != "cbm":
        raise DataError(
            f"A CatBoost model in the format '{flavor['save_format']}' cannot be read.",
            help="Save it in the format 'cbm'.",
        )
    kind = str(flavor.get("model_type", "CatBoost"))
    if kind not in ("CatBoostClassifier", "CatBoostRegressor"):
        raise DataError(
            f"A CatBoost model of the type '{kind}' cannot be read.",
            help="Supported types: CatBoostClassifier and CatBoostRegressor.",
        )
    return Fitted(load_estimator(found.read(flavor.get("data", "model.cb")), "catboost", kind), "catboost")


def _onnx(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    return Fitted(found.read(flavor.get("data", "model.onnx")), "onnx")


def _pyfunc(found: Description, flavor: Mapping[str, Any], allow_code: bool) -> Fitted:
    """Load a model that is Python code with MLflow itself, and wrap it."""
    loader = str(flavor.get("loader_module", ""))
    if not allow_code:
        raise _refused(found, f"a Python model ({loader})")
    try:
        import mlflow.pyfunc as pyfunc
    except ImportError as error:
        raise MissingExtraError(
            f"The Python model in '{found.folder}' needs MLflow to load it, which is not installed here.",
            help="Install it: pip install mlflow",
        ) from error
    return Fitted(PyfuncFolderModel(pyfunc.load_model(str(found.folder))), "python_function")


class PyfuncFolderModel:
    """A model that MLflow has loaded. It is pickled with the model, so MLflow must be installed wherever it is used."""

    name = "pyfunc"

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def predict(self, rows: Any) -> Any:
        import numpy as np
        import polars as pl

        if isinstance(rows, pl.DataFrame):
            # MLflow validates its input, and expects pandas.
            import pandas as pd

            rows = pd.DataFrame({name: rows[name].to_list() for name in rows.columns})
        predicted = self.loaded.predict(rows)
        return np.asarray(predicted.to_numpy() if hasattr(predicted, "to_numpy") else predicted)


def _estimator(found: Description, name: object, kind: object, allow_code: bool) -> Any:
    if _is_skops(name, kind):
        blob = found.read(name)
        check_skops(blob)
        return load_estimator(blob, "sklearn", "")
    if not allow_code:
        raise _refused(found, f"a pickle ({name})")
    try:
        return load_estimator(found.read(name), "python", "")
    except Exception as error:  # an untrusted pickle may raise anything
        raise CorruptionError(f"The pickle '{name}' cannot be read: {type(error).__name__}: {error}") from error


def _refused(found: Description, what: str) -> TrustError:
    return TrustError(
        f"The model in '{found.folder}' is {what}, and loading it runs its code.",
        help="Log it in a safe format (MLflow's default is skops), or allow code with --allow-code (in Python:"
        " allow_code=True).",
    )


_LOADERS: dict[str, Callable[[Description, Mapping[str, Any], bool], Fitted]] = {
    "lightgbm": _lightgbm,
    "xgboost": _xgboost,
    "catboost": _catboost,
    "onnx": _onnx,
    "sklearn": _sklearn,
    "python_function": _pyfunc,
}
"""In order of preference: a model's native format before the general one."""
