"""Commands as people type them, in a project that `everloop init` created."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from everloop.cli.app import app


@pytest.fixture
def project(everloop):
    assert everloop("init").code == 0
    quick = Path("loop.py").read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)")
    Path("loop.py").write_text(quick)
    return everloop


@pytest.mark.slow
def test_init_run_and_inspect(project):
    everloop = project
    assert everloop("init").code == 4  # nothing is overwritten
    first = everloop("run", "--json")
    assert first.code == 0
    steps = {step["name"]: step for step in first.json["steps"]}
    assert {step["status"] for step in steps.values()} == {"ran"}
    assert {"name", "status", "seconds", "reason"} <= steps["train"].keys()
    version = first.json["version"]["key"]
    assert version == "work@1"

    again = everloop("run", "--json").json
    assert {step["status"] for step in again["steps"]} == {"cached"}
    assert {step["reason"] for step in again["steps"]} == {"cached"}

    source = Path("loop.py").read_text()
    Path("loop.py").write_text(source.replace('pl.col("hue")', '(pl.col("hue") + 1)'))
    sys.modules.pop("loop", None)
    plan = everloop("run", "--explain", "--json").json["steps"]
    assert [step["name"] for step in plan if step["status"] == "cached"] == ["wines"]
    assert "prepare" in next(step["reason"] for step in plan if step["name"] == "prepare")
    assert everloop("run", "--explain").out.count("would run") == len(plan) - 1

    runs = everloop("runs", "ls", "--json").json
    assert [run["state"] for run in runs] == ["finished", "finished"]
    shown = everloop("runs", "show", runs[0]["id"][:18])
    assert shown.code == 0
    assert "cached" in shown.out
    assert everloop("data", "ls", "--json").json[0]["key"] == "work@1"
    assert "cultivar" in everloop("data", "show", "work@1").out
    assert everloop("models", "ls", "--json").json[0]["state"] == "released"
    assert "at least roc_auc" in everloop("models", "show", "work@champion").out
    assert everloop("models", "history", "work", "--json").json[0]["version"] == version
    assert everloop("endpoints", "ls", "--json").json[0]["routes"][0]["percent"] == 100
    release = everloop("release", "ls", "--json").json[0]
    assert release["state"] == "completed"
    assert "first champion" in everloop("release", "show", release["id"][:18]).out
    assert everloop("monitor", "findings", "--json").json == []
    assert "No findings" in everloop("monitor", "findings").out
    lineage = everloop("lineage", version, "--json").json
    assert lineage["snapshot"]["key"] == "work@1"
    assert lineage["code"].startswith("code:")
    assert {event["verb"] for event in everloop("events", "--json").json} >= {"registered", "completed", "alias_set"}
    assert everloop("verify", "--json").json["whole"] is True

    scored = everloop("predict", version, "-i", "data/wine.csv", "-o", "scored.parquet", "--json")
    assert scored.code == 2  # the raw file lacks what `prepare` adds
    assert "darkness" in scored.out


def test_predict_scores_a_file(project):
    import polars as pl

    everloop = project
    everloop("run", "--json")
    table = pl.read_csv("data/wine.csv").with_columns((pl.col("color_intensity") / pl.col("hue")).alias("darkness"))
    table.write_parquet("table.parquet")
    result = everloop("predict", "work", "--input", "table.parquet", "--output", "scored.csv", "--json")
    assert result.json | {"model": "work@1", "rows": 178, "output": "scored.csv"} == result.json
    scored = pl.read_csv("scored.csv")
    assert (scored["label"] == scored["cultivar"]).mean() > 0.9


@pytest.mark.slow
def test_gc_backup_and_restore(project):
    everloop = project
    everloop("run", "--json")
    assert everloop("gc", "--dry-run", "--grace-s", "0", "--json").code == 0
    assert everloop("gc", "--grace-s", "0", "--json").code == 0
    assert everloop("verify").code == 0
    assert everloop("backup", "copy.tar").code == 0
    assert everloop("restore", "copy.tar", "--home", "other/.everloop").code == 0
    assert everloop("models", "ls", "--home", "other/.everloop", "--json").json[0]["key"] == "work@1"
    assert everloop("verify", "--home", "other/.everloop").code == 0


@pytest.mark.slow
def test_flipped_bit_is_found(project):
    everloop = project
    everloop("run", "--json")
    biggest = max((path for path in Path(".everloop/objects").rglob("*") if path.is_file()), key=os.path.getsize)
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.chmod(0o644)
    biggest.write_bytes(data)
    result = everloop("verify")
    assert result.code == 10
    assert biggest.name[:8] in result.out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["run"], 2, "No loop.py"),
        (["up"], 2, "everloop init"),
        (["runs", "ls"], 3, "everloop init"),
        (["verify"], 3, "There is no everloop store"),
        (["serve", "nothing"], 3, "There is no everloop store"),
        (["restore", "nothing.tar", "--home", "h"], None, "nothing.tar"),
        (["nonsense"], 2, "nonsense"),
        (["runs", "ls", "--limit", "0"], 2, "limit"),
    ],
)
def test_errors_say_what_helps(everloop, arguments, code, says):
    result = everloop(*arguments)
    assert result.code == code if code is not None else result.code > 0
    assert says in result.err
    assert "Traceback" not in result.err


def test_errors_are_json_with_json(everloop):
    result = everloop("run", "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == "ProjectError"
    assert "everloop init" in result.json["error"]["help"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["models", "show", "work@9"], 3, "Versions: 1"),
        (["runs", "show", "nothing"], 3, "nothing"),
        (["lineage", "nothing"], 3, "no prediction, version, snapshot, run or artifact"),
        (["run", "--set", "budget"], 2, "NAME=VALUE"),
        (["run", "--set", "no_such=1"], 2, "no_such"),
        (["run", "--on", "moon"], 2, "moon"),
        (["serve", "work", "--host", "0.0.0.0"], 2, "everloop endpoints token work"),
        (["run", "no_step"], 3, "prepare"),
        (["release", "advance", "work"], 3, "No release is rolling out"),
        (["release", "rollback", "work"], 3, "first champion"),
        (["predict", "work", "-i", "nothing.csv", "-o", "out.csv"], 6, "nothing.csv"),
        (["predict", "work", "-i", "data/wine.csv", "-o", "out.xls"], 2, ".xls"),
    ],
)
def test_errors_in_a_project_say_what_helps(project, arguments, code, says):
    assert project("run", "--json").code == 0
    result = project(*arguments)
    assert (result.code, says in result.err) == (code, True), result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_run_works_in_a_subfolder_of_the_project(project):
    folder = Path.cwd()
    Path("deep/er").mkdir(parents=True)
    os.chdir("deep/er")
    assert project("run", "--json").code == 0
    assert (folder / ".everloop" / "everloop.db").is_file()
    assert not (folder / "deep" / "er" / ".everloop").exists()


@pytest.mark.slow
def test_the_pool_gives_the_same_result(project):
    result = project("run", "--on", "pool", "--json")
    assert result.code == 0
    assert {step["status"] for step in result.json["steps"]} == {"ran"}


@pytest.mark.slow
def test_written_project_passes_its_own_test(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def commands(group=app, path=()):
    """Yield the path and the function of each command, without hidden aliases."""
    for command in group.registered_commands:
        if not command.hidden:
            name = command.name or command.callback.__name__.rstrip("_")
            yield (*path, name), command.callback
    for sub in group.registered_groups:
        if sub.hidden is not True:
            yield from commands(sub.typer_instance, (*path, sub.name))


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in commands()])
def test_every_command_has_help(everloop, path):
    result = everloop(*path.split(), "--help")
    assert result.code == 0
    assert len(result.out.splitlines()) > 5


def test_every_command_but_up_takes_json():
    import inspect

    without = {path for path, callback in commands() if "json" not in inspect.signature(callback).parameters}
    assert without == {("up",)}


def test_every_command_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    missing = [" ".join(path) for path, _ in commands() if f"## `everloop {' '.join(path)}`" not in text]
    assert missing == []


VIEW = """
from datetime import UTC, datetime, timedelta

