"""Measure what hostile requests and files cost: seconds until they are refused, and additional memory.

    python benchmarks/attacks.py [--repeat 3]

The requests go to real processes, `everloop server` and `everloop serve`. Each process first gets one harmless request
of the same kind, so that the libraries are loaded. Memory is the peak of the resident set (VmHWM on Linux) minus what
was resident before. Files are read by the functions that the commands call, in a process of their own. The table is
Markdown. It shows the best of the repeats, because other load on the machine can only slow a refusal down.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import everloop as el

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = "application/json"
TEXT = "x" * 50_000
ROWS = 19_000
IMPORT = """
import sys, time
from pathlib import Path
import everloop as el
from everloop.errors import EverloopError
from everloop.packages import import_package
from everloop.tracking.run_archive import import_runs
from everloop.stores.backup import restore
kind, path, home = sys.argv[1:]
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
with el.open_store(home, create=True) as store:
    before, began = peak(), time.perf_counter()
    try:
        {"runs": lambda: import_runs(store, path), "package": lambda: import_package(store, path),
         "backup": lambda: restore(path, home + "-restored")}[kind]()
        answer = "accepted"
    except EverloopError as error:
        answer = type(error).__name__
    print(answer, time.perf_counter() - began, (peak() - before) / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EVERLOOP_KEYS"] = str(folder / "keys")
        home = folder / "home"
        prepare(home)
        print("| attack | bytes sent | answer | seconds | MB above idle |\n|---|---:|---|---:|---:|")
        with process("server", "--home", str(home)) as (pid, url):
            report(server_attacks(url), pid, repeat)
        with process("serve", "churn@1", "--home", str(home)) as (pid, url):
            report(endpoint_attacks(url), pid, repeat)
        for title, kind, path in files(folder):
            found = [read(kind, path, folder / f"{kind}-{number}") for number in range(repeat)]
            answer, seconds, megabytes = min(found, key=lambda one: one[1])
            row(title, path.stat().st_size, answer, seconds, megabytes)


def prepare(home: Path) -> None:
    chance = np.random.default_rng(0)
    frame = pd.DataFrame({"tenure": chance.integers(0, 72, 500), "plan": chance.choice(list("abc"), 500)})
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["plan"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(frame, frame["tenure"] < 20)
    with el.open_store(home, create=True) as store:
        el.save_model(model, "churn", example=frame, store=store)
        with el.start_run("r", store=store) as run:
            run.log({"loss": 0.5}, step=1)


@contextmanager
def process(*arguments: str) -> Iterator[tuple[int, str]]:
    """Run a command that listens on a free port; give its process id, and its URL once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("everloop")), *arguments, "--port", str(port)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health").close()  # noqa: S310 - made here
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield serving_pid(started.pid), url
    finally:
        started.terminate()
        started.wait()


def serving_pid(pid: int) -> int:
    """Return the process that answers: the child, if the command starts one."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[-1]) if found else pid


Attack = tuple[str, str, bytes, str, bytes]
"""Title, URL, harmless body that is sent first, media type, and hostile body."""


def server_attacks(url: str) -> Iterator[Attack]:
    def search(**fields: object) -> bytes:
        return json.dumps({"experiment_ids": ["0"], **fields}).encode()

    where, kind, first = f"{url}/api/2.0/mlflow/runs/search", JSON, search(order_by=["metrics.loss"])
    yield "`order_by`: a, 20,000 spaces, b", where, first, kind, search(order_by=["a" + " " * 20_000 + "b"])
    yield "a filter with a number of 10,000 digits", where, first, kind, search(filter=f"metrics.a > {'1' * 10_000}")
    yield "a filter in 10,000 brackets", where, first, kind, search(filter="(" * 10_000 + "metrics.a > 1")
    yield "a whole number of 5,000 digits", where, first, kind, b'{"max_results": ' + b"9" * 5_000 + b"}"
    yield "half of a surrogate pair", where, first, kind, b'{"filter": "\\ud800"}'
    yield "JSON, 100,000 levels deep", where, first, kind, b"[" * 100_000


def endpoint_attacks(url: str) -> Iterator[Attack]:
    row = {"tenure": 3, "plan": "a"}
    frame = pl.DataFrame([row])
    small, wide = io.BytesIO(), io.BytesIO()
    frame.write_parquet(small)
    table = pa.table({"tenure": [1] * ROWS, "plan": pa.array([TEXT] * ROWS).dictionary_encode()})
    pq.write_table(table, wide, compression="zstd")
    tables, kind = f"{url}/invocations", "application/vnd.apache.parquet"
    yield "Parquet: one text of 50 KB in 19,000 rows", tables, small.getvalue(), kind, wide.getvalue()
    short, long = io.BytesIO(), io.BytesIO()
    for target, held in ((short, frame.to_arrow()), (long, table)):
        with pa.ipc.new_stream(target, held.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(held)
    kind = "application/vnd.apache.arrow.stream"
    yield "Arrow: one text of 50 KB in 19,000 rows", tables, short.getvalue(), kind, long.getvalue()
    header = "tenure,plan\n"
    lines = (header + "1,a\n" * 1_900_000).encode()
    yield "csv, 1.9 million rows", tables, f"{header}3,a".encode(), "text/csv", lines
    where, good = f"{url}/predict", json.dumps({"rows": [row]}).encode()
    yield "JSON, 2.6 million empty objects", where, good, JSON, b'{"rows":[' + b"{}," * 2_600_000 + b"{}]}"
    tensor = {"name": "tenure", "datatype": "INT64", "shape": [1] * 100_000, "data": [1]}
    v2 = f"{url}/v2/models/churn/infer"
    harmless = json.dumps(
        {
            "inputs": [
                {"name": "tenure", "datatype": "INT64", "shape": [1], "data": [1]},
                {"name": "plan", "datatype": "BYTES", "shape": [1], "data": ["a"]},
            ]
        }
    ).encode()
    yield "v2: a `shape` of 100,000 numbers", v2, harmless, JSON, json.dumps({"inputs": [tensor]}).encode()
    digits = b'{"rows":[{"tenure":' + b"9" * 5_000 + b',"plan":"a"}]}'
    yield "JSON with a number of 5,000 digits", where, good, JSON, digits


def files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    runs = folder / "bomb.zip"
    with zipfile.ZipFile(runs, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("everloop.json", "{}")
        with file.open("objects/" + "0" * 64, "w", force_zip64=True) as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    yield "`runs import`, a zip with an object of 1 GiB", "runs", runs
    plain = folder / "bomb.tar"
    with tarfile.open(plain, "w") as tar, Path("/dev/zero").open("rb") as zeros:
        info = tarfile.TarInfo("model/model.bin")
        info.size = 1 << 30
        tar.addfile(info, zeros)
    packed = folder / "bomb.tar.zst"
    pa_stream(plain, packed)
    yield "`models import`, a package of 1 GiB", "package", packed
    yield "`restore`, a backup of 1 GiB", "backup", packed


def pa_stream(source: Path, target: Path) -> None:
    with source.open("rb") as data, pa.CompressedOutputStream(str(target), "zstd") as out:
        while piece := data.read(1 << 20):
            out.write(piece)
    source.unlink()


def read(kind: str, path: Path, home: Path) -> tuple[str, float, float]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, kind, path, home], capture_output=True, text=True, check=True
    ).stdout.split()
    return done[0], float(done[1]), float(done[2])


def report(attacks: Iterator[Attack], pid: int, repeat: int) -> None:
    for title, where, first, kind, body in attacks:
        if send(where, kind, first) != 200:
            raise SystemExit(f"The harmless request before '{title}' was refused, so the attack would measure nothing.")
        found = [measured(pid, where, kind, body) for _ in range(repeat)]
        status, seconds, megabytes = min(found, key=lambda one: one[1])
        row(title, len(body), str(status), seconds, megabytes)


def measured(pid: int, where: str, kind: str, body: bytes) -> tuple[int, float, float]:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = memory_kb(pid, "VmRSS")
    began = time.perf_counter()
    status = send(where, kind, body)
    return status, time.perf_counter() - began, (memory_kb(pid, "VmHWM") - before) / 1024


def memory_kb(pid: int, which: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


def send(where: str, kind: str, body: bytes) -> int:
    request = urllib.request.Request(where, body, {"Content-Type": kind})  # noqa: S310 - made here
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def row(title: str, size: int, answer: str, seconds: float, megabytes: float) -> None:
    print(f"| {title} | {size:,} | {answer} | {seconds:.3f} | {max(0.0, megabytes):.0f} |", flush=True)


if __name__ == "__main__":
    main()
