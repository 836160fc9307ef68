"""What happened: runs with their parameters, metrics and artifacts.

Importing this package loads only the standard library; each name brings its own module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.tracking.autologging import autolog
    from everloop.tracking.compare import Comparison, compare_runs, read_curves
    from everloop.tracking.filters import parse_filter
    from everloop.tracking.folding import fold, fold_journal, read_metrics
    from everloop.tracking.history import History, read_history
    from everloop.tracking.latest import series_of
    from everloop.tracking.lifecycle import (
        archive_run,
        copy_run,
        delete_run,
        deleted_runs,
        move_run,
        restore_run,
        unarchive_run,
    )
    from everloop.tracking.mlflow_import import import_mlflow
    from everloop.tracking.origin import imported_packages, look_around
    from everloop.tracking.params import Params
    from everloop.tracking.recovery import bring_in
    from everloop.tracking.runs import ActiveRun, current_run, join_run, start_run
    from everloop.tracking.search import RunPage, aggregate_children, count_runs, search_runs
    from everloop.tracking.transfer import export_runs, import_runs

_MODULES = {
    "transfer": (
        "export_runs",
        "import_runs",
    ),
    "search": (
        "RunPage",
        "aggregate_children",
        "count_runs",
        "search_runs",
    ),
    "mlflow_import": ("import_mlflow",),
    "lifecycle": (
        "archive_run",
        "copy_run",
        "delete_run",
        "deleted_runs",
        "move_run",
        "restore_run",
        "unarchive_run",
    ),
    "history": (
        "History",
        "read_history",
    ),
    "filters": ("parse_filter",),
    "compare": (
        "Comparison",
        "compare_runs",
        "read_curves",
    ),
    "autologging": ("autolog",),
    "folding": ("fold", "fold_journal", "read_metrics"),
    "latest": ("series_of",),
    "origin": ("imported_packages", "look_around"),
    "params": ("Params",),
    "recovery": ("bring_in",),
    "runs": ("ActiveRun", "current_run", "join_run", "start_run"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ActiveRun",
    "Comparison",
    "History",
    "Params",
    "RunPage",
    "aggregate_children",
    "archive_run",
    "autolog",
    "bring_in",
    "compare_runs",
    "copy_run",
    "count_runs",
    "current_run",
    "delete_run",
    "deleted_runs",
    "export_runs",
    "fold",
    "fold_journal",
    "import_mlflow",
    "import_runs",
    "imported_packages",
    "join_run",
    "look_around",
    "move_run",
    "parse_filter",
    "read_curves",
    "read_history",
    "read_metrics",
    "restore_run",
    "search_runs",
    "series_of",
    "start_run",
    "unarchive_run",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
