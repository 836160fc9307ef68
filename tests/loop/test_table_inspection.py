"""Inspecting the columns of a user's table, and the `prepare` step that is drafted from the inspection."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from polars.testing import assert_frame_equal

from everloop.data.disguised_columns import find_date, find_number, find_time
from everloop.errors import DataError
from everloop.loop.new_project.project_draft import draft_files, find_goal, project_name
from everloop.loop.new_project.table_inspection import ColumnInspection, inspect_table

ROWS = 200
RNG = np.random.default_rng(0)
WORDS = ["red", "green", "blue", "late", "early", "soft", "hard", "round", "square", "cold"]


def table(**columns: object) -> pl.DataFrame:
    """Return a table with two ordinary features, a target and further columns."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=ROWS)
    given: dict[str, object] = {"x": x, "colour": rng.choice(["red", "blue"], ROWS), **columns}
    return pl.DataFrame({**given, "y": np.where(x + rng.normal(size=ROWS) > 0, "yes", "no")})


def treated(frame: pl.DataFrame, **roles: str) -> dict[str, tuple[str, str]]:
    return {one.name: (one.kind, one.treatment) for one in inspect_table(frame, "y", **roles).columns}


def prepared(frame: pl.DataFrame, look, goal) -> pl.DataFrame:
    """Return the table that the drafted loop.py prepares."""
    names: dict[str, object] = {"__name__": "drafted"}
    text = draft_files("p", "p", "p.csv", {}, look, goal)["loop.py"]
    exec(compile(text, "loop.py", "exec"), names)  # noqa: S102 - that it runs is the point
    return names["prepare"](frame)


@pytest.mark.parametrize(
    ("values", "kind", "treatment"),
    [
        ([f"{n / 10}" if n % 9 else "N/A" for n in range(ROWS)], "number as text", "feature"),
        ([f"${n * 1000:,}" for n in range(ROWS)], "number as text", "feature"),
        ([f"{n},5" for n in range(ROWS)], "number as text", "feature"),
        ([f"{n % 7:03d}" for n in range(ROWS)], "category", "feature"),
        ([f"{1 + n % 28}.{1 + n % 12}.2024" for n in range(ROWS)], "date as text", "feature"),
        ([20240101 + n % 28 for n in range(ROWS)], "number", "feature"),
        ([f"u-{n}" for n in range(ROWS)], "id", "key"),
        ([f"u-{n % 195}" for n in range(ROWS)], "id", "excluded"),
        (["same"] * ROWS, "constant", "feature"),
        ([None] * ROWS, "empty", "dropped"),
        (["  "] * ROWS, "empty", "dropped"),
        ([f"value {n % 80}" for n in range(ROWS)], "many values", "feature"),
        ([" ".join(RNG.choice(WORDS, 8)) for _ in range(ROWS)], "free text", "excluded"),
        ([[n] for n in range(ROWS)], "other", "dropped"),
        ([n % 2 == 0 for n in range(ROWS)], "flag", "feature"),
        ([1.5 * n for n in range(ROWS)], "number", "feature"),
        ([date(2024, 1, 1 + n % 28) for n in range(ROWS)], "date", "feature"),
    ],
)
def test_a_column_is_what_it_looks_like(values, kind, treatment):
    column = treated(table(thing=values))["thing"]
    assert (column[0].replace("key", "id") if kind == "id" else column[0], column[1]) == (kind, treatment)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("user_id", RNG.permutation(ROWS) + 5000, "key"),
        ("userId", RNG.permutation(ROWS) + 5000, "key"),
        ("row", range(ROWS), "key"),
        ("anything", range(ROWS), "key"),
        ("anything", RNG.permutation(ROWS), "number"),
        ("year", range(1800, 1800 + ROWS), "number"),
        ("income", RNG.permutation(ROWS) * 37, "number"),
        ("paid", RNG.permutation(ROWS) * 37, "number"),
        ("signup_date", [20240101 + n % 28 for n in range(ROWS)], "date as text"),
    ],
)
def test_whole_numbers_are_ids_by_their_name_or_order(name, values, kind):
    assert treated(table(**{name: list(values)}))[name][0] == kind


