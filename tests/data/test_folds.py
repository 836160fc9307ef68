"""Folds: each row is validated once, no fold trains on the future, and keys and classes are respected."""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.folds import split_folds
from everloop.errors import DataError, UsageError

START = datetime(2026, 1, 1)


def table(rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": range(rows),
            "who": [f"u{n % 17}" for n in range(rows)],
            "at": [START + timedelta(hours=n) for n in range(rows)],
            "late": [n % 10 == 0 for n in range(rows)],
        }
    )


@given(st.integers(2, 7), st.integers(20, 80), st.integers(0, 3), st.booleans())
@settings(max_examples=30, deadline=None)
def test_each_row_is_judged_once_by_one_that_has_not_seen_it(count: int, rows: int, seed: int, keyed: bool) -> None:
    frame = table(rows)
    made = split_folds(frame, count, key="who" if keyed else None, target="late", seed=seed)
    assert sorted(row for fold in made for row in fold.valid.to_list()) == list(range(rows))
    for fold in made:
        assert sorted([*fold.train.to_list(), *fold.valid.to_list()]) == list(range(rows))
        if keyed:
            assert not set(frame["who"].gather(fold.train)) & set(frame["who"].gather(fold.valid))


def test_classes_are_dealt_out_evenly() -> None:
    frame = table(103)
    shares = [frame["late"].gather(fold.valid).sum() for fold in split_folds(frame, 5, target="late")]
    assert max(shares) - min(shares) <= 1
    assert split_folds(frame, 5)[0].valid.to_list() != split_folds(frame, 5, seed=1)[0].valid.to_list()


def test_the_order_of_the_rows_does_not_matter() -> None:
    frame = table()
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3)
    for one, two in zip(split_folds(frame, key="id"), split_folds(shuffled, key="id"), strict=True):
        assert set(frame["id"].gather(one.valid)) == set(shuffled["id"].gather(two.valid))


@given(st.integers(2, 6), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 3)))
@settings(max_examples=30, deadline=None)
def test_folds_by_time_never_train_on_the_future(count: int, gap: int, window: int | None) -> None:
    frame = table().sample(fraction=1.0, shuffle=True, seed=5)
    made = split_folds(frame, count, time="at", gap=f"{gap}h" if gap else None, window=window)
    before = START - timedelta(days=1)
    for fold in made:
        learned, judged = frame["at"].gather(fold.train), frame["at"].gather(fold.valid)
        assert learned.max() < judged.min() - timedelta(hours=gap)  # type: ignore[operator]
        assert judged.min() > before  # type: ignore[operator]
        before = judged.max()  # type: ignore[assignment]
    assert before == frame["at"].max()
    if window is None:
        assert len(made[-1].train) > len(made[0].train)


def test_rows_of_one_moment_stay_together() -> None:
    frame = pl.DataFrame({"at": [START + timedelta(days=n // 10) for n in range(60)]})
    for fold in split_folds(frame, 3, time="at"):
        assert not set(frame["at"].gather(fold.train)) & set(frame["at"].gather(fold.valid))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"count": 1}, UsageError, "cross-validation needs at least 2 folds"),
        ({"gap": "1h"}, UsageError, "need a time column"),
        ({"time": "at", "key": "who"}, UsageError, "Folds by time cannot use key= or target="),
        ({"time": "at", "window": 0}, UsageError, "leaves no rows to train on"),
        ({"key": "whoo"}, DataError, "Did you mean 'who'"),
        ({"count": 30, "key": "who"}, DataError, "too few rows for 30 folds"),
        ({"count": 200, "time": "at"}, DataError, "too few different times for 200 folds"),
        ({"time": "at", "gap": "9d"}, DataError, "leaves no rows to train fold 1 on"),
    ],
)
def test_what_cannot_be_divided_is_refused(options: dict[str, object], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        split_folds(table(), **options)  # type: ignore[arg-type]
