"""Data from sources to snapshots: reading, contracts, features, profiles and splits.

Importing this package loads only the standard library. Each name imports its own module at first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.data.contracts.contract import (
        find_contract as find_contract,
        infer_contract as infer_contract,
        save_contract as save_contract,
    )
    from everloop.data.contracts.contract_changes import (
        ContractChange as ContractChange,
        adapt_contract as adapt_contract,
    )
    from everloop.data.contracts.contract_checks import (
        ContractReport as ContractReport,
        Violation as Violation,
        check_contract as check_contract,
        quarantine as quarantine,
    )
    from everloop.data.contracts.contract_findings import record_findings as record_findings
    from everloop.data.contracts.contract_toml import (
        contract_from_toml as contract_from_toml,
        contract_to_toml as contract_to_toml,
    )
    from everloop.data.contracts.pandera_schemas import contract_from_pandera as contract_from_pandera
    from everloop.data.dataset import Dataset as Dataset
    from everloop.data.features import (
        FeatureView as FeatureView,
        OnDemand as OnDemand,
        Window as Window,
        join_features as join_features,
    )
    from everloop.data.folds import Fold as Fold, split_folds as split_folds
    from everloop.data.profiling.profile_html import profile_page as profile_page
    from everloop.data.profiling.profiles import (
        Profile as Profile,
        profile_snapshot as profile_snapshot,
        profile_table as profile_table,
    )
    from everloop.data.snapshots.file_folders import (
        add_folder as add_folder,
        export_folder as export_folder,
        read_files as read_files,
    )
    from everloop.data.snapshots.import_export import (
        add_table as add_table,
        delete_snapshots as delete_snapshots,
        export_table as export_table,
        restore_snapshot as restore_snapshot,
    )
    from everloop.data.snapshots.snapshot_diff import SnapshotDiff as SnapshotDiff, diff_snapshots as diff_snapshots
    from everloop.data.snapshots.snapshots import (
        get_snapshot as get_snapshot,
        load_snapshot as load_snapshot,
        take_snapshot as take_snapshot,
    )
    from everloop.data.sources.read_progress import ReadProgress as ReadProgress, watch_progress as watch_progress
    from everloop.data.sources.reading import (
        files_change as files_change,
        files_state as files_state,
        read as read,
        sql_change as sql_change,
        sql_state as sql_state,
    )
    from everloop.data.sources.reading_notes import ReadingNote as ReadingNote, collect_notes as collect_notes
    from everloop.data.splits import Split as Split, split as split
    from everloop.data.time_travel import as_of as as_of, find_horizon as find_horizon
    from everloop.data.transformers import Transformer as Transformer, transformer as transformer

# Polars reads this variable once, at first use. Prefetching more than one row group costs gigabytes on wide tables and
# gains nothing on a local disk. A value that the user has set is kept.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "contracts.contract": ["find_contract", "infer_contract", "save_contract"],
        "contracts.contract_changes": ["ContractChange", "adapt_contract"],
        "contracts.contract_checks": ["ContractReport", "Violation", "check_contract", "quarantine"],
        "contracts.contract_findings": ["record_findings"],
        "contracts.contract_toml": ["contract_from_toml", "contract_to_toml"],
        "contracts.pandera_schemas": ["contract_from_pandera"],
        "dataset": ["Dataset"],
        "features": ["FeatureView", "OnDemand", "Window", "join_features"],
        "folds": ["Fold", "split_folds"],
        "profiling.profile_html": ["profile_page"],
        "profiling.profiles": ["Profile", "profile_snapshot", "profile_table"],
        "snapshots.file_folders": ["add_folder", "export_folder", "read_files"],
        "snapshots.import_export": ["add_table", "delete_snapshots", "export_table", "restore_snapshot"],
        "snapshots.snapshot_diff": ["SnapshotDiff", "diff_snapshots"],
        "snapshots.snapshots": ["get_snapshot", "load_snapshot", "take_snapshot"],
        "sources.read_progress": ["ReadProgress", "watch_progress"],
        "sources.reading": ["files_change", "files_state", "read", "sql_change", "sql_state"],
        "sources.reading_notes": ["ReadingNote", "collect_notes"],
        "splits": ["Split", "split"],
        "time_travel": ["as_of", "find_horizon"],
        "transformers": ["Transformer", "transformer"],
    },
)
