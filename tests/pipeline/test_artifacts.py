"""Every artifact format loads exactly what was stored, and equal values give equal bytes."""

from __future__ import annotations

import datetime as dt
import math
import pickle
import uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes

from everloop import plugins
from everloop.errors import CorruptionError, TrustError
from everloop.pipeline import keep_value, load_value
from everloop.pipeline.artifacts.artifact_formats import UnkeepableError
from everloop.pipeline.artifacts.json import JsonFormat, decode, encode
from everloop.pipeline.artifacts.lists import keep_elements
from everloop.records import Point
from everloop.stores import ContentStore, Store, new_id


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> ContentStore:
    return ContentStore(tmp_path_factory.mktemp("objects") / "objects")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.dates()
    | st.datetimes().map(lambda moment: moment.replace(fold=0))
    | st.datetimes(timezones=st.just(dt.UTC)).map(lambda moment: moment.replace(fold=0))
    | st.times().map(lambda moment: moment.replace(fold=0))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
    | st.frozensets(st.integers() | st.text(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.just("$tuple") | st.integers() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=15,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.slow
@given(plain)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    text = encode(value)
    assert same(decode(text), value)
    assert encode(decode(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1),
        np.float32(0.1),
        np.int8(-3),
        np.uint64(2**63),
        np.bool_(True),
        [np.float64("nan")],
        2**200,
        "\ud800\0",
    ],
)
def test_numbers_of_numpy_keep_their_type(objects: ContentStore, value: Any) -> None:
    stored = keep_value(value, objects)
    assert stored.type == "json"
    back = load_value(stored, objects)
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_records_are_kept_by_their_kind(store: Store) -> None:
    from everloop.records import Run, Snapshot

    run = store.new(Run, name="x", started_at=store.now(), metrics={"auc": math.nan})
    snapshot = store.new(
        Snapshot, dataset="d", version=1, digest="sha256:0", rows=1, size_bytes=1, columns={"a": "int"}
    )
    value = {"run": run, "all": [snapshot]}
    stored = keep_value(value, store.objects)
    back = load_value(stored, store.objects)
    assert stored.type == "json"
    assert repr(back) == repr(value)
    assert type(back["all"][0]) is Snapshot


def test_what_json_cannot_hold_exactly_is_left_to_others(objects: ContentStore) -> None:
    class Text(str): ...

    for value in ({"a": object}, [Text("x")], dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))):
        stored = keep_value(value, objects)
        assert stored.type == "pickle"
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnkeepableError):
        JsonFormat().keep(endless, objects)
    with pytest.raises(CorruptionError):
        decode('{"$unheard": 1}')


frames = dataframes(
    max_cols=4,
    max_size=8,
    excluded_dtypes=[pl.Object],
    allow_masked_out=False,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frame=frames)
def test_frames_come_back_as_they_were(objects: ContentStore, frame: pl.DataFrame) -> None:
    stored = keep_value(frame, objects)
    back = load_value(stored, objects)
    assert back.schema == frame.schema or stored.type == "pickle"
    assert_frame_equal(back, frame)
    if stored.type == "frame":
        assert keep_value(pl.concat([frame[:1], frame[1:]], rechunk=False), objects).digest == stored.digest


def test_frames_change_their_form_for_who_asks(objects: ContentStore) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    forms: dict[type, Any] = {pl.DataFrame: frame, pl.LazyFrame: frame.lazy(), pa.Table: frame.to_arrow()}
    forms[pd.DataFrame] = frame.to_pandas()
    for value in forms.values():
        stored = keep_value(value, objects)
        assert stored.type == "frame"
        assert stored.meta["rows"] == 2
        assert list(stored.meta["columns"]) == ["a", "b"]
        assert type(load_value(stored, objects)) is type(value)
        for wanted in forms:
            loaded = load_value(stored, objects, wanted)
            assert type(loaded) is wanted
            seen = loaded.collect() if isinstance(loaded, pl.LazyFrame) else pl.DataFrame(loaded)
            assert seen.rows() == frame.rows()


def test_pandas_keeps_its_index_and_types(objects: ContentStore) -> None:
    index = pd.Index(["x", "y"], name="key")
    frame = pd.DataFrame(
        {"a": pd.Categorical(["u", "v"]), "t": pd.to_datetime(["2026-01-01", "2026-01-02"])}, index=index
    )
    pd.testing.assert_frame_equal(load_value(keep_value(frame, objects), objects), frame)
    mixed = pd.DataFrame({"a": [1, "x", object]})
    assert keep_value(mixed, objects).type == "pickle"


