"""`everloop data contract DATASET --accept`, as the error of a run advises."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest


@pytest.fixture
def project(everloop):
    assert everloop("init").code == 0
    quick = Path("loop.py").read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)")
    Path("loop.py").write_text(quick)
    assert everloop("run", "--json").code == 0
    return everloop


@pytest.mark.slow
def test_a_deliberate_change_is_accepted_by_the_command_that_the_error_names(project):
    everloop = project
    table = pl.read_csv("data/wine.csv")
    table.drop("ash").with_columns(pl.col("hue").alias("hue again")).write_csv("data/wine.csv")
    stopped = everloop("run")
    assert stopped.code == 6
    assert "column 'ash' is missing" in stopped.err
    assert "everloop data contract work --accept" in stopped.err.replace("\n", " ")

    written = Path("contracts/work.toml").read_text()
    written = written.replace('[[columns]]\nname = "hue"', '# How red it is.\n[[columns]]\nname = "hue" # by eye')
    Path("contracts/work.toml").write_text(written)
    accepted = everloop("data", "contract", "work", "--accept")
    assert accepted.code == 0
    assert "dropped" in accepted.out
    assert "hue again" in accepted.out
    assert "work@2 is the contract from now on" in accepted.out
    adapted = Path("contracts/work.toml").read_text()
    assert adapted != written
    assert '\n\n# How red it is.\n[[columns]]\nname = "hue" # by eye\n' in adapted
    events = everloop("events", "--limit", "500", "--json").json
    event = next(one for one in events if one["verb"] == "contract_accepted")
    assert {(change["kind"], change["column"]) for change in event["data"]["changes"]} == {
        ("dropped", "ash"),
        ("added", "hue again"),
    }
    assert event["data"]["before"] == "work@1"

    sys.modules.pop("loop", None)
    again = everloop("run", "--json")
    assert again.code == 0
    assert again.json["release"]["state"] in ("rolling_out", "completed", "rejected")
    assert "not worse than champion" in [gate["gate"] for gate in again.json["gates"]]

    nothing = everloop("data", "contract", "work", "--accept", "--json")
    assert nothing.json["changes"] == []
    assert nothing.json["contract"] == "work@2"


def test_a_dataset_that_is_kept_by_hand_has_a_contract_too(everloop):
    Path("sub").mkdir()
    pl.DataFrame({"a": [1, 2, 3]}).write_parquet("a.parquet")
    assert everloop("data", "add", "a.parquet", "things").code == 0
    first = everloop("data", "contract", "things", "--accept", "--json").json
    assert (first["contract"], first["before"], first["path"]) == ("things@1", None, None)
    pl.DataFrame({"a": [1, 2, 900], "b": ["x", "y", "z"]}).write_parquet("a.parquet")
    everloop("data", "add", "a.parquet", "things")
    second = everloop("data", "contract", "things", "--accept", "--json").json
    assert second["contract"] == "things@2"
    assert next((change["kind"], change["column"]) for change in second["changes"]) == ("added", "b")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing", "--accept"], 3, "no dataset 'nothing'"),
        (["work", "--accept", "--output", "x.toml"], 2, "--output"),
        (["work@1", "--accept"], 3, "work@1"),
    ],
)
def test_what_cannot_be_accepted_is_refused(project, arguments, code, says):
    result = project("data", "contract", *arguments)
    assert result.code == code
    assert says in result.err
