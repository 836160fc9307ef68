"""Scored models become packages, packages become versions, versions answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.models.aliases import (
        remove_alias as remove_alias,
        set_alias as set_alias,
        take_back_alias as take_back_alias,
    )
    from everloop.models.approvals import (
        ApprovalError as ApprovalError,
        approve as approve,
        find_policy as find_policy,
        list_requests as list_requests,
        reject as reject,
        request_alias as request_alias,
        set_policy as set_policy,
        withdraw as withdraw,
    )
    from everloop.models.bundle import export_package as export_package, import_package as import_package
    from everloop.models.card import version_card as version_card
    from everloop.models.comparing import VersionDiff as VersionDiff, diff_versions as diff_versions
    from everloop.models.curating import archive as archive, describe as describe, tag as tag, unarchive as unarchive
    from everloop.models.history import (
        Tenure as Tenure,
        alias_at as alias_at,
        alias_history as alias_history,
        version_history as version_history,
    )
    from everloop.models.manifest import Manifest as Manifest
    from everloop.models.package import build_package as build_package, read_package as read_package
    from everloop.models.parity import Parity as Parity, prove as prove
    from everloop.models.predictor import Predictor as Predictor, load_model as load_model, load_package as load_package
    from everloop.models.registry import (
        find_alias as find_alias,
        get_package as get_package,
        get_version as get_version,
        list_versions as list_versions,
        register as register,
    )
    from everloop.models.saving import save_model as save_model
    from everloop.models.sbom import environment_sbom as environment_sbom
    from everloop.models.signature import Input as Input, Signature as Signature
    from everloop.models.verification import Verification as Verification, verify_package as verify_package

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "aliases": ["remove_alias", "set_alias", "take_back_alias"],
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
        "bundle": ["export_package", "import_package"],
        "card": ["version_card"],
        "comparing": ["VersionDiff", "diff_versions"],
        "curating": ["archive", "describe", "tag", "unarchive"],
        "history": ["Tenure", "alias_at", "alias_history", "version_history"],
        "manifest": ["Manifest"],
        "package": ["build_package", "read_package"],
        "parity": ["Parity", "prove"],
        "predictor": ["Predictor", "load_model", "load_package"],
        "registry": ["find_alias", "get_package", "get_version", "list_versions", "register"],
        "saving": ["save_model"],
        "sbom": ["environment_sbom"],
        "signature": ["Input", "Signature"],
        "verification": ["Verification", "verify_package"],
    },
)
