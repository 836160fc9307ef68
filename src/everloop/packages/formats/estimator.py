"""Fitted estimators of any library, which get the same kind of table for prediction as for fitting.

sklearn    skops' format, if every type in it is known to be harmless: reading it runs no code
xgboost    XGBoost's own binary JSON (ubj)
catboost   CatBoost's own binary format (cbm)
python     cloudpickle: reading it runs code, so it needs a trusted signature
"""

from __future__ import annotations

import io
import json
import logging
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from everloop.errors import CorruptionError, MissingExtraError, TrustError
from everloop.packages.formats.estimator_structure import check_structure
from everloop.packages.formats.input_tables import TableKind
from everloop.training.estimator_scores import EstimatorScores
from everloop.training.user_code import dump_code, load_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.class_decisions import ClassScores, Rule
    from everloop.training.trained_model import Files, Task

    Array = NDArray[np.float64]

logger = logging.getLogger("everloop.packages")

_FILES = {"sklearn": "model.skops", "xgboost": "model.ubj", "catboost": "model.cbm", "python": "model.pkl"}
_STATE = "estimator.json"

HARMLESS = frozenset(
    {
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRegressor",
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "xgboost.sklearn.XGBRegressor",
        "collections.OrderedDict",
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
    }
)
"""Types in addition to skops' own list. Reading them sets attributes and parses a model, but runs no code."""


