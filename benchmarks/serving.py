"""One tabular row over HTTP, validated, scored and on disk before its answer leaves, beside a bare echo.

    python benchmarks/serving.py [--seconds 3] [--repeat 3] [--peers mlflow]

The echo is the least that an ASGI application can do on the same server (uvicorn, uvloop, httptools), and the limit
to be near: it is measured in the same run, in turns with everloop, because a machine's speed changes. One worker
each; the load comes from `benchmarks/load.py` in a process of its own. MLflow, where asked for, gets an environment
under `.bench/mlflow` and serves a scikit-learn model with as many inputs through its own command.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
PEERS = {"mlflow": ("mlflow", "scikit-learn", "pandas")}

ECHO = """
async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

MLFLOW_MODEL = """
import sys, mlflow, numpy as np, pandas as pd
from sklearn.linear_model import LogisticRegression
frame = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 8)), columns=[f"x{n}" for n in range(8)])
model = LogisticRegression().fit(frame, frame["x0"] > 0)
signature = mlflow.models.infer_signature(frame, model.predict(frame))
mlflow.sklearn.save_model(model, sys.argv[1], signature=signature, serialization_format="cloudpickle")
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], folder: Path, ready: str, timeout_s: float) -> Iterator[None]:
    """The command, from when `ready` (a URL) answers until the end of the block."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with urllib.request.urlopen(ready, timeout=2):  # noqa: S310 - made here
                    break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(
                        f"{command[0]} did not start: {(folder / 'server.log').read_text()[-500:]}"
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def asked(port: int, path: str, body: Path, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "127.0.0.1", str(port), path, str(body)]
    done = subprocess.run(
        [*command, str(connections), str(seconds)], capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def show(name: str, connections: int, all: list[dict[str, float]]) -> float:
    per_s = statistics.median(one["per_s"] for one in all)
    p50, p99 = (statistics.median(one[key] for one in all) for key in ("p50_ms", "p99_ms"))
    print(f"| {name:22} | {connections:3} | {per_s:9,.0f} | {p50:8.3f} | {p99:8.3f} |", flush=True)
    return per_s


def own(folder: Path, seconds: float, repeat: int) -> None:
    """everloop with each algorithm, in turns with the echo."""
    os.environ["EVERLOOP_KEYS"] = str(folder / "keys")
    from everloop.models import build_package, register
    from everloop.records import Endpoint, Route
    from everloop.serving import EndpointProcess
    from everloop.stores import open_store
    from everloop.testing.models import sample_rows, sample_table, train_sample

    (folder / "echo.py").write_text(ECHO)
    body = folder / "body.json"
    body.write_text(json.dumps({"rows": sample_rows()}))
    port = free_port()
    echo = [sys.executable, "-m", "uvicorn", "echo:app", "--port", str(port), "--http", "httptools", "--loop", "uvloop"]
    echo += ["--no-access-log", "--log-level", "error", "--lifespan", "off", "--ws", "none"]
    with open_store(folder / "home") as store, running(echo, folder, f"http://127.0.0.1:{port}/", 20):
        for algorithm in ("linear", "lightgbm"):
            package = build_package(train_sample(algorithm), store=store, sample=sample_table(100))
            version = register(store, algorithm, package)
            routes = (Route(version=version.key, percent=100.0),)
            store.records.put(store.new(Endpoint, name=algorithm, model=algorithm, routes=routes))
            began = time.perf_counter()
            with EndpointProcess(store, algorithm) as process:
                ready = time.perf_counter() - began
                place = int(str(process.url).rpartition(":")[2])
                for connections in (16, 1):
                    echoes, answers = [], []
                    for _ in range(repeat):
                        echoes.append(asked(port, "/", body, connections, seconds))
                        answers.append(asked(place, "/predict", body, connections, seconds))
                    limit = show("echo", connections, echoes)
                    got = show(f"everloop {algorithm}", connections, answers)
                    print(f"  {got / limit:.2f} of the echo; ready after {ready:.2f} s", flush=True)


def mlflow(folder: Path, seconds: float) -> None:
    environment = BENCH / "mlflow"
    python = environment / "bin" / "python"
    if not (environment / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True, timeout=300)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEERS["mlflow"]], check=True, timeout=1800)
        (environment / "ready").touch()
    model = folder / "model"
    subprocess.run([str(python), "-c", MLFLOW_MODEL, str(model)], check=True, timeout=300)
    body = folder / "mlflow.json"
    body.write_text(json.dumps({"dataframe_records": [{f"x{n}": 0.1 * n for n in range(8)}]}))
    port = free_port()
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    command += ["--env-manager", "local", "--workers", "1"]
    with running(command, folder, f"http://127.0.0.1:{port}/ping", 120):
        for connections in (16, 1):
            show("mlflow", connections, [asked(port, "/invocations", body, connections, seconds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=3, help="turns, of which the median counts")
    parser.add_argument("--peers", nargs="*", default=[], choices=list(PEERS))
    options = parser.parse_args()
    print("| what                   |  at |     per s |   p50 ms |   p99 ms |")
    print("|------------------------|-----|-----------|----------|----------|")
    with tempfile.TemporaryDirectory(prefix="everloop-bench-") as name:
        own(Path(name), options.seconds, options.repeat)
        if "mlflow" in options.peers:
            mlflow(Path(name), options.seconds)


if __name__ == "__main__":
    main()
