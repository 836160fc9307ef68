"""XGBoost: `xgboost.train`, and through it the estimators of its scikit-learn interface."""

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
    listen = _listener(module.callback.TrainingCallback)

    def before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        params = args[0] if args else kwargs.get("params", {})
        rounds = args[2] if len(args) > 2 else kwargs.get("num_boost_round", 10)
        session.params({"num_boost_round": rounds, **params})
        session.tags(estimator="Booster", estimator_module="xgboost")
        listen(session, kwargs)

    new = _inside(original, logged(original, lambda _: "xgboost", before, _after), listen)
    for name in ("xgboost", "xgboost.training", "xgboost.sklearn"):
        owner = sys.modules.get(name)
        if owner is not None and vars(owner).get("train") is original:
            patches.replace(owner, "train", new)


def _inside(
    original: Callable[..., Any], alone: Callable[..., Any], listen: Callable[[FitSession, dict[str, Any]], None]
) -> Callable[..., Any]:
    """Inside the fit of an XGBoost estimator iterations are logged to its run; inside other fits nothing is."""

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if session is None:
            return alone(*args, **kwargs)
        given = dict(kwargs)
        own = type(session.fitted).__module__.startswith("xgboost")
        if own:
            with guarded():
                listen(session, given)
        booster = original(*args, **given)
        if own:
            _tell_best(session, booster)
        return booster

    return train


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], booster: Any) -> None:
    _tell_best(session, booster)
    session.model(booster)


def _tell_best(session: FitSession, booster: Any) -> None:
    # Without early stopping the booster has none, and says so by an error.
    best = booster.attr("best_iteration")
    if best is not None:
        session.metrics({"best_iteration": best})


def _listener(base: Any) -> Callable[[FitSession, dict[str, Any]], None]:
    """XGBoost takes only callbacks of its own class, which is there only now."""

    class Heard(base):  # type: ignore[misc]
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

    def listen(session: FitSession, kwargs: dict[str, Any]) -> None:
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), Heard(session)]

    return listen
