"""Promote a version from one environment to the next: the very same package, by its digest.

Nothing is trained or packaged again. The package is read from one store, checked against its digest and signature,
written to the other store, and checked there again by predicting its recorded examples.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, CorruptionError, NotFoundError, TrustError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import ModelVersion, Release
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did.

    Attributes:
        package: digest of the package, the same in both stores.
        source: key of the version in the store that it came from.
        version: key of the version in the store that it went to.
        release: id of the release there, or None if the package had all the traffic already.
        state: state of that release, or `already there`.
    """

    package: str
    source: str
    version: str
    release: str | None
    state: str


def promote_package(
    source: Store,
    target: Store,
    ref: str,
    *,
    names: tuple[str, str],
    endpoint: str | None = None,
    rollout: Sequence[float] = (100.0,),
    expect: str | None = None,
    reason: str = "",
) -> Promotion:
    """Promote a version to another store and release it there. A second call with the same package does nothing.

    Args:
        ref: the version in `source`: `delays@3`, or `delays` for its champion.
        names: names of the two environments, for the records of both.
        endpoint: endpoint of the target. Default: the one that serves the model there or in the source, otherwise the
            model's name.
        rollout: shares of the traffic in percent.
        expect: digest that the package must have.
        reason: why it is promoted.

    Raises:
        NotFoundError: the version does not exist, or has no package.
        ConflictError: the package has another digest than expected, or a gate has rejected the version.
        TrustError: no key that is trusted here has signed the package.
        CorruptionError: the package changed on its way, or does not predict what it did when it was built.
        ApprovalError: a policy of the target requires approvals. They are requested, and a repeated call succeeds
            when they are given.
    """
    from everloop.packages import get_package
    from everloop.registry import find_alias, get_version
    from everloop.stores.trust import check

    version = get_version(source, ref)
    if not version.package:
        raise NotFoundError(f"'{version.key}' has no package.", help=f"Build one: everloop models adopt {version.key}")
    if expect is not None and version.package != expect:
        raise ConflictError(
            f"'{version.key}' of '{names[0]}' has the package {version.package}, but {expect} is expected.",
            help="Look at what changed: everloop models show. Then promote the digest that you have checked.",
        )
    if version.state in ("rejected", "rolled_back"):
        raise ConflictError(
            f"'{version.key}' was {version.state.replace('_', ' ')} in '{names[0]}', so it is not promoted.",
            help=f"See why: everloop models show {version.key}",
        )
    record = get_package(source, version.package)
    try:
        check(version.package, record.trust)
    except TrustError as error:
        raise TrustError(
            f"The package of '{version.key}' is not promoted: {error.message}",
            help=error.help or "Trust the key of the machine that built it: everloop trust add",
        ) from error
    made = _copy(source, target, version, names)
    where = endpoint or _endpoint_of(target, version.model) or _endpoint_of(source, version.model) or version.model
    held = find_alias(target, version.model, "champion")
    if held is not None and held.version == made.key and _answering(target, where) == [made.key]:
        return Promotion(version.package, version.key, made.key, None, "already there")
    release = _release(target, made, where, rollout, names, reason)
    about: dict[str, Any] = {"package": version.package, "from": names[0], "to": names[1], "reason": reason}
    done = {**about, "source": version.key, "target": made.key, "release": release.id}
    for store, key in ((source, version.key), (target, made.key)):
        store.records.update(get_version(store, key), verb="promoted", data={**done, "by": store.actor})
    return Promotion(version.package, version.key, made.key, release.id, release.state)


def _copy(source: Store, target: Store, version: ModelVersion, names: tuple[str, str]) -> ModelVersion:
    """Copy the package, its registration and its baseline, as far as the target does not have them."""
    from everloop.monitoring import find_baseline, keep_baseline
    from everloop.packages.archive import import_package, write_archive
    from everloop.packages.verification import verify_digest
    from everloop.registry import register

    with tempfile.TemporaryDirectory(prefix="everloop-promote-") as folder:
        archive = write_archive(source, version.package, Path(folder, "package.tar.zst"))
        arrived = import_package(target, archive)
    if arrived.digest != version.package:
        raise CorruptionError(
            f"The package of '{version.key}' is {version.package} in '{names[0]}', but arrived as {arrived.digest}.",
            help="Check the store it came from: everloop verify",
        )
    checked = verify_digest(target, arrived.digest)
    if not checked.ok:
        raise CorruptionError(
            f"The package of '{version.key}' is not fit for '{names[1]}': {'; '.join(checked.problems)}",
            help="Compare the environments: everloop models verify, in both.",
        )
    made = register(
        target,
        version.model,
        arrived.digest,
        evaluation=version.evaluation,
        metrics=version.metrics,
        code=version.code,
        description=version.description,
        tags={
            **version.tags,
            "promoted_from": names[0],
            "source_version": version.key,
            **({"source_run": version.run} if version.run else {}),
            **({"source_snapshot": version.snapshot} if version.snapshot else {}),
        },
    )
    baseline = find_baseline(source, version.key)
    if baseline is not None and find_baseline(target, made.key) is None:
        keep_baseline(target, made.key, baseline)
    return made


def _release(
    target: Store,
    version: ModelVersion,
    endpoint: str,
    rollout: Sequence[float],
    names: tuple[str, str],
    reason: str,
) -> Release:
    from everloop.loop.releases.rollout import find_rolling, start_release
    from everloop.registry import ApprovalError, request_alias

    why = f"promoted from '{names[0]}'{f': {reason}' if reason else ''}"
    with target.records.transaction():
        under_way = find_rolling(target, endpoint)
        if under_way is not None and under_way.candidate == version.key:
            return under_way
    try:
        return start_release(target, endpoint, version, steps=tuple(rollout), trigger="promote", reason=why)
    except ApprovalError as error:
        request = request_alias(target, version.model, "champion", version.key, why)
        raise ApprovalError(
            f"'{names[1]}' requires approvals before {version.key} may answer. They are requested ({request.id[:18]}).",
            help=f"Others approve there: everloop models approve {request.id[:18]}. Then promote again.",
        ) from error


def _endpoint_of(store: Store, model: str) -> str | None:
    from everloop.records import EndpointRecord

    found = store.records.find(EndpointRecord, ("model", "=", model), order="name", limit=1)
    return found[0].name if found else None


def _answering(store: Store, endpoint: str) -> list[str]:
    from everloop.records import EndpointRecord

    found = store.records.find(EndpointRecord, ("name", "=", endpoint), limit=1)
    return [route.version for route in found[0].routes if route.role != "shadow"] if found else []
