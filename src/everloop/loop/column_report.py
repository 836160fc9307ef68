"""What became of each column of a table on its way into a version, and what is different from the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json, ModelVersion
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """Every column of the snapshot that a version was trained on stands in exactly one of the first three."""

    used: tuple[str, ...]
    left_out: dict[str, str]
    """Offered to training and not used, each with the reason."""
    set_apart: dict[str, str]
    """Never offered: target, time, key, and what loop.py excludes."""
    against: str | None = None
    """The version that the next three compare with."""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retyped: dict[str, str] | None = None
    """Column to `int → string`."""


def report_columns(store: Store, version: ModelVersion, previous: str | None = None) -> ColumnReport:
    """Say what became of the columns of a version's table.

    Args:
        previous: key of the champion that the version is to follow.
    """
    from everloop.data import get_snapshot
    from everloop.registry import get_version

    inputs = _inputs(version)
    told = version.evaluation.get("left_out")
    left_out = {str(one["column"]): str(one["reason"]) for one in told} if isinstance(told, list) else {}
    set_apart: dict[str, str] = {}
    try:
        snapshot = get_snapshot(version.snapshot, store) if version.snapshot else None
    except NotFoundError:
        snapshot = None  # deleted since
    if snapshot is not None:
        roles = {snapshot.target: "the target", snapshot.time: "the time", snapshot.entity: "the key"}
        for name in snapshot.columns:
            if name not in inputs and name not in left_out:
                set_apart[name] = roles.get(name, "not among the features of loop.py")
    if previous is None or previous == version.key:
        return ColumnReport(tuple(inputs), left_out, set_apart)
    try:
        before = _inputs(get_version(store, previous))
    except NotFoundError:
        return ColumnReport(tuple(inputs), left_out, set_apart)
    return ColumnReport(
        tuple(inputs),
        left_out,
        set_apart,
        against=previous,
        added=tuple(name for name in inputs if name not in before),
        removed=tuple(name for name in before if name not in inputs),
        retyped={name: f"{before[name]} → {kind}" for name, kind in inputs.items() if before.get(name, kind) != kind},
    )


def _inputs(version: ModelVersion) -> dict[str, Any]:
    given: list[Mapping[str, Json]] = list(version.signature.get("inputs") or ())
    return {str(one["name"]): one.get("type") for one in given}
