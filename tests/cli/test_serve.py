"""`everloop serve` says where it answers as soon as it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pytest

from everloop.registry import save_model
from everloop.stores import open_store


@pytest.fixture
def model(everloop):
    """The command, in a folder whose store has the model `double@1`."""
    table = pl.DataFrame({"a": [1.0, 2.0, 3.0]})
    with open_store(create=True) as store:
        save_model(lambda rows: rows["a"] * 2.0, "double", table, store=store)
    return everloop


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from everloop.cli import main; main()", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def scored(url: str) -> list[float]:
    body = json.dumps({"rows": [{"a": 4.0}]}).encode()
    request = urllib.request.Request(f"{url}/predict", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ready_line_has_the_url_and_how_to_stop(model, workers):
    with serving("double@1", "--workers", str(workers)) as process:
        line = process.stderr.readline()
        assert line.startswith("Endpoint 'double-1' is ready at http://127.0.0.1:")
        assert line.endswith(" (Ctrl-C stops it)\n")
        assert "8.0" in json.dumps(scored(line.split()[5]))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "")


@pytest.mark.slow
def test_json_prints_the_url_on_standard_output(model):
    with serving("double@1", "--json") as process:
        lines = [process.stdout.readline() for _ in range(4)]
        ready = json.loads("".join(lines))
        assert ready["endpoint"] == "double-1"
        assert "8.0" in json.dumps(scored(ready["url"]))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_all_endpoints_announce_the_path_of_each(model):
    with serving("double@1", "--json") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    with serving("--all") as process:
        line = process.stderr.readline()
        assert line.startswith("All endpoints are ready at http://127.0.0.1:")
        assert "8.0" in json.dumps(scored(line.split()[5].replace("NAME", "double-1")))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_an_endpoint_or_all_is_named(model):
    neither = model("serve")
    assert (neither.code, "neither an endpoint nor --all" in neither.err) == (2, True)
    both = model("serve", "double@1", "--all")
    assert (both.code, "both an endpoint and --all" in both.err) == (2, True)
    refused = model("serve", "--all", "--workers", "2")
    assert (refused.code, "--workers" in refused.err) == (2, True)
