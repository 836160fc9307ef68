"""What the labels of a version are expected to show, learned from its held-out rows and kept with its baseline.

The estimator says what the metric of a window will be, before labels arrive. The concept reference says how labels
follow predictions, so that labels can later contradict the estimates.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import CorruptionError, DataError, EmptySampleError, EverloopError, UsageError
from everloop.monitoring.measures.concept_drift import ConceptReference, ConceptTask, concept_reference
from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
from everloop.monitoring.performance.loss_estimation import ESTIMATED, LossEstimator
from everloop.training.metric_tasks import METRIC_TASKS, metrics_of

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Estimator = ConfidenceEstimator | LossEstimator

_MOST_ROWS = 50_000
_MOST_LOSS_ROWS = 20_000
_NOT_ESTIMATED = ("ece",)


@dataclass(frozen=True, slots=True)
class LabelExpectations:
    """What labels are expected to show.

    Attributes:
        metric: the metric of the baseline.
        estimator: None if the metric cannot be estimated.
        concept: None for several classes, and for scores that are not probabilities.
    """

    metric: str
    estimator: Estimator | None
    concept: ConceptReference | None

    def pack(self) -> str:
        """Return the expectations as text: base64 of compressed JSON."""
        data = {
            "metric": self.metric,
            "task": "losses" if isinstance(self.estimator, LossEstimator) else "classes",
            "estimator": self.estimator.to_json() if self.estimator is not None else None,
            "concept": self.concept.to_json() if self.concept is not None else None,
        }
        return b64encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9)).decode()


def learn_expectations(
    scored: pl.DataFrame, metric: str, *, inputs: pl.DataFrame | None = None, time: str | None = None
) -> LabelExpectations | None:
    """Learn what labels show from held-out rows; None if they say nothing.

    Takes about a second for 10,000 rows. More than 50,000 rows (20,000 of a regression) are sampled evenly.

    Args:
        scored: rows with `score` (or `scores`) and `actual`, and `predicted` if the classes are known; all finite.
        metric: name of the metric that will be estimated.
        inputs: the features of the same rows; without them, the losses of a regression cannot be estimated.
        time: the column of `scored` with the time, so that intervals contain the variation over time.
    """
    regression = "regression" in METRIC_TASKS[metric]
    step = -(-scored.height // (_MOST_LOSS_ROWS if regression else _MOST_ROWS)) or 1
    rows = scored.gather_every(step)
    actual = rows["actual"].cast(float).to_numpy()
    times = rows[time].to_numpy() if time is not None and rows[time].null_count() == 0 else None
    estimator: Estimator | None = None
    try:
        if not regression and metric not in _NOT_ESTIMATED:
            votes = "predicted" in rows.columns and rows["predicted"].null_count() == 0
            estimator = ConfidenceEstimator.fit(
                _scores(rows), actual, predicted=rows["predicted"].to_numpy() if votes else None, times=times
            )
            if metric not in estimator.measured or metric not in metrics_of(estimator.task):
                estimator = None
        elif inputs is not None and metric in ESTIMATED:
            features = inputs.gather_every(step)
            estimator = LossEstimator.fit(features, rows["score"].to_numpy(), actual, metric, times=times)
    except (EmptySampleError, DataError, UsageError):
        # Too few rows, or labels of one class: nothing is expected of these labels.
        estimator = None
    concept = None
    if "scores" not in rows.columns:
        try:
            task: ConceptTask = "regression" if regression else "binary"
            concept = concept_reference(task, rows["score"].cast(float).to_numpy(), actual)
        except (EmptySampleError, UsageError):
            concept = None
    if estimator is None and concept is None:
        return None
    return LabelExpectations(metric, estimator, concept)


@lru_cache(maxsize=16)
def unpack_expectations(text: str) -> LabelExpectations:
    """Read what `LabelExpectations.pack` returned.

    Raises:
        CorruptionError: the text is something else, or a newer version of everloop wrote it.
    """
    try:
        data = json.loads(zlib.decompress(b64decode(text)))
        estimator: Estimator | None = None
        if data["estimator"] is not None:
            kind = LossEstimator if data["task"] == "losses" else ConfidenceEstimator
            estimator = kind.from_json(data["estimator"])
        concept = ConceptReference.from_json(data["concept"]) if data["concept"] is not None else None
        return LabelExpectations(str(data["metric"]), estimator, concept)
    except EverloopError:
        raise
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise CorruptionError(f"The expectations of labels cannot be read: {error!r}.") from error


def _scores(rows: pl.DataFrame) -> Array:
    if "scores" in rows.columns and rows["scores"].null_count() == 0:
        return np.asarray(rows["scores"].to_list(), dtype=np.float64)
    return rows["score"].cast(float).to_numpy()
