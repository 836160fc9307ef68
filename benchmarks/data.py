"""Measure data work: joins beside Feast, folders beside DVC, contract checks, look-ups, and data larger than memory.

    python benchmarks/data.py [--peers] [--scale 1.0] [--repeat 3]

The join takes questions about 10,000 entities over a year, and three views of 100,000, 500,000 and 1,000,000 rows. Each
row arrives three hours after its event. With --peers, Feast's local (file) store answers the same questions, and DVC
adds the same folders. Each peer runs in its own environment, under `.bench/feast` and `.bench/dvc`, which this script
creates. Feast does not know arrival times, so its join is easier. It also drops questions that a view's ttl leaves
without an answer, for which everloop returns nulls.

Folders are added once, and then again without changes. Times are the median of the repeats after one warm-up (first
additions and peers run once). Memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"

MAKE = """
    import numpy as np, polars as pl

    def made(count, name, seed):
        rng = np.random.default_rng(seed)
        at = pl.Series(1356998400_000000 + rng.integers(0, 365 * 86400_000_000, count)).cast(pl.Datetime("us"))
        who = [f"u{number}" for number in rng.integers(0, 10_000, count)]
        frame = pl.DataFrame({"who": who, "at": at, name: rng.normal(size=count), name + "2": rng.normal(size=count)})
        return frame.with_columns((pl.col("at") + pl.duration(hours=3)).alias("seen"))

    SIZES = {"a": 100_000, "b": 500_000, "c": 1_000_000}
    import sys
    rows = int(sys.argv[1])
    made(rows, "y", 9).select("who", "at").write_parquet("questions.parquet")
    for number, (name, size) in enumerate(SIZES.items()):
        made(size, name, number).write_parquet(f"{name}.parquet")
"""

JOIN = """
    import json, resource, sys, time
    import polars as pl
    import everloop as el

    seconds = []
    for _ in range(int(sys.argv[1]) + 1):
        began = time.perf_counter()
        options = {"entity": "who", "time": "at", "arrival": "seen", "ttl": "30d"}
        views = [el.FeatureView(name, pl.read_parquet(f"{name}.parquet"), **options) for name in "abc"]
        joined = el.join_features(pl.read_parquet("questions.parquet"), views, time="at")
        seconds.append(time.perf_counter() - began)
    assert joined.width == 8
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds[1:] or seconds, "mb": peak}))
"""

FEAST = """
    import json, os, resource, sys, time
    from datetime import timedelta
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Float64

    config = RepoConfig(project="bench", provider="local", registry="registry.db", entity_key_serialization_version=3,
                        offline_store={"type": "file"}, online_store={"type": "sqlite", "path": "online.db"})
    store = FeatureStore(config=config)
    who = Entity(name="who", join_keys=["who"])
    views = [FeatureView(name=name, entities=[who], ttl=timedelta(days=30),
                         schema=[Field(name=name, dtype=Float64), Field(name=name + "2", dtype=Float64)],
                         source=FileSource(path=os.path.abspath(f"{name}.parquet"), timestamp_field="at"))
             for name in "abc"]
    store.apply([who, *views])
    seconds = []
    for _ in range(int(sys.argv[1]) + 1):
        began = time.perf_counter()
        questions = pd.read_parquet("questions.parquet").rename(columns={"at": "event_timestamp"})
        questions["event_timestamp"] = questions["event_timestamp"].dt.tz_localize("UTC")
        wanted = [f"{name}:{name}{end}" for name in "abc" for end in ("", "2")]
        joined = store.get_historical_features(entity_df=questions, features=wanted).to_df()
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds[1:] or seconds, "mb": peak, "rows": len(joined)}))
"""

CONTRACT = """
    import json, sys, time
    import numpy as np, polars as pl
    from everloop.data import check_contract, infer_contract
    from everloop.stores import open_store

    rows = int(sys.argv[2])
    rng = np.random.default_rng(0)
    columns = {f"n{i}": rng.normal(size=rows) for i in range(14)}
    columns |= {f"c{i}": pl.Series(rng.integers(0, 20, rows)).cast(pl.String) for i in range(6)}
    frame = pl.DataFrame(columns)
    with open_store("contracts") as store:
        contract = infer_contract(frame, "bench", store)
    seconds = []
    for _ in range(int(sys.argv[1]) + 1):
        began = time.perf_counter()
        report = check_contract(frame, contract)
        seconds.append(time.perf_counter() - began)
    assert report.rows == rows and report.passed
    print(json.dumps({"seconds": seconds[1:]}))
"""

FOLDERS = """
    import os, sys

    big, small = int(sys.argv[1]), int(sys.argv[2])
    os.makedirs("big")
    for number in range(10):
        with open(f"big/{number}.bin", "wb") as file:
            file.write(os.urandom(big // 10))
    for number in range(small):
        if number % 1000 == 0:
            os.makedirs(f"small/{number // 1000}", exist_ok=True)
        with open(f"small/{number // 1000}/{number}.txt", "w") as file:
            file.write(f"file {number} " * 40)
"""

ADD = """
    import json, resource, sys, time
    from everloop.data import add_folder
    from everloop.stores import open_store

    time.sleep(0.2)
    with open_store("folders") as store:
        began = time.perf_counter()
        first = add_folder(sys.argv[1], sys.argv[1], store)
        once = time.perf_counter() - began
        seconds = []
        for _ in range(int(sys.argv[2]) + 1):
            began = time.perf_counter()
            assert add_folder(sys.argv[1], sys.argv[1], store) == first
            seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"once": once, "seconds": seconds[1:], "mb": peak}))
