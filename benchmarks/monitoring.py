"""Measure monitoring: drift of half a million rows beside Evidently and NannyML, and checks of many windows.

    python benchmarks/monitoring.py [--peers] [--scale 1.0] [--repeat 3]

The table has 15 numeric columns and 5 of categories, and the window is compared with a reference of the same size. Each
program runs in a process of its own and reads both tables from Parquet before the clock starts. With --peers, Evidently
(its preset for data drift) and NannyML (univariate drift by Jensen-Shannon, the whole window as one chunk) do the same,
each in its own environment under `.bench`, which this script creates with uv. They run once.

Times are the median of the repeats after one warm-up. Memory is the peak of the process with both tables in it.
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

PEERS = {
    # Both still use functions that pandas 3 no longer has.
    "evidently": ["evidently==0.7.23", "pandas<3", "pyarrow"],
    "nannyml": ["nannyml==0.13.1", "pandas<3", "pyarrow", "statsmodels", "scikit-learn"],
}

MAKE = """
    import sys
    import numpy as np, polars as pl

    rows = int(sys.argv[1])
    for seed, name in enumerate(("reference", "window")):
        rng = np.random.default_rng(seed)
        numbers = {f"n{i}": rng.normal(i, 1 + i, rows) for i in range(15)}
        texts = {f"c{i}": pl.Series(rng.integers(0, 20, rows)).cast(pl.String) for i in range(5)}
        pl.DataFrame(numbers | texts).write_parquet(f"{name}.parquet")
"""

TIMED = """
    import json, resource, sys, time

    def timed(work):
        seconds = []
        for _ in range(int(sys.argv[1]) + 1):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return seconds[1:] or seconds

    def tell(**seconds):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**seconds, "mb": peak}))
"""

SKETCH = """
    import numpy as np, polars as pl
    from everloop.data.sketches.bins import choose_bins
    from everloop.data.sketches.column_sketches import sketch_frame
    from everloop.data.sketches.pair_correlations import choose_paired, correlate_blocks
    from everloop.monitoring.measures.distances import DISTANCES, ORDERED_DISTANCES, distance_between

    reference, window = (pl.read_parquet(f"{name}.parquet") for name in ("reference", "window"))
    names = reference.columns
    bins, _ = choose_bins(reference, names)
    known = sketch_frame(reference, bins)

    def compare():
        for name, live in sketch_frame(window, bins).items():
            for distance in DISTANCES:
                if name.startswith("n") or distance not in ORDERED_DISTANCES:
                    distance_between(distance, known[name], live)

    def pairs():
        correlate_blocks(window, known, choose_paired(known), np.zeros(window.height, dtype=np.int64), 1)

    def whole():
        cells, _ = choose_bins(reference, names)
        before = sketch_frame(reference, cells)
        for name, live in sketch_frame(window, cells).items():
            distance_between("jensen_shannon", before[name], live)

    tell(whole=timed(whole), choose=timed(lambda: choose_bins(reference, names)), compare=timed(compare),
         pairs=timed(pairs))
"""

STREAM = """
    import polars as pl
    from everloop.data.sketches.bins import choose_bins
    from everloop.data.sketches.column_sketches import sketch_frame
    from everloop.monitoring.measures.distances import distance_between

    def whole():
        frame = pl.read_parquet("reference.parquet")
        bins, _ = choose_bins(frame, frame.columns)
        before = sketch_frame(frame, bins)
        # The sketches are all that is needed of the reference.
        del frame
        for name, live in sketch_frame(pl.read_parquet("window.parquet"), bins).items():
            distance_between("jensen_shannon", before[name], live)

    tell(seconds=timed(whole))
"""

CHECK = """
    from datetime import timedelta
    import numpy as np, polars as pl
    from everloop.monitoring import build_baseline, compare_window

    columns, rows, windows = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = np.random.default_rng(0)
    made = lambda count: pl.DataFrame({f"input_n{i}": rng.normal(size=count) for i in range(columns)})
    reference, live = made(20_000), made(rows)
    baseline = build_baseline(reference.rename(lambda name: name.removeprefix("input_")))
    day = timedelta(days=1)

    def check():
        for _ in range(windows):
            compare_window(baseline, live, span=day)

    tell(seconds=timed(check))
