"""Packages: a trained model with everything that prediction needs, verified, in a folder named by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.packages.archive import import_package as import_package
    from everloop.packages.package import (
        build_package as build_package,
        get_package as get_package,
        read_package as read_package,
    )
    from everloop.packages.package_manifest import Manifest as Manifest
    from everloop.packages.parity import Parity as Parity, prove as prove
    from everloop.packages.predictor import Predictor as Predictor, load_package as load_package
    from everloop.packages.sbom import environment_sbom as environment_sbom
    from everloop.packages.signature import Input as Input, Signature as Signature
    from everloop.packages.verification import Verification as Verification

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "archive": ["import_package"],
        "package": ["build_package", "get_package", "read_package"],
        "package_manifest": ["Manifest"],
        "parity": ["Parity", "prove"],
        "predictor": ["Predictor", "load_package"],
        "sbom": ["environment_sbom"],
        "signature": ["Input", "Signature"],
        "verification": ["Verification"],
    },
)
