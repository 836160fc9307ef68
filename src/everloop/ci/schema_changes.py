"""Changes of what a model accepts and returns, of its data, and of their contract, from the champion to a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.ci.change_report import SchemaChange
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.ci.candidate_run import CandidateRun
    from everloop.packages.signature import Input, Signature
    from everloop.records import Contract, Json, Snapshot
    from everloop.stores import Store

_MOST = 12
_SILENT = ("nulls", "distinct", "quantiles")
"""Keys of a contract's column that only describe it."""
_WIDER = {("int", "float")}
"""Types that accept everything that the type before accepts."""


def signature_changes(before: Signature, after: Signature) -> tuple[SchemaChange, ...]:
    """List the differences between two signatures. A client must change its requests or its reading for a breaking one.

    A request must contain every input, and may contain the columns that a model ignores.
    """
    found: list[SchemaChange] = []
    for name, item in after.fields.items():
        if name not in before.fields:
            found.append(
                SchemaChange(f"input '{name}' ({item.type}) is new, and requests must contain it", breaking=True)
            )
        else:
            found.extend(_input_changes(before.fields[name], item))
    for name in before.fields:
        if name not in after.fields:
            accepted = name in after.ignored
            rest = "is not used by the candidate" if accepted else "is removed, and requests with it are refused"
            found.append(SchemaChange(f"input '{name}' {rest}", breaking=not accepted))
    if before.task != after.task:
        found.append(SchemaChange(f"the task changed: {before.task} → {after.task}", breaking=True))
    elif list(before.classes) != list(after.classes):
        old, new = (", ".join(map(repr, one.classes)) for one in (before, after))
        found.append(SchemaChange(f"the classes changed: {old} → {new}", breaking=True))
    return tuple(found)


def _input_changes(before: Input, after: Input) -> Iterator[SchemaChange]:
    name = before.name
    if before.type != after.type:
        wider = (before.type, after.type) in _WIDER
        yield SchemaChange(f"input '{name}' changed its type: {before.type} → {after.type}", breaking=not wider)
    if before.nullable and not after.nullable:
        yield SchemaChange(f"input '{name}' must not be null, as it may be now", breaking=True)
    lost = sorted(set(before.categories) - set(after.categories)) if after.closed else []
    if lost or (after.closed and not before.closed):
        text = f": {', '.join(map(repr, lost[:5]))} are refused" if lost else ""
        yield SchemaChange(f"input '{name}' accepts fewer values{text}", breaking=True)


def compare_signatures(run: CandidateRun) -> tuple[SchemaChange, ...]:
    """List what changes for clients from the champion to the candidate; nothing without a champion."""
    from everloop.packages.signature import Signature

    if run.champion is None or not run.champion.signature.get("inputs") or not run.version.signature.get("inputs"):
        return ()
    return signature_changes(Signature.from_json(run.champion.signature), Signature.from_json(run.version.signature))


def compare_data(run: CandidateRun, *, sampled: bool) -> tuple[str, ...]:
    """Describe how the candidate's snapshot differs from the champion's.

    Args:
        sampled: whether the candidate's snapshot is a sample, so that its number of rows says nothing.
    """
    from everloop.data.snapshots.snapshot_diff import diff_snapshots

    before, after = _snapshot(run.store, run.champion), _snapshot(run.store, run.version)
    if before is None or after is None:
        return ()
    try:
        diff = diff_snapshots(before, after, run.store)
    except EverloopError as error:
        return (f"the data cannot be compared: {error.message}",)
    found = [f"column '{name}' ({after.columns[name]}) is new" for name in diff.columns_added]
    found += [f"column '{name}' is removed" for name in diff.columns_removed]
    found += [f"column '{name}' changed its type: {old} → {new}" for name, (old, new) in diff.columns_retyped.items()]
    if not sampled and (diff.rows_added or diff.rows_removed or diff.rows_changed):
        counts = ((diff.rows_added, "added"), (diff.rows_removed, "removed"), (diff.rows_changed, "changed"))
        found.append("rows: " + ", ".join(f"{number:,} {what}" for number, what in counts if number))
    for name, shift in diff.shifts.items():
        ends = "" if shift.before is None else f", {_short(shift.before)} → {_short(shift.after)}"
        found.append(f"the distribution of '{name}' shifted by {shift.distance:.2f} ({shift.kind}{ends})")
    return _capped(found)


def compare_contracts(run: CandidateRun) -> tuple[str, ...]:
    """Describe how the contract of the candidate's data differs from that of the champion's."""
    from everloop.records import Contract

    keys = [
        snapshot.contract if (snapshot := _snapshot(run.store, one)) else None for one in (run.champion, run.version)
    ]
    if keys[0] is None or keys[1] is None or keys[0] == keys[1]:
        return ()
    before, after = (run.store.records.find(Contract, ("key", "=", key), limit=1) for key in keys)
    return contract_changes(before[0], after[0]) if before and after else ()


def contract_changes(before: Contract, after: Contract) -> tuple[str, ...]:
    """List what differs in the rules of two contracts."""
    old, new = ({str(column["name"]): column for column in one.columns} for one in (before, after))
    found = [f"column '{name}' is new" for name in new if name not in old]
    found += [f"column '{name}' is removed" for name in old if name not in new]
    for name in old:
        if name in new:
            found += [f"'{name}': {text}" for text in _rule_changes(old[name], new[name])]
    if before.rules != after.rules:
        found.append(f"rules about rows or the table: {len(before.rules)} → {len(after.rules)}")
    return _capped(found)


def _rule_changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *after]):
        if key not in _SILENT and before.get(key) != after.get(key):
            yield f"{key} {_short(before.get(key))} → {_short(after.get(key))}"


def _snapshot(store: Store, version: object) -> Snapshot | None:
    from everloop.records import Snapshot

    key = getattr(version, "snapshot", None)
    found = store.records.find(Snapshot, ("key", "=", key), limit=1) if key else []
    return found[0] if found else None


def _short(value: object) -> str:
    text = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _capped(found: list[str]) -> tuple[str, ...]:
    more = len(found) - _MOST
    return tuple(found) if more <= 0 else (*found[:_MOST], f"and {more} more")
