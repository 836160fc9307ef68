"""What `everloop run` shows while a step takes long, in a terminal and in a file."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from everloop.cli.progress import MOST_SHOWN, StepLines, packaging
from everloop.packages.time_budget import PackagingProgress
from everloop.pipeline import StepProgress

SLOW = """
import time
import everloop as el
import polars as pl

@el.step
def rows() -> pl.DataFrame:
    for number in range(200):
        el.progress(number, 200, note="counting", unit="rows")
        time.sleep(0.05)
    return pl.DataFrame({"x": [1.0]})

loop = el.Loop("slow", data=el.Dataset(rows, target="x"), train=el.AutoTrain())
"""


def test_lines_of_running_steps_have_seconds_and_progress():
    lines = StepLines(Console(file=io.StringIO()))
    lines.on_start("train", "first run")
    lines.on_progress("train", StepProgress(31, 60, "7 trials, best roc_auc 0.731 (linear)", "s of the budget"))
    lines.on_start("other", "first run")
    began = lines._running["train"]
    first, second = lines.lines(now=began + 75)
    assert first == "train        1 min 15 s  31 of 60 s of the budget · 7 trials, best roc_auc 0.731 (linear)"
    assert second.startswith("other        1 min 1")
    for number in range(20):
        lines.on_start(f"map[{number}]", "")
    assert len(lines.lines()) == MOST_SHOWN + 1
    assert lines.lines()[-1] == f"and {22 - MOST_SHOWN} more"


@pytest.mark.slow
def test_a_file_gets_plain_lines_at_a_bounded_rate():
    out = io.StringIO()
    lines = StepLines(Console(file=out, width=200), line_every_s=0.3)
    lines.on_begin(["train"])
    lines.on_start("train", "first run")
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        lines.on_progress("train", StepProgress(1, 2, "[bold] is a name"))
        time.sleep(0.001)
    lines.on_end()
    result = [line for line in out.getvalue().splitlines() if "…" in line]
    # About a thousand reports give three lines; what looks like markup is plain text.
    assert 1 <= len(result) <= 4
    assert "[bold] is a name" in result[0]
    assert "\x1b" not in out.getvalue()
    lines.on_end()


def screen(child, out, until, seconds=60.0):
    result = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not re.search(until, result):
        try:
            result += os.read(out, 65536)
        except OSError:
            break
    return result


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminal", "file"])
def test_ctrl_c_leaves_the_screen_clean(tmp_path, how):
    (tmp_path / "loop.py").write_text(SLOW)
    command = [sys.executable, "-c", "from everloop.cli import main; main()", "run", "--home", str(tmp_path / "home")]
    environment = {**os.environ, "EVERLOOP_KEYS": str(tmp_path / "keys"), "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    if how == "file":
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as child:
            assert child.stderr is not None
            child.stderr.readline()
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
            rest = child.stderr.read()
            assert child.wait(30) == 130
            assert b"\x1b" not in rest
            assert b"Interrupted" in rest
        return
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=follower, stdout=follower, stderr=follower
    ) as child:
        os.close(follower)
        result = screen(child, leader, rb"rows +\d+ s.*of 200 rows.*counting")
        assert b"counting" in result
        assert b"\x1b[?25l" in result
        child.send_signal(signal.SIGINT)
        result += screen(child, leader, rb"Interrupted")
        assert child.wait(30) == 130
    os.close(leader)
    # The cursor is visible again, and the lines of running steps are erased.
    assert result.rindex(b"\x1b[?25h") > result.rindex(b"\x1b[?25l")
    assert b"\x1b[2K" in result
    assert b"Traceback" not in result


def test_packaging_shows_its_stage():
    out = io.StringIO()
    with packaging(Console(file=out, width=100), line_every_s=10) as progress:
        for seconds in (1.0, 12.0, 13.0, 75.0):
            progress(PackagingProgress(stage="training rows", done=int(seconds), total=8000, seconds=seconds))
    assert out.getvalue().splitlines() == [
        "  … packaging    12 s  training rows: 12 of 8,000",
        "  … packaging    1 min 15 s  training rows: 75 of 8,000",
    ]
    drawn = io.StringIO()
    with packaging(Console(file=drawn, width=100, force_terminal=True)) as progress:
        progress(PackagingProgress(stage="edge rows", done=0, total=74, seconds=1.0))
    assert "edge rows: 0 of 74" in drawn.getvalue()
