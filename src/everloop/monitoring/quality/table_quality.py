"""Check the quality of a table against a reference table, without a project or a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.monitoring.measures.window_tests import level_shift
from everloop.monitoring.quality.column_quality import (
    RowShare,
    compare_constants,
    compare_schema,
    compare_share,
    constant_columns,
    measure_columns,
    measure_repeats,
)
from everloop.monitoring.quality.quality_result import QualityResult, judge_table
from everloop.records import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.data.table_inputs import Frame

LEVEL = 0.05
"""Share of false warnings among the warnings about a table."""

_MOST_BLOCKS = 30
_LEAST_RATIO = 1.25
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def quality_of_table(
    reference: Frame, current: Frame, contract: Contract | None = None, time: str | None = None
) -> list[QualityResult]:
    """Compare the quality of a table with a reference.

    Columns that have vanished, have another type or have become constant are alarms. Warnings are new columns, and
    shares of rows that have become larger than variation explains: missing values, values that break a rule of the
    contract, repeated rows.

    Args:
        reference: a Polars frame, or another table that Arrow can read.
        current: the table to check. It may be empty, or lack columns.
        contract: the rules. Default: the types, ranges and categories of the reference.
        time: column with the time of each row. If the reference covers at least three times the span of the current
            table, its blocks of that length show what varies, and the number of rows is compared with theirs. Without
            it, rows are treated as independent of each other.

    Returns:
        A result for every check, alarms first. `verdict` is `quiet` for those that are not unusual.

    Raises:
        EmptySampleError: the reference has no rows.
        DataError: there is no column `time`.
        UsageError: one of the two is not a table, or a rule of the contract cannot be applied.
    """
    from everloop.data.contracts.contract import describe_columns
    from everloop.data.table_inputs import as_eager, require_column

    before, after = as_eager(reference), as_eager(current)
    if before.height == 0:
        raise EmptySampleError("The reference has no rows.", help="Choose a table with rows as the reference.")
    if time is not None:
        require_column(time, before.columns, "time of the reference")
    results = compare_schema(before.schema, after.schema)
    if contract is None:
        contract = Contract(
            id="", project="", created_at=_EPOCH, dataset="reference", version=1, columns=describe_columns(before)
        )
    # Times increase with every row, so their range in the reference is not a limit.
    names = [name for name in before.columns if name in after.columns and name != time]
    blocks = _blocks(before, after, time) if time is not None and time in after.columns else []
    shares = [*measure_columns(after.select(names), contract), *measure_repeats(after, names, None)]
    earlier = [_counted(block, names, contract) for block in blocks]
    whole = _counted(before, names, contract)
    for share in shares:
        known = [counts.get(share.key, (0, block.height)) for counts, block in zip(earlier, blocks, strict=True)]
        usual = whole.get(share.key, (0, before.height))
        # Repeats become more frequent with the number of rows, so only blocks of the same length are comparable.
        compared = share if share.rule == "repeated inputs" else _with_usual(share, usual[0] / max(1, usual[1]))
        results.append(compare_share(compared, known, before.height))
    constant_before = set(constant_columns(before))
    varied = [name for name in names if name not in constant_before]
    results += compare_constants(constant_columns(after.select(names)), [], varied)
    if blocks:
        results.append(_volume(after.height, [block.height for block in blocks]))
    return sorted(judge_table(results, LEVEL), key=lambda result: result.verdict)


def _counted(frame: pl.DataFrame, names: Sequence[str], contract: Contract) -> dict[str, tuple[int, int]]:
    measured = [*measure_columns(frame.select(names), contract), *measure_repeats(frame, names, None)]
    return {share.key: (share.count, share.rows) for share in measured}


def _with_usual(share: RowShare, usual: float) -> RowShare:
    return RowShare(share.subject, share.rule, share.count, share.rows, share.message, usual, share.samples)


def _blocks(before: pl.DataFrame, after: pl.DataFrame, time: str) -> list[pl.DataFrame]:
    """The newest consecutive blocks of the reference that are as long as the current table, oldest first."""

    from everloop.data.table_inputs import as_utc, is_moment

    if not (is_moment(before.schema[time]) and is_moment(after.schema[time])):
        return []
    moments = before.select(as_utc(time, before.schema[time])).to_series()
    first, last = (getattr(moments.drop_nulls(), name)() for name in ("min", "max"))
    low, high = after.select(
        as_utc(time, after.schema[time]).min().alias("low"), as_utc(time, after.schema[time]).max().alias("high")
    ).row(0)
    if first is None or low is None or high <= low:
        return []
    # The last row of n stands for the time after it as well.
    span = (high - low) * (after.height / max(1, after.height - 1))
    number = min(_MOST_BLOCKS, int((last - first) / span))
    if span <= timedelta(0) or number < 1:
        return []
    starts = [last - span * (number - index) for index in range(number)]
    return [before.filter((moments > start) & (moments <= start + span)) for start in starts] if number else []


def _volume(rows: int, earlier: Sequence[int]) -> QualityResult:
    counts = [count + 0.5 for count in earlier]
    test = level_shift(rows + 0.5, counts, least_spread=1 / (1 + sum(counts) / len(counts)) ** 0.5)
    message = f"{rows} rows"
    if test is None:
        return QualityResult("quality", "rows", "volume", message, float(rows))
    ratio = (rows + 0.5) / test.expected
    far = ratio >= _LEAST_RATIO or ratio <= 1 / _LEAST_RATIO
    message = f"{message}; usually about {test.expected:.0f} in the same time"
    p_value = test.two_sided if far else 1.0
    return QualityResult("quality", "rows", "volume", message, float(rows), test.expected, p_value, "windows")
