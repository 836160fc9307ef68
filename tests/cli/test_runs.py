from __future__ import annotations

import math
import subprocess
import sys

import pytest

from everloop.cli.plot import draw_curves
from everloop.records import Run
from everloop.stores import open_store
from everloop.tracking import start_run


@pytest.fixture
def ids(everloop):
    """The ids of three runs in the store of the folder."""
    found = []
    with open_store(".everloop") as store:
        for number in range(3):
            with start_run(
                f"run-{number}", store=store, params={"lr": 10.0**-number}, tags={"team": "ab"[number % 2]}
            ) as run:
                for step in range(50):
                    run.log(loss=1 / (step + 1 + number), step=step)
                run.log_artifact("notes", f"{number}".encode())
            found.append(run.id)
    return found


def test_runs_are_found_by_filter_order_and_page(everloop, ids):
    rows = everloop("runs", "ls", "--where", "params.lr < 0.5", "-o", "params.lr", "--json").json
    assert [row["name"] for row in rows] == ["run-2", "run-1"]
    rows = everloop("runs", "ls", "--columns", "name,metrics.loss", "-o", "-metrics.loss", "--json").json
    assert list(rows[0]) == ["id", "name", "metrics.loss"]
    assert [row["name"] for row in rows] == ["run-0", "run-1", "run-2"]
    first = everloop("runs", "ls", "--limit", "2", "-o", "name")
    assert "run-1" in first.out
    token = first.err.split("--after ")[1].strip()
    second = everloop("runs", "ls", "--limit", "2", "-o", "name", "--after", token)
    assert "run-2" in second.out
    assert "run-1" not in second.out
    assert second.err == ""
    wrong = everloop("runs", "ls", "--where", "metrcs.loss > 1")
    assert wrong.code == 2
    assert "Did you mean 'metrics'" in wrong.err
    assert "team" in everloop("runs", "ls", "--columns", "tags.team").out


def test_runs_are_compared_and_plotted(everloop, ids):
    shown = everloop("runs", "diff", ids[0], ids[1])
    assert "lr" in shown.out
    assert everloop("runs", "diff", *ids, "--json").json["params"] == {"lr": [1.0, 0.1, 0.01]}
    assert everloop("runs", "diff", ids[0]).code == 2
    drawn = everloop("runs", "plot", ids[0], ids[1])
    assert "loss" in drawn.out
    assert any(0x2800 < ord(sign) < 0x2900 for sign in drawn.out)
    course = everloop("runs", "plot", ids[0], "--points", "10", "--json").json
    assert course[0]["total"] == 50
    assert len(course[0]["step"]) <= 10
    assert "Artifacts" in everloop("runs", "show", ids[0]).out


def test_log_is_another_name_for_plot(everloop, ids):
    assert everloop("runs", "log", *ids).out == everloop("runs", "plot", *ids).out
    listed = everloop("runs", "--help").out
    assert "  plot " in listed
    assert "  log " not in listed


def test_a_single_run_is_counted_in_the_singular(everloop, ids):
    assert "Exported 1 run and 1 object →" in everloop("runs", "export", ids[0], "--to", "one.zip").out
    assert "1 run added, 0 updated, 0 already known." in everloop("runs", "import", "one.zip", "--home", "other").out
    assert "Deleted 1 run. Undo with: everloop runs restore" in everloop("runs", "rm", "--yes", ids[0]).out


def test_runs_are_archived_deleted_and_restored(everloop, ids):
    assert everloop("runs", "archive", ids[0]).code == 0
    assert len(everloop("runs", "ls", "--json").json) == 2
    assert len(everloop("runs", "ls", "--archived", "--json").json) == 3
    everloop("runs", "archive", "--undo", ids[0])
    unasked = everloop("runs", "rm", ids[0])
    assert unasked.code == 2
    assert "--yes" in unasked.err
    assert len(everloop("runs", "ls", "--json").json) == 3
    assert everloop("runs", "rm", "--yes", ids[0], ids[1]).code == 0
    assert [row["name"] for row in everloop("runs", "ls", "--json").json] == ["run-2"]
    assert {row["id"] for row in everloop("runs", "ls", "--deleted", "--json").json} == set(ids[:2])
    assert everloop("runs", "restore", ids[0], ids[1]).code == 0
    assert len(everloop("runs", "ls", "--json").json) == 3
    assert everloop("runs", "restore", ids[0]).code == 3


def test_runs_are_exported_and_imported(everloop, ids):
    assert "3 runs and 3 objects" in everloop("runs", "export", "--to", "all.zip").out
    assert everloop("runs", "export", ids[0], "--to", "all.zip").code == 4
    done = everloop("runs", "import", "all.zip", "--home", "other", "--json").json
    assert set(done["added"]) == set(ids)
    assert "3 already known" in everloop("runs", "import", "all.zip", "--home", "other").out
    assert everloop("runs", "import", "none.db").code == 3


def test_a_plot_has_axis_limits_and_survives_odd_numbers():
    lines = draw_curves([([0, 1, 2, 3], [0.0, 10.0, math.nan, 5.0]), ([0, 3], [math.inf, 2.0])], 60, 6)
    assert len(lines) == 7
    assert lines[0].startswith("10 ┤")
    assert lines[5].startswith(" 0 ┤")
    assert lines[6].split() == ["0", "3"]
    assert draw_curves([([], [])], 60, 6) == ["no finite values"]
    whole, broken = (draw_curves([([0, 1, 2, 3], [0.0, 1.0, value, 0.0])], 60, 6) for value in (1.0, math.nan))
    assert sum(line.count("[cyan]") for line in broken) < sum(line.count("[cyan]") for line in whole) / 2, "a gap"
    assert len(draw_curves([([1], [5.0])], 60, 4)) == 5
    assert len(draw_curves([([0, 1], [-1.7e308, 1.7e308])], 60, 4)) == 5


KILLED = """
import os, signal
import everloop as el
run = el.start_run("killed")
for step in range(50):
    run.log(loss=step / 2, step=step)
print(run.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("command", ["ls", "ls --state", "show", "diff", "log"])
def test_a_killed_script_is_noticed_by_the_next_command(everloop, command):
    done = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False)
    run = done.stdout.strip()
    match command:
        case "ls":
            (seen,) = everloop("runs", "ls", "--json").json
        case "ls --state":
            (seen,) = everloop("runs", "ls", "--state", "lost", "--json").json
        case "show":
            seen = everloop("runs", "show", run[:20], "--json").json["run"]
        case "log":
            (course,) = everloop("runs", "log", run, "--json").json
            assert (course["metric"], course["total"]) == ("loss", 50)
            seen = everloop("runs", "show", run, "--json").json["run"]
        case "diff":
            assert everloop("runs", "diff", run, run).code == 0
            with open_store(".everloop") as store:
                seen = vars_of(store.records.get(Run, run))
    assert (seen["id"], seen["state"], seen["metrics"]) == (run, "lost", {"loss": 24.5})


def vars_of(run):
    return {name: getattr(run, name) for name in ("id", "state", "metrics")}
