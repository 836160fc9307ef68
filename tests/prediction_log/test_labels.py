from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import DataError
from everloop.prediction_log import add_labels, fold_labels, fold_predictions, read_labelled, read_labels
from everloop.prediction_log.label_matching import find_unmatched, match_labels
from everloop.prediction_log.labels import find_unmatched_labels, shape_labels
from everloop.serving.endpoint_state import set_options
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from everloop.stores import Store

ROW = sample_rows()[0]
DAY = datetime(2024, 5, 1, tzinfo=UTC)


def predict(app: Any, *keys: str | None, at: datetime | None = DAY) -> list[float]:
    body = {"rows": [ROW] * len(keys), "keys": list(keys), "event_at": None if at is None else at.isoformat()}
    status, answer = app.post("/predict", body)
    assert status == 200
    return [one["score"] for one in by_row(answer)]


def labels_at(**days: tuple[Any, float]) -> pl.DataFrame:
    """Labels by key: a value, and how many days after DAY it came about."""
    moments = [DAY + timedelta(days=day) for _, day in days.values()]
    return pl.DataFrame({"entity": list(days), "value": [value for value, _ in days.values()], "event_at": moments})


def test_labels_over_http_meet_their_predictions(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    predict(app, "a", "b", "c", None)
    labels = [{"key": "a", "value": True}, {"key": "b", "value": 0, "event_at": "2024-05-02T00:00:00Z"}]
    told = {"endpoint": "delays", "accepted": 2, "unmatched": 0}
    assert app.post("/labels", {"labels": labels}) == (200, told)
    found = read_labelled(store, "delays").sort("entity").collect()
    assert found["entity"].to_list() == ["a", "b"]
    assert found["actual"].to_list() == [1.0, 0.0]
    assert found["label_event_at"][1] == datetime(2024, 5, 2, tzinfo=UTC)
    # Reading has folded everything that was there.
    assert (fold_predictions(store, "delays"), fold_labels(store, "delays")) == (0, 0)
    assert app.post("/labels", {"labels": labels[:1]}) == (200, told | {"accepted": 1})
    assert read_labels(store, "delays").collect().height == 3


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("binary", [True, False], [1.0, 0.0]),
        ("binary", [1, 0], [1.0, 0.0]),
        ("binary", [1.0, 0.0], [1.0, 0.0]),
        ("binary", ["true", "0"], [1.0, 0.0]),
        ("binary", ["True", "maybe"], [1.0, None]),
        ("multiclass", ["short", "long"], [2.0, 0.0]),
        ("multiclass", ["none", "eternal"], [1.0, None]),
        ("regression", [3, 4.5], [3.0, 4.5]),
    ],
)
def test_labels_in_many_spellings(
    release: Any, route: Any, local: Any, store: Store, task: str, given: list[Any], expected: list[Any]
) -> None:
    route(release(task=task).key)
    app = local()
    predict(app, "a", "b")
    fold_predictions(store, "delays")
    frame = pl.DataFrame({"entity": ["a", "b"], "value": given, "event_at": [DAY] * 2}, strict=False)
    assert add_labels(store, "delays", frame) == 2
    found = read_labelled(store, "delays").sort("entity").collect()
    assert found["actual"].to_list() == expected
    # The same values one by one over HTTP mean the same.
    app.post("/labels", {"labels": [{"key": key, "value": value} for key, value in zip("ab", given, strict=True)]})
    fold_labels(store, "delays")
    assert read_labelled(store, "delays").sort("entity").collect()["actual"].to_list() == expected


def test_labels_are_known_only_from_when_they_arrived(release: Any, route: Any, local: Any, store: Store) -> None:
    clock = store.simulate(DAY)
    route(release().key)
    app = local()
    predict(app, "a", at=None)
    fold_predictions(store, "delays")
    clock.set(DAY + timedelta(days=2))
    add_labels(store, "delays", pl.DataFrame({"entity": ["a"], "value": [True], "event_at": [DAY]}))
    clock.set(DAY + timedelta(days=4))
    add_labels(store, "delays", pl.DataFrame({"entity": ["a"], "value": [False], "event_at": [DAY]}))

    def known(days: int) -> list[float]:
        return read_labelled(store.as_of(DAY + timedelta(days=days)), "delays").collect()["actual"].to_list()

    assert known(1) == []
    assert known(3) == [1.0]
    assert known(5) == [0.0]
    assert read_labels(store, "delays").collect().height == 1