def test_a_lazy_frame_is_streamed_the_same_each_time(objects: ContentStore) -> None:
    frame = pl.LazyFrame({"a": range(600_000)}).with_columns(b=pl.col("a") % 7)
    first, second = (keep_value(frame, objects) for _ in range(2))
    assert first.digest == second.digest
    assert load_value(first, objects).select(pl.len(), pl.col("b").sum()).collect().row(0)[0] == 600_000


def test_frames_of_objects_and_without_columns_are_kept_otherwise(objects: ContentStore) -> None:
    value = pl.DataFrame({"a": [Point]}, schema={"a": pl.Object})
    with pytest.raises(UnkeepableError):
        plugins.load("artifact", "frame")().keep(value, objects)
    empty = load_value(keep_value(pl.DataFrame(), objects), objects)
    assert empty.shape == (0, 0)


arrays = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(3),
    np.array([], dtype="f4"),
    np.array(["a", "bc"]),
    np.array(["2026-01-01"], dtype="M8[D]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([np.nan, np.inf]),
]


@pytest.mark.parametrize("value", arrays, ids=lambda value: str(value.dtype))
def test_arrays_come_back_as_they_were(objects: ContentStore, value: Any) -> None:
    stored = keep_value(value, objects)
    back = load_value(stored, objects)
    assert stored.type == "array"
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)
    back.flags.writeable = True


def test_files_and_folders_come_back_under_their_names(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.txt").write_text("trees")
    (folder / "deep" / "x.bin").write_bytes(b"\0" * 100_000)
    for path in (folder / "model.txt", folder):
        stored = keep_value(path, store.objects)
        back = load_value(stored, store.objects)
        assert back.name == path.name
        assert load_value(stored, store.objects) == back
    assert sorted(file.name for file in back.rglob("*.*")) == ["model.txt", "x.bin"]
    assert (back / "deep" / "x.bin").read_bytes() == b"\0" * 100_000
    assert not (back / "model.txt").stat().st_mode & 0o222
    with pytest.raises(UnkeepableError, match="no file or folder"):
        keep_value(tmp_path / "absent", store.objects)


def test_bytes_are_kept_as_they_are(objects: ContentStore) -> None:
    stored = keep_value(b"\0\xff", objects)
    assert (stored.type, objects.read(stored.digest), load_value(stored, objects)) == ("bytes", b"\0\xff", b"\0\xff")


def test_a_list_is_kept_by_its_elements(objects: ContentStore) -> None:
    frame = pl.DataFrame({"a": [1]})
    stored = keep_elements([keep_value(value, objects) for value in (1, frame)], objects)
    back = load_value(stored, objects)
    assert back[0] == 1
    assert_frame_equal(back[1], frame)
    assert {keep_value(frame, objects).digest} < objects.references(stored.digest)


@dataclass
class Model:
    weights: list[float]
    name: uuid.UUID


def test_other_objects_are_pickled_and_signed(objects: ContentStore) -> None:
    model = Model([0.5], uuid.uuid4())
    stored = keep_value(model, objects)
    assert (stored.type, stored.meta["class"].rpartition(".")[2]) == ("pickle", "Model")
    assert load_value(stored, objects) == model


def test_a_pickle_without_a_trusted_signature_is_not_opened(
    objects: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    good = keep_value(Model([1.0], uuid.uuid4()), objects)
    bad = objects.add(pickle.dumps(Trap()))
    from dataclasses import replace

    for forged in (replace(good, digest=bad), replace(good, digest=bad, signature=None)):
        with pytest.raises(TrustError):
            load_value(forged, objects)
    assert not (tmp_path / "sprung").exists()
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "other"))
    with pytest.raises(TrustError):
        load_value(good, objects)


def test_what_cannot_be_pickled_says_so(objects: ContentStore) -> None:
    with pytest.raises(UnkeepableError, match="cannot be pickled"):
        keep_value((number for number in range(3)), objects)


def test_decimals_and_ids_stay_what_they_are(objects: ContentStore, store: Store) -> None:
    value = {"price": Decimal("1.10"), "id": uuid.UUID(int=1), "when": store.now(), "key": new_id(store.now())}
    assert load_value(keep_value(value, objects), objects) == value
