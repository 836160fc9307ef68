"""Which packages are read on trial before they are read here, and what is remembered of it.

A package that this machine made, or that a trusted key signed, is read at once. Any other is foreign: it is read once
in a child process (see `probing`), and what passed is remembered by its digest, on this machine and outside of the
package. A package that brings code is not read on trial: it loads only if it is signed by a trusted key.
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
"""Counts up when the trial sees more than before, so that what passed earlier is tried again."""


def admit(
    manifest: Manifest,
    files: Mapping[str, bytes],
    digest: str,
    trust: Mapping[str, str] | None,
    *,
    store: Store | None = None,
    told: str = "",
    signed_too: bool = False,
) -> None:
    """Return if a package may be read in this process; read it on trial first if it is foreign.

    Args:
        files: all of the package, checked against the manifest.
        trust: the signature that came with it.
        store: where what passed is remembered; without one, beside this machine's keys.
        told: what to call it in a message.
        signed_too: try also what a trusted key signed, unless it has passed before.

    Raises:
        TrustError, MissingExtraError, CorruptionError: as `probing.probe_package`.
    """
    if manifest.code_bearing or is_admitted(digest, store):
        return
    # Asked each time: a key that is trusted today may be removed tomorrow.
    if not signed_too and is_trusted(digest, trust):
        return
    from everloop.packages.isolation.isolated_load import probe_package

    raw = files.get(manifests.FILE) or manifest.to_bytes()
    inner = {name: data for name, data in files.items() if name != manifests.FILE}
    probe_package(raw, inner, told or f"The package {digest}")
    remember(digest, store)


def is_admitted(digest: str, store: Store | None) -> bool:
    """Whether a package was made here or has passed a trial."""
    return _place(digest, store).exists()


def is_trusted(digest: str, trust: Mapping[str, str] | None) -> bool:
    """Whether a key that is trusted here signed the package, or its digest is on this machine's list."""
    from everloop.stores.trust import check

    try:
        check(digest, dict(trust) if trust else None)
    except (TrustError, StoreError):
        # Without a readable key nothing is proved; the trial needs none.
        return False
    return True


def remember(digest: str, store: Store | None) -> None:
    """Remember that a package needs no trial: it was made here or has passed one."""
    place = _place(digest, store)
    # A home that cannot be written to is tried again each time.
    with suppress(OSError):
        for folder in (place.parent.parent, place.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.touch(mode=0o600)


def _place(digest: str, store: Store | None) -> Path:
    from everloop.stores.trust import keys_folder

    root = keys_folder() if store is None else store.home / "cache"
    return root / f"admitted-{_RULES}" / digest.removeprefix("sha256:")
