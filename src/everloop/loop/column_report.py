"""Report how a version uses each column of its table, and how its inputs differ from the champion's."""

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
    """How a version uses the columns of its snapshot. Each column is in exactly one of the first three fields."""

    used: tuple[str, ...]
    """Inputs of the model."""
    left_out: dict[str, str]
    """Columns that training could have used but did not, each with the reason."""
    set_apart: dict[str, str]
    """Columns that training never saw: the target, the time, the key, and those that loop.py excludes."""
    against: str | None = None
    """Key of the version that the next three fields compare with."""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retyped: dict[str, str] | None = None
    """Column to `int → string`."""


def report_columns(store: Store, version: ModelVersion, previous: str | None = None) -> ColumnReport:
    """Report how a version uses the columns of its table.

    Args:
        previous: key of the champion that the version would replace. Default: no comparison.
    """
    from everloop.data import get_snapshot
    from everloop.registry import get_version

    inputs = _inputs(version)
    omitted = version.evaluation.get("left_out")
    left_out = {str(one["column"]): str(one["reason"]) for one in omitted} if isinstance(omitted, list) else {}
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
    inputs: list[Mapping[str, Json]] = list(version.signature.get("inputs") or ())
    return {str(column["name"]): column.get("type") for column in inputs}
