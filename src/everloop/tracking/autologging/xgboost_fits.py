"""Autologging of XGBoost: `xgboost.train`, which the estimators of its scikit-learn interface call too."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, current_session, guarded, logged

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def patch(module: ModuleType, patches: Patches) -> None:
    original = module.train
    add_callback = _callback_adder(module.callback.TrainingCallback)

    def before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        params = args[0] if args else kwargs.get("params", {})
        rounds = args[2] if len(args) > 2 else kwargs.get("num_boost_round", 10)
        session.params({"num_boost_round": rounds, **params})
        session.tags(estimator="Booster", estimator_module="xgboost")
        add_callback(session, kwargs)

    new = _patched_train(original, logged(original, lambda _: "xgboost", before, _after), add_callback)
    for name in ("xgboost", "xgboost.training", "xgboost.sklearn"):
        owner = sys.modules.get(name)
        if owner is not None and vars(owner).get("train") is original:
            patches.replace(owner, "train", new)


def _patched_train(
    original: Callable[..., Any],
    outermost: Callable[..., Any],
    add_callback: Callable[[FitSession, dict[str, Any]], None],
) -> Callable[..., Any]:
    """Outside of other fits, `train` is a logged fit. Inside the fit of an XGBoost estimator it logs its iterations to
    that run; inside other fits it logs nothing."""

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if session is None:
            return outermost(*args, **kwargs)
        new_kwargs = dict(kwargs)
        in_xgboost_fit = type(session.fitted).__module__.startswith("xgboost")
        if in_xgboost_fit:
            with guarded():
                add_callback(session, new_kwargs)
        booster = original(*args, **new_kwargs)
        if in_xgboost_fit:
            _log_best_iteration(session, booster)
        return booster

    return train


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], booster: Any) -> None:
    _log_best_iteration(session, booster)
    session.model(booster)


def _log_best_iteration(session: FitSession, booster: Any) -> None:
    # Not `booster.best_iteration`, which raises an error if early stopping was not used.
    best = booster.attr("best_iteration")
    if best is not None:
        session.metrics({"best_iteration": best})


def _callback_adder(base: Any) -> Callable[[FitSession, dict[str, Any]], None]:
    """XGBoost accepts only callbacks of its own base class, which exists only after XGBoost has been imported."""

    class IterationLogger(base):  # type: ignore[misc]
        def __init__(self, session: FitSession) -> None:
            super().__init__()
            self.session = session

        def after_iteration(self, model: Any, epoch: int, evals_log: dict[str, dict[str, list[Any]]]) -> bool:
            with guarded():
                last = {
                    f"{data}/{metric}": values[-1][0] if isinstance(values[-1], tuple) else values[-1]
                    for data, metrics in evals_log.items()
                    for metric, values in metrics.items()
                    if values
                }
                self.session.metrics(last, step=epoch)
            return False

    def add_callback(session: FitSession, kwargs: dict[str, Any]) -> None:
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), IterationLogger(session)]

    return add_callback
