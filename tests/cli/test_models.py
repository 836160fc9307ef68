"""`everloop models` as people read it: nothing is cut off in narrow and wide terminals, and decisions are shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everloop.records import GateResult, ModelVersion, Package, Snapshot
from everloop.registry import get_version, register, remove_alias, set_alias
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

    def output(*arguments):
        result = models("models", *arguments)
        assert result.code == 0
        assert all(len(line) <= width for line in result.out.splitlines())
        return result.out

    listed = output("ls")
    assert all(holds(listed, part) for part in ("flight-delays@3", "registered", "champion", "roc_auc 0.730", "sent@1"))
    shown = output("show", "flight-delays@2")
    for part in ("roc_auc 0.72 [0.69 to 0.75]", "lightgbm, 123,456 bytes", "x0 (float, may be null)", "8 more", ACTOR):
        assert holds(shown, part)
    assert all(holds(shown, word) for word in EVIDENCE.split())
    past = output("history", "flight-delays")
    assert all(holds(past, word) for word in ("first", *reason.split()))
    done = output("history", "flight-delays@2")
    assert all(holds(done, word) for word in ("registered", "became", "flight-delays@champion", "released"))
    asked = output("requests")
    assert all(holds(asked, word) for word in ("flight-delays@staging", "flight-delays@3", "open", *reason.split()))
    changed = output("diff", "flight-delays@1", "flight-delays@2")
    assert all(holds(changed, word) for word in ("flights@1", "flights@2", "sha256:000000000000", "0.01"))


def holds(text, part):
    """Whether a text contains `part`, no matter where lines are broken."""
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
    # Repeating it changes nothing.
    assert models("models", "promote", "flight-delays@2").code == 0
    assert len(models("models", "history", "flight-delays", "--json").json) == 2


def test_an_alias_without_traffic_is_rolled_back(models):
    for number in (1, 2):
        models("models", "promote", f"flight-delays@{number}", "--alias", "staging")
    result = models("models", "rollback", "flight-delays@staging", "--reason", "too slow")
    assert result.out.strip() == "flight-delays@staging is again flight-delays@1."
    assert models("models", "rollback", "flight-delays@nothing").code == 3
    history = models("models", "history", "flight-delays@staging", "--json").json
    assert [(one["version"], one["reason"]) for one in history][-1] == ("flight-delays@1", "too slow")


def test_archived_versions_are_listed_only_with_all(models):
    models("models", "archive", "flight-delays@2")
    assert [one["key"] for one in models("models", "ls", "flight-delays", "--json").json] == [
        "flight-delays@3",
        "flight-delays@1",
    ]
    assert len(models("models", "ls", "flight-delays", "--all", "--json").json) == 3
    assert [one["key"] for one in models("models", "ls", "--limit", "1", "--json").json] == ["sent@1"]


def test_requests_are_withdrawn_and_policies_shown(models):
    assert models("models", "policy", "flight-delays", "--json").json["approvals"] == 0
    assert "moves without approval" in models("models", "policy", "flight-delays").out
    assert "once 2 other people have approved" in models("models", "policy", "flight-delays", "--approvals", "2").out
    asked = models("models", "promote", "flight-delays@1", "--json").json
    assert models("models", "withdraw", asked["id"][:18]).out.strip().endswith("withdrawn.")
    assert models("models", "approve", asked["id"]).code == 4
    assert models("models", "requests", "--json").json == []


def test_history_says_when_there_is_none(models):
    assert "no events about flight-delays@9" in models("models", "history", "flight-delays@9").out
    assert "No version has held flight-delays@staging" in models("models", "history", "flight-delays@staging").out
    assert models("models", "history", "flight-delays@1", "--at", "2001-01-01", "--json").json == []


def test_history_at_a_time_shows_who_when_why_and_the_evidence(models):
    models("models", "promote", "flight-delays@1", "--reason", "the first")
    told = models("models", "history", "flight-delays", "--at", "2999-01-01T00:00+01:00").out
    assert told.startswith("flight-delays@1 was flight-delays@champion at 2998-12-31 23:00:00 UTC")
    for part in ("since", "until", "now", "moved by", "user:", "the first", "release="):
        assert part in told
    never = models("models", "history", "flight-delays", "--at", "2001-01-01")
    assert "No version held flight-delays@champion at 2001-01-01 00:00:00 UTC" in never.out
    # A gap between two versions that held the alias stays visible.
    with open_store(".everloop") as store:
        remove_alias(store, "flight-delays", "champion")
        set_alias(store, "flight-delays", "champion", "flight-delays@2")
    assert "until" in models("models", "history", "flight-delays").out


@pytest.mark.parametrize("command", ["ls", "history"])
def test_a_missing_model_is_an_error(models, command):
    result = models("models", command, "nothing")
    assert result.code == 3
    assert "There is no model 'nothing'; models: flight-delays, sent." in " ".join(result.err.split())


def test_a_model_all_archived_says_so(models):
    models("models", "archive", "sent@1")
    assert "everloop models ls sent --all" in models("models", "ls", "sent").out


def test_requests_of_one_moment_have_ids_that_work(models):
    with open_store(".everloop") as store:
        store.simulate(store.now())
    models("models", "policy", "flight-delays", "--approvals", "1")
    for number in (1, 2, 3):
        result = models("models", "promote", f"flight-delays@{number}", "--reason", f"try {number}").out
        assert f"flight-delays@{number} instead of no version" in result
        shown = result.split()[-1]
        assert models("models", "reject", shown, "--reason", "not now").code == 0
    listed = models("models", "requests", "--all").out
    assert "rejected (not now)" in listed
    assert "--all" in models("models", "requests").out
    shown = models("models", "show", "flight-delays@2")
    assert "rejected (not now)" in shown.out
    (asked,) = models("models", "show", "flight-delays@2", "--json").json["requests"]
    assert (asked["state"], asked["reason"]) == ("rejected", "try 2")


def test_moving_straight_back_says_that_it_needs_no_approval(models):
    for number in (1, 2):
        models("models", "promote", f"flight-delays@{number}")
    models("models", "policy", "flight-delays", "--approvals", "1")
    assert "straight back needs no approval" in models("models", "promote", "flight-delays@1").out
    assert "is guarded by a policy" in models("models", "promote", "flight-delays@2").out


def test_failed_gates_are_named_when_a_version_is_promoted(models):
    with open_store(".everloop") as store:
        store.records.put(store.new(GateResult, gate="auc", outcome="fail", candidate="flight-delays@3", message="low"))
    assert "Failed gate: auc: low" in models("models", "promote", "flight-delays@3").out


def test_policies_are_listed(models):
    assert "No alias is guarded" in models("models", "policy").out
    assert "no model 'new' yet" in models("models", "policy", "new", "--approvals", "1").out
    assert [(one["key"], one["approvals"]) for one in models("models", "policy", "--json").json] == [
        ("new@champion", 1)
    ]
    assert models("models", "policy", "--approvals", "1").code == 2


def test_diff_shows_only_the_items_of_lists_that_differ(models):
    with open_store(".everloop") as store:
        for number, categories in ((1, ["a", "b"]), (2, ["b", "c"])):
            version = get_version(store, f"flight-delays@{number}")
            inputs = [{"name": "carrier", "type": "string", "categories": [*map(str, range(200)), *categories]}]
            store.records.update(replace(version, signature={"task": "binary", "inputs": inputs}))
            columns = {"carrier": "string", f"new_{number}": "int64"}
            snapshot = store.new(
                Snapshot, dataset="flights", version=number, digest=f"sha256:{number:064x}", rows=number * 1000,
                size_bytes=1, columns=columns,
            )  # fmt: skip
            store.records.put(snapshot)
    told = models("models", "diff", "flight-delays@1", "flight-delays@2").out
    for part in ("+0.01", "202 in all; only here: a", "202 in all; only here: c", "data: column new_1", "data: rows"):
        assert part in told
    assert "199" not in told


def test_a_champion_without_an_endpoint_is_rolled_back_as_well(models):
    assert "There is no 'sent@champion'" in " ".join(models("models", "rollback", "sent").err.split())
    with open_store(".everloop") as store:
        for number in (1, 2):
            set_alias(store, "flight-delays", "champion", f"flight-delays@{number}")
    result = models("models", "rollback", "flight-delays", "--reason", "too slow")
    assert result.out.strip() == "flight-delays@champion is again flight-delays@1."