def test_label_counts_for_the_nearest_prediction_before_it_and_no_other(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    route(release().key)
    app = local()
    for day in (0, 10, 20):
        predict(app, "a", at=DAY + timedelta(days=day))
    fold_predictions(store, "delays")
    labels = pl.DataFrame(
        {
            "entity": ["a", "a"],
            "value": [True, False],
            "event_at": [DAY + timedelta(days=1), DAY + timedelta(days=10)],
        }
    )
    add_labels(store, "delays", labels)
    found = read_labelled(store, "delays").collect()
    assert found["event_at"].to_list() == [DAY + timedelta(days=day) for day in (0, 10)]
    assert found["actual"].to_list() == [1.0, 0.0]


@pytest.mark.slow
def test_window_does_not_change_which_prediction_a_label_is_about(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    one, two = release(), release(seed=1)
    route(one.key)
    app = local()
    predict(app, "a", at=DAY)
    route(two.key)
    predict(local(), "a", at=DAY + timedelta(days=10))
    add_labels(store, "delays", labels_at(a=(True, 11)))
    whole = read_labelled(store, "delays").collect()
    assert whole["version"].to_list() == [two.key]
    # Neither the other version nor an earlier window gets what is about the later answer.
    assert read_labelled(store, "delays", version=one.key).collect().is_empty()
    assert read_labelled(store, "delays", until=DAY + timedelta(days=5)).collect().is_empty()
    assert read_labelled(store, "delays", since=DAY + timedelta(days=5)).collect().height == 1


def test_label_is_not_about_a_prediction_that_came_later(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    status, told = app.post("/labels", {"labels": [{"key": "a", "value": True, "event_at": DAY.isoformat()}]})
    assert (status, told["accepted"], told["unmatched"]) == (200, 1, 1)
    assert "'a'" in told["notice"]
    predict(app, "a", at=DAY + timedelta(seconds=1))
    assert read_labelled(store, "delays").collect().is_empty()


def test_horizon_that_is_declared_ends_what_a_label_is_about(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    route(release().key)
    app = local()
    predict(app, "a", "b")
    add_labels(store, "delays", labels_at(a=(True, 7), b=(True, 7.01)))
    assert read_labelled(store, "delays").collect().height == 2
    assert read_labelled(store, "delays", horizon=timedelta(days=7)).collect()["entity"].to_list() == ["a"]
    set_options(store, "delays", {"label_horizon_days": "7"})
    assert read_labelled(store, "delays").collect()["entity"].to_list() == ["a"]
    late = {"key": "b", "value": 1, "event_at": (DAY + timedelta(days=8)).isoformat()}
    assert app.post("/labels", {"labels": [late]})[1]["unmatched"] == 1


@pytest.mark.slow
def test_correction_is_the_label_that_arrived_last(release: Any, route: Any, local: Any, store: Store) -> None:
    clock = store.simulate(DAY)
    route(release().key)
    app = local()
    predict(app, "a", "b", "c", at=None)
    for day, value in ((1, True), (2, False), (3, True), (4, False)):
        clock.set(DAY + timedelta(days=day))
        app.post("/labels", {"labels": [{"key": "a", "value": value}]})
        if day % 2:
            read_labels(store, "delays")
    app.post("/labels", {"labels": [{"key": "b", "value": True}, {"key": "b", "value": False}]})
    # A table without times says the same as labels without times.
    add_labels(store, "delays", pl.DataFrame({"key": ["c"], "value": [False]}))
    clock.set(DAY + timedelta(days=5))
    add_labels(store, "delays", pl.DataFrame({"entity": ["c"], "value": [True]}))
    found = read_labelled(store, "delays").sort("entity").collect()
    assert dict(zip(found["entity"], found["actual"], strict=True)) == {"a": 0.0, "b": 0.0, "c": 1.0}


@pytest.mark.parametrize("asked", [1, 1.0, "1"])
@pytest.mark.parametrize("told", [1, 1.0, "1"])
def test_keys_match_across_types(release: Any, route: Any, local: Any, store: Store, asked: Any, told: Any) -> None:
    route(release().key)
    app = local()
    predict(app, asked, "1.10", "007")
    labels = [{"key": key, "value": 1, "event_at": DAY.isoformat()} for key in (told, 1.1, 7)]
    status, answer = app.post("/labels", {"labels": labels})
    assert (status, answer["unmatched"]) == (200, 2)
    assert read_labelled(store, "delays").collect()["entity"].to_list() == ["1"]
    frame = pl.DataFrame({"entity": [told], "value": [0], "event_at": [DAY]})
    add_labels(store, "delays", frame)
    assert read_labelled(store, "delays").collect()["actual"].to_list() == [0.0]


@pytest.mark.slow
def test_unmatched_labels_are_counted_before_and_after_folding(
    release: Any, route: Any, local: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(release().key)
    app = local()
    predict(app, "a", at=None)
    labels = {"labels": [{"key": "a", "value": 1}, {"key": "nobody", "value": 1}]}
    for _ in range(2):
        assert app.post("/labels", labels)[1]["unmatched"] == 1
        fold_predictions(store, "delays")
    predict(app, "nobody", at=None)
    monkeypatch.setattr("everloop.prediction_log.labels._MOST_WAITING_BYTES", 0)
    assert app.post("/labels", labels)[1]["unmatched"] == 0
    assert fold_predictions(store, "delays") == 0
    frame = shape_labels(store, pl.DataFrame({"entity": [1.0, 2.5], "value": [1, 1], "event_at": [DAY, DAY]}))
    assert find_unmatched_labels(store, "delays", frame) == ["1", "2.5"]


@pytest.mark.slow
def test_several_processes_may_read_at_once(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    for number in range(30):
        predict(app, f"k{number}", at=None)
        app.post("/labels", {"labels": [{"key": f"k{number}", "value": 1}]})
    code = (
        "import sys; from everloop.stores import open_store; from everloop.prediction_log import read_labelled\n"
        "with open_store(sys.argv[1]) as store: print(read_labelled(store, 'delays').collect().height)"
    )
    readers = [
        subprocess.Popen([sys.executable, "-c", code, str(store.home)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [reader.communicate(timeout=120)[0].strip() for reader in readers] == ["30"] * 3
    assert read_labelled(store, "delays").collect()["id"].n_unique() == 30


MOMENTS = st.integers(0, 6)
KEYS = st.sampled_from(["a", "b"])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    made=st.lists(st.tuples(KEYS, MOMENTS, st.sampled_from(["champion", "canary", "tester", "shadow"])), max_size=8),
    labels=st.lists(st.tuples(KEYS, MOMENTS), max_size=8),
    horizon=st.none() | st.integers(1, 4),
)
def test_matching_agrees_with_a_search_by_hand(made: Any, labels: Any, horizon: int | None) -> None:
    """Predictions arrive in the order of the list, labels too; each is (key, hour of the event, role)."""
    base = [(f"r{place}-0", key, hour, role) for place, (key, hour, role) in enumerate(made)]
    wanted: dict[str, int] = {}
    for number, (key, hour) in enumerate(labels):
        for history in (("champion", "canary"), ("tester",)):
            near = [
                (at, place)
                for place, (_, other, at, role) in enumerate(base)
                if other == key and role in history and at <= hour and (horizon is None or hour - at <= horizon)
            ]
            if near:
                # Of several made for one moment the last; of several labels the last to arrive.
                wanted[base[max(near)[1]][0]] = number
    moment = pl.Datetime("us", "UTC")
    predictions = pl.DataFrame(
        {
            "id": [name for name, *_ in base],
            "entity": [key for _, key, _, _ in base],
            "event_at": [DAY + timedelta(hours=hour) for _, _, hour, _ in base],
            "arrived_at": [DAY + timedelta(days=1, seconds=place) for place in range(len(base))],
            "role": [role for *_, role in base],
        },
        schema={"id": pl.String, "entity": pl.String, "event_at": moment, "arrived_at": moment, "role": pl.String},
    )
    given_labels = pl.DataFrame(
        {
            "entity": [key for key, _ in labels],
            "label_event_at": [DAY + timedelta(hours=hour) for _, hour in labels],
            "number": list(range(len(labels))),
            "label_arrived_at": [DAY + timedelta(days=2, seconds=number) for number in range(len(labels))],
        },
        schema={"entity": pl.String, "label_event_at": moment, "number": pl.Int64, "label_arrived_at": moment},
    )
    span = None if horizon is None else timedelta(hours=horizon)
    found = match_labels(predictions.lazy(), given_labels.lazy(), span).collect()
    assert dict(zip(found["_base"], found["number"], strict=True)) == wanted
    if labels:
        keys = find_unmatched(predictions, given_labels.rename({"label_event_at": "event_at"}), span)
        answered = [(key, hour) for _, key, hour, role in base if role in ("champion", "canary")]
        assert keys == [
            key
            for key, hour in labels
            if not any(k == key and 0 <= hour - at <= (hour if horizon is None else horizon) for k, at in answered)
        ]


@pytest.mark.slow
def test_shadows_are_left_out_unless_asked_for(release: Any, route: Any, local: Any, store: Store) -> None:
    one, two = release(), release(seed=1)
    route(one.key, shadow=two.key)
    app = local()
    predict(app, "a")
    fold_predictions(store, "delays")
    add_labels(store, "delays", pl.DataFrame({"entity": ["a"], "value": [True], "event_at": [DAY]}))
    assert read_labelled(store, "delays").collect()["version"].to_list() == [one.key]
    assert read_labelled(store, "delays", roles=["shadow"]).collect()["version"].to_list() == [two.key]
    assert read_labelled(store, "delays", version=two.key).collect().is_empty()


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (pl.DataFrame({"entity": ["a"], "event_at": [DAY]}), "no column 'value'"),
        (pl.DataFrame({"entity": [None], "value": [1], "event_at": [DAY]}), "no entity"),
        (pl.DataFrame({"entity": ["a"], "value": [date(2024, 1, 1)], "event_at": [DAY]}), "Date"),
        (pl.DataFrame({"entity": ["a"], "value": [1], "event_at": ["yesterday"]}), "not a time"),
    ],
)
def test_tables_that_hold_no_labels(store: Store, frame: pl.DataFrame, told: str) -> None:
    with pytest.raises(DataError, match=told):
        add_labels(store, "delays", frame)


def test_labels_that_are_null_are_none_yet(store: Store) -> None:
    frame = pl.DataFrame({"entity": ["a", "b"], "value": [None, 1.0], "event_at": [DAY, DAY]})
    assert add_labels(store, "delays", frame) == 1
    assert add_labels(store, "delays", frame.head(1)) == 0
    assert add_labels(store, "delays", frame.to_arrow()) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"labels": [{"key": "a"}]}, "labels[0]"),
        ({"labels": [{"key": None, "value": 1}]}, "labels[0].key"),
        ({"labels": [{"key": "a", "value": None}]}, "labels[0].value"),
        ({"labels": [{"key": "a", "value": 10**400}]}, "value"),
        ({"labels": [{"key": "a", "value": 1, "event_at": "0001-01-01T00:00:00+14:00"}]}, "labels[0].event_at"),
        ({"labels": {}}, "labels"),
        ({}, "labels"),
    ],
)
def test_garbage_for_labels(release: Any, route: Any, local: Any, store: Store, body: Any, told: str) -> None:
    route(release().key)
    status, answer = local().post("/labels", body)
    assert status == 422
    assert told in answer["error"]["message"]
    assert fold_labels(store, "delays") == 0
