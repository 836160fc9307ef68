"""Gates in a run of a loop, and their reports on the command line."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from everloop.cli.app import run
from everloop.records import GateResult, ModelVersion

GATES = """gates=[
        el.AtLeast("roc_auc", 0.60), el.BetterThan("champion"), el.Slices("shop", worst_gap=0.3),
        el.Calibrated(worst_ece=0.3), el.Fair("shop", worst_gap=0.5), el.Size(mb=5), el.Latency(p99_ms=500),
        el.Robust(worst_loss=0.3), el.NoLeakage(), el.MeetsContract(), el.PackageParity(),
        el.Size(mb=0.0001, severity="warning"), mean_is_right,
    ],"""
FUNCTION = """
def mean_is_right(context):
    return abs(context.scores.mean() - context.labels.mean()) < LIMIT

LIMIT = 0.2

loop = el.Loop("""


def declare(shop) -> None:
    old = 'gates=[el.AtLeast("roc_auc", 0.60), el.NotWorseThan("champion"), el.Slices("shop", worst_gap=0.3)],'
    shop.change("loop.py", old, GATES)
    shop.change("loop.py", "\nloop = el.Loop(", FUNCTION)


@pytest.mark.slow
def test_every_gate_judges_a_real_candidate_and_reports_follow(shop, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(shop.folder)
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
    declare(shop)
    assert run(["run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    outcomes = {gate["gate"]: gate["outcome"] for gate in result["gates"]}
    warning = next(gate for gate in result["gates"] if gate["severity"] == "warning")
    assert (warning["gate"], warning["outcome"]) == ("size 0.0001 MB", "fail")
    assert {name for name, outcome in outcomes.items() if outcome != "pass"} == {"size 0.0001 MB"}
    assert outcomes["mean_is_right"] == "pass"
    assert result["release"]["state"] == "completed"
    evidence = {gate["gate"]: gate["evidence"] for gate in result["gates"]}
    assert evidence["parity"]["rows"] > 100
    assert evidence["parity"]["largest_difference"] <= 1e-6
    assert {"nulls", "noise", "unseen"} & set(evidence["robust to nulls 0.1, noise 0.1, unseen 0.1, permuted columns"])
    assert evidence["meets contract"]["contract"]

    # An unchanged loop does not check again; a changed function does.
    assert run(["run", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [gate["id"] for gate in again["gates"]] == [gate["id"] for gate in result["gates"]]
    shop.change("loop.py", "LIMIT = 0.2", "LIMIT = 0.0")
    for name in ("loop", "rules", "limits"):
        __import__("sys").modules.pop(name, None)
    assert run(["run", "--json"]) == 11
    rejected = json.loads(capsys.readouterr().out)
    assert next(gate for gate in rejected["gates"] if gate["gate"] == "mean_is_right")["outcome"] == "fail"

    junit, markdown = tmp_path / "gates.xml", tmp_path / "gates.md"
    report = ["models", "gates", "returns@1", "--junit", str(junit), "--markdown", str(markdown), "--json"]
    assert run(report) == 11
    data = json.loads(capsys.readouterr().out)
    assert data["rejected"] is True
    suite = ET.parse(junit).getroot()[0]  # noqa: S314 - our own file
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("13", "1", "1")
    assert "Rejected: 1 of 13 gates failed (mean_is_right)." in markdown.read_text()

    assert run(["models", "check", "returns@1", "--json"]) == 11
    checked = json.loads(capsys.readouterr().out)
    assert len(checked["gates"]) == 13
    with shop.open() as store:
        assert not store.records.find(GateResult, ("id", "=", checked["gates"][0]["id"]))
    rows = str(shop.folder / "data" / "orders" / "0.parquet")
    assert run(["models", "check", "returns@1", "--data", rows, "--record", "--json"]) == 11
    recorded = json.loads(capsys.readouterr().out)
    with shop.open() as store:
        assert store.records.get(GateResult, recorded["gates"][0]["id"]).evidence["rows"] == 1500
        assert store.records.get(ModelVersion, "returns@1").key == "returns@1"


def test_a_missing_column_stops_the_run_before_training(shop, capsys):
    shop.change("loop.py", 'el.Slices("shop", worst_gap=0.3)', 'el.Fair("town")')
    code = run(["run", "--dir", str(shop.folder), "--home", str(shop.folder / ".everloop")])
    assert code not in (0, 11)
    assert "Fair('town'): the dataset has no such column" in capsys.readouterr().err
    with shop.open() as store:
        assert store.records.find(ModelVersion) == []
