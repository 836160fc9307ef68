"""The package of a version, by the version's name: loaded, verified, exported."""

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
    """Load a model for answering, without the library that trained it where its format allows.

    Args:
        source: a store, or the folder or file of a package, as `export_package` writes it (then without `ref`).
        ref: `delays@3`, `delays@champion`, `delays` (champion or newest), or a package's digest.

    Raises:
        NotFoundError: no such version, package or folder.
        CorruptionError: a byte of the package is not as it was, or a foreign one failed its trial.
        TrustError: the package bears code and is not signed by a trusted key, or its model names something outside of
            the package.
    """
    if isinstance(source, str | Path):
        if ref is not None:
            raise UsageError("A package's folder is loaded without a version.", help="Pass an open store to name one.")
        from everloop.packages.package_files import load_path

        return load_path(Path(source))
    if ref is None:
        raise UsageError("Which model?", help="Name it: load_model(store, 'delays@champion')")
    if ref.startswith("sha256:"):
        return load_package(source, ref)
    version = get_version(source, ref)
    if not version.package:
        raise NotFoundError(
            f"'{version.key}' came over MLflow's protocol and has no package yet.",
            help=f"Make one: everloop models adopt {version.key}",
        )
    return load_package(source, version.package, version=version.key)


def verify_package(store: Store, ref: str) -> Verification:
    """Check the package of a version, or one by its digest; code in it runs only if it is trusted.

    Raises:
        NotFoundError: there is no such version or package. Problems of one that exists are in the result.
    """
    from everloop.packages.verification import verify_digest

    if ref.startswith("sha256:"):
        return verify_digest(store, ref)
    version = get_version(store, ref)
    return verify_digest(store, version.package, version=version.key)


def export_package(store: Store, ref: str, path: Path | str) -> Path:
    """Write the package of a version, or one by its digest, as one `.tar.zst` file or as a folder.

    Raises:
        NotFoundError: there is no such version or package.
        UsageError: the path exists already, or has the suffix of another kind of archive.
    """
    from everloop.packages.archive import write_archive

    return write_archive(store, ref if ref.startswith("sha256:") else get_version(store, ref).package, path)
