"""Autologging of LightGBM: `lightgbm.train`, which the estimators of its scikit-learn interface call too."""

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
    outermost = logged(original, lambda _: "lightgbm", _before, _after)
    new = _patched_train(original, outermost)
    for name in ("lightgbm", "lightgbm.engine", "lightgbm.sklearn"):
        owner = sys.modules.get(name)
        if owner is not None and vars(owner).get("train") is original:
            patches.replace(owner, "train", new)


def _patched_train(original: Callable[..., Any], outermost: Callable[..., Any]) -> Callable[..., Any]:
    """Outside of other fits, `train` is a logged fit. Inside the fit of a LightGBM estimator it logs its iterations to
    that run; inside other fits it logs nothing."""

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if session is None:
            return outermost(*args, **kwargs)
        new_kwargs = dict(kwargs)
        if type(session.fitted).__module__.startswith("lightgbm"):
            with guarded():
                _add_callback(session, new_kwargs)
        booster = original(*args, **new_kwargs)
        if new_kwargs.get("callbacks") is not kwargs.get("callbacks"):
            _log_best_iteration(session, booster)
        return booster

    return train


def _before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    params = args[0] if args else kwargs.get("params", {})
    rounds = args[2] if len(args) > 2 else kwargs.get("num_boost_round", 100)
    session.params({"num_boost_round": rounds, **params})
    session.tags(estimator="Booster", estimator_module="lightgbm")
    _add_callback(session, kwargs)


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], booster: Any) -> None:
    _log_best_iteration(session, booster)
    session.model(booster)


def _log_best_iteration(session: FitSession, booster: Any) -> None:
    with guarded():
        if booster.best_iteration > 0:
            session.metrics({"best_iteration": booster.best_iteration})


def _add_callback(session: FitSession, kwargs: dict[str, Any]) -> None:
    def log_iteration(environment: Any) -> None:
        values = {f"{data}/{metric}": value for data, metric, value, *_ in environment.evaluation_result_list or ()}
        session.metrics(values, step=environment.iteration)

    log_iteration.order = 20  # type: ignore[attr-defined]  # before early stopping, which raises an exception
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), log_iteration]
