"""A fitted estimator of any library, asked exactly as it was fitted.

sklearn    skops' format, where every type in it is known to be harmless: nothing of it runs when it is read
xgboost    XGBoost's own binary JSON (ubj)
catboost   CatBoost's own binary (cbm)
python     cloudpickle: runs code when read, therefore only with a trusted signature
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
from everloop.packages.formats.user_code import dump_code
from everloop.training.estimator_scores import EstimatorScores

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
"""Types beyond skops' own list: reading them sets attributes and parses a model, and runs no code of the bytes."""


class EstimatorModel:
    """An estimator with what it takes to ask it. See `Model` for what it answers.

    Whether one row's answer depends on the rows asked with it is up to the estimator.
    """

    reads: ClassVar[tuple[str, ...]] = ("sklearn", "xgboost", "catboost")
    """The formats that `from_files` reads. What a package says of itself is no reason to run code out of it."""

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
        """Where the estimator has each class; empty where it has them in order."""
        return self.question.order

    @property
    def rule(self) -> Rule | None:
        """How classes follow from scores; None where the estimator is asked for them."""
        return self.question.rule if self.question.choice == "rule" else None

    def predict_scores(self, frame: pl.DataFrame) -> Array:
        return self.question.scores(self.estimator, self.table.fill(self.table.cast(frame)))

    def predict_rows(self, rows: Sequence[Mapping[str, object]]) -> Array:
        return self.question.scores(self.estimator, self.table.fill(self.table.from_rows(rows)))

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        """Scores and classes."""
        return self.question.answer(self.estimator, self.table.fill(self.table.cast(frame)))

    def answer_rows(self, rows: Sequence[Mapping[str, object]]) -> ClassScores:
        """Scores and classes."""
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
            # Its file holds the trees, and not what they take for missing.
            state["missing"] = float(self.estimator.missing)
        return {_FILES[self.format]: self._blob, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        kept = next((name for name in cls.reads if _FILES[name] in files), "")
        try:
            state, blob = json.loads(files[_STATE]), files[_FILES[kept]]
            table, question = TableKind.from_json(state["table"]), EstimatorScores.from_json(state, state["task"])
            name = str(state["class"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"These files are no estimator: {error!r}.", help="Build it again.") from error
        estimator = load_estimator(blob, kept, name)
        if "missing" in state:
            estimator.set_params(missing=float(state["missing"]))
        return cls(estimator, format=kept, blob=blob, question=question, table=table)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (type(self), self.to_files())


class PickledEstimator(EstimatorModel):
    """An estimator that no safe format holds: reading it runs code, so somebody trusted must have signed it."""

    reads = ("python",)


def dump_estimator(estimator: Any) -> tuple[str, bytes]:
    """The safest format that holds the estimator, and its bytes in it."""
    room = type(estimator).__module__.partition(".")[0]
    name = type(estimator).__name__
    if room == "xgboost" and name in ("XGBClassifier", "XGBRegressor"):
        return "xgboost", bytes(estimator.get_booster().save_raw("ubj"))
    if room == "catboost" and name in ("CatBoostClassifier", "CatBoostRegressor"):
        with tempfile.TemporaryDirectory(prefix="everloop-catboost-") as folder:
            estimator.save_model(str(Path(folder, "model.cbm")), format="cbm")
            return "catboost", Path(folder, "model.cbm").read_bytes()
    try:
        import skops.io as skops
    except ImportError:
        skops = None
    if skops is not None:
        try:
            blob = _steady(skops.dumps(estimator))
            if set(skops.get_untrusted_types(data=blob)) <= HARMLESS:
                _load_skops(blob)
                return "sklearn", blob
        except Exception as error:  # of many kinds, for what it cannot hold; the pickle is the answer to all of them
            logger.debug("skops cannot hold %s: %s", name, error)
    return "python", dump_code(estimator)


def load_estimator(blob: bytes, format: str, name: str) -> Any:
    """Read an estimator back. The format `python` runs code: check the bytes' signature first.

    Raises:
        MissingExtraError: its library is not installed.
        TrustError: a skops file holds a type that is not known to be harmless.
        CorruptionError: the bytes are no such model.
    """
    if format == "python":
        import cloudpickle

        return cloudpickle.loads(blob)
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
    except Exception as error:  # each library has its own kinds for bytes that it cannot read
        raise CorruptionError(f"The bytes are no {format} model: {error}", help="Build the package again.") from error
    return loaded


def _steady(blob: bytes) -> bytes:
    """A skops file without addresses of memory and times of day, so that the same estimator gives the same bytes."""
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = files.pop("schema.json").decode()
    numbers: dict[str, str] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"{match[1]}{numbers.setdefault(match[2], str(len(numbers) + 1))}"

    schema = re.sub(r'("__id__": |"file": ")(\d+)', numbered, schema)
    steady = {"schema.json": schema.encode()}
    for name, data in files.items():
        stem, dot, rest = name.partition(".")
        steady[f"{numbers.get(stem, stem)}{dot}{rest}"] = data
    if len(steady) != len(files) + 1:
        return blob
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(steady):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), steady[name], zipfile.ZIP_DEFLATED)
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
        raise TrustError(f"The model holds types that are not known to be harmless: {error}") from error
    except Exception as error:  # whatever a stranger's bytes make it raise
        raise CorruptionError(f"This is no model in skops' format: {type(error).__name__}: {error}") from error
    check_structure(loaded)
    return loaded


def _reread(kind: type[EstimatorModel], files: Files) -> EstimatorModel:
    return kind.from_files(files)
