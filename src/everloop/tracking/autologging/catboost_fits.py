"""Autologging of CatBoost: `fit` of its model classes. Metrics of all iterations are read after the fit has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, logged

if TYPE_CHECKING:
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def patch(module: ModuleType, patches: Patches) -> None:
    for name in ("CatBoost", "CatBoostClassifier", "CatBoostRegressor", "CatBoostRanker"):
        cls = getattr(module, name, None)
        if cls is not None and "fit" in vars(cls):
            patches.replace(cls, "fit", logged(vars(cls)["fit"], lambda model: type(model).__name__, _before, _after))


def _before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    session.params(args[0].get_params())
    session.tags(estimator=type(args[0]).__name__, estimator_module="catboost")


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    model = args[0]
    for data, metrics in model.get_evals_result().items():
        for metric, values in metrics.items():
            for step, value in enumerate(values):
                session.metrics({f"{data}/{metric}": value}, step=step)
    best = model.get_best_iteration()
    if best is not None:
        session.metrics({"best_iteration": best})
    session.metrics({"trees": model.tree_count_})
    session.model(model)