def test_leaks_and_copies_are_excluded():
    frame = table()
    frame = frame.with_columns(
        code=pl.col("y").replace_strict({"yes": 7, "no": 3}), again=pl.col("x"), nearly=pl.lit(None)
    )
    found = treated(frame)
    assert found["code"] == ("leak", "excluded")
    assert found["again"] == ("copy", "excluded")
    assert found["nearly"] == ("empty", "dropped")
    # If the only column predicts the target perfectly, it is kept.
    alone = pl.DataFrame({"x": [float(n) for n in range(ROWS)], "y": [n >= 100 for n in range(ROWS)]})
    assert treated(alone)["x"] == ("number", "feature")


def test_a_date_that_may_be_the_time_of_a_row_is_pointed_out():
    frame = table(**{"sent on": [f"2024-01-{1 + n % 28:02d}" for n in range(ROWS)]})
    (remark,) = inspect_table(frame, "y").remarks
    assert "If 'sent on' says when a row happened, add --time 'sent on'" in remark
    assert inspect_table(frame, "y", time="sent on").remarks == ()


def test_repeated_rows_are_removed_if_they_make_the_key_ambiguous():
    frame = table(id=[f"u-{n}" for n in range(ROWS)])
    doubled = pl.concat([frame, frame.head(3)])
    look = inspect_table(doubled, "y", key="id")
    assert look.rows.height == ROWS
    assert "3 rows repeat" in look.remarks[0]
    assert_frame_equal(prepared(doubled, look, find_goal(look)), look.rows)
    with pytest.raises(DataError, match=r"'id' is not unique: 1 of its values"):
        inspect_table(pl.concat([frame, frame.head(1).with_columns(x=pl.lit(9.0))]), "y", key="id")


def test_the_drafted_project_removes_rows_without_a_time_and_rare_classes():
    frame = table(when=[None if n < 4 else f"2024-01-{1 + n % 28:02d}T10:00:00Z" for n in range(ROWS)])
    frame = frame.with_columns(y=pl.when(pl.int_range(ROWS) == 50).then(pl.lit("odd")).otherwise("y"))
    look = inspect_table(frame, "y", time="when")
    assert look.untimed == 4
    goal = find_goal(look)
    assert (goal.task, goal.classes, goal.rare) == ("binary", ("no", "yes"), ("odd",))
    made = prepared(frame, look, goal)
    assert made.height == ROWS - 5
    assert isinstance(made.schema["when"], pl.Datetime)


