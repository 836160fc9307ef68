"""Preparing a source takes less memory than its size."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MAKE = """
import sys
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
groups, rows = int(sys.argv[1]), int(sys.argv[2])
rng, writer = np.random.default_rng(0), None
for group in range(groups):
    columns = {f"x{i}": rng.normal(size=rows) for i in range(13)}
    table = pa.table({"id": np.arange(group * rows, (group + 1) * rows), **columns})
    writer = writer or pq.ParquetWriter("large.parquet", table.schema, compression="zstd")
    writer.write_table(table)
writer.close()
"""
PREPARE = """
import json, os, resource
import polars as pl
import everloop as el
from everloop.data import take_snapshot

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

with el.open_store("home") as store:
    rows = el.read(os.path.abspath("large.parquet")).filter(pl.col("x0") > -4)
    rows = rows.with_columns((pl.col("x0") * pl.col("x1")).alias("product"))
    before = peak()
    snapshot = take_snapshot(rows, "large", store, key="id")
    print(json.dumps({"before": before, "peak": peak(), "rows": snapshot.rows}))
"""


def prepared(folder: Path, groups: int, rows: int) -> dict[str, Any]:
    for script, arguments in ((MAKE, (groups, rows)), (PREPARE, ())):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_table_is_never_whole_in_memory(tmp_path: Path) -> None:
    """269 MB of numbers, prepared in less than they are."""
    found = prepared(tmp_path, 40, 60_000)
    assert found["rows"] > 2_390_000
    assert found["peak"] - found["before"] < 269
