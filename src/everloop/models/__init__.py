"""Scored models become packages, packages become versions, versions answer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.models.aliases import remove_alias, set_alias, take_back_alias
    from everloop.models.approvals import (
        ApprovalError,
        approve,
        find_policy,
        list_requests,
        reject,
        request_alias,
        set_policy,
        withdraw,
    )
    from everloop.models.bundle import export_package, import_package
    from everloop.models.card import version_card
    from everloop.models.comparing import VersionDiff, diff_versions
    from everloop.models.curating import archive, describe, tag, unarchive
    from everloop.models.history import Tenure, alias_at, alias_history, version_history
    from everloop.models.manifest import Manifest
    from everloop.models.package import build_package, read_package
    from everloop.models.parity import Parity, prove
    from everloop.models.predictor import Predictor, load_model, load_package
    from everloop.models.registry import (
        find_alias,
        get_package,
        get_version,
        list_versions,
        register,
    )
    from everloop.models.saving import save_model
    from everloop.models.sbom import environment_sbom
    from everloop.models.signature import Input, Signature
    from everloop.models.verification import Verification, verify_package

_WHERE = {
    "environment_sbom": "sbom",
    "import_package": "bundle",
    "export_package": "bundle",
    "Verification": "verification",
    "verify_package": "verification",
    "save_model": "saving",
    "ApprovalError": "approvals",
    "Input": "signature",
    "Manifest": "manifest",
    "Parity": "parity",
    "Predictor": "predictor",
    "Signature": "signature",
    "Tenure": "history",
    "VersionDiff": "comparing",
    "alias_at": "history",
    "alias_history": "history",
    "approve": "approvals",
    "archive": "curating",
    "build_package": "package",
    "describe": "curating",
    "diff_versions": "comparing",
    "find_alias": "registry",
    "find_policy": "approvals",
    "get_package": "registry",
    "get_version": "registry",
    "list_requests": "approvals",
    "list_versions": "registry",
    "load_model": "predictor",
    "load_package": "predictor",
    "prove": "parity",
    "read_package": "package",
    "register": "registry",
    "reject": "approvals",
    "remove_alias": "aliases",
    "request_alias": "approvals",
    "set_alias": "aliases",
    "set_policy": "approvals",
    "tag": "curating",
    "unarchive": "curating",
    "version_card": "card",
    "take_back_alias": "aliases",
    "version_history": "history",
    "withdraw": "approvals",
}

__all__ = [
    "ApprovalError",
    "Input",
    "Manifest",
    "Parity",
    "Predictor",
    "Signature",
    "Tenure",
    "Verification",
    "VersionDiff",
    "alias_at",
    "alias_history",
    "approve",
    "archive",
    "build_package",
    "describe",
    "diff_versions",
    "environment_sbom",
    "export_package",
    "find_alias",
    "find_policy",
    "get_package",
    "get_version",
    "import_package",
    "list_requests",
    "list_versions",
    "load_model",
    "load_package",
    "prove",
    "read_package",
    "register",
    "reject",
    "remove_alias",
    "request_alias",
    "save_model",
    "set_alias",
    "set_policy",
    "tag",
    "take_back_alias",
    "unarchive",
    "verify_package",
    "version_card",
    "version_history",
    "withdraw",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