@pytest.mark.parametrize(
    ("target", "task", "metric"),
    [
        ([n % 2 == 0 for n in range(ROWS)], "binary", "roc_auc"),
        ([float(n % 2) for n in range(ROWS)], "binary", "roc_auc"),
        ([n % 40 == 0 for n in range(ROWS)], "binary", "average_precision"),
        ([n % 5 for n in range(ROWS)], "multiclass", "roc_auc"),
        (["abc"[n % 3] for n in range(ROWS)], "multiclass", "roc_auc"),
        ([n / 7 for n in range(ROWS)], "regression", "r2"),
        ([f"{n * 3}" for n in range(ROWS)], "regression", "r2"),
        (list(range(ROWS)), "regression", "r2"),
    ],
)
def test_the_target_decides_task_metric_and_gate(target, task, metric):
    look = inspect_table(table().with_columns(y=pl.Series(target)), "y")
    goal = find_goal(look)
    assert (goal.task, goal.metric) == (task, metric)
    assert f'el.AtLeast("{metric}", {goal.bar:g})' in draft_files("p", "p", "p.csv", {}, look, goal)["loop.py"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("13/02/2024", datetime(2024, 2, 13)),
        ("02/13/2024", datetime(2024, 2, 13)),
        ("13.02.24", datetime(2024, 2, 13)),
        ("2024/02/13 09:30", datetime(2024, 2, 13, 9, 30)),
        ("2024-02-13T09:30:00.250", datetime(2024, 2, 13, 9, 30, 0, 250000)),
        ("13 Feb 2024", datetime(2024, 2, 13)),
        ("Feb 13, 2024", datetime(2024, 2, 13)),
        ("02/13/2024 09:30 PM", datetime(2024, 2, 13, 21, 30)),
        ("hello 13", None),
        ("13", None),
    ],
)
def test_dates_are_read_in_common_formats(text, found):
    made = find_date(pl.Series("day", [text, None, " "]))
    if found is None:
        assert made is None
        return
    values = pl.DataFrame({"day": [text, None, " "]}).select(made.expression.cast(pl.Datetime("us"))).to_series()
    assert values.to_list() == [found, None, None]


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000, 1_000_000_000])
def test_a_named_time_may_be_a_number_since_1970(per_second):
    moments = [datetime(2011, 1, 1, tzinfo=UTC), datetime(2024, 2, 29, 12, 30, tzinfo=UTC)]
    values = pl.Series("t", [int(one.timestamp()) * per_second for one in moments] + [None])
    for column in (values, values.cast(pl.Float64)):
        made = find_time(column)
        assert column.to_frame().select(made.expression).to_series().to_list() == [*moments, None]
        assert eval(made.code, {"pl": pl}).meta.eq(made.expression)  # noqa: S307 - it is our own code
    assert find_date(values) is None


def test_a_named_time_may_be_a_day_as_a_number():
    made = find_time(pl.Series("x", [20240131, 20240201]))
    assert pl.DataFrame({"x": [20240131]}).select(made.expression).item() == date(2024, 1, 31)
    assert find_date(pl.Series("x", [20240131, 20240201])) is None


def test_a_named_time_may_be_a_year():
    for kind in (pl.Int16, pl.Int64, pl.Float64):
        column = pl.Series("x", [2013, 2014, None], dtype=kind)
        made = find_time(column)
        assert column.to_frame().select(made.expression).to_series().to_list() == [
            date(2013, 1, 1),
            date(2014, 1, 1),
            None,
        ]
        assert eval(made.code, {"pl": pl}).meta.eq(made.expression)  # noqa: S307 - it is our own code
        assert made.remark == "a year is read as its first day"
    assert find_date(pl.Series("year", [2013, 2014])) is None


@pytest.mark.parametrize(
    "values", [[1, 2, 3], [2011.5, 2012], [12, 2012], [math.nan], [None], [0.5], [1700000000, 5], [True]]
)
def test_other_numbers_are_not_times(values):
    assert find_time(pl.Series("x", values, strict=False)) is None


def test_large_numbers_with_separators_are_not_lost_among_small_ones():
    made = find_number(pl.Series("n", ["7.5"] * 98 + ["1,204.50", "3,000.25"]))
    assert pl.DataFrame({"n": ["7.5", "1,204.50"]}).select(made.expression).to_series().to_list() == [7.5, 1204.5]
    assert made.unread == 0


@pytest.mark.parametrize(
    ("texts", "positive"),
    [
        (("ja", "nein"), "ja"),
        (("no", "yes"), "yes"),
        (("Churn", "No churn"), "Churn"),
        (("active", "not active"), "active"),
        (("bad", "good"), "good"),
    ],
)
def test_the_class_beside_a_no_is_the_positive_one(texts, positive):
    frame = table().with_columns(y=pl.when(pl.col("y") == "yes").then(pl.lit(texts[0])).otherwise(pl.lit(texts[1])))
    look = inspect_table(frame, "y")
    goal = find_goal(look)
    assert goal.classes[1] == positive
    text = draft_files("p", "p", "p.csv", {}, look, goal)["loop.py"]
    assert (f'positive="{positive}"' in text) is (sorted(texts)[1] != positive)


