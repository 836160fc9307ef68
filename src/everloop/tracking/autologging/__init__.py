"""Autologging: after `el.autolog()`, fitting a model of a supported library is logged as a run.

Nothing is imported that the user does not import. A library is patched when it is imported, or immediately if it has
been imported already; `autolog(disable=True)` removes the patches. An error in autologging never fails the fit: it
becomes one warning.

One fit is one run, even if it fits other models inside, as pipelines, searches and studies do. Inside `start_run`, fits
log to that run; names of the second and later fits get the prefix `<class>_<number>/`.

| library | what is logged |
|---|---|
| scikit-learn | parameters, class, `training_score` (up to 100,000 rows), best parameters and `best_cv_score` |
| LightGBM, XGBoost | parameters, every metric of every iteration on every evaluation set, the best iteration |
| CatBoost | the same, after the fit has ended |
| Optuna | the value of each trial, the best value and its parameters |
| PyTorch Lightning, Keras | hyperparameters, metrics of each epoch |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.tracking.autologging import import_hooks
from everloop.tracking.autologging.attribute_patches import Patches
from everloop.tracking.autologging.sessions import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

LIBRARIES = {
    "sklearn": ("sklearn.base",),
    "lightgbm": ("lightgbm",),
    "xgboost": ("xgboost",),
    "catboost": ("catboost",),
    "optuna": ("optuna",),
    "lightning": ("lightning.pytorch", "pytorch_lightning"),
    "keras": ("keras",),
}
"""Library to the modules that have to be imported before it can be patched."""

_patches = Patches()


def autolog(*, disable: bool = False, libraries: Iterable[str] | None = None, models: bool = False) -> None:
    """Log fits of supported libraries automatically, from now on and in all threads of this process.

    Args:
        disable: stop autologging and remove all patches.
        libraries: only these libraries. Default: all.
        models: also log the fitted models, as signed pickles.

    Raises:
        UsageError: a library is not supported.
    """
    chosen = list(LIBRARIES if libraries is None else libraries)
    unknown = [name for name in chosen if name not in LIBRARIES]
    if unknown:
        raise UsageError(
            f"Autologging does not support '{unknown[0]}'.", help=f"Supported libraries: {', '.join(LIBRARIES)}"
        )
    import_hooks.forget()
    _patches.restore()
    if disable:
        return
    settings.models = models
    for name in chosen:
        for module in LIBRARIES[name]:
            import_hooks.when_imported(module, f"{__name__}.{name}_fits", _patches)


__all__ = ["LIBRARIES", "autolog"]
