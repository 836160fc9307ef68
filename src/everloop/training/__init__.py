"""Snapshot and recipe in, scored model out: search, evaluation, intervals, and adoption of anybody's estimator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.training.adopted import adopt
    from everloop.training.auto import AutoTrain, fit_recipe
    from everloop.training.encoding import Encoder
    from everloop.training.evaluation import Evaluation, SliceScore, evaluate, evaluate_scores
    from everloop.training.intervals import Difference, Interval, bootstrap, delong, interval, paired_bootstrap
    from everloop.training.metrics import METRICS, Metric, get_metric, higher_is_better, score
    from everloop.training.targets import encode_target, infer_task
    from everloop.training.trained import LeftOut, Model, Recipe, Trained, model_from_files

_WHERE = {
    "AutoTrain": "auto",
    "Difference": "intervals",
    "Encoder": "encoding",
    "Evaluation": "evaluation",
    "Interval": "intervals",
    "LeftOut": "trained",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Model": "trained",
    "Recipe": "trained",
    "SliceScore": "evaluation",
    "Trained": "trained",
    "adopt": "adopted",
    "bootstrap": "intervals",
    "delong": "intervals",
    "encode_target": "targets",
    "evaluate": "evaluation",
    "evaluate_scores": "evaluation",
    "fit_recipe": "auto",
    "get_metric": "metrics",
    "higher_is_better": "metrics",
    "infer_task": "targets",
    "interval": "intervals",
    "model_from_files": "trained",
    "paired_bootstrap": "intervals",
    "score": "metrics",
}

__all__ = [
    "METRICS",
    "AutoTrain",
    "Difference",
    "Encoder",
    "Evaluation",
    "Interval",
    "LeftOut",
    "Metric",
    "Model",
    "Recipe",
    "SliceScore",
    "Trained",
    "adopt",
    "bootstrap",
    "delong",
    "encode_target",
    "evaluate",
    "evaluate_scores",
    "fit_recipe",
    "get_metric",
    "higher_is_better",
    "infer_task",
    "interval",
    "model_from_files",
    "paired_bootstrap",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