def test_the_rarer_class_is_the_positive_one():
    frame = table().with_columns(y=pl.Series(["fraud" if n % 4 == 0 else "legit" for n in range(ROWS)]))
    goal = find_goal(inspect_table(frame, "y"))
    assert (goal.positive, goal.classes, goal.metric) == ("fraud", ("legit", "fraud"), "roc_auc")


def test_an_ambiguous_date_format_gets_a_remark():
    assert "%m/%d/%Y" in find_date(pl.Series("day", ["03/04/2024", "05/06/2024"])).remark
    assert find_date(pl.Series("day", ["03/04/2024", "25/06/2024"])).remark == ""


@given(st.lists(st.floats(-1e9, 1e9, allow_nan=False).map(lambda number: f"{number:.3f}"), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_numbers_are_restored_from_their_texts(texts):
    made = find_number(pl.Series("n", texts))
    if made is None:
        assert any(text.startswith("0") and text[1:2].isdigit() for text in texts)
        return
    read = pl.DataFrame({"n": texts}).select(made.expression).to_series()
    assert read.to_list() == [float(text) for text in texts]
    assert made.unread == 0


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["33,9 €", "45,39 €", "1.204,50 €"], [33.9, 45.39, 1204.5]),
        (["1,204.50", "3.5"], [1204.5, 3.5]),
        (["0,125", "12,375", "0,5"], [0.125, 12.375, 0.5]),
        (["1'234.50", "12"], [1234.5, 12.0]),
        (["1 234,5", "7,25"], [1234.5, 7.25]),
        (["-1.234,00", "-5,1"], [-1234.0, -5.1]),
        (["42.4%", "9.8 %"], [42.4, 9.8]),
        (["EUR 12,50", "EUR 3,00"], [12.5, 3.0]),
        (["12.50 USD", "1"], [12.5, 1.0]),
        (["-€5.00", "€-7.00"], [-5.0, -7.0]),
    ],
)
def test_numbers_are_read_as_people_write_them(texts, numbers):
    made = find_number(pl.Series("n", texts))
    assert pl.DataFrame({"n": texts}).select(made.expression).to_series().to_list() == numbers
    assert eval(made.code, {"pl": pl}).meta.eq(made.expression)  # noqa: S307 - it is our own code
    assert made.remark == ""


def inspected(frame: pl.DataFrame, name: str) -> ColumnInspection:
    return next(column for column in inspect_table(frame, "y").columns if column.name == name)


def test_later_numbers_in_another_form_become_null_and_not_other_numbers():
    later = pl.DataFrame({"n": ["45,1%", "1,204.50%", "7.5%", "12,5"]})
    made = find_number(pl.Series("n", ["42.4%", "9.8%"]))
    assert later.select(made.expression).to_series().to_list() == [None, 1204.5, 7.5, None]
    made = find_number(pl.Series("n", ["42,4 €", "9,8 €"]))
    later = pl.DataFrame({"n": ["45.1 €", "1.204,50 €", "7,5 €", "1,204.50 €"]})
    assert later.select(made.expression).to_series().to_list() == [45.1, 1204.5, 7.5, None]


def test_a_comma_that_may_be_either_separator_gets_a_remark():
    made = find_number(pl.Series("n", ["1,234", "2,500", "7"]))
    assert pl.DataFrame({"n": ["1,234"]}).select(made.expression).item() == 1234.0
    assert "decimal comma" in made.remark
    assert "decimal comma" in inspected(pl.DataFrame({"n": ["1,234", "2,500"] * 20, "y": [0, 1] * 20}), "n").message


@pytest.mark.parametrize("texts", [["1e5", "2,5"], ["007", "008"], ["12:30"], ["1,2,3"], ["1.2.3"], ["192.168.1.1"]])
def test_other_texts_with_digits_are_not_numbers(texts):
    assert find_number(pl.Series("n", texts)) is None


