"""What others see of requests: lines as JSON, spans at a real collector, counts of all workers together."""

from __future__ import annotations

import http.client
import inspect
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import MissingExtraError
from everloop.serving import EndpointProcess
from everloop.serving.observability.counter_cells import CounterCells, read_counters
from everloop.serving.observability.endpoint_metrics import Metrics
from everloop.serving.observability.metrics_aggregation import MetricsAggregation
from everloop.serving.observability.telemetry import FORM_VARIABLE
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

BODY = json.dumps({"rows": sample_rows(2)})
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def post(url: str, path: str, body: str, **headers: str) -> int:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.slow
def test_a_line_for_each_request(store: Store, release: Any, route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORM_VARIABLE, "json")
    route(release().key)
    with EndpointProcess(store, "delays") as process:
        assert post(str(process.url), "/predict", BODY) == 200
        assert post(str(process.url), "/predict", "{") == 400
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    good, bad = [line for line in lines if line["path"] == "/predict"]
    assert (good["status"], good["version"], good["rows"], good["endpoint"]) == (200, "delays@1", 2, "delays")
    assert good["request"]
    assert 0 < good["seconds"] < 20
    assert (bad["status"], bad["version"], bad["rows"]) == (400, None, None)


@pytest.mark.slow
def test_spans_reach_a_collector(store: Store, release: Any, route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            bodies.append(data)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        route(release().key)
        try:
            with EndpointProcess(store, "delays") as process:
                assert post(str(process.url), "/predict", BODY, traceparent=PARENT) == 200
                assert post(str(process.url), "/score", "{}") == 400
            for _ in range(100):
                if bodies:
                    break
                sleep(0.05)
        finally:
            collector.shutdown()
            thread.join()
    spans = []
    for body in bodies:
        message = collected.ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                spans += list(scope.spans)
    found = {span.name: span for span in spans}
    span = found["POST /predict"]
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    told = {item.key: item.value for item in span.attributes}
    assert told["everloop.version"].string_value == "delays@1"
    assert told["everloop.rows"].int_value == 2
    assert told["http.response.status_code"].int_value == 200
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert found["POST /score"].trace_id != span.trace_id


def test_traces_without_the_extra_say_so() -> None:
    code = """
import os, sys
sys.modules["opentelemetry.sdk.trace"] = None
from everloop.errors import MissingExtraError
from everloop.serving.observability.telemetry import observers
assert observers("delays") == []
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
try:
    observers("delays")
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "everloop[otel]" in done.stdout, done.stderr
    assert MissingExtraError.of("x", "y", "otel").help == "Install it with: pip install 'everloop[otel]'"


def count_rows(metrics: Metrics, rows: int) -> None:
    metrics.count_predictions("delays@1", "champion", rows)
    metrics.count_response("/predict", 200)
    metrics.time_request(0.001)
    metrics.in_flight.set(rows)
    metrics.revision.set(rows)
    metrics.unlogged.add(rows)


def test_more_counters_than_one_block_holds(tmp_path: Path) -> None:
    cells = CounterCells(tmp_path / "one.counters")
    names = [("prediction", f"{'m' * (number % 300)}@{number}", "champion") for number in range(1000)]
    for number, name in enumerate(names):
        cells.counter(*name).add(number)
    assert read_counters(tmp_path / "one.counters") == ({name: at for at, name in enumerate(names)}, True)
    cells.close()
    cells.counter(*names[0]).add(5)
    counters, alive = read_counters(tmp_path / "one.counters")
    assert (counters[names[0]], alive) == (5, False)


def test_counters_without_a_file_count_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = CounterCells(tmp_path / "missing" / "one.counters")
    assert "other workers do not see" in caplog.text
    cells.counter("response", "/predict", "200").add(3)
    assert cells.totals() == {("response", "/predict", "200"): 3}


def test_counts_of_all_workers_together(tmp_path: Path) -> None:
    here, there = MetricsAggregation(tmp_path), MetricsAggregation(tmp_path)
    mine, its = Metrics("delays", here.cells), Metrics("delays", there.cells)
    count_rows(mine, 1)
    count_rows(its, 10)
    here.publish()
    there.publish()
    # A third process counts and is killed; a fourth has not begun to answer.
    code = f"""
import os, signal
from pathlib import Path
from everloop.serving.observability.endpoint_metrics import Metrics
from everloop.serving.observability.metrics_aggregation import MetricsAggregation
{inspect.getsource(count_rows)}
for rows, answers in ((100, True), (1000, False)):
    part = MetricsAggregation(Path({str(tmp_path)!r}))
    count_rows(Metrics("delays", part.cells), rows)
    if answers:
        part.publish()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (tmp_path / "2.counters").write_bytes(b"half of a file" * 100)
    values = dict(line.rsplit(" ", 1) for line in here.text(mine).decode().splitlines() if not line.startswith("#"))
    own = '{endpoint="delays"}'
    assert values['everloop_predictions_total{endpoint="delays",version="delays@1",role="champion"}'] == "111"
    assert values[f"everloop_request_seconds_count{own}"] == "3"
    assert values[f"everloop_unlogged_total{own}"] == "111"
    # What was on its way in a process that is gone is not on its way any more.
    assert values[f"everloop_in_flight{own}"] == "11"
    assert values[f"everloop_workers{own}"] == "2"
    assert values[f"everloop_revision{own}"] == "1"
