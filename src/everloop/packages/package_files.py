"""A package that lies in a folder or an archive, loaded without a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.packages.archive import SIGNATURE, check_archive, open_archive, trust_of
from everloop.packages.isolation.isolation_policy import admit
from everloop.packages.package import digest_of_files, read_folder
from everloop.packages.package_manifest import FILE
from everloop.packages.predictor import predictor_from

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.packages.predictor import Predictor


def load_path(path: Path) -> Predictor:
    """Load a package from the folder or archive that `export_package` writes; errors as `load_package`."""
    if path.is_dir() and not (path / SIGNATURE).exists():
        # A bare folder may lie among other files, and has nobody's word for it.
        manifest, files = read_folder(path)
        whole = {**files, FILE: (path / FILE).read_bytes()}
        told: dict[str, Any] = {}
        known, digest = None, digest_of_files(whole)
    else:
        manifest, whole, told, digest = open_archive(path)
        known = digest
    check_archive(manifest, told, digest)
    admit(manifest, whole, digest, trust_of(told), told=f"The package '{path}'")
    return predictor_from(manifest, whole, digest=digest if manifest.code_bearing else known)
