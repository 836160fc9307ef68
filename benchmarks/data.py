"""What data costs: point-in-time joins beside Feast, contract checks, states of unchanged files, online look-ups.

    python benchmarks/data.py [--peer] [--rows 1000000] [--repeat 3]

The join: questions of 10,000 entities over a year, against three views of 100,000, 500,000 and 1,000,000 rows, each of
which arrives three hours after its event. With --peer, Feast's local (file) store answers the same questions in an
environment of its own under `.bench/feast`, which this script makes; it knows no arrival times, so its join is the
easier one. Times are the median of the repeats after one that is thrown away (Feast runs once); memory is the peak
of the process.
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
        said = {"entity": "who", "time": "at", "arrival": "seen", "ttl": "30d"}
        views = [el.FeatureView(name, pl.read_parquet(f"{name}.parquet"), **said) for name in "abc"]
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
    assert len(joined) == len(questions)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds[1:] or seconds, "mb": peak}))
"""

CONTRACT = """
    import json, sys, time
    import numpy as np, polars as pl
    from everloop.data import check_contract, infer_contract
    from everloop.stores import open_store

    rng = np.random.default_rng(0)
    columns = {f"n{i}": rng.normal(size=5_000_000) for i in range(14)}
    columns |= {f"c{i}": pl.Series(rng.integers(0, 20, 5_000_000)).cast(pl.String) for i in range(6)}
    frame = pl.DataFrame(columns)
    with open_store("contracts") as store:
        contract = infer_contract(frame, "bench", store)
    seconds = []
    for _ in range(int(sys.argv[1]) + 1):
        began = time.perf_counter()
        report = check_contract(frame, contract)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[1:]}))
"""

FILES = """
    import json, os, sys, time
    from everloop.data import files_state

    os.makedirs("big")
    for number in range(10):
        with open(f"big/{number}.bin", "wb") as file:
            file.write(os.urandom(100_000_000))
    time.sleep(0.2)
    state = files_state({"patterns": ["big/*"]})
    seconds = []
    for _ in range(int(sys.argv[1]) + 1):
        began = time.perf_counter()
        assert files_state({"patterns": ["big/*"]}, since=state) == state
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[1:]}))
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


def feast() -> Path:
    folder = BENCH / "feast"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "--quiet", "feast"], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


def median(found: dict[str, object]) -> float:
    seconds = found["seconds"]
    assert isinstance(seconds, list)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="run Feast beside it, once: it takes minutes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    own = Path(sys.executable)

    def show(what: str, seconds: float, more: str = "") -> None:
        print(f"{what:48} {seconds * 1e3:12,.3f} ms  {more}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run(own, MAKE, folder, asked.rows)
        join = run(own, JOIN, folder, asked.repeat)
        show(f"point-in-time join, {asked.rows:,} rows, 3 views", median(join), f"{join['mb']:.0f} MB peak")
        if asked.peer:
            peer = run(feast(), FEAST, folder, 0)
            ratio = median(peer) / median(join)
            show("  Feast, local store", median(peer), f"{peer['mb']:.0f} MB peak, {ratio:.1f}×")
        online = run(own, ONLINE, folder)
        show("online look-up, in process", median(online), f"p99 {float(str(online['p99'])) * 1e3:.3f} ms")
        show("contract check, 5,000,000 rows × 20 columns", median(run(own, CONTRACT, folder, asked.repeat)))
        show("state of an unchanged folder of 1 GB", median(run(own, FILES, folder, asked.repeat)))


if __name__ == "__main__":
    main()
