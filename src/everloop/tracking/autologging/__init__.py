"""Runs that log themselves: `el.autolog()`, and fitting a model of a known library keeps what it did.

Nothing is imported that the user does not import. A library is patched when it is imported, or at once where it is
there already, and is as it was after `autolog(disable=True)`. Trouble here never becomes trouble of the fit: it
is one warning.

One fit is one run, also where it fits others inside, as pipelines, searches and studies do. Inside `start_run` it
logs to that run, the second fit and those behind it with `<class>_<number>/` before their names.

| library | what is logged |
|---|---|
| scikit-learn | parameters, class, `training_score` (up to 100,000 rows), best parameters and `best_cv_score` |
| LightGBM, XGBoost | parameters, every metric of every iteration on every evaluation set, the best iteration |
| CatBoost | the same, when the fit has ended |
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
"""Library to the modules whose import makes it ready to be patched."""

_patches = Patches()


def autolog(*, disable: bool = False, libraries: Iterable[str] | None = None, models: bool = False) -> None:
    """Log what fits of known libraries do, from now on and in all threads of this process.

    Args:
        disable: leave it all as it was before.
        libraries: only these; without, all.
        models: keep the fitted models as well, as signed pickles.

    Raises:
        UsageError: a library is not known.
    """
    chosen = list(LIBRARIES if libraries is None else libraries)
    unknown = [name for name in chosen if name not in LIBRARIES]
    if unknown:
        raise UsageError(f"'{unknown[0]}' cannot log itself.", help=f"These can: {', '.join(LIBRARIES)}")
    import_hooks.forget()
    _patches.restore()
    if disable:
        return
    settings.models = models
    for name in chosen:
        for module in LIBRARIES[name]:
            import_hooks.when_imported(module, f"{__name__}.{name}_fits", _patches)


__all__ = ["LIBRARIES", "autolog"]
