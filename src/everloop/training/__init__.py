"""Train models: search for a model, evaluate it with confidence intervals, and adopt estimators of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.training.adopted_estimator import adopt as adopt
    from everloop.training.automl import AutoTrain as AutoTrain, fit_recipe as fit_recipe
    from everloop.training.encoding import Encoder as Encoder
    from everloop.training.evaluation import (
        Evaluation as Evaluation,
        SliceScore as SliceScore,
        evaluate as evaluate,
        evaluate_scores as evaluate_scores,
    )
    from everloop.training.intervals import (
        Difference as Difference,
        Interval as Interval,
        bootstrap as bootstrap,
        delong as delong,
        interval as interval,
        paired_bootstrap as paired_bootstrap,
    )
    from everloop.training.metrics import (
        METRICS as METRICS,
        Metric as Metric,
        get_metric as get_metric,
        higher_is_better as higher_is_better,
        score as score,
    )
    from everloop.training.targets import encode_target as encode_target, infer_task as infer_task
    from everloop.training.trained_model import (
        LeftOut as LeftOut,
        Model as Model,
        Recipe as Recipe,
        Trained as Trained,
        model_from_files as model_from_files,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "adopted_estimator": ["adopt"],
        "automl": ["AutoTrain", "fit_recipe"],
        "encoding": ["Encoder"],
        "evaluation": ["Evaluation", "SliceScore", "evaluate", "evaluate_scores"],
        "intervals": ["Difference", "Interval", "bootstrap", "delong", "interval", "paired_bootstrap"],
        "metrics": ["METRICS", "Metric", "get_metric", "higher_is_better", "score"],
        "targets": ["encode_target", "infer_task"],
        "trained_model": ["LeftOut", "Model", "Recipe", "Trained", "model_from_files"],
    },
)
