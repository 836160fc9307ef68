"""Autologging of scikit-learn: `fit` of every estimator with `predict`, including those of users and other libraries.

A class is patched when it is defined, so estimators that are defined later are logged too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, logged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches

_MOST_ROWS = 100_000
_FITTED_METRICS = {"loss_": "loss", "n_iter_": "iterations", "inertia_": "inertia", "oob_score_": "oob_score"}


def patch(module: ModuleType, patches: Patches) -> None:
    base = module.BaseEstimator
    for subclass in _subclasses(base):
        _patch_class(subclass, patches)
    inherited = base.__init_subclass__.__func__

    def __init_subclass__(cls: Any, /, **options: Any) -> None:  # noqa: N807 - it replaces the method of the class
        inherited(cls, **options)
        _patch_class(cls, patches)

    patches.replace(base, "__init_subclass__", classmethod(__init_subclass__))


def _subclasses(base: type) -> Iterator[type]:
    seen: set[type] = set()
    waiting: list[type] = base.__subclasses__()
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting.extend(found.__subclasses__())
            yield found


def _patch_class(cls: type, patches: Patches) -> None:
    fit = vars(cls).get("fit")
    if callable(fit):
        patches.replace(cls, "fit", logged(fit, _name, _before, _after))


def _name(estimator: Any) -> str | None:
    return type(estimator).__name__ if hasattr(estimator, "predict") else None


def _before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    estimator = args[0]
    session.params(estimator.get_params(deep=True))
    session.tags(estimator=type(estimator).__name__, estimator_module=type(estimator).__module__.partition(".")[0])


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    estimator = args[0]
    found: dict[str, Any] = {}
    for attribute, name in _FITTED_METRICS.items():
        value = getattr(estimator, attribute, None)
        if getattr(value, "size", 1) == 1 and value is not None:
            found[name] = value[0] if isinstance(value, list) else value
    if hasattr(estimator, "best_params_"):
        session.params({f"best_{name}": value for name, value in estimator.best_params_.items()})
        found["best_cv_score"] = getattr(estimator, "best_score_", None)
    session.metrics(found)
    rows = args[1] if len(args) > 1 else kwargs.get("X")
    labels = args[2] if len(args) > 2 else kwargs.get("y")
    if rows is not None and labels is not None and hasattr(estimator, "score") and _count(rows) <= _MOST_ROWS:
        session.metrics({"training_score": estimator.score(rows, labels)})
    session.model(estimator)


def _count(rows: Any) -> int:
    shape = getattr(rows, "shape", None)
    return int(shape[0]) if shape else len(rows)
