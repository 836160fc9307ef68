"""Servers of one PostgreSQL database whose clients log to different runs at the same time."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from everloop.integrations.mlflow.tracking_api import ArtifactLocations, ArtifactRoot, run_logging_routes, run_routes
from everloop.integrations.mlflow.tracking_api.codec import Fields
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext
from everloop.integrations.mlflow.tracking_api.metric_buffer import MetricBuffer
from everloop.records import Run
from everloop.stores.home import StoreUrls, open_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from everloop.stores import Store

POINT = {"key": "loss", "value": 0.5, "timestamp": 1000, "step": 1}
CALLS: list[tuple[Callable[[HandlerContext], Any], dict[str, Any]]] = [
    (run_logging_routes.log_metric, POINT),
    (run_logging_routes.log_param, {"key": "depth", "value": "3"}),
    (run_logging_routes.set_tag, {"key": "who", "value": "ann"}),
    (
        run_logging_routes.log_batch,
        {
            "metrics": [POINT],
            "params": [{"key": "rate", "value": "1"}],
            "tags": [{"key": "a", "value": "b"}],
        },
    ),
    (run_routes.update_run, {"status": "FINISHED", "end_time": 5000}),
    (run_routes.delete_run, {}),
]


@pytest.fixture
def store(tmp_path: Path, postgres_url: str) -> Iterator[Store]:
    home = tmp_path / "home"
    parts = {"objects": str(home / "objects"), "tables": str(home / "tables")}
    with open_urls(StoreUrls(home=home, records=postgres_url, **parts), project="p", actor="a") as opened:  # type: ignore[arg-type]
        yield opened


def test_a_client_does_not_wait_for_the_writer_of_another_run(store: Store, tmp_path: Path) -> None:
    runs = [store.new(Run, name=name, started_at=store.now()) for name in ("held", "free")]
    store.records.put(*runs)
    held, free = runs
    places = ArtifactLocations(ArtifactRoot(tmp_path / "artifacts"), allowed=())
    failures: list[BaseException] = []

    def log() -> None:
        try:
            for handler, fields in CALLS:
                body = Fields.of_body(json.dumps({"run_id": free.id, **fields}).encode())
                handler(HandlerContext(store, body, places, MetricBuffer()))
        except BaseException as error:
            failures.append(error)

    with store.records.transaction(held.id):
        client = threading.Thread(target=log, daemon=True)
        client.start()
        client.join(20)
        assert not client.is_alive(), "it waits for the writer of another run"
    assert failures == []
    found = store.records.get(Run, free.id)
    assert found.params == {"depth": "3", "rate": "1"}
    assert found.tags == {"who": "ann", "a": "b"}
    assert (found.state, found.archived_at is None) == ("finished", False)
    assert found.metrics == {"loss": 0.5}
