from __future__ import annotations

import threading
from dataclasses import replace
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import CorruptionError, NotFoundError
from everloop.prediction_log.failure_log import FAILURES, fold_failures
from everloop.prediction_log.prediction_log import table_name
from everloop.records import EndpointRecord, Route
from everloop.serving import reloader
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

ROW = sample_rows()[0]


def version_of(app: Any) -> str:
    status, body = app.post("/predict", {"rows": [ROW]})
    assert status == 200
    return str(by_row(body)[0]["version"])


@pytest.mark.slow
def test_a_change_of_routes_is_taken_over(release: Any, route: Any, local: Any) -> None:
    one, two = release(), release(seed=1)
    route(one.key)
    app = local()
    assert version_of(app) == one.key
    changed = route(two.key)
    app.reloader.reload()
    assert version_of(app) == two.key
    assert app.ask("GET", "/ready") == (
        200,
        {"ready": True, "endpoint": "delays", "revision": changed.revision, "draining": False, "refused": None},
    )
    route()
    app.reloader.reload()
    assert app.post("/predict", {"rows": [ROW]})[0] == 503
    route(one.key)
    app.reloader.reload()
    assert version_of(app) == one.key


def count(app: Any, status: int) -> None:
    """Count a response, as the event loop does once it is sent."""
    app.app.metrics.count_response("/predict", status)


def test_failed_requests_are_logged(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    for _ in range(3):
        for row in (ROW, {"distance": "far"}):
            count(app, app.post("/predict", {"rows": [row]})[0])
    app.app.service.log_failures()
    count(app, app.post("/predict", b"{")[0])
    app.close()
    assert fold_failures(store, "delays") >= 1
    rows = store.tables.scan(table_name(store, FAILURES, "delays")).collect()
    assert rows["status"].min() >= 400
    assert rows["requests"].sum() == 4, "also what failed just before the end"
    assert rows["instance"].null_count() == 0


@pytest.mark.slow
def test_versions_in_use_are_not_loaded_again(release: Any, route: Any, local: Any) -> None:
    one, two = release(), release(seed=1)
    route(one.key)
    app = local()
    kept = app.app.service.loaded_endpoint().champion.predictor
    route(one.key, canary=(two.key, 10))
    app.reloader.reload()
    assert app.app.service.loaded_endpoint().champion.predictor is kept
    route(two.key)
    app.reloader.reload()
    assert app.app.service.loaded_endpoint().champion.version == two.key


def test_nothing_is_read_while_nothing_happens(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    live = app.app.service.loaded_endpoint()
    store.records.append_event("something", "else", "x")
    app.reloader.reload()
    app.reloader.reload()
    assert app.app.service.loaded_endpoint() is live


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ((Route(version="delays@9", percent=100),), "NotFoundError"),
        ((Route(version="delays@1", percent=40),), "UsageError"),
        ((Route(version="delays@1", percent=100), Route(version="delays@1", percent=100)), "UsageError"),
    ],
)
def test_what_cannot_be_served_changes_nothing(
    release: Any, route: Any, local: Any, store: Store, broken: Any, kind: str
) -> None:
    one = release()
    route(one.key)
    app = local()
    served = app.app.service.revision
    endpoint = store.records.get(EndpointRecord, "delays")
    refused = store.records.update(replace(endpoint, routes=broken))[0]
    app.reloader.reload()
    assert version_of(app) == one.key
    status, state = app.ask("GET", "/ready")
    assert status == 200
    assert state["revision"] == served
    assert state["refused"]["revision"] == refused.revision
    assert state["refused"]["type"] == kind
    assert 'everloop_reloads_total{endpoint="delays",outcome="failed"} 1' in app.ask("GET", "/metrics")[1]
    app.reloader.reload()
    assert 'outcome="failed"} 1' in app.ask("GET", "/metrics")[1]
    mended = route(one.key)
    app.reloader.reload()
    assert app.ask("GET", "/ready")[1]["revision"] == mended.revision
    assert app.ask("GET", "/ready")[1]["refused"] is None


@pytest.mark.slow
def test_a_damaged_package_is_refused_and_tried_again(
    release: Any, route: Any, local: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloader, "FIRST_RETRY_S", 0.0)
    one, two = release(), release(algorithm="lightgbm")
    route(one.key)
    app = local()
    entries = store.objects.tree(two.package)
    holder = next(entry.holder for entry in entries if entry.path.startswith("model/"))
    path = store.home / "objects" / "sha256" / holder[7:9] / holder[9:]
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 4]) + whole[51:])
    changed = route(one.key, canary=(two.key, 50))
    app.reloader.reload()
    assert version_of(app) == one.key
    assert app.ask("GET", "/ready")[1]["refused"]["type"] == "CorruptionError"
    path.write_bytes(whole)
    app.reloader.reload()
    assert app.ask("GET", "/ready")[1]["revision"] == changed.revision


def test_an_endpoint_does_not_start_on_what_cannot_be_served(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    with pytest.raises(NotFoundError):
        local()
    one = release()
    for path in (store.home / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            data = path.read_bytes()
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    route(one.key)
    with pytest.raises(CorruptionError):
        local()


def test_a_record_that_is_gone_leaves_the_endpoint_answering(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    route(release().key)
    app = local()
    store.records.delete(EndpointRecord, "delays")
    app.reloader.reload()
    assert version_of(app) == "delays@1"


@pytest.fixture
def following_app(release: Any, route: Any, local: Any) -> Iterator[Any]:
    route(release().key)
    app = local()
    app.reloader._poll_s = 0.01
    app.reloader.start()
    yield app
    app.reloader.stop()


@pytest.mark.slow
def test_requests_meet_whole_versions_while_they_change(
    release: Any, route: Any, following_app: Any, store: Store
) -> None:
    """Routes change under load: every answer is of one version that was in use, and none fails."""
    one, two = release(), release(seed=1)
    rows = sample_rows(3)
    expected: dict[str, list[float]] = {}
    for version in (one, two):
        from everloop.registry import load_model

        expected[version.key] = load_model(store, version.key).predict(rows).tolist()
    seen: set[str] = set()
    failures: list[Any] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            status, body = following_app.post("/predict", {"rows": rows})
            if status != 200:
                failures.append(body)
                return
            for place, answer in enumerate(by_row(body)):
                seen.add(answer["version"])
                if answer["score"] != expected[answer["version"]][place]:
                    failures.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(8):
        changed = route(two.key) if turn % 2 else route(one.key, canary=(two.key, 50.0), shadow=two.key)
        deadline = monotonic() + 20
        while following_app.app.service.revision < changed.revision and monotonic() < deadline:
            sleep(0.005)
        assert following_app.app.service.revision == changed.revision
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == {one.key, two.key}