READ = 1.5


def readings():
    now = datetime.now(UTC)
    return pl.DataFrame({"origin": ["JFK", "LGA"], "t": [now - timedelta(hours=1)] * 2, "temp": [READ, 2.5]})


weather = el.FeatureView("weather", readings, entity="origin", time="t", ttl="6h")
"""


def test_features_are_materialized_and_served(project):
    everloop = project
    assert everloop("features", "ls", "--json").code != 0
    Path("loop.py").write_text(Path("loop.py").read_text() + VIEW)
    sys.modules.pop("loop", None)
    made = everloop("features", "materialize", "--json").json
    assert [(item["view"]["key"], item["added"], item["online"]) for item in made] == [("weather@1", 2, 2)]
    assert everloop("features", "get", "weather", "origin=JFK", "--json").json == {"temp": 1.5}
    assert everloop("features", "get", "weather", "origin=EWR", "--json").json == {"temp": None}
    assert not everloop("features", "show", "weather", "--json").json["freshness"]["stale"]
    assert "weather@1" in everloop("features", "ls").out
    Path("loop.py").write_text(Path("loop.py").read_text().replace("READ = 1.5", "READ = 3.5"))
    sys.modules.pop("loop", None)
    assert everloop("features", "materialize", "weather", "--json").json[0]["view"]["key"] == "weather@2"
    assert everloop("features", "get", "weather", "origin=JFK", "--json").json == {"temp": 3.5}
    filled = everloop("features", "backfill", "weather", "--from", "2020-01-01", "--to", "2021-01-01", "--json").json
    assert [(item["view"]["key"], item["added"]) for item in filled] == [("weather@2", 0)]
    assert everloop("features", "backfill", "wind").code == 3
    later = datetime.now(UTC) + timedelta(minutes=5)
    pl.DataFrame({"origin": ["JFK", "LGA"], "at": [later] * 2, "temp": [3.5, 9.0]}).write_parquet("logged.parquet")
    checked = everloop("features", "check", "weather", "logged.parquet", "--json")
    assert (checked.code, checked.json["different"]) == (1, {"temp": 1})
    for words, message in (
        (("materialize", "wind"), "There is no feature view 'wind'"),
        (("get", "wind", "a=1"), "No feature view 'wind'"),
        (("get", "weather", "JFK"), "does not name a column"),
    ):
        refused = everloop("features", *words)
        assert refused.code != 0
        assert message in refused.err


def test_the_exit_code_of_verify_says_what_it_found(everloop, tmp_path, monkeypatch):
    from everloop.errors import UnavailableError
    from everloop.stores import open_store
    from everloop.stores.tables.delta_tables import Tables

    home = tmp_path / "home"
    with open_store(home, project="p") as store:
        for number in range(3):
            at = datetime(2024, 1, 1, tzinfo=UTC)
            store.tables.append("t", pl.DataFrame({"event_at": [at], "x": [number]}))
    at_home = ("--home", str(home))
    assert everloop("backup", "kept.tar", *at_home).code == 0
    result = everloop("verify", "--json", *at_home)
    assert (result.code, result.json["whole"]) == (0, True)
    assert result.json["report"]["checked"]["files"] >= 9

    entry = home / "tables" / "t" / "_delta_log" / f"{1:020}.json"
    data_file = next((home / "tables" / "t").glob("*.parquet"))
    for path in (entry, data_file):
        data = bytearray(path.read_bytes())
        data[40] ^= 4
        path.write_bytes(data)
    result = everloop("verify", "--json", *at_home)
    assert (result.code, result.json["whole"]) == (10, False)
    assert {problem["cure"] for problem in result.json["report"]["problems"]} == {"log-entry", None}
    assert "--repair" in everloop("verify", *at_home).out
    assert everloop("verify", "--from", "kept.tar", *at_home).code == 2
    result = everloop("verify", "--repair", "--yes", *at_home)
    assert result.code == 10
    assert "Repaired: t" in result.out
    assert everloop("verify", "--repair", "--yes", "--from", "kept.tar", *at_home).code == 0
    assert (home / "quarantine").stat().st_mode & 0o777 == 0o700
    assert everloop("events", "--kind", "store", "--json", "--home", str(home)).code == 0

    def away(*_: object) -> object:
        raise UnavailableError("The bucket does not answer.")

    monkeypatch.setattr(Tables, "files", away)
    result = everloop("verify", "--json", *at_home)
    assert (result.code, result.json["whole"]) == (9, False)
    assert result.json["report"]["problems"] == []