class EstimatorModel:
    """A `Model` around a fitted estimator, with its table and the way to get scores from it.

    Whether the prediction of a row depends on the rows in the same call is up to the estimator.
    """

    reads: ClassVar[tuple[str, ...]] = ("sklearn", "xgboost", "catboost")
    """The formats that `from_files` reads; a package cannot make it run code by claiming another format."""

    def __init__(
        self, estimator: Any, *, format: str, blob: bytes, question: EstimatorScores, table: TableKind
    ) -> None:
        self.estimator = estimator
        self.format = format
        self.question = question
        self.task: Task = question.task
        self.table = table
        self.inputs = table.names
        self._blob = blob

    @property
    def order(self) -> tuple[int, ...]:
        """Index at which the estimator has each class; empty if they are in order."""
        return self.question.order

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores; None if the estimator predicts them separately."""
        return self.question.rule if self.question.choice == "rule" else None

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.question.scores(self.estimator, self.table.fill(self.table.cast(frame)))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.question.scores(self.estimator, self.table.fill(self.table.from_rows(rows)))

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        return self.question.answer(self.estimator, self.table.fill(self.table.cast(frame)))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        return self.question.answer(self.estimator, self.table.fill(self.table.from_rows(rows)))

    def to_files(self) -> Files:
        state = {
            "version": 1,
            "task": self.task,
            "table": self.table.to_json(),
            **self.question.to_json(),
            "class": type(self.estimator).__name__,
        }
        if self.format == "xgboost" and self.estimator.missing == self.estimator.missing:
            # XGBoost's file has the trees, but not the value that counts as missing.
            state["missing"] = float(self.estimator.missing)
        return {_FILES[self.format]: self._blob, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        stored_as = next((name for name in cls.reads if _FILES[name] in files), "")
        try:
            state, blob = json.loads(files[_STATE]), files[_FILES[stored_as]]
            table, question = TableKind.from_json(state["table"]), EstimatorScores.from_json(state, state["task"])
            name = str(state["class"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not an estimator: {error!r}.", help="Package the model again."
            ) from error
        estimator = load_estimator(blob, stored_as, name)
        if "missing" in state:
            estimator.set_params(missing=float(state["missing"]))
        return cls(estimator, format=stored_as, blob=blob, question=question, table=table)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


class PickledEstimator(EstimatorModel):
    """An estimator that no safe format can hold: loading it runs code, so a trusted key must have signed it."""

    reads = ("python",)


def dump_estimator(estimator: Any) -> tuple[str, bytes]:
    """Return the name of the safest format that can hold the estimator, and its bytes in this format."""
    library = type(estimator).__module__.partition(".")[0]
    name = type(estimator).__name__
    if library == "xgboost" and name in ("XGBClassifier", "XGBRegressor"):
        return "xgboost", bytes(estimator.get_booster().save_raw("ubj"))
    if library == "catboost" and name in ("CatBoostClassifier", "CatBoostRegressor"):
        with tempfile.TemporaryDirectory(prefix="everloop-catboost-") as folder:
            estimator.save_model(str(Path(folder, "model.cbm")), format="cbm")
            return "catboost", Path(folder, "model.cbm").read_bytes()
    try:
        import skops.io as skops
    except ImportError:
        skops = None
    if skops is not None:
        try:
            blob = _reproducible(skops.dumps(estimator))
            if set(skops.get_untrusted_types(data=blob)) <= HARMLESS:
                _load_skops(blob)
                return "sklearn", blob
        except Exception as error:  # skops raises many kinds for what it cannot hold; then the estimator is pickled
            logger.debug("skops cannot hold %s: %s", name, error)
    return "python", dump_code(estimator)


def load_estimator(blob: bytes, format: str, name: str) -> Any:
    """Load an estimator. The format `python` runs code: check the signature first.

    Raises:
        MissingExtraError: its library is not installed.
        TrustError: a skops file contains a type that is not known to be harmless.
        CorruptionError: the bytes are not such a model.
    """
    if format == "python":
        return load_code(blob)
    if format == "sklearn":
        return _load_skops(blob)
    try:
        if format == "xgboost":
            import xgboost

            loaded = {"XGBClassifier": xgboost.XGBClassifier, "XGBRegressor": xgboost.XGBRegressor}[name]()
            loaded.load_model(bytearray(blob))
            return loaded
        import catboost

        loaded = {
            "CatBoostClassifier": catboost.CatBoostClassifier,
            "CatBoostRegressor": catboost.CatBoostRegressor,
        }[name]()
        loaded.load_model(blob=blob)
    except ImportError:
        raise MissingExtraError.of(f"This {name}", format, "boosters") from None
    except Exception as error:  # each library raises its own errors for bytes that it cannot read
        raise CorruptionError(f"The {format} model cannot be read: {error}", help="Package the model again.") from error
    return loaded


def _reproducible(blob: bytes) -> bytes:
    """Remove memory addresses and times from a skops file, so that the same estimator gives the same bytes."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = files.pop("schema.json").decode()
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"{match[1]}{numbers.setdefault(match[2], str(len(numbers) + 1))}"

    schema = re.sub(r'("__id__": |"file": ")(\d+)', numbered, schema)
    renamed = {"schema.json": schema.encode()}
    for name, data in files.items():
        stem, dot, rest = name.partition(".")
        renamed[f"{numbers.get(stem, stem)}{dot}{rest}"] = data
    if len(renamed) != len(files) + 1:
        return blob
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(renamed):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), renamed[name], zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _load_skops(blob: bytes) -> Any:
    try:
        import skops.io as skops
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError:
        raise MissingExtraError.of("A scikit-learn model", "skops", "ml") from None
    try:
        found = set(skops.get_untrusted_types(data=blob))
        loaded = skops.loads(blob, trusted=sorted(found & HARMLESS))
    except UntrustedTypesFoundException as error:
        raise TrustError(
            f"The model contains types that are not known to be harmless: {error}",
            help="Package the model again: it is then stored as code and signed.",
        ) from error
    except Exception as error:  # foreign bytes can make it raise anything
        raise CorruptionError(
            f"The skops file cannot be read: {type(error).__name__}: {error}", help="Package the model again."
        ) from error
    check_structure(loaded)
    return loaded


def _reread(kind: type[EstimatorModel], files: Files) -> EstimatorModel:
    return kind.from_files(files)