"""

JUDGE = """
    from datetime import UTC, datetime, timedelta
    import numpy as np, polars as pl
    from everloop.monitoring import build_baseline
    from everloop.monitoring.drift_judge import incidents_per_window, judge_for
    from everloop.monitoring.window_counts import WindowCounts

    columns, rows, windows = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = np.random.default_rng(0)
    baseline = build_baseline(pl.DataFrame({f"n{i}": rng.normal(size=5_000) for i in range(columns)}))
    day = timedelta(days=1)
    counts = {
        name: rng.multinomial(rows, known.array() / known.rows, size=windows).astype(float)
        for name, known in baseline.features.sketches.items()
    }
    starts = [datetime(2024, 1, 1, tzinfo=UTC) + index * day for index in range(windows)]
    stored = WindowCounts(starts, day, np.full(windows, float(rows)), counts)
    judge = judge_for(baseline, day, rows, incidents_per_window(1.0, day))
    tell(seconds=timed(lambda: judge.judge(stored)))
"""

EVIDENTLY = """
    import warnings
    warnings.simplefilter("ignore")
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    frames = [pd.read_parquet(f"{name}.parquet") for name in ("reference", "window")]
    kinds = DataDefinition(numerical_columns=[f"n{i}" for i in range(15)],
                           categorical_columns=[f"c{i}" for i in range(5)])

    def compare():
        reference, window = (Dataset.from_pandas(frame, data_definition=kinds) for frame in frames)
        Report([DataDriftPreset()]).run(window, reference).dict()

    tell(seconds=timed(compare))
"""

NANNYML = """
    import warnings
    warnings.simplefilter("ignore")
    import pandas as pd
    import nannyml as nml

    reference, window = (pd.read_parquet(f"{name}.parquet") for name in ("reference", "window"))

    def compare():
        calculator = nml.UnivariateDriftCalculator(
            column_names=list(reference.columns), chunk_number=1,
            continuous_methods=["jensen_shannon"], categorical_methods=["jensen_shannon"])
        calculator.fit(reference)
        calculator.calculate(window).to_df()

    tell(seconds=timed(compare))
"""


def run(python: Path, script: str, folder: Path, *arguments: object) -> dict[str, object]:
    path = folder / "script.py"
    path.write_text(script)
    command = [str(python), str(path), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1])) if done.stdout.strip() else {}


def script(*parts: str) -> str:
    return "\n".join(textwrap.dedent(part) for part in parts)


def peer(name: str) -> Path:
    """Return the Python of the environment of a peer."""
    folder = BENCH / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", str(python), *PEERS[name]], check=True)
        (folder / "ready").touch()
    return python


def median(found: dict[str, object], name: str = "seconds") -> float:
    seconds = found[name]
    assert isinstance(seconds, list)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="run Evidently and NannyML as well, which takes minutes")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all sizes; 0.01 for a quick look")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    own = Path(sys.executable)

    def scaled(size: int) -> int:
        return max(1, round(size * options.scale))

    def show(what: str, seconds: float, more: str = "") -> None:
        print(f"{what:64} {seconds * 1e3:12,.1f} ms  {more}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        rows = scaled(500_000)
        run(own, script(MAKE), folder, rows)
        sketched = run(own, script(TIMED, SKETCH), folder, options.repeat)
        mb = float(str(sketched["mb"]))
        size = f"{rows:,} × 20"
        show(f"drift of {size}, reference and window", median(sketched, "whole"), f"{mb:.0f} MB peak")
        show("  of this, bins of the reference", median(sketched, "choose"))
        show("  window against a known baseline, seven distances", median(sketched, "compare"))
        show("  correlations of the pairs of 16 columns of a window", median(sketched, "pairs"))
        one = run(own, script(TIMED, STREAM), folder, options.repeat)
        show("  both tables read, one after the other", median(one), f"{float(str(one['mb'])):.0f} MB peak")
        if options.peers:
            for name, other in (("evidently", EVIDENTLY), ("nannyml", NANNYML)):
                found = run(peer(name), script(TIMED, other), folder, 0)
                ratio = median(found) / median(sketched, "whole")
                peak = float(str(found["mb"]))
                show(
                    f"  {PEERS[name][0]}",
                    median(found),
                    f"{peak:.0f} MB peak, {ratio:.0f}× time, {peak / mb:.1f}× memory",
                )
        daily = run(own, script(TIMED, CHECK), folder, options.repeat, 20, 1_000, 1)
        show("one daily check of 20 subjects, 1,000 rows", median(daily))
        columns, windows = scaled(1_000), scaled(1_000)
        many = run(own, script(TIMED, JUDGE), folder, options.repeat, columns, 1_000, windows)
        show(f"{columns:,} features × {windows:,} windows re-evaluated from their counts", median(many))


if __name__ == "__main__":
    main()
