"""The windows of a table: advice on their length."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from everloop.monitoring.reports.monitoring_report import TimeWindow
from everloop.monitoring.reports.table_windows import advise_longer_windows

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("rows", "count", "span", "advice"),
    [
        (8, 120, DAY, "8 rows on average, so only large changes can be found. Windows of 1w would have about 56."),
        (3, 50, HOUR, "3 rows on average, so only large changes can be found. Windows of 1d would have about 72."),
        (2, 900, DAY, "2 rows on average, so only large changes can be found. Windows of 4w would have about 56."),
        (1, 900, DAY, "1 row on average, so only large changes can be found."),
        (30, 120, DAY, None),
        (8, 1, DAY, None),
    ],
)
def test_longer_windows_are_advised_if_these_have_few_rows(rows, count, span, advice) -> None:
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    windows = [
        TimeWindow(since=begin + at * span, until=begin + (at + 1) * span, rows=rows + (at % 2) * 2 - 1)
        for at in range(count - count % 2 or 1)
    ]
    if count == 1:
        windows = [TimeWindow(since=None, until=None, rows=rows)]
    assert advise_longer_windows(windows, span) == ([] if advice is None else [f"The windows have {advice}"])
