"""What can be set about an endpoint: each setting does what it says, at once, for a running endpoint."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import UsageError
from everloop.prediction_log import find_prediction, fold_predictions, read_predictions
from everloop.prediction_log.log_settings import read_days
from everloop.registry import load_model
from everloop.serving.access.endpoint_tokens import add_token
from everloop.serving.endpoint_settings import NAMES, read_setting, settings_of
from everloop.serving.endpoint_state import routes_of, set_options, set_routes
from everloop.serving.protocols.protocol import Request
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

ROW = sample_rows()[0]
BODY = json.dumps({"rows": [ROW]}).encode()


def ask(app: Any, path: str = "/predict", body: bytes = BODY, query: bytes = b"", **headers: str) -> Any:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return app.app.respond(Request("POST", path, body, perf_counter(), named, query))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("max_body_bytes", "0"),
        ("max_in_flight", "x"),
        ("rate_limit", "-1"),
        ("unseen", "maybe"),
        ("nope", "1"),
        ("log_sample", "1.5"),
        ("log_sample", "nan"),
        ("request_timeout_s", "nan"),
        ("log_full", ""),
        ("workers", "65"),
    ],
)
def test_what_cannot_be_set(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_setting(name, text)


def test_every_setting_has_a_default() -> None:
    assert settings_of({}) == settings_of(dict.fromkeys(NAMES))
    assert settings_of({"log_drop": ["a"], "tokens": {}}).log_drop == ("a",)
    with pytest.raises(UsageError, match="log_drop"):
        settings_of({"log_drop": "a"})


@pytest.mark.slow
def test_the_log_hides_what_it_is_told_to(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key, shadow=release(seed=1).key)
    set_options(store, "delays", {"log_drop": "distance", "log_hash": "carrier,seats"})
    app = local()
    for _ in range(2):
        app.post("/predict", {"rows": [ROW]})
    app.shadowed  # noqa: B018 - the shadow has been asked
    status, body = app.post("/predict", {"rows": [{**ROW, "carrier": None}]})
    assert status == 200
    fold_predictions(store, "delays")
    found = read_predictions(store, "delays").sort("arrived_at").collect()
    assert "input_distance" not in found.columns
    hashed = found.filter(pl.col("role") == "champion")["input_carrier"].to_list()
    assert hashed[0] == hashed[1] != ROW["carrier"]
    assert hashed[2] is None
    assert len(hashed[0]) == 32
    assert str(ROW["carrier"]) not in (store.home / "everloop.db").read_bytes().decode("latin-1")
    assert find_prediction(store, body["ids"][0]) is not None
    # A misspelled name would hide nothing, so it is refused and what is in use stays.
    set_options(store, "delays", {"log_drop": "distnace"})
    app.reloader.reload()
    assert "distnace" in app.app.service.refused["message"]
    assert app.post("/predict", {"rows": [ROW]})[0] == 200


def test_a_share_of_the_requests_is_logged(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    set_options(store, "delays", {"log_sample": "0.25"})
    app.reloader.reload()
    for _ in range(400):
        assert ask(app).status == 200
    assert 50 <= fold_predictions(store, "delays") <= 160
    set_options(store, "delays", {"log_sample": "0"})
    app.reloader.reload()
    assert ask(app).status == 200
    assert fold_predictions(store, "delays") == 0


@pytest.mark.slow
def test_what_is_too_old_leaves_the_table(store: Store, release: Any, route: Any, local: Any) -> None:
    from datetime import timedelta

    route(release().key)
    moment = store.now()
    clock = store.simulate(moment - timedelta(days=10))
    app = local()
    ask(app)
    fold_predictions(store, "delays")
    clock.set(moment)
    ask(app)
    set_options(store, "delays", {"log_retention_days": "7"})
    fold_predictions(store, "delays")
    kept = read_predictions(store, "delays").collect()
    assert kept["arrived_at"].to_list() == [moment]


@pytest.mark.parametrize("option", ["log_retention_days", "label_horizon_days"])
def test_days_have_one_bound(store: Store, release: Any, route: Any, option: Any) -> None:
    endpoint = route(release().key)
    for days in ("-1", "36501", "1000000000", "nan"):
        with pytest.raises(UsageError, match="is not a possible value") as refused:
            set_options(store, "delays", {option: days})
        assert refused.value.help == "Use a number of days from 0 to 36500."
    # An option that was written by other means is held to the same bound.
    store.records.update(replace(endpoint, options={option: 1_000_000_000}))
    with pytest.raises(UsageError, match="is not a number of days from 0 to 36500"):
        read_days(store, "delays", option)
    # A hundred years before now is still a moment.
    set_options(store, "delays", {option: "36500"})
    found = read_days(store, "delays", option)
    assert found is not None
    assert (store.now() - found).year < store.now().year - 99
    assert fold_predictions(store, "delays") is not None


def test_who_asks_too_often_waits(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    set_options(store, "delays", {"rate_limit": "5"})
    app.reloader.reload()
    statuses = [ask(app).status for _ in range(50)]
    assert statuses[:5] == [200] * 5
    assert statuses.count(429) > 30
    refused = ask(app)
    assert dict(refused.headers)[b"retry-after"] == b"1"
    assert app.app.respond(Request("GET", "/health", b"", 0.0)).status == 200
    assert 'everloop_limited_total{endpoint="delays"} ' in app.app.metrics.text().decode()
    # Tokens have a rate each.
    tokens = [add_token(store, "delays", name) for name in ("one", "two")]
    app.reloader.reload()
    for token in tokens:
        assert [ask(app, authorization=f"Bearer {token}").status for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.slow
def test_testers_choose_the_version(store: Store, release: Any, route: Any, local: Any) -> None:
    one, two, three = release(), release(seed=1), release(seed=2)
    route(one.key, canary=(two.key, 0.0), shadow=three.key)
    app = local()
    assert ask(app, x_everloop_version="2").status == 403
    tester = add_token(store, "delays", "tester", tester=True)
    other = add_token(store, "delays", "other")
    app.reloader.reload()
    assert ask(app, x_everloop_version="2", authorization=f"Bearer {other}").status == 403
    assert ask(app, x_everloop_version="9", authorization=f"Bearer {tester}").status == 404
    for version, wanted in ((two, "2"), (three, "delays@3"), (one, "1")):
        for path, body in (("/predict", {"rows": [ROW]}), ("/invocations", {"instances": [ROW]})):
            answered = ask(
                app, path, json.dumps(body).encode(), x_everloop_version=wanted, authorization=f"Bearer {tester}"
            )
            assert (answered.status, answered.version) == (200, version.key)
        assert json.loads(answered.body)["probabilities"] == load_model(store, version.key).predict([ROW]).tolist()
    fold_predictions(store, "delays")
    # What testers ask is no evidence about a canary.
    assert set(read_predictions(store, "delays").collect()["role"]) == {"tester"}
    set_options(store, "delays", {"override": "anyone"})
    app.reloader.reload()
    assert ask(app, x_everloop_version="2", authorization=f"Bearer {other}").version == two.key


def test_deadlines(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    for wrong in ("0", "-1", "x", "1.5", "9" * 30, ""):
        assert ask(app, x_request_timeout_ms=wrong).status == 422
    assert ask(app, x_request_timeout_ms="1000").status == 200
    late = Request("POST", "/predict", BODY, perf_counter() - 2, [(b"x-request-timeout-ms", b"1000")])
    assert app.app.respond(late).status == 408
    assert fold_predictions(store, "delays") == 1


def test_rows_that_do_not_fit_are_mended_where_that_is_wanted(
    store: Store, release: Any, route: Any, local: Any
) -> None:
    route(release().key)
    app = local()
    strange: dict[str, Any] = {**ROW, "seats": str(ROW["seats"]), "wind": ["x"], "colour": "red"}
    del strange["carrier"]
    assert app.post("/predict", {"rows": [strange]})[0] == 422
    set_options(store, "delays", {"unfit": "flag"})
    app.reloader.reload()
    plain = {**ROW, "wind": None, "carrier": None}
    wanted = app.post("/predict", {"rows": [plain]})[1]
    for path, rows in (("/predict", "rows"), ("/score", "instances"), ("/invocations", "dataframe_records")):
        status, body = app.post(path, {rows: [ROW, strange]})
        assert status == 200, body
        assert body["probabilities"][1] == wanted["probabilities"][0]
        flags = {(flag["row"], flag["input"], flag["flag"]) for flag in body["flags"]}
        assert flags == {
            (1, "seats", "converted"),
            (1, "wind", "wrong_type"),
            (1, "colour", "extra"),
            (1, "carrier", "missing"),
        }
    assert "flags" not in app.post("/predict", {"rows": [ROW]})[1]
    assert app.post("/predict", {"rows": "x"})[0] == 422


@pytest.mark.parametrize("algorithm", ["linear", "lightgbm"])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_explanations_on_request(release: Any, route: Any, local: Any, store: Store, task: str, algorithm: str) -> None:
    version = release(task=task, algorithm=algorithm)
    route(version.key)
    app = local()
    rows = sample_rows(3)
    expected = load_model(store, version.key).explain(rows)
    for path, body in (
        ("/predict", {"rows": rows, "explain": True}),
        ("/v1/models/delays:explain", {"instances": rows}),
    ):
        status, told = app.post(path, body)
        assert (status, told["explanations"]) == (200, expected)
    assert "explanations" not in app.post("/predict", {"rows": rows})[1]
    assert app.post("/predict", {"rows": rows * 400, "explain": True})[0] == 422


@pytest.mark.slow
def test_routes_by_hand(store: Store, release: Any, route: Any, local: Any) -> None:
    one, two, three = release(), release(seed=1), release(seed=2)
    route(one.key)
    app = local()
    set_routes(store, "delays", routes_of(["delays@1=70", "delays@2=30", "delays@3=shadow:40"]))
    app.reloader.reload()
    live = app.app.service.loaded_endpoint()
    assert [(scorer.version, scorer.role) for scorer in live.scorers] == [(two.key, "canary"), (one.key, "champion")]
    versions = []
    for number in range(300):
        status, body = app.post("/predict", {"rows": [ROW], "keys": [f"k{number}"]})
        assert status == 200
        versions.append(body["version"])
    assert 50 <= versions.count(2) <= 130
    fold_predictions(store, "delays")
    seen = read_predictions(store, "delays", roles=["shadow"]).collect()
    # The shadow sees its share of the keys, the same ones each time.
    assert 70 <= seen.height <= 170
    assert set(seen["version"]) == {three.key}
    for wrong in (["delays@1=50"], ["delays@1"], ["delays@1=shadow"], ["delays@1=x"], ["delays@1=100", "delays@2=1"]):
        with pytest.raises(UsageError):
            set_routes(store, "delays", routes_of(wrong))
    release("other")
    with pytest.raises(UsageError, match="versions of 'delays'"):
        set_routes(store, "delays", routes_of(["other@1=100"]))


@pytest.mark.slow
def test_going_back_loads_nothing(
    store: Store, release: Any, route: Any, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.serving import loaded_endpoint

    one, two = release(), release(seed=1)
    route(one.key)
    app = local()
    route(two.key)
    app.reloader.reload()
    assert app.post("/predict", {"rows": [ROW]})[1]["version"] == 2

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("it is loaded already")

    monkeypatch.setattr(loaded_endpoint, "load_package", refuse)
    route(one.key)
    app.reloader.reload()
    assert app.post("/predict", {"rows": [ROW]})[1]["version"] == 1


def arrow(frame: pl.DataFrame, form: str = "stream") -> bytes:
    sink = io.BytesIO()
    if form == "parquet":
        frame.write_parquet(sink)
    elif form == "file":
        frame.write_ipc(sink)
    else:
        frame.write_ipc_stream(sink)
    return sink.getvalue()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_tables_in_and_out(store: Store, release: Any, route: Any, local: Any, task: str) -> None:
    version = release(task=task)
    route(version.key)
    app = local()
    rows = sample_rows(40)
    frame = pl.DataFrame(load_model(store, version.key).validate(rows))
    predictor = load_model(store, version.key)
    scores = predictor.predict(rows)
    expected = predictor.labels(scores) or scores.tolist()
    keyed = frame.with_columns(pl.Series("who", [f"k{number}" for number in range(40)]))
    for form in ("stream", "file"):
        answered = ask(app, body=arrow(keyed, form), query=b"key=who")
        assert (answered.status, answered.content_type) == (200, b"application/vnd.apache.arrow.stream")
        table = pl.read_ipc_stream(answered.body)
        assert table["prediction"].to_list() == expected
        if task != "regression":
            assert table["probability"].to_list() == scores.tolist()
    for kind, form in (("parquet", "parquet"), ("arrow.stream", "stream"), ("arrow.file", "file")):
        answered = ask(app, "/invocations", arrow(frame, form), content_type=f"application/vnd.apache.{kind}")
        assert json.loads(answered.body)["predictions"] == expected
    fold_predictions(store, "delays")
    assert set(read_predictions(store, "delays").collect()["entity"]) == {None, *keyed["who"]}
    for wrong, told in (
        (arrow(frame.drop("distance")), b"distance"),
        (arrow(frame.with_columns(seats=pl.lit("many"))), b"seats"),
        (arrow(frame.with_columns(distance=pl.lit(float("inf")))), b"infinity"),
        (arrow(frame.with_columns(distance=pl.lit([1.0]))), b"distance"),
        (arrow(keyed), b"who"),
        (arrow(frame)[:-20], b""),
        (arrow(frame, "file")[:100], b"Cannot read the table"),
        (arrow(frame.clear()), b"no row"),
        (b"\xff\xff\xff\xff" + b"\x10\x00\x00\x00" * 20, b"Cannot read the table"),
    ):
        answered = ask(app, body=wrong)
        assert answered.status in (400, 422), answered.body
        assert told in answered.body
    assert ask(app, body=arrow(keyed), query=b"key=nobody").status == 422
    assert ask(app, body=arrow(keyed), query=b"key=who&event_at=carrier").status == 422
    assert ask(app, "/invocations", b"PAR1xxxxPAR1", content_type="application/vnd.apache.parquet").status == 400