"""

DVC = """
    import json, os, subprocess, sys, time

    program = os.path.join(os.path.dirname(sys.executable), "dvc")
    if not os.path.isdir(".dvc"):
        subprocess.run([program, "init", "--no-scm", "-q"], check=True)
    def add():
        began = time.perf_counter()
        subprocess.run([program, "add", "-q", sys.argv[1]], check=True)
        return time.perf_counter() - began
    print(json.dumps({"once": add(), "seconds": [add()]}))
"""

LARGE = """
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq, sys

    groups, rows = int(sys.argv[1]), 250_000
    rng = np.random.default_rng(0)
    writer = None
    for group in range(groups):
        table = pa.table({"id": np.arange(group * rows, (group + 1) * rows),
                          **{f"x{i}": rng.normal(size=rows) for i in range(13)}})
        writer = writer or pq.ParquetWriter("large.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
"""

PREPARE = """
    import json, os, resource, time
    import polars as pl
    import everloop as el
    from everloop.data import take_snapshot

    began = time.perf_counter()
    with el.open_store("large") as store:
        rows = el.read(os.path.abspath("large.parquet")).filter(pl.col("x0") > -4)
        rows = rows.with_columns((pl.col("x0") * pl.col("x1")).alias("product"))
        snapshot = take_snapshot(rows, "large", store, key="id")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = os.path.getsize("large.parquet")
    print(json.dumps({"seconds": [time.perf_counter() - began], "mb": peak, "rows": snapshot.rows, "size": size}))
"""

ONLINE = """
    import json, sys, time
    import polars as pl
    import everloop as el
    from everloop.data.features import OnlineLookup, materialize, open_online

    with el.open_store("home") as store:
        online = open_online("online.db")
        rows = pl.read_parquet("b.parquet")
        materialize(store, el.FeatureView("b", rows, entity="who", time="at", arrival="seen"), online=online)
        lookup = OnlineLookup(store, online, ["b"])
        seconds = []
        for number in range(20_000):
            began = time.perf_counter()
            lookup.get({"who": f"u{number % 10_000}"})
            seconds.append(time.perf_counter() - began)
        online.close()
    seconds.sort()
    print(json.dumps({"seconds": seconds, "p99": seconds[int(len(seconds) * 0.99)]}))
"""


def run(python: Path, script: str, folder: Path, *arguments: object) -> dict[str, object]:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(script))
    command = [str(python), str(path), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1])) if done.stdout.strip() else {}


def peer(name: str) -> Path:
    """Return the Python of the environment of a peer."""
    folder = BENCH / name
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--quiet", name], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


def median(found: dict[str, object]) -> float:
    seconds = found["seconds"]
    assert isinstance(seconds, list)
    return statistics.median(seconds)


def number(found: dict[str, object], name: str) -> float:
    return float(str(found[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="run Feast and DVC as well, which takes minutes")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for all sizes but those of the views; 0.01 for a quick look"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    own = Path(sys.executable)

    def scaled(size: int) -> int:
        return max(1, round(size * options.scale))

    def show(what: str, seconds: float, more: str = "") -> None:
        print(f"{what:58} {seconds * 1e3:12,.3f} ms  {more}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        rows = scaled(1_000_000)
        run(own, MAKE, folder, rows)
        join = run(own, JOIN, folder, options.repeat)
        show(f"point-in-time join, {rows:,} rows, 3 views", median(join), f"{join['mb']:.0f} MB peak")
        if options.peers:
            other = run(peer("feast"), FEAST, folder, 0)
            ratio = median(other) / median(join)
            answered = f"{number(other, 'rows'):,.0f} rows returned"
            show("  Feast, local store", median(other), f"{other['mb']:.0f} MB peak, {ratio:.1f}×, {answered}")
        online = run(own, ONLINE, folder)
        show("online look-up, in process", median(online), f"p99 {number(online, 'p99') * 1e3:.3f} ms")
        rows = scaled(5_000_000)
        show(f"contract check, {rows:,} rows × 20 columns", median(run(own, CONTRACT, folder, options.repeat, rows)))

        size, files = scaled(1_000_000_000), scaled(100_000)
        run(own, FOLDERS, folder, size, files)
        for name, what in (("small", f"{files:,} small files"), ("big", f"10 files of {size / 1e6:,.0f} MB in total")):
            added = run(own, ADD, folder, name, options.repeat)
            show(f"folder of {what}: added", number(added, "once"), f"{added['mb']:.0f} MB peak")
            show(f"folder of {what}: unchanged", median(added))
            if options.peers:
                other = run(peer("dvc"), DVC, folder, name)
                once, again = number(other, "once"), median(other)
                show("  DVC: added", once, f"{once / number(added, 'once'):.1f}×")
                show("  DVC: unchanged", again, f"{again / median(added):.1f}×")
        run(own, LARGE, folder, scaled(40))
        large = run(own, PREPARE, folder)
        what = f"Parquet of {number(large, 'size') / 1e6:,.0f} MB: read, prepared and stored"
        show(what, median(large), f"{large['mb']:.0f} MB peak, {number(large, 'rows'):,.0f} rows")


if __name__ == "__main__":
    main()
