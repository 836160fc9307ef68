"""Prediction log and baseline in, findings out: drift, performance, and how noisy the world is without either.

Importing this package loads only the standard library; each name brings its own module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.monitoring.baseline import (
        Baseline,
        ReferenceMetric,
        build_baseline,
        find_baseline,
        keep_baseline,
        load_baseline,
    )
    from everloop.monitoring.bins import CategoryBins, NumericBins, choose_bins
    from everloop.monitoring.budget import AlarmBudget, benjamini_hochberg, budget_for
    from everloop.monitoring.distances import (
        chi_square,
        chi_square_test,
        distance_between,
        jensen_shannon,
        ks,
        psi,
        wasserstein,
    )
    from everloop.monitoring.drift import check_drift, compare_window
    from everloop.monitoring.looking import Look, baseline_of, look_at_drift
    from everloop.monitoring.noise import NoiseFloor, noise_floor
    from everloop.monitoring.performance import (
        Measured,
        check_performance,
        measure_labelled,
        performance_by,
        usual_metric,
    )
    from everloop.monitoring.shift import Shift, measure_shifts
    from everloop.monitoring.sketch import Sketch, add_all, sketch_frame

_MODULES = {
    "baseline": ("Baseline", "ReferenceMetric", "build_baseline", "find_baseline", "keep_baseline", "load_baseline"),
    "bins": ("CategoryBins", "NumericBins", "choose_bins"),
    "budget": ("AlarmBudget", "benjamini_hochberg", "budget_for"),
    "distances": ("chi_square", "chi_square_test", "distance_between", "jensen_shannon", "ks", "psi", "wasserstein"),
    "drift": ("check_drift", "compare_window"),
    "looking": ("Look", "baseline_of", "look_at_drift"),
    "noise": ("NoiseFloor", "noise_floor"),
    "performance": ("Measured", "check_performance", "measure_labelled", "performance_by", "usual_metric"),
    "shift": ("Shift", "measure_shifts"),
    "sketch": ("Sketch", "add_all", "sketch_frame"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AlarmBudget",
    "Baseline",
    "CategoryBins",
    "Look",
    "Measured",
    "NoiseFloor",
    "NumericBins",
    "ReferenceMetric",
    "Shift",
    "Sketch",
    "add_all",
    "baseline_of",
    "benjamini_hochberg",
    "budget_for",
    "build_baseline",
    "check_drift",
    "check_performance",
    "chi_square",
    "chi_square_test",
    "choose_bins",
    "compare_window",
    "distance_between",
    "find_baseline",
    "jensen_shannon",
    "keep_baseline",
    "ks",
    "load_baseline",
    "look_at_drift",
    "measure_labelled",
    "measure_shifts",
    "noise_floor",
    "performance_by",
    "psi",
    "sketch_frame",
    "usual_metric",
    "wasserstein",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
