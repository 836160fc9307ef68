"""Sources to snapshots: reading, contracts and their checks, splits.

Importing this package loads only the standard library; each name brings its own module when first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.data.checks import ContractReport, Violation, check_contract, quarantine
    from everloop.data.contract_changes import ContractChange, adapt_contract
    from everloop.data.contract_toml import contract_from_toml, contract_to_toml
    from everloop.data.contracts import find_contract, infer_contract, save_contract
    from everloop.data.dataset import Dataset
    from everloop.data.features import FeatureView, OnDemand, Window, join_features
    from everloop.data.findings import record_findings
    from everloop.data.folders import add_folder, export_folder, read_files
    from everloop.data.folds import Fold, split_folds
    from everloop.data.horizon import as_of, find_horizon
    from everloop.data.keeping import add_table, delete_snapshots, export_table, restore_snapshot
    from everloop.data.pandera_schemas import contract_from_pandera
    from everloop.data.profile_html import profile_page
    from everloop.data.profiles import Profile, profile_snapshot, profile_table
    from everloop.data.progress import Progress, watch_progress
    from everloop.data.reading_notes import ReadingNote, collect_notes
    from everloop.data.snapshot_diff import SnapshotDiff, diff_snapshots
    from everloop.data.snapshots import get_snapshot, load_snapshot, take_snapshot
    from everloop.data.sources import files_change, files_state, read, sql_change, sql_state
    from everloop.data.splits import Split, split
    from everloop.data.transformers import Transformer, transformer

# Polars looks at this once, when it is first used: reading ahead by more than one group of rows takes gigabytes for
# tables that are wide, and from a local disk gains nothing. Whoever sets it keeps what they set.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

_MODULES = {
    "checks": ("ContractReport", "Violation", "check_contract", "quarantine"),
    "contract_changes": ("ContractChange", "adapt_contract"),
    "contract_toml": ("contract_from_toml", "contract_to_toml"),
    "contracts": ("find_contract", "infer_contract", "save_contract"),
    "dataset": ("Dataset",),
    "features": ("FeatureView", "OnDemand", "Window", "join_features"),
    "findings": ("record_findings",),
    "folders": ("add_folder", "export_folder", "read_files"),
    "folds": ("Fold", "split_folds"),
    "horizon": ("as_of", "find_horizon"),
    "keeping": ("add_table", "delete_snapshots", "export_table", "restore_snapshot"),
    "pandera_schemas": ("contract_from_pandera",),
    "profile_html": ("profile_page",),
    "profiles": ("Profile", "profile_snapshot", "profile_table"),
    "progress": ("Progress", "watch_progress"),
    "reading_notes": ("ReadingNote", "collect_notes"),
    "snapshot_diff": ("SnapshotDiff", "diff_snapshots"),
    "snapshots": ("get_snapshot", "load_snapshot", "take_snapshot"),
    "sources": ("files_change", "files_state", "read", "sql_change", "sql_state"),
    "splits": ("Split", "split"),
    "transformers": ("Transformer", "transformer"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ContractChange",
    "ContractReport",
    "Dataset",
    "FeatureView",
    "Fold",
    "OnDemand",
    "Profile",
    "Progress",
    "ReadingNote",
    "SnapshotDiff",
    "Split",
    "Transformer",
    "Violation",
    "Window",
    "adapt_contract",
    "add_folder",
    "add_table",
    "as_of",
    "check_contract",
    "collect_notes",
    "contract_from_pandera",
    "contract_from_toml",
    "contract_to_toml",
    "delete_snapshots",
    "diff_snapshots",
    "export_folder",
    "export_table",
    "files_change",
    "files_state",
    "find_contract",
    "find_horizon",
    "get_snapshot",
    "infer_contract",
    "join_features",
    "load_snapshot",
    "profile_page",
    "profile_snapshot",
    "profile_table",
    "quarantine",
    "read",
    "read_files",
    "record_findings",
    "restore_snapshot",
    "save_contract",
    "split",
    "split_folds",
    "sql_change",
    "sql_state",
    "take_snapshot",
    "transformer",
    "watch_progress",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
