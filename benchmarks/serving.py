"""Measure one tabular row over HTTP: validated, scored and logged before the response, beside an echo and peers.

    python benchmarks/serving.py [--seconds 3] [--repeat 3] [--peers mlflow bentoml litserve] [--rows 1000000]

The echo is the least that an ASGI application can do on the same server (uvicorn, uvloop, httptools), so it is the
limit. It is measured in the same run, alternating with everloop, because the speed of a machine changes. Each has one
worker. The load comes from `benchmarks/load.py` in its own process. The model is a pipeline with twenty columns,
numbers and categories, and a hundred boosted trees. Every server serves a model that was trained by the same lines. The
peers run in their own environments under `.bench/`, created if missing, and serve the model as their manuals describe.

Also printed: processor time per request, so that a busy machine does not blur the comparison; the time until the first
response; memory; and the rows per second of a batch job, with and without its log.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
MODEL_NEEDS = ("scikit-learn", "pandas", "lightgbm")
PEERS = {"mlflow": "mlflow", "bentoml": "bentoml", "litserve": "litserve"}

# Runs in each environment, so that each trains the same model with its own libraries. Defines `model` and `frame`.
MODEL = """
import numpy as np, pandas as pd
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

chance, size = np.random.default_rng(0), 4000
numbers = {f"n{index}": chance.normal(size=size).round(3) for index in range(14)}
letters = {f"c{index}": chance.choice(list("abcdefgh"), size) for index in range(6)}
frame = pd.DataFrame({**numbers, **letters})
late = frame["n0"] + frame["n1"] * (frame["c0"] == "a") + chance.normal(size=size) > 0
encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
columns = make_column_transformer((encoder, list(letters)), remainder="passthrough", verbose_feature_names_out=False)
model = make_pipeline(columns.set_output(transform="pandas"), LGBMClassifier(n_estimators=100, verbose=-1))
model.fit(frame, late)
"""
SERVE = {
    "mlflow": """
import sys, mlflow
signature = mlflow.models.infer_signature(frame, model.predict(frame))
mlflow.sklearn.save_model(model, sys.argv[1], signature=signature, serialization_format="cloudpickle")
""",
    "bentoml": """
import bentoml
@bentoml.service(workers=1)
class Churn:
    @bentoml.api
    def predict(self, rows: list[dict]) -> list[float]:
        return model.predict_proba(pd.DataFrame(rows))[:, 1].tolist()
""",
    "litserve": """
import sys
import litserve
class Churn(litserve.LitAPI):
    def setup(self, device):
        self.model = model
    def decode_request(self, request):
        return pd.DataFrame(request["rows"])
    def predict(self, rows):
        return self.model.predict_proba(rows)[:, 1].tolist()
    def encode_response(self, answer):
        return {"predictions": answer}
if __name__ == "__main__":
    server = litserve.LitServer(Churn(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), generate_client_file=False)
""",
}

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], folder: Path, ready: str, timeout_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the end of the block; the block starts when the URL `ready` answers."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Some peers start programs of their environment by name, so its folder is on the PATH.
            env={**outside(), "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
            start_new_session=True,
        )
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
                time.sleep(0.02)
        yield process
    finally:
        # Peers start child processes, which end with the process group.
        for number in (15, 9):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
            time.sleep(0.5)


def outside() -> dict[str, str]:
    """Return the environment variables without this project's paths, so that a peer does not see them."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def group_of(process: int) -> list[int]:
    """Return a process and all of its descendants."""
    found = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in path.read_text().split():
            found += group_of(int(child))
    return found