def test_a_column_that_is_null_for_one_class_only_is_a_leak():
    rows = 400
    y = [n % 3 == 0 for n in range(rows)]
    table = pl.DataFrame(
        {
            "plan": ["ab"[n % 2] for n in range(rows)],
            "ended": [date(2024, 1, 1 + n % 28) if gone else None for n, gone in enumerate(y)],
            "refund": [float(n % 7) if gone else math.nan for n, gone in enumerate(y)],
            "y": y,
        }
    )
    for name in ("ended", "refund"):
        column = inspected(table, name)
        assert (column.kind, column.treatment) == ("leak", "excluded")
        assert "by being null or not" in column.message
    assert inspected(table, "plan").treatment == "feature"


def test_every_type_of_polars_is_inspected():
    n = 120
    types = {
        "took": pl.Series([timedelta(seconds=x) for x in range(n)]),
        "at": pl.Series([time(x % 24) for x in range(n)]),
        "day": pl.Series([date(2024, 1, 1) + timedelta(days=x) for x in range(n)]),
        "price": pl.Series([Decimal(x) for x in range(n)]),
        "tags": pl.Series([["a"]] * n),
        "point": pl.Series([{"x": x} for x in range(n)]),
        "raw": pl.Series([b"x"] * n),
        "color": pl.Series(["r", "g"] * (n // 2), dtype=pl.Categorical),
        "size": pl.Series(["s", "l"] * (n // 2), dtype=pl.Enum(["s", "l"])),
        "small": pl.Series([x % 7 for x in range(n)], dtype=pl.UInt8),
        "none": pl.Series([None] * n, dtype=pl.Null),
    }
    whole = pl.DataFrame({**types, "y": [0, 1, 1] * (n // 3)})
    found = {column.name: column for column in inspect_table(whole, "y").columns}
    assert "in seconds" in found["took"].message
    assert "in hours" in found["at"].message
    assert {name for name, one in found.items() if one.treatment == "dropped"} == {"tags", "point", "raw", "none"}


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name not in ("y", "*", "x") and not (name.startswith("^") and name.endswith("$"))
)
COLUMNS = st.sampled_from(
    [
        [f"{n}" if n % 5 else " " for n in range(ROWS)],
        [f"{1 + n % 28}/{1 + n % 12}/2023" for n in range(ROWS)],
        [f"k{n}" for n in range(ROWS)],
        ["a"] * ROWS,
        [None] * ROWS,
        list(range(ROWS)),
        [n / 3 for n in range(ROWS)],
    ]
)


@pytest.mark.slow
@given(st.dictionaries(NAMES, COLUMNS, max_size=5), NAMES.filter(bool))
@settings(max_examples=25, deadline=None)
def test_the_drafted_project_runs_with_any_column_names(columns, target):
    frame = table(**columns).rename({"y": target}) if target not in columns and target != "colour" else table()
    named = target if target in frame.columns else "y"
    look = inspect_table(frame, named)
    goal = find_goal(look)
    assert_frame_equal(prepared(frame, look, goal), look.rows)


@pytest.mark.parametrize(
    ("text", "name"), [("größe", "grosse"), ("a b/c", "a-b-c"), ("日本", "my-loop"), ("--x", "x"), ("class", "class")]
)
def test_a_project_name_has_ascii_letters_only(text, name):
    assert project_name(text) == name


@pytest.mark.parametrize(
    ("texts", "parts"),
    [(["2024-01-05", "2024-02-17"], "dates stored as text: month, day and weekday are"),
     (["2024-01-05 07:30", "2024-02-17 16:45"], "times stored as text: month, day, weekday and hour are")],
)  # fmt: skip
def test_the_parts_of_a_time_that_become_features_are_named(texts, parts):
    frame = table().with_columns(seen=pl.Series([texts[n % 2] for n in range(ROWS)]))
    (seen,) = [column for column in inspect_table(frame, "y").columns if column.name == "seen"]
    assert seen.message.startswith(parts)
