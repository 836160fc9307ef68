"""Checking a package: every byte, who vouches for it, whether this machine trusts them, and whether it answers as
it did when it was packaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, EverloopError, NotFoundError, StoreError, StoreVersionError, TrustError
from everloop.packages import package_manifest as manifests
from everloop.packages.environment_lock import differences
from everloop.packages.package import digest_of, get_package
from everloop.packages.package_manifest import Manifest

if TYPE_CHECKING:
    from everloop.stores import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found. `ok`: the bytes are whole, a key that is trusted here vouches for them, and they answer."""

    ok: bool
    package: str
    version: str | None
    format: str
    compiled: bool
    files: int
    size_bytes: int
    signed_by: str | None
    trusted: bool
    answers: bool
    """It answers here, and as the trained model did."""
    answered_rows: int = 0
    """Rows that were asked again, whose answers came with the package."""
    largest_difference: float = 0.0
    environment: tuple[str, ...] = ()
    """What is installed here otherwise than where the package was made. No problem while the answers are the same."""
    problems: tuple[str, ...] = ()


def verify_digest(store: Store, digest: str, *, version: str | None = None) -> Verification:
    """Check a package by its digest; code in it runs only if it is trusted.

    Args:
        version: key of the version whose package it is, for the result.

    Raises:
        NotFoundError: there is no such package. Problems of one that exists are in the result.
    """
    record = get_package(store, digest)
    problems: list[str] = []
    manifest, files = _manifest(store, digest, problems)
    trusted = _trusted(digest, record.trust, problems)
    asked = None
    if manifest is not None and not problems and _admitted(store, digest, record.trust, problems):
        asked = _answers(store, digest, problems)
    return Verification(
        ok=not problems,
        package=digest,
        version=version,
        format=record.format,
        compiled=record.compiled,
        files=files,
        size_bytes=record.size_bytes,
        signed_by=(record.trust or {}).get("key"),
        trusted=trusted,
        answers=asked is not None,
        answered_rows=asked[0] if asked else 0,
        largest_difference=asked[1] if asked else 0.0,
        environment=() if manifest is None else tuple(differences(manifest.environment.locked)),
        problems=tuple(problems),
    )


def _manifest(store: Store, digest: str, problems: list[str]) -> tuple[Manifest | None, int]:
    try:
        entries = {entry.path: entry for entry in store.objects.tree(digest)}
        if manifests.FILE not in entries:
            raise NotFoundError(f"It has no {manifests.FILE}.")
        manifest = Manifest.from_bytes(store.objects.read_entry(entries[manifests.FILE]))
    except (NotFoundError, CorruptionError, StoreVersionError, StoreError) as error:
        problems.append(error.message)
        return None, 0
    for name, expected in manifest.files.items():
        try:
            if name not in entries:
                problems.append(f"The file {name} is missing.")
            elif digest_of(store.objects.read_entry(entries[name])) != expected:
                problems.append(f"The file {name} differs from its digest.")
        except EverloopError as error:
            problems.append(f"The file {name}: {error.message}")
    strangers = sorted(set(entries) - set(manifest.files) - {manifests.FILE})
    problems.extend(f"The file {name} is not named in the manifest." for name in strangers)
    return manifest, len(entries)


def _trusted(digest: str, trust: dict[str, str] | None, problems: list[str]) -> bool:
    from everloop.stores.trust import check

    try:
        check(digest, trust)
    except TrustError as error:
        problems.append(error.message)
        return False
    return True


def _admitted(store: Store, digest: str, trust: dict[str, str] | None, problems: list[str]) -> bool:
    """Whether its model holds together, seen in a process of its own: a signature says who, not what."""
    from everloop.packages.isolation.isolation_policy import admit
    from everloop.packages.package import read_package

    try:
        manifest, files = read_package(store, digest)
        admit(manifest, files, digest, trust, store=store, signed_too=True)
    except EverloopError as error:
        problems.append(error.message)
        return False
    return True


def _answers(store: Store, digest: str, problems: list[str]) -> tuple[int, float] | None:
    from everloop.packages.predictor import load_package

    try:
        predictor = load_package(store, digest)
        predictor.warm()
        return predictor.check_answers()
    except EverloopError as error:
        problems.append(f"It does not answer as it should: {error.message}")
        return None