def seconds_used(processes: list[int]) -> float:
    total = 0.0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def megabytes(processes: list[int]) -> float:
    """Return the memory of processes in MB: private pages, plus their share of the pages they share."""
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def measure(
    port: int, path: str, body: Path, connections: int, seconds: float, process: int | None = None
) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), "127.0.0.1", str(port), path, str(body)]
    group = [] if process is None else group_of(process)
    before = seconds_used(group)
    done = subprocess.run(
        [*command, str(connections), str(seconds)], capture_output=True, text=True, timeout=seconds + 30, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_us"] = (seconds_used(group) - before) / (figures["per_s"] * seconds) * 1e6
    return figures


def show(name: str, connections: int, all: list[dict[str, float]]) -> dict[str, float]:
    middle = {key: statistics.median(one[key] for one in all) for key in ("per_s", "p50_ms", "p99_ms", "cpu_us")}
    print(
        f"| {name:20} | {connections:3} | {middle['per_s']:9,.0f} | {middle['p50_ms']:8.3f} | {middle['p99_ms']:8.3f} |"
        f" {middle['cpu_us']:8,.0f} |",
        flush=True,
    )
    return middle


def trained() -> tuple[Any, Any]:
    made: dict[str, Any] = {}
    exec(MODEL, made)  # noqa: S102 - the lines above
    return made["model"], made["frame"]


def own(folder: Path, seconds: float, repeat: int) -> float:
    """Measure everloop alternating with the echo. Returns its requests per second at sixteen connections."""
    from everloop.packages import build_package
    from everloop.records import EndpointRecord, Route
    from everloop.registry import register, save_model
    from everloop.serving import EndpointProcess
    from everloop.stores import open_store
    from everloop.testing.models import sample_rows, sample_table, train_sample

    (folder / "echo.py").write_text(ECHO)
    bodies = {name: folder / f"{name}.json" for name in ("pipeline", "linear", "lightgbm")}
    for name in ("linear", "lightgbm"):
        bodies[name].write_text(json.dumps({"rows": sample_rows()}))
    port = free_port()
    echo = [sys.executable, "-m", "uvicorn", "echo:app", "--port", str(port), "--http", "httptools", "--loop", "uvloop"]
    echo += ["--no-access-log", "--log-level", "error", "--lifespan", "off", "--ws", "none"]
    best = 0.0
    with open_store(folder / "home") as store, running(echo, folder, f"http://127.0.0.1:{port}/", 20) as bare:
        model, frame = trained()
        saved = save_model(model, "pipeline", example=frame, store=store)
        bodies["pipeline"].write_text('{"rows":' + frame.head(1).to_json(orient="records") + "}")
        for name in bodies:
            if name != "pipeline":
                saved = register(store, name, build_package(train_sample(name), store=store, sample=sample_table(100)))
            routes = (Route(version=saved.key, percent=100.0),)
            store.records.put(store.new(EndpointRecord, name=name, model=name, routes=routes))
            began = time.perf_counter()
            with EndpointProcess(store, name) as process:
                ready = time.perf_counter() - began
                endpoint_port = int(str(process.url).rpartition(":")[2])
                for connections in (16, 1):
                    echoes, answers = [], []
                    for _ in range(repeat):
                        echoes.append(measure(port, "/", bodies[name], connections, seconds, bare.pid))
                        answers.append(
                            measure(endpoint_port, "/predict", bodies[name], connections, seconds, process.pid)
                        )
                    limit = show("echo", connections, echoes)
                    got = show(f"everloop {name}", connections, answers)
                    best = got["per_s"] if (name, connections) == ("pipeline", 16) else best
                    print(
                        f"  {got['per_s'] / limit['per_s']:.2f} of the echo's requests per second, at"
                        f" {got['cpu_us'] / limit['cpu_us']:.2f} times its processor time",
                        flush=True,
                    )
                print(f"  ready after {ready:.2f} s, {megabytes(group_of(process.pid or 0)):.0f} MB", flush=True)
    return best


def peer(name: str, folder: Path, seconds: float, ours: float) -> None:
    """Measure a peer with the same model, in its own environment."""
    environment = BENCH / name
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=300)
    probe = [str(python), "-c", f"import {PEERS[name]}, sklearn, pandas, lightgbm"]
    if subprocess.run(probe, capture_output=True, check=False, env=outside()).returncode:
        subprocess.run([str(python), "-m", "pip", "install", "-q", PEERS[name], *MODEL_NEEDS], check=True, timeout=1800)
    port, model, path = free_port(), folder / f"{name}-model", "/predict"
    body = folder / "pipeline.json"
    (folder / f"{name}_peer.py").write_text(MODEL + SERVE[name])
    if name == "mlflow":
        command = [str(python), f"{name}_peer.py", str(model)]
        subprocess.run(command, check=True, timeout=300, cwd=folder, env=outside(), capture_output=True)
        body = folder / "mlflow.json"
        rows = json.loads((folder / "pipeline.json").read_text())["rows"]
        body.write_text(json.dumps({"dataframe_records": rows}))
        command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
        command += ["--env-manager", "local", "--workers", "1"]
        path, ready = "/invocations", "/ping"
    elif name == "bentoml":
        command = [str(python), "-m", "bentoml", "serve", "bentoml_peer:Churn", "--port", str(port)]
        ready = "/readyz"
    else:
        command = [str(python), f"{name}_peer.py", str(port)]
        ready = "/health"
    began = time.perf_counter()
    with running(command, folder, f"http://127.0.0.1:{port}{ready}", 120) as process:
        took = time.perf_counter() - began
        for connections in (16, 1):
            got = show(name, connections, [measure(port, path, body, connections, seconds, process.pid)])
            if connections == 16:
                print(f"  everloop answers {ours / got['per_s']:,.0f} times as many requests per second", flush=True)
        print(f"  ready after {took:.2f} s, {megabytes(group_of(process.pid)):.0f} MB", flush=True)


