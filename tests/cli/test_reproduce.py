"""`everloop reproduce` for the runs of a loop and of a script."""

from __future__ import annotations

import sys

import pytest

from everloop.records import Run
from everloop.stores import open_store

LOOP = """
import everloop as el
from rules import keep

@el.step
def orders():
    return el.read("data/orders.csv")

@el.step
def prepare(orders):
    return keep(orders)

loop = el.Loop(
    "shop",
    data=el.Dataset(prepare, target="returned"),
    train=el.AutoTrain(metric="roc_auc", budget_s=20, trials=1, candidates=("linear",), threads=1),
    gates=[el.AtLeast("roc_auc", 0.5), el.NotWorseThan("champion")],
    serve=el.Endpoint("returns"),
)
"""


@pytest.fixture
def shop(everloop, tmp_path):
    """A project whose loop ran once; gives its folder and the id of the run."""
    folder = tmp_path / "work"
    (folder / "loop.py").write_text(LOOP)
    (folder / "rules.py").write_text("def keep(orders):\n    return orders.collect()\n")
    (folder / "data").mkdir()
    lines = [f"{i},{i % 7},{(i * 37) % 11},{int((i % 7) > 3)}" for i in range(400)]
    (folder / "data" / "orders.csv").write_text("\n".join(["order,price,weight,returned", *lines]) + "\n")
    assert everloop("run").code == 0
    yield folder, last_run(folder)
    for name in ("loop", "rules"):
        sys.modules.pop(name, None)


def last_run(folder):
    with open_store(folder / ".everloop") as store:
        return store.records.find(Run, order="-id", limit=1)[0].id


@pytest.mark.slow
def test_a_run_of_a_loop_is_identical(everloop, shop):
    _, run = shop
    result = everloop("reproduce", run)
    assert result.code == 0, result.out + result.err
    assert "identical:" in result.out
    assert "code has not changed since the run" in result.out


@pytest.mark.slow
def test_a_fully_cached_run_is_traced_to_the_run_that_did_the_work(everloop, shop):
    folder, run = shop
    assert everloop("run").code == 0
    again = last_run(folder)
    result = everloop("reproduce", again, "--json")
    assert result.code == 0
    assert result.json["identical"]
    assert result.json["run"] == run != again


@pytest.mark.slow
def test_changed_data_are_read_as_they_were(everloop, shop):
    folder, run = shop
    with (folder / "data" / "orders.csv").open("a") as file:
        file.write("1000,3,3,1\n")
    result = everloop("reproduce", run)
    assert result.code == 0, result.out
    assert "have changed since" in result.out


def test_changed_code_outside_of_git_is_refused(everloop, shop):
    folder, run = shop
    (folder / "rules.py").write_text("def keep(orders):\n    return orders.collect().head(300)\n")
    sys.modules.pop("rules")
    result = everloop("reproduce", run)
    assert result.code == 2
    assert "prepare has changed since the run, and it was not in git" in result.err


@pytest.mark.slow
def test_a_difference_is_named_with_exit_code_1(everloop, shop):
    from dataclasses import replace

    folder, run = shop
    with open_store(folder / ".everloop") as store:
        record = store.records.get(Run, run)
        step = next(one for one in steps_of(store, run) if one.name == "evaluate")
        other = store.objects.add(b'{"other": 1}')
        from everloop.records import Artifact

        artifact = store.records.get(Artifact, step.outputs["result"])
        store.records.update(replace(artifact, digest=other))
        assert record.state == "finished"
    result = everloop("reproduce", run, "--json")
    assert result.code == 1
    assert [one["subject"] for one in result.json["differences"]] == ["step evaluate"]


def steps_of(store, run):
    from everloop.records import StepRun

    return store.records.find(StepRun, ("run", "=", run))


@pytest.mark.slow
def test_the_scratch_folder_can_be_kept_and_is_never_overwritten(everloop, shop, tmp_path):
    _, run = shop
    assert everloop("reproduce", run[:30], "--keep", str(tmp_path / "kept")).code == 0
    with open_store(tmp_path / "kept" / "home") as store:
        assert len(store.records.find(Run)) == 1
    assert everloop("reproduce", run, "--keep", str(tmp_path / "kept")).code == 4
    assert everloop("reproduce", "nobody").code == 3


