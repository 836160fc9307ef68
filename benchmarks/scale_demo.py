"""Run the flights demo on this machine, then on Ray, PostgreSQL and S3, and compare the tables in which they end.

    python benchmarks/scale_demo.py [--weeks 39] [--postgres URL] [--keep DIR]

The second run uses two Ray nodes, a new schema of a PostgreSQL server, and a bucket of moto's stand-in for S3, all on
this machine. Without --postgres, a server is started. No part of the store is a path, so Ray's workers have neither the
project's code nor its data files. The exit code is 1 if the tables differ.

Needs: pip install 'everloop[demo,postgres,ray]' 'moto[server,s3]' boto3, and the programs of PostgreSQL
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale import two_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "flights"


@contextlib.contextmanager
def own_postgres() -> Iterator[str]:
    """Start a server that listens on a socket in its own folder; yields its URL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(programs[-1]) if programs else shutil.which("initdb")
    if found is None:
        raise SystemExit("PostgreSQL is not installed. Name a server: --postgres URL")
    folder = Path(tempfile.mkdtemp(prefix="elp-"))
    command: list[str] = []
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        shutil.chown(folder, "postgres")
        command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    user, data = pwd.getpwuid(os.getuid()).pw_name, str(folder / "data")
    control = [*command, str(Path(found).with_name("pg_ctl")), "-D", data, "-w"]
    options = f"-k {folder} -c listen_addresses='' -c max_connections=200"
    quiet: dict[str, Any] = {"check": True, "cwd": "/", "stdout": subprocess.DEVNULL}
    subprocess.run([*command, found, "-D", data, "-U", user, "-A", "trust", "-E", "UTF8"], **quiet)
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], **quiet)
    try:
        yield f"postgresql://{user}@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def own_schema(server: str) -> Iterator[str]:
    """A new schema of a server, removed at the end; yields its URL."""
    import psycopg

    name = f"demo_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    try:
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{name}"
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


@contextlib.contextmanager
def own_bucket() -> Iterator[None]:
    """Start moto's server with one bucket, and name it in the environment."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            os.environ.update(
                AWS_ACCESS_KEY_ID="test",
                AWS_SECRET_ACCESS_KEY="test",  # noqa: S106 - moto accepts any
                AWS_REGION="us-east-1",
                AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
                AWS_ALLOW_HTTP="true",
            )
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
            yield
        finally:
            server.terminate()


DEMO = """
import json, sys
from datetime import timedelta
from pathlib import Path
from everloop.cli.demo_view import Timeline
from everloop.demo import Simulation, read_outcome
from everloop.demo.flight_world import OPENS, WEEK

folder, weeks, answer = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
simulation = Simulation(folder, Timeline(), until=OPENS + weeks * WEEK)
with simulation.run() as store:
    outcome = read_outcome(store, simulation.loop.name, simulation.endpoint)
    from everloop.records import StepRun
    steps = store.records.find(StepRun)
answer.write_text(json.dumps({
    "runs": [[f"{run.at:%Y-%m-%d}", run.trigger, run.candidate, run.state] for run in outcome.loop_runs],
    "months": [
        [one.month, one.predictions, one.labelled, one.versions, one.live, one.frozen]
        for one in outcome.months if one.live is not None and one.frozen is not None
    ],
    "incidents": [[f"{one.incident.began_at:%Y-%m-%d}", one.incident.title, one.verdict] for one in outcome.incidents],
    "snapshots": [one.digest for one in outcome.snapshots],
    "where": [str(store.urls), len(steps), sum(step.seconds for step in steps)],
}))
"""


def simulate(folder: Path, weeks: int) -> tuple[dict[str, Any], float]:
    """Run the demo in a process of its own. Returns its tables, and the seconds that it took."""
    answer = folder.with_suffix(".json")
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", DEMO, str(folder), str(weeks), str(answer)], check=True)
    import json

    return json.loads(answer.read_text()), time.perf_counter() - began


def show(title: str, found: dict[str, Any], seconds: float) -> None:
    print(f"\n{title} ({seconds:.0f} s)", flush=True)
    print(f"  store: {found['where'][0]}, {found['where'][1]} steps that took {found['where'][2]:.0f} s")
    for part in ("runs", "months", "incidents"):
        for row in found[part]:
            print(f"  {part:<10}", " | ".join(f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=39)
    parser.add_argument("--postgres", help="URL of a server")
    parser.add_argument("--keep", type=Path, help="folder for both projects; default: a temporary one")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["EVERLOOP_KEYS"] = str(folder / "keys")
        os.environ.pop("EVERLOOP_STORE", None)
        here = simulate(folder / "here", options.weeks)
        show("On this machine", *here)
        server = options.postgres or stack.enter_context(own_postgres())
        records = stack.enter_context(own_schema(server))
        stack.enter_context(own_bucket())
        address = stack.enter_context(two_nodes())
        away = folder / "away"
        away.mkdir()
        (away / "everloop.toml").write_text(
            f'executor = "ray://{address}"\n\n[project]\nname = "flight-delays"\n\n[store]\nrecords = "{records}"\n'
            f'objects = "s3://{BUCKET}/objects"\ntables = "s3://{BUCKET}/tables"\n',
            encoding="utf-8",
        )
        there = simulate(away, options.weeks)
        show("On Ray, PostgreSQL and S3", *there)
        different = [part for part in ("runs", "months", "incidents", "snapshots") if here[0][part] != there[0][part]]
        print(f"\ndifferent: {', '.join(different)}" if different else "\nthe tables are equal", flush=True)
    return int(bool(different))


if __name__ == "__main__":
    raise SystemExit(main())
