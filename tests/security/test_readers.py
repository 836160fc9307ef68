"""Every reader of files from elsewhere: damaged and hostile copies are refused with a reason, or read.

None ends its process, none raises an error that is not everloop's own, and none takes more than its share of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.security.read_hostile_files import READERS

COUNT = int(os.environ.get("EVERLOOP_FUZZ", "16"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_damaged_files_are_refused_or_read(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.json"
    folder = tmp_path / "files"
    folder.mkdir()
    script = Path(__file__).with_name("read_hostile_files.py")
    environment = {
        **os.environ,
        "EVERLOOP_KEYS": str(tmp_path / "keys"),
        "PYTHONPATH": str(script.parents[2]),
        "POLARS_MAX_THREADS": "2",
    }
    environment.pop("EVERLOOP_STORE", None)
    done = subprocess.run(
        [sys.executable, script, kind, folder, out, str(COUNT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    found = json.loads(out.read_text()) if out.exists() else []
    assert done.returncode == 0, (found[-1:], done.stderr[-3000:])
    assert len(found) == COUNT
    assert [one for one in found if one["ended"] == "raised"] == []
    assert any(one["ended"] == "refused" for one in found)
    assert all(one["message"] for one in found if one["ended"] == "refused")
