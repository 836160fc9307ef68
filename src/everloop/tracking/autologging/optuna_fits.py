"""Autologging of Optuna: `Study.optimize` is one run, a trial is one step. Fits inside a trial are not logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, logged

if TYPE_CHECKING:
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def patch(module: ModuleType, patches: Patches) -> None:
    study = module.study.Study
    new = logged(study.optimize, lambda self: self.study_name, _before, _after)
    patches.replace(study, "optimize", new)


def _before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    study = args[0]
    session.params(
        {
            "directions": [direction.name.lower() for direction in study.directions],
            "sampler": type(study.sampler).__name__,
            "pruner": type(study.pruner).__name__,
        }
    )
    session.tags(estimator="Study", estimator_module="optuna")

    def log_trial(_: Any, trial: Any) -> None:
        values = trial.values or ()
        names = ["value"] if len(study.directions) == 1 else [f"value/{number}" for number in range(len(values))]
        numbers = {f"trial/{name}": value for name, value in trial.params.items()}
        session.metrics({**dict(zip(names, values, strict=False)), **numbers}, step=trial.number)

    # In practice, callbacks are never passed as a positional argument, so they can be set by keyword.
    kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), log_trial]


def _after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    study = args[0]
    session.metrics({"trials": len(study.trials)})
    if len(study.directions) == 1 and any(trial.state.name == "COMPLETE" for trial in study.trials):
        session.metrics({"best_value": study.best_value})
        session.params({f"best_{name}": value for name, value in study.best_params.items()})
