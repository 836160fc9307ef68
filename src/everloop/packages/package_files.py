"""Load a package from a folder or an archive, without a store."""

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
    """Load a package from the folder or archive that `export_package` writes; raises what `load_package` raises."""
    if path.is_dir() and not (path / SIGNATURE).exists():
        # A folder without a signature may also contain other files.
        manifest, listed = read_folder(path)
        files = {**listed, FILE: (path / FILE).read_bytes()}
        signature: dict[str, Any] = {}
        known, digest = None, digest_of_files(files)
    else:
        manifest, files, signature, digest = open_archive(path)
        known = digest
    check_archive(manifest, signature, digest)
    admit(manifest, files, digest, trust_of(signature), name=f"The package '{path}'")
    return predictor_from(manifest, files, digest=digest if manifest.code_bearing else known)
