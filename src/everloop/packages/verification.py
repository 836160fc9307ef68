"""Verify a package: its bytes, its signature, and that it predicts what it did when it was packaged."""

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
    """Result of a verification. `ok`: intact, signed by a key that is trusted here, and predicting as it should."""

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
    """It loads here and predicts what the trained model did."""
    answered_rows: int = 0
    """Number of golden rows that were predicted again."""
    largest_difference: float = 0.0
    environment: tuple[str, ...] = ()
    """Differences to the environment that built the package. They do not matter while predictions are the same."""
    problems: tuple[str, ...] = ()


def verify_digest(store: Store, digest: str, *, version: str | None = None) -> Verification:
    """Verify a package given by its digest. Code in it runs only if it is trusted.

    Args:
        version: key of the package's version, for the result.

    Raises:
        NotFoundError: there is no such package. Problems with an existing one are in the result.
    """
    record = get_package(store, digest)
    problems: list[str] = []
    manifest, files = _manifest(store, digest, problems)
    trusted = _trusted(digest, record.trust, problems)
    checked = None
    if manifest is not None and not problems and _loads_on_trial(store, digest, record.trust, problems):
        checked = _check_predictions(store, digest, problems)
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
        answers=checked is not None,
        answered_rows=checked[0] if checked else 0,
        largest_difference=checked[1] if checked else 0.0,
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
    unknown = sorted(set(entries) - set(manifest.files) - {manifests.FILE})
    problems.extend(f"The file {name} is not named in the manifest." for name in unknown)
    return manifest, len(entries)


def _trusted(digest: str, trust: dict[str, str] | None, problems: list[str]) -> bool:
    from everloop.stores.trust import check

    try:
        check(digest, trust)
    except TrustError as error:
        problems.append(error.message)
        return False
    return True


def _loads_on_trial(store: Store, digest: str, trust: dict[str, str] | None, problems: list[str]) -> bool:
    """Whether the model is valid, tried in a child process. A signature does not show that."""
    from everloop.packages.isolation.isolation_policy import admit
    from everloop.packages.package import read_package

    try:
        manifest, files = read_package(store, digest)
        admit(manifest, files, digest, trust, store=store, signed_too=True)
    except EverloopError as error:
        problems.append(error.message)
        return False
    return True


def _check_predictions(store: Store, digest: str, problems: list[str]) -> tuple[int, float] | None:
    from everloop.packages.predictor import load_package

    try:
        predictor = load_package(store, digest)
        predictor.warm()
        return predictor.check_predictions()
    except EverloopError as error:
        problems.append(f"It does not predict as it should: {error.message}")
        return None
