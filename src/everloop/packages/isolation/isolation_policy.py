"""Decide which packages need a trial load in a child process, and remember those that passed it.

A package that this machine built, or that a trusted key signed, is loaded at once. Any other package is foreign: it is
first loaded in a child process (see `isolated_load`). If it passes, its digest is remembered on this machine, outside
of the package. A package with code gets no trial: it loads only if a trusted key signed it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import StoreError, TrustError
from everloop.packages import package_manifest as manifests

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from everloop.packages.package_manifest import Manifest
    from everloop.stores import Store

_RULES = 1
"""Increase it when the trial checks more than before, so that packages that passed earlier are tried again."""


def admit(
    manifest: Manifest,
    files: Mapping[str, bytes],
    digest: str,
    trust: Mapping[str, str] | None,
    *,
    store: Store | None = None,
    name: str = "",
    signed_too: bool = False,
) -> None:
    """Check that a package may be loaded in this process; a foreign package gets a trial load first.

    Args:
        files: all files of the package, checked against the manifest.
        trust: the signature of the package.
        store: where a passed trial is remembered; None remembers it beside this machine's keys.
        name: how messages call the package.
        signed_too: also try a package that a trusted key signed, unless it has passed before.

    Raises:
        TrustError, MissingExtraError, CorruptionError: as `isolated_load.probe_package`.
    """
    if manifest.code_bearing or is_admitted(digest, store):
        return
    # Checked each time, because a key that is trusted today may be removed tomorrow.
    if not signed_too and is_trusted(digest, trust):
        return
    from everloop.packages.isolation.isolated_load import probe_package

    raw = files.get(manifests.FILE) or manifest.to_bytes()
    inner = {name: data for name, data in files.items() if name != manifests.FILE}
    probe_package(raw, inner, name or f"The package {digest}")
    remember(digest, store)


def is_admitted(digest: str, store: Store | None) -> bool:
    """Whether a package was built here or has passed a trial."""
    return _marker(digest, store).exists()


def is_trusted(digest: str, trust: Mapping[str, str] | None) -> bool:
    """Whether a key that is trusted here signed the package, or its digest is on this machine's list."""
    from everloop.stores.trust import check

    try:
        check(digest, dict(trust) if trust else None)
    except (TrustError, StoreError):
        # Without a readable key the signature cannot be checked. The trial needs no key.
        return False
    return True


def remember(digest: str, store: Store | None) -> None:
    """Remember that a package needs no trial, because it was built here or has passed one."""
    marker = _marker(digest, store)
    # If the folder is not writable, the package is tried again each time.
    with suppress(OSError):
        for folder in (marker.parent.parent, marker.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker.touch(mode=0o600)


def _marker(digest: str, store: Store | None) -> Path:
    from everloop.stores.trust import keys_folder

    root = keys_folder() if store is None else store.home / "cache"
    return root / f"admitted-{_RULES}" / digest.removeprefix("sha256:")
