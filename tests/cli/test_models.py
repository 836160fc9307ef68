"""`everloop models` as people read it: in narrow and wide terminals nothing is cut off, and decisions are told."""

from __future__ import annotations

import pytest

from everloop.models import register
from everloop.records import GateResult, ModelVersion, Package
from everloop.stores import open_store

SIGNATURE = {
    "task": "binary",
    "inputs": [{"name": f"x{number}", "type": "float", "nullable": number == 0} for number in range(20)],
    "outputs": [{"name": "label", "type": "string"}],
}
EVIDENCE = "paired difference in roc_auc +0.010 [+0.004, +0.016] over 5,000 rows of the holdout"
ACTOR = "user:ann@build-host-7.example"


@pytest.fixture
def models(everloop):
    """The command, on a store with three versions and one that came over MLflow's protocol."""
    with open_store(".everloop", actor=ACTOR) as store:
        for number in (1, 2, 3):
            package = store.new(
                Package, digest=f"sha256:{number:064x}", format="lightgbm", signature=SIGNATURE, size_bytes=123456
            )
            store.records.put(package)
            evaluation = {"metrics": {"roc_auc": {"value": 0.7 + number / 100, "low": 0.69, "high": 0.75}}}
            made = register(store, "flight-delays", package, snapshot=f"flights@{number}", evaluation=evaluation)
            gate = store.new(GateResult, gate="not worse", outcome="pass", candidate=made.key, message=EVIDENCE)
            store.records.put(gate)
        logged = {"source": "models:/m-1", "logged_model": "m-1"}
        store.records.put(store.new(ModelVersion, model="sent", version=1, package="", **logged))
    return everloop


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_nothing_is_cut_off(models, monkeypatch, width):
    reason = "better in winter, see the report of the review in March"
    models("models", "policy", "flight-delays@staging", "--approvals", "1")
    for arguments in (
        ("promote", "flight-delays@1", "--reason", "the first"),
        ("promote", "flight-delays@2", "--reason", reason),
        ("promote", "flight-delays@3", "--alias", "staging", "--reason", reason),
    ):
        assert models("models", *arguments).code == 0
    monkeypatch.setenv("COLUMNS", str(width))

    def told(*arguments):
        said = models("models", *arguments)
        assert said.code == 0
        assert all(len(line) <= width for line in said.out.splitlines())
        return said.out

    listed = told("ls")
    assert all(holds(listed, part) for part in ("flight-delays@3", "registered", "champion", "roc_auc 0.730", "sent@1"))
    shown = told("show", "flight-delays@2")
    for part in ("roc_auc 0.72 [0.69 to 0.75]", "lightgbm, 123,456 bytes", "x0 (float, may be null)", "8 more", ACTOR):
        assert holds(shown, part)
    assert all(holds(shown, word) for word in EVIDENCE.split())
    past = told("history", "flight-delays")
    assert all(holds(past, word) for word in ("first", *reason.split()))
    done = told("history", "flight-delays@2")
    assert all(holds(done, word) for word in ("registered", "became", "flight-delays@champion", "released"))
    asked = told("requests")
    assert all(holds(asked, word) for word in ("flight-delays@staging", "flight-delays@3", "open", *reason.split()))
    changed = told("diff", "flight-delays@1", "flight-delays@2")
    assert all(holds(changed, word) for word in ("flights@1", "flights@2", "sha256:000000000000", "0.01"))


def holds(text, part):
    """Whether a text that may be broken anywhere holds this."""
    return "".join(part.split()) in "".join(text.split())


def test_a_version_without_package_says_how_to_get_one(models):
    assert "everloop models adopt sent@1" in models("models", "show", "sent@1").out
    shown = models("models", "show", "sent@1", "--json").json
    assert (shown["package"], shown["version"]["source"]) == (None, "models:/m-1")
    refused = models("models", "promote", "sent@1")
    assert refused.code == 4
    assert "everloop models adopt sent@1" in refused.err
    assert models("models", "card", "sent@1").code == 0
    assert models("models", "diff", "sent@1", "flight-delays@1").code == 0


def test_compare_and_set_by_hand(models):
    assert models("models", "promote", "flight-delays@1", "--expect", "nobody").code == 0
    late = models("models", "promote", "flight-delays@2", "--expect", "nobody")
    assert late.code == 4
    assert "held by flight-delays@1, not by nobody" in " ".join(late.err.split())
    assert models("models", "promote", "flight-delays@2", "--expect", "flight-delays@1").code == 0
    # Once more changes nothing.
    assert models("models", "promote", "flight-delays@2").code == 0
    assert len(models("models", "history", "flight-delays", "--json").json) == 2


def test_an_alias_without_traffic_is_taken_back(models):
    for number in (1, 2):
        models("models", "promote", f"flight-delays@{number}", "--alias", "staging")
    said = models("models", "rollback", "flight-delays@staging", "--reason", "too slow")
    assert said.out.strip() == "flight-delays@staging is flight-delays@1 again."
    assert models("models", "rollback", "flight-delays@nothing").code == 3
    history = models("models", "history", "flight-delays@staging", "--json").json
    assert [(one["version"], one["reason"]) for one in history][-1] == ("flight-delays@1", "too slow")


def test_archived_versions_are_not_listed_unless_asked_for(models):
    models("models", "archive", "flight-delays@2")
    assert [one["key"] for one in models("models", "ls", "flight-delays", "--json").json] == [
        "flight-delays@3",
        "flight-delays@1",
    ]
    assert len(models("models", "ls", "flight-delays", "--all", "--json").json) == 3
    assert [one["key"] for one in models("models", "ls", "--limit", "1", "--json").json] == ["sent@1"]


def test_wishes_are_taken_back_and_policies_read(models):
    assert models("models", "policy", "flight-delays", "--json").json["approvals"] == 0
    assert "anybody's word" in models("models", "policy", "flight-delays").out
    assert "2 others agree" in models("models", "policy", "flight-delays", "--approvals", "2").out
    asked = models("models", "promote", "flight-delays@1", "--json").json
    assert models("models", "withdraw", asked["id"][:18]).out.strip().endswith("withdrawn.")
    assert models("models", "approve", asked["id"]).code == 4
    assert models("models", "requests", "--json").json == []


def test_history_says_when_there_is_none(models):
    assert "Nothing was done about flight-delays@9" in models("models", "history", "flight-delays@9").out
    assert "Nobody held flight-delays@staging" in models("models", "history", "flight-delays@staging").out
    assert models("models", "history", "flight-delays@1", "--at", "2001-01-01", "--json").json == []
