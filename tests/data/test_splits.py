"""Splits: every row is in one part, none trains on the future, and each class is in each part."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from hashlib import blake2b
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data import Dataset, split
from everloop.errors import DataError, EverloopError, UsageError

START = datetime(2026, 1, 1)
BY_TIME = {"target": "y", "time": "at"}


def table(rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"k{n}" for n in range(rows)],
            "at": [START + timedelta(hours=n) for n in range(rows)],
            "y": [n % 4 == 0 for n in range(rows)],
        }
    )


def sizes(parts: Any) -> tuple[int, int, int, int]:
    return len(parts.train), len(parts.valid), len(parts.test), len(parts.gap)


def test_by_time_the_last_part_judges() -> None:
    parts = split(table(), time="at", target="y", holdout=0.2)
    assert sizes(parts) == (60, 20, 20, 0)
    assert parts.test.equals(table()[80:])
    assert parts.valid.equals(table()[60:80])
    assert parts.rows("test").to_list() == list(range(80, 100))
    shuffled = table().sample(fraction=1, shuffle=True, seed=3)
    again = split(shuffled, time="at", target="y", holdout=0.2)
    assert again.test.equals(shuffled.filter(pl.col("at") >= START + timedelta(hours=80)))


def test_rows_of_one_moment_stay_together() -> None:
    frame = table().with_columns(pl.col("at").dt.truncate("12h"))
    parts = split(frame, time="at", holdout=0.2)
    days = [set(part["at"]) for part in (parts.train, parts.valid, parts.test)]
    assert not (days[0] & days[1])
    assert not (days[1] & days[2])
    assert not (days[0] & days[2])


def test_a_duration_is_held_out() -> None:
    parts = split(table(), time="at", holdout="1d")
    assert sizes(parts) == (52, 24, 24, 0)
    parts = split(table(), time="at", holdout="1d", gap="3h")
    assert sizes(parts) == (49, 21, 24, 6)
    assert parts.test["at"].min() == START + timedelta(hours=76)
    assert parts.valid["at"].max() == START + timedelta(hours=72)
    assert parts.train["at"].max() == START + timedelta(hours=48)


def test_naive_times_dates_and_zones_split_alike() -> None:
    naive = split(table(), time="at").sides
    for at in (pl.col("at").dt.replace_time_zone("UTC"), pl.col("at").dt.cast_time_unit("ns")):
        assert split(table().with_columns(at=at), time="at").sides.equals(naive)
    days = pl.DataFrame({"day": [date(2026, 1, 1) + timedelta(days=n) for n in range(10)]})
    assert sizes(split(days, time="day", holdout="2d")) == (6, 2, 2, 0)


def test_by_hash_each_side_gets_its_share_of_each_class() -> None:
    parts = split(table(1000), key="id", target="y", holdout=0.2)
    assert sizes(parts) == (600, 200, 200, 0)
    assert parts.test["y"].sum() == 50
    assert parts.valid["y"].sum() == 50


def test_by_hash_the_order_of_rows_does_not_matter() -> None:
    def test_ids(frame: pl.DataFrame, seed: int = 0) -> set[str]:
        return set(split(frame, key="id", target="y", seed=seed).test["id"])

    assert test_ids(table()) == test_ids(table().reverse())
    assert test_ids(table()) != test_ids(table(), seed=1)


def test_the_hash_is_the_same_on_every_machine() -> None:
    """If the division changed with the version of a library, test rows would get into training."""
    hashed = {f"k{n}": blake2b(f"k{n}".encode(), digest_size=8, salt=bytes(8)).digest()[::-1] for n in range(12)}
    order = sorted(hashed, key=lambda name: hashed[name])
    expected = {name: "test" if place < 2 else "valid" if place < 4 else "train" for place, name in enumerate(order)}
    assert split(table(12), key="id").sides.to_list() == [expected[f"k{n}"] for n in range(12)]


def test_rows_of_one_key_stay_together() -> None:
    frame = table(300).with_columns(id=pl.int_range(300) % 40)
    parts = split(frame, key="id", target="y")
    keys = [set(part["id"]) for part in (parts.train, parts.valid, parts.test)]
    assert sum(map(len, keys)) == 40
    assert sum(sizes(parts)) == 300


def test_rare_classes_reach_every_side() -> None:
    frame = pl.DataFrame({"y": ["common"] * 97 + ["rare"] * 3})
    parts = split(frame, target="y", holdout=0.1)
    assert all("rare" in set(part["y"]) for part in (parts.train, parts.valid, parts.test))


frames = st.integers(3, 60).flatmap(
    lambda rows: st.fixed_dictionaries(
        {
            "at": st.lists(st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 9)), min_size=rows, max_size=rows),
            "k": st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=rows, max_size=rows),
            "y": st.lists(st.sampled_from(["a", "b", None]), min_size=rows, max_size=rows),
        }
    )
)


@pytest.mark.slow
@given(
    frames,
    st.sampled_from([{"time": "at"}, {"time": "at", "gap": "1d"}, {"time": "at", "holdout": "1d"}, {}, {"key": "k"}]),
    st.sampled_from([None, "y"]),
    st.floats(0.01, 0.49),
)
@settings(max_examples=80, deadline=None)
def test_a_split_partitions_the_rows(
    data: dict[str, list[Any]], how: dict[str, Any], target: str | None, share: float
) -> None:
    frame = pl.DataFrame(data, schema={"at": pl.Datetime, "k": pl.Int64, "y": pl.String}).with_row_index("row")
    try:
        parts = split(frame, target=target, **{"holdout": share, **how})
    except DataError:
        return  # refused with a reason; which, the tests below say
    rows = [set(part["row"]) for part in (parts.train, parts.valid, parts.test, parts.gap)]
    assert sum(map(len, rows)) == len(frame)
    assert set.union(*rows) == set(range(len(frame)))
    assert all(len(part) for part in (parts.train, parts.valid, parts.test))
    assert parts.sides.equals(split(frame, target=target, **{"holdout": share, **how}).sides)
    if "time" in how:
        assert parts.train["at"].max() < parts.valid["at"].min()
        assert parts.valid["at"].max() < parts.test["at"].min()


@pytest.mark.parametrize(
    ("frame", "how", "kind", "said"),
    [
        (table().with_columns(y=True), {"target": "y"}, DataError, "a single class: True"),
        (table().with_columns(y=pl.lit(None, pl.String)), {"target": "y"}, DataError, "'y' is null"),
        (table().with_columns(y=pl.int_range(100) < 50), BY_TIME, DataError, "leaves valid with a single class False"),
        (table().with_columns(y=pl.int_range(100) < 90), BY_TIME, DataError, "leaves train with a single class True"),
        (table().with_columns(y=pl.when(pl.int_range(100) < 80).then("y")), BY_TIME, DataError, "test with no value"),
        (table(2), {}, DataError, "The table has 2 rows, too few"),
        (table(), {"time": "at", "holdout": "9w"}, DataError, "leaves no rows for train"),
        (table().with_columns(at=START), {"time": "at"}, DataError, "leaves no rows for"),
        (table().with_columns(at=pl.when("y").then("at")), {"time": "at"}, DataError, "null in 75 rows"),
        (table(), {"time": "att"}, DataError, "no column 'att' to use as the time column. Did you mean 'at'"),
        (table(), {"target": "z"}, DataError, "no column 'z'"),
        (table(), {"time": "id"}, DataError, "is string, but must contain times"),
        (table(), {"holdout": "1d"}, UsageError, "needs a time column"),
        (table(), {"gap": "1d"}, UsageError, "gap= needs a time column"),
        (table(), {"holdout": 0.5}, UsageError, "is not a share between 0 and 0.5"),
        (table(), {"holdout": 0}, UsageError, "is not a share"),
        (table(), {"holdout": True}, UsageError, "is not a share"),
        (table(), {"holdout": "soon", "time": "at"}, UsageError, "not a duration"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_refused(
    frame: pl.DataFrame, how: dict[str, Any], kind: type[EverloopError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        split(frame, **how)


def test_amounts_are_no_classes() -> None:
    frame = table(60).with_columns(y=pl.int_range(60) / 7)
    assert sizes(split(frame, target="y", time="at")) == (36, 12, 12, 0)


def test_a_dataset_knows_its_features() -> None:
    declared = Dataset(len, target="y", time="at", key="id", exclude=["note"])
    assert declared.feature_names(["id", "at", "a", "note", "y", "b"]) == ("a", "b")
    assert Dataset(len, target="y", features=["b", "a"]).feature_names(["a", "b", "y"]) == ("b", "a")
    assert hash(declared) == hash(Dataset(len, target="y", time="at", key="id", exclude=("note",)))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"target": ""}, "is not a column name"),
        ({"target": "y", "time": "y"}, "'y' cannot be two of"),
        ({"target": "y", "exclude": "note"}, r"exclude=\['note'\]"),
        ({"target": "y", "features": ["y"]}, "it is the target"),
        ({"target": "y", "features": ["a"], "exclude": ["a"]}, "it is excluded"),
        ({"target": "y", "features": []}, "leaves no features to train on"),
        ({"target": "y", "holdout": 0.7}, "is not a share"),
        ({"target": "y", "holdout": "14d"}, "needs a time column"),
        ({"target": "y", "time": "at", "holdout": "0d"}, "is too short: no rows would be held out"),
        ({"target": "y", "labels_after": "later"}, "not a duration"),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(parts: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Dataset(len, **parts)
