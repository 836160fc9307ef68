"""LightGBM: `lightgbm.train`, and through it the estimators of its scikit-learn interface."""

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
    alone = logged(original, lambda _: "lightgbm", _before, _after)
    new = _inside(original, alone)
    for name in ("lightgbm", "lightgbm.engine", "lightgbm.sklearn"):
        owner = sys.modules.get(name)
        if owner is not None and vars(owner).get("train") is original:
            patches.replace(owner, "train", new)


def _inside(original: Callable[..., Any], alone: Callable[..., Any]) -> Callable[..., Any]:
    """Inside the fit of a LightGBM estimator iterations are logged to its run; inside other fits nothing is."""

    @functools.wraps(original)
    def train(*args: Any, **kwargs: Any) -> Any:
        session = current_session()
        if session is None:
            return alone(*args, **kwargs)
        given = dict(kwargs)
        if type(session.fitted).__module__.startswith("lightgbm"):
            with guarded():
                _listen(session, given)
        booster = original(*args, **given)
        if given.get("callbacks") is not kwargs.get("callbacks"):
            _tell_best(session, booster)
        return booster

    return train


def _before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    params = args[0] if args else kwargs.get("params", {})
    rounds = args[2] if len(args) > 2 else kwargs.get("num_boost_round", 100)
    session.params({"num_boost_round": rounds, **params})
    session.tags(estimator="Booster", estimator_module="lightgbm")
    _listen(session, kwargs)


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], booster: Any) -> None:
    _tell_best(session, booster)
    session.model(booster)


def _tell_best(session: FitSession, booster: Any) -> None:
    with guarded():
        if booster.best_iteration > 0:
            session.metrics({"best_iteration": booster.best_iteration})


def _listen(session: FitSession, kwargs: dict[str, Any]) -> None:
    def heard(environment: Any) -> None:
        values = {f"{data}/{metric}": value for data, metric, value, *_ in environment.evaluation_result_list or ()}
        session.metrics(values, step=environment.iteration)

    heard.order = 20  # type: ignore[attr-defined]  # before early stopping, which leaves by an exception
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), heard]
