"""Experiment tracking: runs with their parameters, metrics and artifacts.

Importing this package loads only the standard library; each public name loads its module when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.tracking.autologging import autolog as autolog
    from everloop.tracking.journal.last_points import series_of as series_of
    from everloop.tracking.journal.recovery import recover_journals as recover_journals
    from everloop.tracking.journal.run_folding import (
        fold as fold,
        fold_journal as fold_journal,
        read_metrics as read_metrics,
    )
    from everloop.tracking.lifecycle import (
        archive_run as archive_run,
        copy_run as copy_run,
        delete_run as delete_run,
        deleted_runs as deleted_runs,
        move_run as move_run,
        restore_run as restore_run,
        unarchive_run as unarchive_run,
    )
    from everloop.tracking.metric_history import History as History, read_history as read_history
    from everloop.tracking.provenance import capture_source as capture_source, imported_packages as imported_packages
    from everloop.tracking.run_archive import export_runs as export_runs, import_runs as import_runs
    from everloop.tracking.run_params import Params as Params
    from everloop.tracking.runs import (
        ActiveRun as ActiveRun,
        current_run as current_run,
        join_run as join_run,
        start_run as start_run,
    )
    from everloop.tracking.search.run_comparison import (
        Comparison as Comparison,
        compare_runs as compare_runs,
        read_curves as read_curves,
    )
    from everloop.tracking.search.run_filters import parse_filter as parse_filter
    from everloop.tracking.search.run_search import (
        RunPage as RunPage,
        aggregate_children as aggregate_children,
        count_runs as count_runs,
        search_runs as search_runs,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "autologging": ["autolog"],
        "journal.last_points": ["series_of"],
        "journal.recovery": ["recover_journals"],
        "journal.run_folding": ["fold", "fold_journal", "read_metrics"],
        "lifecycle": [
            "archive_run",
            "copy_run",
            "delete_run",
            "deleted_runs",
            "move_run",
            "restore_run",
            "unarchive_run",
        ],
        "metric_history": ["History", "read_history"],
        "provenance": ["imported_packages", "capture_source"],
        "run_archive": ["export_runs", "import_runs"],
        "run_params": ["Params"],
        "runs": ["ActiveRun", "current_run", "join_run", "start_run"],
        "search.run_comparison": ["Comparison", "compare_runs", "read_curves"],
        "search.run_filters": ["parse_filter"],
        "search.run_search": ["RunPage", "aggregate_children", "count_runs", "search_runs"],
    },
)