@pytest.mark.slow
def test_changed_code_is_taken_from_git(everloop, tmp_path, monkeypatch):
    import subprocess

    folder = tmp_path / "work"
    (folder / "loop.py").write_text(LOOP)
    (folder / "rules.py").write_text("def keep(orders):\n    return orders.collect()\n")
    (folder / ".gitignore").write_text("data/\n")
    (folder / "data").mkdir()
    lines = [f"{i},{i % 7},{(i * 37) % 11},{int((i % 7) > 3)}" for i in range(400)]
    (folder / "data" / "orders.csv").write_text("\n".join(["order,price,weight,returned", *lines]) + "\n")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert everloop("run").code == 0
    run = last_run(folder)
    (folder / "rules.py").write_text("def keep(orders):\n    return orders.collect().head(300)\n")
    for name in ("loop", "rules"):
        sys.modules.pop(name, None)
    result = everloop("reproduce", run)
    for name in ("loop", "rules"):
        sys.modules.pop(name, None)
    assert result.code == 0, result.out + result.err
    assert "The code was taken from the commit" in result.out


SCRIPT = """
import sys
import everloop as el
with el.start_run("train", params={"n": len(sys.argv)}) as run:
    run.log(loss=1.0)
"""


@pytest.fixture
def foreign(everloop, tmp_path, monkeypatch):
    """The id of a script's run whose seal is missing, as if it had come from another machine."""
    import os
    import subprocess
    from dataclasses import replace

    folder = tmp_path / "work"
    (folder / "train.py").write_text(SCRIPT)
    words = ["train.py", "two words", "--password", "hunter2", "\x1b[2Kx"]
    subprocess.run([sys.executable, *words], cwd=folder, env={**os.environ}, check=True, capture_output=True)
    with open_store(folder / ".everloop") as store:
        (run,) = store.records.find(Run)
        store.records.update(replace(run, source=replace(run.source, seal=None)))
    return run.id


@pytest.mark.slow
def test_a_foreign_run_is_refused_shown_and_executed_when_it_is_trusted(everloop, foreign):
    refused = everloop("reproduce", foreign)
    assert refused.code not in (0, 1)
    assert "data from elsewhere" in refused.err
    assert "--trust" in refused.err
    assert "\x1b" not in refused.err + refused.out
    as_json = everloop("reproduce", foreign, "--json")
    assert as_json.code == refused.code
    assert as_json.json["error"]["type"] == "TrustError"

    shown = everloop("reproduce", foreign, "--show")
    assert shown.code == 0
    lines = [line.strip() for line in shown.out.splitlines()]
    at = lines.index("train.py")
    assert lines[at - 1 : at + 5] == [
        sys.executable,
        "train.py",
        "'two words'",
        "--password",
        "'***password***'",
        r"$'\x1b[2Kx'",
    ]
    assert "\x1b" not in shown.out
    assert "hunter2" not in shown.out
    plan = everloop("reproduce", foreign, "--show", "--json").json
    assert plan["argv"] == [sys.executable, "train.py", "two words", "--password", "***password***", "\x1b[2Kx"]
    assert plan["provenance"]["kind"] == "foreign"

    missing = everloop("reproduce", foreign, "--trust")
    assert missing.code == 2
    assert "--with password=VALUE" in missing.err
    done = everloop("reproduce", foreign, "--trust", "--with", "password=hunter2")
    assert done.err.count("'two words'") == 1  # shown before it ran
    assert "hunter2" not in done.err + done.out
    assert [line for line in done.out.splitlines() if "differs" in line] == []
    assert done.code == 0


def test_the_digest_of_a_plan_can_be_trusted(everloop, foreign):
    digest = everloop("reproduce", foreign, "--show", "--json").json["provenance"]["digest"]
    assert everloop("trust", "add", digest, "--name", "read").code == 0
    assert everloop("reproduce", foreign, "--show", "--json").json["provenance"]["kind"] == "signed"


def test_a_masked_secret_is_taken_from_the_environment(everloop, foreign, monkeypatch):
    monkeypatch.setenv("EVERLOOP_WITH_PASSWORD", "hunter2")
    result = everloop("reproduce", foreign, "--trust")
    assert "were not recorded" not in result.err
    assert everloop("reproduce", foreign, "--trust", "--with", "other=x").code == 2
    assert everloop("reproduce", foreign, "--trust", "--with", "other").code == 2
