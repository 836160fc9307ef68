from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import DataError
from everloop.serving import add_labels, fold_labels, fold_predictions, read_labelled, read_labels
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


def test_labels_over_http_meet_their_predictions(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    predict(app, "a", "b", "c", None)
    labels = [{"key": "a", "value": True}, {"key": "b", "value": 0, "event_at": "2024-05-02T00:00:00Z"}]
    assert app.post("/labels", {"labels": labels}) == (200, {"endpoint": "delays", "accepted": 2})
    fold_predictions(store, "delays")
    assert read_labelled(store, "delays").collect().is_empty()
    assert fold_labels(store, "delays") == 2
    assert fold_labels(store, "delays") == 0
    found = read_labelled(store, "delays").sort("entity").collect()
    assert found["entity"].to_list() == ["a", "b"]
    assert found["actual"].to_list() == [1.0, 0.0]
    assert found["label_event_at"][1] == datetime(2024, 5, 2, tzinfo=UTC)


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


def test_entity_with_several_labels_gets_the_one_that_follows(
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
    assert found["event_at"].to_list() == [DAY + timedelta(days=day) for day in (0, 10, 20)]
    assert found["actual"].to_list() == [1.0, 0.0, 0.0]


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
