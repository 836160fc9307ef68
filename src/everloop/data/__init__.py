"""Sources to snapshots: reading, contracts and their checks, splits.

Importing this package loads only the standard library; each name brings its own module when first used.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.data.checks import (
        ContractReport as ContractReport,
        Violation as Violation,
        check_contract as check_contract,
        quarantine as quarantine,
    )
    from everloop.data.contract_changes import ContractChange as ContractChange, adapt_contract as adapt_contract
    from everloop.data.contract_toml import (
        contract_from_toml as contract_from_toml,
        contract_to_toml as contract_to_toml,
    )
    from everloop.data.contracts import (
        find_contract as find_contract,
        infer_contract as infer_contract,
        save_contract as save_contract,
    )
    from everloop.data.dataset import Dataset as Dataset
    from everloop.data.features import (
        FeatureView as FeatureView,
        OnDemand as OnDemand,
        Window as Window,
        join_features as join_features,
    )
    from everloop.data.findings import record_findings as record_findings
    from everloop.data.folders import add_folder as add_folder, export_folder as export_folder, read_files as read_files
    from everloop.data.folds import Fold as Fold, split_folds as split_folds
    from everloop.data.horizon import as_of as as_of, find_horizon as find_horizon
    from everloop.data.keeping import (
        add_table as add_table,
        delete_snapshots as delete_snapshots,
        export_table as export_table,
        restore_snapshot as restore_snapshot,
    )
    from everloop.data.pandera_schemas import contract_from_pandera as contract_from_pandera
    from everloop.data.profile_html import profile_page as profile_page
    from everloop.data.profiles import (
        Profile as Profile,
        profile_snapshot as profile_snapshot,
        profile_table as profile_table,
    )
    from everloop.data.progress import Progress as Progress, watch_progress as watch_progress
    from everloop.data.reading_notes import ReadingNote as ReadingNote, collect_notes as collect_notes
    from everloop.data.snapshot_diff import SnapshotDiff as SnapshotDiff, diff_snapshots as diff_snapshots
    from everloop.data.snapshots import (
        get_snapshot as get_snapshot,
        load_snapshot as load_snapshot,
        take_snapshot as take_snapshot,
    )
    from everloop.data.sources import (
        files_change as files_change,
        files_state as files_state,
        read as read,
        sql_change as sql_change,
        sql_state as sql_state,
    )
    from everloop.data.splits import Split as Split, split as split
    from everloop.data.transformers import Transformer as Transformer, transformer as transformer

# Polars reads this variable once, at first use. Prefetching more than one row group costs gigabytes on wide tables and
# gains nothing on a local disk. A value that the user has set stays.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checks": ["ContractReport", "Violation", "check_contract", "quarantine"],
        "contract_changes": ["ContractChange", "adapt_contract"],
        "contract_toml": ["contract_from_toml", "contract_to_toml"],
        "contracts": ["find_contract", "infer_contract", "save_contract"],
        "dataset": ["Dataset"],
        "features": ["FeatureView", "OnDemand", "Window", "join_features"],
        "findings": ["record_findings"],
        "folders": ["add_folder", "export_folder", "read_files"],
        "folds": ["Fold", "split_folds"],
        "horizon": ["as_of", "find_horizon"],
        "keeping": ["add_table", "delete_snapshots", "export_table", "restore_snapshot"],
        "pandera_schemas": ["contract_from_pandera"],
        "profile_html": ["profile_page"],
        "profiles": ["Profile", "profile_snapshot", "profile_table"],
        "progress": ["Progress", "watch_progress"],
        "reading_notes": ["ReadingNote", "collect_notes"],
        "snapshot_diff": ["SnapshotDiff", "diff_snapshots"],
        "snapshots": ["get_snapshot", "load_snapshot", "take_snapshot"],
        "sources": ["files_change", "files_state", "read", "sql_change", "sql_state"],
        "splits": ["Split", "split"],
        "transformers": ["Transformer", "transformer"],
    },
)
