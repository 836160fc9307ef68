"""Remarks on the quality of a current table, from the distributions that were measured and from its columns' types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.data.sketches.bins import NumericBins, column_kind
from everloop.monitoring.reports.monitoring_report import MonitoredColumn, QualityNote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

_LEAST_SHARE = 0.005
_GRAVE_SHARE = 0.05
_DUPLICATES = 0.01


def quality_notes(
    before: pl.DataFrame,
    now: pl.DataFrame,
    columns: Sequence[MonitoredColumn],
    chosen: Sequence[str],
    time: str | None,
) -> list[QualityNote]:
    """Return the remarks, grave ones first.

    Args:
        columns: what was measured of the monitored columns.
        chosen: names of the columns that should be monitored.
        time: the time column, which is ignored when rows are compared.
    """
    notes = [*_schema(before, now, chosen, time)]
    for column in columns:
        if column.name in now.columns:
            notes += _values(column)
    notes += _duplicates(before, now, time)
    return sorted(notes, key=lambda note: not note.grave)


def _schema(before: pl.DataFrame, now: pl.DataFrame, chosen: Sequence[str], time: str | None) -> Iterator[QualityNote]:
    for name in chosen:
        if name not in now.columns:
            yield QualityNote(column=name, message="The column is missing in the current table.", grave=True)
            continue
        old, new = before.schema[name], now.schema[name]
        if column_kind(old) != column_kind(new) and now[name].null_count() < now.height:
            message = f"The type was {old} and is {new} now."
            yield QualityNote(column=name, message=message, grave=True)
    for name in now.columns:
        if name not in before.columns and name != time:
            yield QualityNote(column=name, message="The column is new; the reference does not have it.")


def _values(column: MonitoredColumn) -> Iterator[QualityNote]:
    reference, current = column.reference, column.current
    before, now = reference.counts[0] / reference.rows, current.counts[0] / current.rows
    if now - before >= _LEAST_SHARE:
        message = f"{now:.1%} of the values are missing; in the reference {before:.1%}."
        yield QualityNote(column=column.name, message=message, grave=now - before >= _GRAVE_SHARE)
    if isinstance(reference.bins, NumericBins):
        outside = (current.counts[1] + current.counts[-1]) / current.rows
        known = (reference.counts[1] + reference.counts[-1]) / reference.rows
        if outside - known >= _LEAST_SHARE and reference.moments is not None:
            low, high = reference.moments.low, reference.moments.high
            message = f"{outside:.1%} of the values are outside the reference's range, {low:.6g} to {high:.6g}."
            yield QualityNote(column=column.name, message=message, grave=outside - known >= _GRAVE_SHARE)
        was_constant = reference.moments is not None and reference.moments.deviation == 0
        now_constant = current.moments is not None and current.moments.count > 1 and current.moments.deviation == 0
        if now_constant and not was_constant:
            yield QualityNote(
                column=column.name, message="All values are equal; in the reference they vary.", grave=True
            )
    elif reference.bins.complete and current.counts[-1] / current.rows >= _LEAST_SHARE:
        share = current.counts[-1] / current.rows
        names = ", ".join(f"'{value[:40]}'" for value in list(current.unseen)[:5])
        message = f"{share:.1%} of the values are not in the reference: {names}."
        yield QualityNote(column=column.name, message=message, grave=share >= _GRAVE_SHARE)


def _duplicates(before: pl.DataFrame, now: pl.DataFrame, time: str | None) -> Iterator[QualityNote]:
    shares = []
    for frame in (before, now):
        rows = frame.drop(time) if time is not None and time in frame.columns else frame
        distinct = rows.hash_rows().n_unique() if rows.width else rows.height
        shares.append(1 - distinct / rows.height)
    if shares[1] - shares[0] >= _DUPLICATES:
        message = f"{shares[1]:.1%} of the rows repeat an earlier one; in the reference {shares[0]:.1%}."
        yield QualityNote(column=None, message=message, grave=shares[1] - shares[0] >= 10 * _DUPLICATES)
