"""Load, verify and export the package of a version, given the version's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, UsageError
from everloop.packages.predictor import load_package
from everloop.registry.model_versions import get_version

if TYPE_CHECKING:
    from everloop.packages.predictor import Predictor
    from everloop.packages.verification import Verification
    from everloop.stores import Store


def load_model(source: Store | Path | str, ref: str | None = None) -> Predictor:
    """Load a model for prediction; many formats do not need the library that trained it.

    Args:
        source: a store, or the folder or file that `export_package` wrote (then without `ref`).
        ref: `delays@3`, `delays@champion`, `delays` (champion or newest), or a package's digest.

    Raises:
        NotFoundError: there is no such version, package or folder.
        CorruptionError: the package is damaged, or it is from another machine and its trial load failed.
        TrustError: the package contains code and no trusted key signed it, or its model refers to a file outside of
            the package.
    """
    if isinstance(source, str | Path):
        if ref is not None:
            raise UsageError(
                f"The package in '{source}' is a single version, so it is loaded without `ref`.",
                help="Leave `ref` out, or pass an open store: load_model(store, 'delays@champion')",
            )
        from everloop.packages.package_files import load_path

        if "@" in str(source) and not Path(source).exists():
            raise NotFoundError(
                f"'{source}' is neither a file nor a folder.",
                help=f"A version is in a store: load_model(everloop.open_store(), '{source}')",
            )
        return load_path(Path(source))
    if ref is None:
        raise UsageError("No model is named.", help="Name one with `ref`: load_model(store, 'delays@champion')")
    if ref.startswith("sha256:"):
        return load_package(source, ref)
    version = get_version(source, ref)
    if not version.package:
        raise NotFoundError(
            f"'{version.key}' was registered through MLflow's protocol and has no package yet.",
            help=f"Package it: everloop models adopt {version.key}",
        )
    return load_package(source, version.package, version=version.key)


def verify_package(store: Store, ref: str) -> Verification:
    """Verify the package of a version, or one given by its digest. Code in it runs only if it is trusted.

    Raises:
        NotFoundError: there is no such version or package. Problems with an existing one are in the result.
    """
    from everloop.packages.verification import verify_digest

    if ref.startswith("sha256:"):
        return verify_digest(store, ref)
    version = get_version(store, ref)
    return verify_digest(store, version.package, version=version.key)


def export_package(store: Store, ref: str, path: Path | str) -> Path:
    """Write the package of a version, or one given by its digest, as one `.tar.zst` file or as a folder.

    Raises:
        NotFoundError: there is no such version or package.
        UsageError: the path exists already, or has the suffix of another archive format.
    """
    from everloop.packages.archive import write_archive

    return write_archive(store, ref if ref.startswith("sha256:") else get_version(store, ref).package, path)
