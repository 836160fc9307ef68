from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.prediction_log import fold_predictions, read_predictions
from everloop.registry import load_model
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.stores import Store

ROW = sample_rows()[0]


@pytest.mark.parametrize("algorithm", ["linear", "lightgbm"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_answers_are_the_models(
    store: Store, release: Callable[..., Any], route: Any, local: Any, algorithm: str, task: str
) -> None:
    version = release(algorithm=algorithm, task=task)
    route(version.key)
    rows = sample_rows(5)
    status, body = local().post("/predict", {"rows": rows})
    assert status == 200
    assert (body["model"], body["version"]) == ("delays", 1)
    assert ("probabilities" in body) is (task != "regression")
    request = body["ids"][0].removesuffix("-0")
    scores = load_model(store, version.key).predict(rows)
    for place, (answer, expected) in enumerate(zip(by_row(body), scores.tolist(), strict=True)):
        assert answer["id"] == f"{request}-{place}"
        assert answer["version"] == "delays@1"
        if task == "multiclass":
            assert answer["scores"] == expected
            assert answer["score"] == max(expected)
            assert answer["label"] == ["long", "none", "short"][expected.index(max(expected))]
        else:
            assert answer["score"] == expected
        if task == "binary":
            assert answer["label"] is (expected >= 0.5)
        if task == "regression":
            assert "label" not in answer


def test_one_row_as_inputs(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    status, body = app.post("/predict", {"inputs": ROW, "key": 7, "event_at": "2024-05-01T12:00:00+02:00"})
    assert status == 200
    assert len(by_row(body)) == 1
    assert by_row(app.post("/predict", {"inputs": ROW})[1])[0]["score"] == by_row(body)[0]["score"]
    fold_predictions(store, "delays")
    first = read_predictions(store, "delays").sort("arrived_at").collect().row(0, named=True)
    assert first["entity"] == "7"
    assert first["event_at"].isoformat() == "2024-05-01T10:00:00+00:00"
    assert first["event_at"] < first["arrived_at"]


def test_what_the_endpoint_says_about_itself(release: Any, route: Any, local: Any) -> None:
    route(release().key)
    status, body = local().ask("GET", "/")
    assert status == 200
    assert body["routes"] == [{"version": "delays@1", "role": "champion", "percent": 100.0}]
    assert next(item["name"] for item in body["signature"]["inputs"]) == "departs_at"


@pytest.mark.slow
def test_rows_are_shared_by_key_and_stay_where_they_are(release: Any, route: Any, local: Any) -> None:
    one, two = release(), release(seed=1)
    route(one.key, canary=(two.key, 30))
    app = local()
    keys = [f"flight-{number}" for number in range(200)]
    rows = [ROW] * 200
    versions = [answer["version"] for answer in by_row(app.post("/predict", {"rows": rows, "keys": keys})[1])]
    assert 30 < versions.count(two.key) < 90
    single = [by_row(app.post("/predict", {"rows": [ROW], "keys": [key]})[1])[0]["version"] for key in keys[:40]]
    assert single == versions[:40]
    again = by_row(app.post("/predict", {"rows": rows[::-1], "keys": keys[::-1]})[1])
    assert [answer["version"] for answer in again][::-1] == versions


@pytest.mark.slow
def test_rows_without_a_key_are_shared_too(release: Any, route: Any, local: Any, store: Store) -> None:
    one, two = release(), release(seed=1)
    route(one.key, canary=(two.key, 50))
    body = local().post("/predict", {"rows": [ROW] * 100})[1]
    versions = [answer["version"] for answer in by_row(body)]
    assert 25 < versions.count(two.key) < 75
    fold_predictions(store, "delays")
    logged = read_predictions(store, "delays").collect()
    assert dict(zip(logged["id"], logged["version"], strict=True)) == {
        answer["id"]: answer["version"] for answer in by_row(body)
    }
    assert dict(zip(logged["id"], logged["score"], strict=True)) == {
        answer["id"]: answer["score"] for answer in by_row(body)
    }


@pytest.mark.slow
def test_a_shadow_scores_what_others_answer(release: Any, route: Any, local: Any, store: Store) -> None:
    one, two = release(), release(seed=1)
    route(one.key, shadow=two.key)
    app = local()
    _, body = app.post("/predict", {"rows": sample_rows(3), "keys": ["a", "b", "c"]})
    assert {answer["version"] for answer in by_row(body)} == {one.key}
    assert app.shadowed.scored == [(two.key, 3)]
    fold_predictions(store, "delays")
    logged = read_predictions(store, "delays", roles=["shadow"]).sort("id").collect()
    assert logged["entity"].to_list() == ["a", "b", "c"]
    assert logged["score"].to_list() == load_model(store, two.key).predict(sample_rows(3)).tolist()
    assert logged["id"].to_list() == [f"{answer['id']}~{two.key}" for answer in by_row(body)]


FEW = ("distance", "carrier")
MORE = ("distance", "carrier", "seats")


def test_a_canary_that_wants_more_than_the_client_sends(release: Any, route: Any, local: Any, store: Store) -> None:
    champion, canary = release(features=FEW), release(features=MORE, seed=1)
    route(champion.key, canary=(canary.key, 50))
    app = local()
    few = [{name: ROW[name] for name in FEW}] * 40
    more = [{name: ROW[name] for name in MORE}] * 40
    status, body = app.post("/predict", {"rows": few})
    assert status == 200
    assert {answer["version"] for answer in by_row(body)} == {champion.key}
    assert sum(part.fallbacks for part in app.app.service.score(app.app.service.loaded_endpoint(), _ask(few)).parts) > 5
    status, body = app.post("/predict", {"rows": more})
    assert status == 200
    assert {answer["version"] for answer in by_row(body)} == {champion.key, canary.key}
    assert app.post("/predict", {"rows": [{**few[0], "seat": 1}]})[0] == 422
    status, body = app.post("/predict", {"rows": [few[0], {"distance": "far", "carrier": "AA"}]})
    assert status == 422
    assert body["error"]["message"].startswith("rows[1].distance")
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays").collect().height == 120


def _ask(rows: list[dict[str, Any]]) -> Any:
    from everloop.serving.score_request import ScoreRequest

    return ScoreRequest(None, rows)


def test_a_shadow_that_wants_more_fails_alone(release: Any, route: Any, local: Any) -> None:
    route(release(features=FEW).key, shadow=release(features=MORE).key)
    app = local()
    status, _ = app.post("/predict", {"rows": [{name: ROW[name] for name in FEW}]})
    assert status == 200
    assert (app.shadowed.failed, app.shadowed.unasked) == ([], 1)
    assert app.shadowed.scored == []


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"rows": []}, 422, "no row"),
        ({"rows": [ROW], "keys": []}, 422, "0 keys for 1 rows"),
        ({"rows": [ROW], "keys": ["a", "b"]}, 422, "2 keys for 1 rows"),
        ({"rows": [ROW], "keys": [[1]]}, 422, "keys[0]"),
        ({"rows": [ROW], "keys": "a"}, 422, "keys"),
        ({"rows": [ROW], "event_at": ["now"]}, 422, "event_at"),
        ({"rows": [ROW], "event_at": ["2024-01-01T00:00:00Z"] * 2}, 422, "2 times"),
        ({"rows": [ROW], "event_at": ["0001-01-01T00:00:00+14:00"]}, 422, "event_at[0]"),
        ({"rows": [ROW], "inputs": ROW}, 422, "either"),
        ({"rows": [ROW], "key": "a"}, 422, "'keys'"),
        ({"row": [ROW]}, 422, "'row'"),
        ({}, 422, "'rows' is missing"),
        ({"rows": [{**ROW, "distanc": 1}]}, 422, "'distanc'"),
        ({"rows": [{**ROW, "seats": "many"}]}, 422, "rows[0].seats"),
        ({"rows": [ROW] * 20_001}, 422, "at most 20000"),
        ([], 422, "array"),
        (None, 422, "null"),
        ("rows", 422, "str"),
        (b"", 400, "Cannot read the body as JSON"),
        (b"{", 400, "Cannot read the body as JSON"),
        (b"\xff\xfe", 400, "Cannot read the body as JSON"),
        (b'{"rows": [{"carrier": "\xff"}]}', 400, "Cannot read the body as JSON"),
        (b'{"rows": [NaN]}', 400, "Cannot read the body as JSON"),
        (b"[" * 200_000, 422, "array"),
        (b'{"rows": [{"currency": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]}", 400, "Cannot read the body as JSON"),
        (
            json.dumps({"rows": [{**ROW, "carrier": "?"}]}).encode().replace(b"?", b"\\ud800"),
            400,
            "Cannot read the body as JSON",
        ),
    ],
)
def test_garbage_is_the_clients_fault(
    release: Any, route: Any, local: Any, store: Store, body: Any, status: int, told: str
) -> None:
    route(release().key)
    got, answer = local().post("/predict", body)
    assert got == status
    assert told in answer["error"]["message"] + (answer["error"]["help"] or "")
    assert fold_predictions(store, "delays") == 0


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.dates().map(lambda day: day.isoformat()),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(["", "AA", "1e400", -0.0, 1e308, 5e-324, 2**63, -(2**63) - 1, 1e30, "9999-12-31T23:59:59.999999Z"]),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from([*ROW, "other"]), VALUES, max_size=4), key=VALUES, moment=VALUES)
def test_no_value_fails_the_endpoint_and_every_answer_can_be_kept(
    fuzzed: Any, changes: dict[str, Any], key: Any, moment: Any
) -> None:
    app, counts = fuzzed
    body = {"rows": [{**ROW, **changes}], "keys": [key], "event_at": [moment]}
    status, _ = app.post("/predict", body)
    assert status in (200, 400, 422)
    counts[status] = counts.get(status, 0) + 1


@pytest.fixture
def fuzzed(release: Any, route: Any, local: Any, store: Store) -> Any:
    route(release(algorithm="lightgbm").key)
    counts: dict[int, int] = {}
    yield local(), counts
    assert counts.get(200, 0) > 0
    assert fold_predictions(store, "delays") == counts[200]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            VALUES,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["rows", "inputs", "keys", "labels", "value", "key"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    path=st.sampled_from(["/predict", "/labels"]),
)
def test_no_bytes_fail_the_endpoint(started: Any, data: bytes, path: str) -> None:
    assert started.post(path, data)[0] in (200, 400, 422)


@pytest.fixture
def started(release: Any, route: Any, local: Any) -> Any:
    route(release().key)
    return local()


def test_an_endpoint_without_a_version_says_so(route: Any, local: Any) -> None:
    route()
    app = local()
    status, body = app.post("/predict", {"rows": [ROW]})
    assert status == 503
    assert body["error"]["type"] == "UnavailableError"
    assert app.ask("GET", "/ready")[0] == 503
    assert app.ask("GET", "/health")[0] == 200
