"""Registered model versions: aliases, approvals, history, differences, annotations and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.registry.aliases import (
        remove_alias as remove_alias,
        set_alias as set_alias,
        take_back_alias as take_back_alias,
    )
    from everloop.registry.annotations import (
        archive as archive,
        describe as describe,
        tag as tag,
        unarchive as unarchive,
    )
    from everloop.registry.approvals import (
        ApprovalError as ApprovalError,
        approve as approve,
        find_policy as find_policy,
        list_requests as list_requests,
        reject as reject,
        request_alias as request_alias,
        set_policy as set_policy,
        withdraw as withdraw,
    )
    from everloop.registry.diff import VersionDiff as VersionDiff, diff_versions as diff_versions
    from everloop.registry.history import (
        AliasTenure as AliasTenure,
        alias_at as alias_at,
        alias_history as alias_history,
        version_history as version_history,
    )
    from everloop.registry.model_card import training_notes as training_notes, version_card as version_card
    from everloop.registry.model_versions import (
        find_alias as find_alias,
        get_version as get_version,
        list_versions as list_versions,
        register as register,
    )
    from everloop.registry.saving import save_model as save_model
    from everloop.registry.version_packages import (
        export_package as export_package,
        load_model as load_model,
        verify_package as verify_package,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "aliases": ["remove_alias", "set_alias", "take_back_alias"],
        "annotations": ["archive", "describe", "tag", "unarchive"],
        "approvals": [
            "ApprovalError",
            "approve",
            "find_policy",
            "list_requests",
            "reject",
            "request_alias",
            "set_policy",
            "withdraw",
        ],
        "diff": ["VersionDiff", "diff_versions"],
        "history": ["AliasTenure", "alias_at", "alias_history", "version_history"],
        "model_card": ["training_notes", "version_card"],
        "model_versions": ["find_alias", "get_version", "list_versions", "register"],
        "saving": ["save_model"],
        "version_packages": ["export_package", "load_model", "verify_package"],
    },
)
