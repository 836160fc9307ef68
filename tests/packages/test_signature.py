from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone

import msgspec
import polars as pl
import pytest
from hypothesis import given, strategies as st

from everloop.errors import RequestError, UsageError
from everloop.packages.signature import Input, Signature, input_type, polars_type

SIGNATURE = Signature(
    task="binary",
    classes=(False, True),
    ignored=("currency",),
    inputs=(
        Input(name="dist ance", type="float"),
        Input(name="seats", type="int", nullable=False),
        Input(name="a.b", type="string"),
        Input(name="gate", type="string", categories=("A", "B"), closed=True),
        Input(name="flag", type="bool"),
        Input(name="day", type="date"),
        Input(name="at", type="datetime"),
        Input(name="hour", type="time"),
        Input(name="gap", type="duration"),
    ),
)
ROW = {
    "dist ance": 1,
    "seats": 3,
    "a.b": "x",
    "gate": "A",
    "flag": True,
    "day": "2024-02-29",
    "at": "2024-02-29T12:00:00+02:00",
    "hour": "10:30:00",
    "gap": "PT90S",
}


def test_values_are_typed_and_in_order() -> None:
    (values,) = SIGNATURE.rows_of([ROW])
    assert values == (
        1.0,
        3,
        "x",
        "A",
        True,
        date(2024, 2, 29),
        datetime(2024, 2, 29, 10, tzinfo=UTC),
        time(10, 30),
        timedelta(seconds=90),
    )
    assert isinstance(values[0], float)


def test_json_decoder_and_plain_rows_agree() -> None:
    struct = msgspec.json.decode(msgspec.json.encode(ROW), type=SIGNATURE.row_type)
    assert SIGNATURE.values_of([struct]) == SIGNATURE.rows_of([ROW])


def test_whole_floats_are_integers_and_naive_times_are_utc() -> None:
    values = SIGNATURE.rows_of([{**ROW, "seats": 4.0, "at": "2024-01-01T00:00:00", "currency": ["anything"]}])[0]
    assert values[1] == 4
    assert isinstance(values[1], int)
    assert values[6] == datetime(2024, 1, 1, tzinfo=UTC)
    assert len(values) == len(SIGNATURE.inputs)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dist ance": "far"}, "rows[0].dist ance"),
        ({"dist ance": True}, "rows[0].dist ance"),
        ({"seats": 2.5}, "rows[0].seats"),
        ({"seats": None}, "rows[0].seats"),
        ({"seats": 10**30}, "rows[0].seats"),
        ({"seats": 1e30}, "rows[0].seats"),
        ({"seats": float("inf")}, "rows[0].seats"),
        ({"a.b": 7}, "rows[0].a.b"),
        ({"gate": "Z"}, "rows[0].gate"),
        ({"flag": 1}, "rows[0].flag"),
        ({"day": "2024-02-30"}, "rows[0].day"),
        ({"at": "yesterday"}, "rows[0].at"),
        ({"at": "0001-01-01T00:00:00+14:00"}, "rows[0].at"),
        ({"at": "9999-12-31T23:59:59-14:00"}, "rows[0].at"),
        ({"hour": "25:00"}, "rows[0].hour"),
        ({"hour": "10:00:00+02:00"}, "rows[0].hour"),
        ({"gap": "soon"}, "rows[0].gap"),
        ({"gap": "P999999999D"}, "rows[0].gap"),
    ],
)
def test_refusal_names_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError, match="rows") as caught:
        SIGNATURE.rows_of([{**ROW, **change}])
    assert caught.value.message.startswith(field)


def test_misspelled_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"rows\[1\]: there is no input 'seat'") as caught:
        SIGNATURE.rows_of([ROW, {**ROW, "seat": 3}])
    assert caught.value.help == "Did you mean 'seats'?"


def test_missing_field_is_refused_and_null_is_offered() -> None:
    with pytest.raises(RequestError, match="'flag' is missing") as caught:
        SIGNATURE.rows_of([{name: value for name, value in ROW.items() if name != "flag"}])
    assert caught.value.help == "Send null if it is unknown."
    with pytest.raises(RequestError, match="'seats' is missing") as caught:
        SIGNATURE.rows_of([{name: value for name, value in ROW.items() if name != "seats"}])
    assert caught.value.help is None


def test_null_is_taken_where_it_may_be() -> None:
    row = dict.fromkeys(ROW) | {"seats": 1}
    assert SIGNATURE.rows_of([row])[0] == (None, 1, None, None, None, None, None, None, None)


def test_round_trip_through_json() -> None:
    again = Signature.from_json(msgspec.json.decode(msgspec.json.encode(SIGNATURE.to_json())))
    assert again == SIGNATURE
    assert again.shape == SIGNATURE.shape
    assert [item["name"] for item in SIGNATURE.outputs()] == ["score", "label"]


@given(
    st.lists(
        st.builds(
            Input,
            name=st.text(st.characters(exclude_characters='"\\', exclude_categories=("Cc", "Cs")), max_size=12),
            type=st.sampled_from(["float", "int", "bool", "string", "date", "datetime", "time", "duration"]),
            nullable=st.booleans(),
        ),
        min_size=1,
        max_size=6,
        unique_by=lambda item: item.name,
    )
)
def test_any_names_make_a_row_type(inputs: list[Input]) -> None:
    signature = Signature(inputs=tuple(inputs), task="regression")
    values: dict[str, object] = {
        "float": 0.5,
        "int": 7,
        "bool": True,
        "string": "ü",
        "date": date(2024, 1, 1),
        "datetime": datetime(2024, 1, 1, tzinfo=UTC),
        "time": time(1),
        "duration": timedelta(seconds=1),
    }
    row = {item.name: values[item.type] for item in inputs}
    assert signature.rows_of([row]) == [tuple(row.values())]


@pytest.mark.parametrize("dtype", [pl.Float32(), pl.Int16(), pl.UInt64(), pl.Boolean(), pl.String(), pl.Date()])
def test_type_of_polars_and_arrow_names(dtype: pl.DataType) -> None:
    from everloop.training.encoding import arrow_type

    assert input_type(str(dtype)) == input_type(arrow_type(dtype))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("timestamp[us, tz=UTC]", "datetime"),
        ("Datetime(time_unit='ns', time_zone=None)", "datetime"),
        ("time64[ns]", "time"),
        ("duration[ms]", "duration"),
        ("decimal128(10, 2)", "float"),
        ("dictionary<values=string, indices=int32>", "string"),
        ("double", "float"),
        ("date32[day]", "date"),
    ],
)
def test_type_names(name: str, kind: str) -> None:
    assert input_type(name) == kind
    assert polars_type(kind) is not None


@pytest.mark.parametrize("name", ["list<item: double>", "Struct({'a': Int64})", "binary", "Object"])
def test_types_that_no_model_takes(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be of type"):
        input_type(name)


def test_offset_other_than_utc_is_moved() -> None:
    moment = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-5)))
    assert SIGNATURE.rows_of([{**ROW, "at": moment}])[0][6] == datetime(2024, 1, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"task": "binary", "inputs": []},
        {"task": "fortune", "inputs": [{"name": "a", "type": "int"}]},
        {"inputs": 3},
    ],
)
def test_what_is_no_signature(data: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Signature.from_json(data)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_a_request_would_escape(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        Signature(inputs=(Input(name=name, type="int"),), task="regression")


def test_two_inputs_of_one_name() -> None:
    with pytest.raises(UsageError, match="twice"):
        Signature(inputs=(Input(name="a", type="int"), Input(name="a", type="float")), task="regression")
