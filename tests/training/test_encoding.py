"""The encoder gives the same matrix for frames and for plain rows."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import RequestError, TrainingError
from everloop.training.encoding import MOST_CATEGORIES, Encoder, arrow_type

BERLIN = "Europe/Berlin"
SCHEMA = {
    "whole": pl.Int64,
    "small": pl.UInt8,
    "real": pl.Float64,
    "single": pl.Float32,
    "flag": pl.Boolean,
    "text": pl.String,
    "day": pl.Date,
    "moment": pl.Datetime("us"),
    "zoned": pl.Datetime("us", BERLIN),
    "clock": pl.Time,
    "span": pl.Duration("us"),
}
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2036, 1, 1))
VALUES = {
    "whole": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(0, 255),
    "real": st.floats(),
    "single": st.floats(width=32),
    "flag": st.booleans(),
    "text": st.sampled_from(["a", "b", "c", "", "unseen", "ä"]),
    "day": st.dates(date(1900, 1, 1)),
    "moment": MOMENTS,
    "zoned": MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)),
    "clock": st.times(),
    "span": st.timedeltas(timedelta(days=-20_000), timedelta(days=20_000)),
}


def training_frame(rows=60):
    moments = [datetime(2024, 1, 1) + timedelta(hours=7 * k, seconds=k) for k in range(rows)]
    return pl.DataFrame(
        {
            "whole": list(range(rows)),
            "small": [k % 7 for k in range(rows)],
            "real": [k / 3 if k % 5 else None for k in range(rows)],
            "single": [k / 10 for k in range(rows)],
            "flag": [k % 2 == 0 for k in range(rows)],
            "text": [None if k % 11 == 0 else "abc"[k % 3] for k in range(rows)],
            "day": [moment.date() for moment in moments],
            "moment": moments,
            "zoned": [moment.replace(tzinfo=UTC) for moment in moments],
            "clock": [moment.time() for moment in moments],
            "span": [timedelta(minutes=k) for k in range(rows)],
        },
        schema=SCHEMA,
    )


ENCODER = Encoder.fit(training_frame())
ROWS = st.lists(st.fixed_dictionaries({n: st.none() | v for n, v in VALUES.items()}), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_a_frame_and_its_rows_encode_alike(rows):
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    whole = ENCODER.encode(frame)
    np.testing.assert_array_equal(ENCODER.encode_rows(rows), whole)
    np.testing.assert_array_equal(np.array([ENCODER.encode_row(row) for row in rows]), whole)
    # What Polars gives back as rows is what a request's rows look like, too.
    np.testing.assert_array_equal(ENCODER.encode_rows(frame.to_dicts()), whole)


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_state_survives_json(rows):
    again = Encoder.from_dict(json.loads(json.dumps(ENCODER.to_dict())))
    assert again.to_dict() == ENCODER.to_dict()
    np.testing.assert_array_equal(again.encode_rows(rows), ENCODER.encode_rows(rows))


def test_matrix_columns_have_the_name_of_their_source():
    assert ENCODER.width == len(ENCODER.columns) == len(ENCODER.sources) == len(ENCODER.codes)
    assert [c for c in ENCODER.columns if c.startswith("zoned")] == [
        "zoned.month",
        "zoned.day",
        "zoned.weekday",
        "zoned.hour",
    ]
    assert ENCODER.codes[ENCODER.columns.index("text")] == 5  # unseen, null, a, b, c


def test_known_values():
    moment = datetime(2024, 7, 1, 23, 30, tzinfo=UTC)
    row = dict.fromkeys(SCHEMA) | {"text": "b", "zoned": moment, "clock": time(6, 45), "span": timedelta(seconds=2.5)}
    values = dict(zip(ENCODER.columns, ENCODER.encode_row(row), strict=True))
    assert values["text"] == 3.0
    # Half past eleven in UTC is already Tuesday in Berlin.
    assert [values[f"zoned.{part}"] for part in ("month", "day", "weekday", "hour")] == [7.0, 2.0, 2.0, 1.5]
    assert (values["clock"], values["span"]) == (6.75, 2.5)
    assert np.isnan(values["real"])


def test_nulls_and_unknown_categories_have_their_own_codes():
    frame = pl.DataFrame({"text": ["a", None, "never"]})
    encoder = Encoder.fit(pl.DataFrame({"text": ["a", "b"] * 20}))
    assert encoder.encode(frame)[:, 0].tolist() == [2.0, 1.0, 0.0]
    assert encoder.encode(pl.DataFrame({"text": [None, None]}))[:, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "late",
    [
        pl.Series("x", [1.0, None, 3.0]),
        pl.Series("x", [1, None, 3], dtype=pl.Int8),
        pl.Series("x", [Decimal(1), None, Decimal(3)]),
    ],
)
def test_numbers_may_come_in_any_width(late):
    encoder = Encoder.fit(pl.DataFrame({"x": list(range(20))}))
    np.testing.assert_array_equal(encoder.encode(late.to_frame())[:, 0], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(encoder.encode_rows(late.to_frame().to_dicts())[:, 0], [1.0, np.nan, 3.0])


def test_a_double_is_rounded_if_training_had_single_precision():
    encoder = Encoder.fit(pl.DataFrame({"x": pl.Series([0.1, 0.2] * 5, dtype=pl.Float32)}))
    trained = float(np.float32(0.1))
    assert encoder.encode(pl.DataFrame({"x": [0.1]}))[0, 0] == trained
    assert encoder.encode_row({"x": 0.1}) == [trained]


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["a", "b"])])
def test_categorical_types_are_strings(kind):
    encoder = Encoder.fit(pl.DataFrame({"x": pl.Series(["a", "b"] * 10, dtype=kind)}))
    assert encoder.encode(pl.DataFrame({"x": ["b", "z"]}))[:, 0].tolist() == [3.0, 0.0]
    assert encoder.features[0].type == "string"


def test_moments_with_and_without_zone():
    naive = [datetime(2024, 1, 1) + timedelta(hours=k) for k in range(30)]
    plain = Encoder.fit(pl.DataFrame({"t": naive}))
    berlin = Encoder.fit(pl.DataFrame({"t": pl.Series(naive).dt.replace_time_zone(BERLIN)}))
    asked = datetime(2024, 1, 1, 12, tzinfo=ZoneInfo("America/New_York"))
    frame = pl.DataFrame({"t": pl.Series([asked.astimezone(UTC)], dtype=pl.Datetime("us", "UTC"))})
    # Without a zone of its own the encoder reads UTC; with one, its own wall clock.
    assert plain.encode_row({"t": asked})[3] == plain.encode(frame)[0, 3] == 17.0
    assert berlin.encode_row({"t": asked})[3] == berlin.encode(frame)[0, 3] == 18.0
    # A request without a zone means UTC.
    bare = pl.DataFrame({"t": [datetime(2024, 1, 1, 17)]})
    assert berlin.encode(bare)[0, 3] == berlin.encode_row({"t": datetime(2024, 1, 1, 17)})[3] == 18.0


def test_a_time_outside_the_calendar_is_an_error():
    naive = [datetime(2024, 1, 1) + timedelta(hours=k) for k in range(30)]
    encoder = Encoder.fit(pl.DataFrame({"t": pl.Series(naive).dt.replace_time_zone(BERLIN)}))
    with pytest.raises(RequestError, match="'t' is 9999-12-31"):
        encoder.encode_row({"t": datetime.max})


def test_columns_without_information_are_dropped_and_listed():
    rows = 1200
    encoder = Encoder.fit(
        pl.DataFrame(
            {
                "x": list(range(rows)),
                "same": [7] * rows,
                "empty": [None] * rows,
                "nan": [float("nan")] * rows,
                "id": [f"n{k}" for k in range(rows)],
                "list": [[1]] * rows,
                "note": [f"about {k // 3}" for k in range(rows)],
            }
        )
    )
    assert encoder.inputs == ("x",)
    assert encoder.dropped == {
        "same": "every row has the same value: 7",
        "empty": "every value is null",
        "nan": "every value is null",
        "id": "looks like an identifier: 1200 distinct values in 1200 rows",
        "note": "too many different values: 400 in 1200 rows, each in fewer than 5",
        "list": "a column of type List(Int64) cannot be a feature",
    }


def test_a_table_without_features_is_an_error():
    with pytest.raises(
        TrainingError, match="No feature column is left to learn from \\(same: every row has the same value: 1\\)"
    ):
        Encoder.fit(pl.DataFrame({"same": [1, 1, 1]}))


def test_rare_categories_share_the_code_of_unknown_ones():
    values = ["often"] * 600 + ["also"] * 390 + [f"rare{k}" for k in range(5)] * 2
    encoder = Encoder.fit(pl.DataFrame({"rows": values}))
    assert encoder.features[0].categories == ("also", "often")
    assert encoder.encode_row({"rows": "rare1"}) == encoder.encode_row({"rows": "never"}) == [0.0]


def test_only_the_most_frequent_categories_get_codes():
    values = [f"c{k}" for k in range(400) for _ in range(10 + (k < 300))]
    encoder = Encoder.fit(pl.DataFrame({"x": values}))
    kept = encoder.features[0].categories
    assert len(kept) == MOST_CATEGORIES
    assert all(int(name[1:]) < 300 for name in kept)


def test_errors_name_the_column():
    row = dict.fromkeys(SCHEMA)
    with pytest.raises(RequestError, match="Column 'text' is missing"):
        ENCODER.encode(training_frame().drop("text"))
    with pytest.raises(RequestError, match="Column 'text' is missing"):
        ENCODER.encode_row({k: v for k, v in row.items() if k != "text"})
    for name, value in {
        "text": 5,
        "whole": "5",
        "day": 5,
        "moment": "now",
        "zoned": 1.5,
        "clock": 3,
        "span": 4,
    }.items():
        with pytest.raises(RequestError, match=f"Column '{name}' has type"):
            ENCODER.encode_row(row | {name: value})
        with pytest.raises(RequestError, match=f"Column '{name}' has type"):
            ENCODER.encode(training_frame(1).with_columns(pl.Series(name, [value])))


@pytest.mark.parametrize("dtype", list(SCHEMA.values()))
def test_arrow_names_are_pyarrows(dtype):
    dtype = dtype() if isinstance(dtype, type) else dtype
    field = pl.DataFrame(schema={"x": dtype}).to_arrow().schema.field("x")
    assert arrow_type(dtype) == str(field.type).removeprefix("large_").replace("string_view", "string")