def batch(folder: Path, rows: int) -> None:
    """Measure rows per second of a batch job, Parquet to Parquet: a linear model, and the hundred trees."""
    import polars as pl
    from sklearn.linear_model import LogisticRegression

    from everloop.records import EndpointRecord
    from everloop.registry import load_model, save_model
    from everloop.serving.batch.batch_scoring import score_files, score_piece
    from everloop.stores import open_store

    model, frame = trained()
    numbers = frame[[name for name in frame.columns if name.startswith("n")]]
    linear = LogisticRegression().fit(numbers, frame["n0"] > 0)
    table = pl.concat([pl.from_pandas(frame)] * max(1, rows // len(frame)), rechunk=True)
    path, workers = folder / "rows.parquet", os.cpu_count() or 1
    with open_store(folder / "batch") as store:
        store.records.put(store.new(EndpointRecord, name="nightly", model="linear"))
        for name, fitted, example in (("linear", linear, numbers), ("100 trees", model, frame)):
            version = save_model(fitted, name.replace(" ", "-"), example=example, store=store)
            given = table.select(list(example.columns))
            given.write_parquet(path)
            predictor = load_model(store, version.key)
            began = time.perf_counter()
            score_piece(predictor, given)
            print(f"batch, {name}: {given.height / (time.perf_counter() - began):,.0f} rows per second in memory")
            for log in (None, "nightly"):
                began = time.perf_counter()
                out = folder / f"scored-{name.replace(' ', '-')}-{log}"
                score_files(store, version.key, given.lazy(), [path], out, workers=workers, log=log)
                took = time.perf_counter() - began
                log_text = "with a log" if log else "without a log"
                print(
                    f"batch, {name}: {given.height / took:,.0f} rows per second from file to file {log_text},"
                    f" {workers} processes"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=3, help="number of repeats; the median is printed")
    parser.add_argument("--peers", nargs="*", default=[], choices=list(PEERS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the batch job; 0 skips it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="everloop-bench-") as name:
        os.environ["EVERLOOP_KEYS"] = str(Path(name) / "keys")
        print("| what                 |  at |     per s |   p50 ms |   p99 ms |   cpu us |")
        print("|----------------------|-----|-----------|----------|----------|----------|")
        ours = own(Path(name), options.seconds, options.repeat)
        for one in options.peers:
            peer(one, Path(name), options.seconds, ours)
        if options.rows:
            batch(Path(name), options.rows)


if __name__ == "__main__":
    main()
