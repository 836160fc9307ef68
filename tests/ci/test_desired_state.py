"""A desired state is read strictly, planned without changes, and applied as a whole, once, and only if still right."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.ci import StateChange, apply_plan, plan_state, read_state
from everloop.ci.desired_state import DesiredModel, DesiredState, state_from
from everloop.ci.state_plan import WEBHOOK_PROJECT, load_plan, save_plan
from everloop.cli.app import run
from everloop.errors import ConflictError, NotFoundError, ProjectError
from everloop.loop.releases.rollout import champion_of
from everloop.records import Package, Webhook
from everloop.registry import (
    ApprovalError,
    approve,
    archive,
    find_alias,
    register,
    request_alias,
    set_alias,
    set_policy,
)
from everloop.stores import Store, open_store

SIGNATURE = {"task": "regression", "classes": [], "inputs": [{"name": "a", "type": "int"}]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with three versions of the model `delays`."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path / ".everloop", actor="user:ann@here") as opened:
        for number in (1, 2, 3):
            made = opened.new(
                Package, digest=f"sha256:{number:064x}", format="linear", signature=SIGNATURE, size_bytes=1
            )
            opened.records.put(made)
            register(opened, "delays", made)
        yield opened


def declared(text: str, folder: Path) -> DesiredState:
    path = folder / "everloop-state.toml"
    path.write_text(textwrap.dedent(text))
    return read_state(path)


FULL = """
    [models.delays]
    aliases = { staging = "delays@2", old = "delays@1" }
    approvals = { staging = 1 }

    [endpoints.delays]
    champion = "sha256:0000000000000000000000000000000000000000000000000000000000000003"
"""


def test_the_whole_state_is_applied_once(store, tmp_path):
    state = declared(FULL, tmp_path)
    plan = plan_state(state, store)
    assert plan.changes == (
        StateChange("approvals", "delays@staging", None, "1"),
        StateChange("alias", "delays@staging", None, "delays@2"),
        StateChange("alias", "delays@old", None, "delays@1"),
        StateChange("champion", "delays", None, "delays@3", (100.0,)),
    )
    before = store.records.last_event()
    # The policy is set first, so it guards the very first move. Nothing of the plan is left behind.
    with pytest.raises(ApprovalError):
        apply_plan(state, store)
    assert store.records.last_event() == before
    assert find_alias(store, "delays", "old") is None
    request = request_alias(store, "delays", "staging", "delays@2")
    set_policy(store, "delays", "staging", 1)
    approve(store.as_actor("user:bob@here"), request.id)
    assert len(apply_plan(state, store, reason="release 7").changes) == 3
    assert champion_of(store, "delays") == "delays@3"
    assert plan_state(state, store).changes == ()
    after = store.records.last_event()
    assert apply_plan(state, store).changes == ()
    assert store.records.last_event() == after
    moved = store.records.events_since(before, kinds=("alias",))
    assert "release 7" in {event.data["reason"] for event in moved if event.verb == "alias_set"}


def test_a_saved_plan_is_refused_when_the_store_has_moved(store, tmp_path):
    state = declared('[models.delays]\naliases = { staging = "delays@2" }\n', tmp_path)
    save_plan(plan_state(state, store), tmp_path / "plan.json")
    saved = load_plan(tmp_path / "plan.json")
    assert saved == plan_state(state, store)
    set_alias(store, "delays", "staging", "delays@1")
    with pytest.raises(ConflictError, match="was None and is delays@1 now"):
        apply_plan(state, store, plan=saved)
    assert find_alias(store, "delays", "staging").version == "delays@1"
    other = replace(saved, project="elsewhere")
    with pytest.raises(ConflictError, match="'elsewhere'"):
        apply_plan(state, store, plan=other)


def test_nothing_is_removed_without_prune(store, tmp_path):
    set_alias(store, "delays", "extra", "delays@1")
    set_alias(store, "delays", "staging", "delays@2")
    state = declared('[models.delays]\naliases = { staging = "delays@2" }\n', tmp_path)
    assert plan_state(state, store).changes == ()
    assert apply_plan(state, store, prune=True).changes == (StateChange("alias", "delays@extra", "delays@1", None),)
    assert find_alias(store, "delays", "extra") is None


def test_a_policy_cannot_be_lifted_and_used_in_one_step(store, tmp_path):
    set_alias(store, "delays", "staging", "delays@1")
    set_policy(store, "delays", "staging", 2)
    text = '[models.delays]\naliases = { staging = "delays@2" }\napprovals = { staging = 0 }\n'
    with pytest.raises(ApprovalError):
        apply_plan(declared(text, tmp_path), store)
    assert find_alias(store, "delays", "staging").version == "delays@1"


def test_a_canary_under_way_counts_as_planned(store, tmp_path):
    text = '[endpoints.delays]\nchampion = "delays@{}"\nrollout = [10, 100]\n'
    apply_plan(declared(text.format(1), tmp_path), store)
    second = declared(text.format(2), tmp_path)
    assert plan_state(second, store).changes == (
        StateChange("champion", "delays", "delays@1", "delays@2", (10.0, 100.0)),
    )
    apply_plan(second, store)
    assert champion_of(store, "delays") == "delays@1"
    assert plan_state(second, store).changes == ()


def test_webhooks_are_switched_and_never_created(store, tmp_path):
    state = declared("[webhooks.audit]\nactive = false\n", tmp_path)
    with pytest.raises(NotFoundError, match="everloop webhooks add audit"):
        plan_state(state, store)
    made = store.new(Webhook, name="audit", url="https://example.com/x", for_project=store.project, secret="s" * 32)
    hook = replace(made, project=WEBHOOK_PROJECT)
    store.records.for_project(WEBHOOK_PROJECT).put(hook)
    assert apply_plan(state, store).changes == (StateChange("webhook", "audit", "active", "inactive"),)
    assert plan_state(state, store).changes == ()


def test_webhooks_are_kept_where_the_server_keeps_them():
    from everloop.server.access.users import PROJECT

    assert WEBHOOK_PROJECT == PROJECT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model.delays]\naliases = {}", "unknown entry 'model'.*Did you mean 'models'"),
        ("[models.delays]\nalias = {}", "unknown entry 'alias'.*Did you mean 'aliases'"),
        ("[endpoints.delays]\nchampoin = 'x'", "Did you mean 'champion'"),
        ("[endpoints.delays]", "has no 'champion'"),
        ("[endpoints.delays]\nchampion = 'delays@champion'", "not a version of 'delays'"),
        ("[endpoints.delays]\nchampion = 'other@1'", "not a version of 'delays'"),
        ("[endpoints.delays]\nchampion = 'delays@0'", "not a version of 'delays'"),
        ("[endpoints.delays]\nchampion = 'sha256:12'", "not a version of 'delays'"),
        ("[endpoints.delays]\nchampion = 3", "not a version of 'delays'"),
        ("[endpoints.delays]\nchampion = 'delays@1'\nrollout = [50, 10]", "rise to 100"),
        ("[endpoints.delays]\nchampion = 'delays@1'\nrollout = [true, 100]", "rise to 100"),
        ("[models.delays]\napprovals = { champion = 11 }", "from 0 to 10"),
        ("[models.delays]\napprovals = { champion = true }", "from 0 to 10"),
        ("[models.'a b']", "not a valid name"),
        ("[webhooks.x]\nactive = 'yes'", "true or false"),
        ("[notify]\nchannels = 'team'", "not a list"),
        ("models = 3", "not a section"),
        ("[models.delays", "not valid TOML"),
        (
            "[models.delays]\naliases = { champion = 'delays@1' }\n[endpoints.delays]\nchampion = 'delays@1'",
            "twice",
        ),
        (
            "[endpoints.a]\nmodel = 'm'\nchampion = 'm@1'\n[endpoints.b]\nmodel = 'm'\nchampion = 'm@2'",
            "two champions",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, message):
    with pytest.raises(ProjectError, match=f"(?s){message}"):
        declared(text, tmp_path)


def test_what_the_store_lacks_is_named(store, tmp_path):
    missing = "sha256:" + "f" * 64
    with pytest.raises(NotFoundError, match="No version of 'delays' has the package"):
        plan_state(declared(f'[endpoints.delays]\nchampion = "{missing}"\n', tmp_path), store)
    with pytest.raises(NotFoundError, match="delays@9"):
        plan_state(declared('[endpoints.delays]\nchampion = "delays@9"\n', tmp_path), store)
    with pytest.raises(NotFoundError, match="no notification channel 'team'"):
        plan_state(declared('[notify]\nchannels = ["team"]\n', tmp_path), store)
    archive(store, "delays@1")
    with pytest.raises(ConflictError, match="archived"):
        plan_state(declared('[endpoints.delays]\nchampion = "delays@1"\n', tmp_path), store)


aliases = st.dictionaries(st.sampled_from(["staging", "old", "next"]), st.sampled_from(["delays@1", "delays@2"]))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=aliases, second=aliases, prune=st.booleans())
def test_applying_is_idempotent_and_reaches_the_state(store, first, second, prune):
    for wanted in (first, second):
        state = DesiredState(models={"delays": DesiredModel(dict(wanted))})
        apply_plan(state, store, prune=prune)
        assert plan_state(state, store, prune=prune).changes == ()
        for alias, version in wanted.items():
            assert find_alias(store, "delays", alias).version == version


def test_the_commands_plan_and_apply(store, tmp_path, capsys):
    declared('[models.delays]\naliases = { staging = "delays@2" }\n', tmp_path)
    capsys.readouterr()
    assert run(["plan", "--detailed-exitcode", "--out", "plan.json", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["changes"][0]["after"] == "delays@2"
    assert run(["plan"]) == 0
    assert run(["apply", "--plan", "plan.json"]) == 0
    assert run(["plan", "--detailed-exitcode"]) == 0
    assert "equal to the desired state" in capsys.readouterr().out
    assert run(["apply", "--plan", "plan.json"]) == ConflictError.exit_code
    (tmp_path / "plan.json").write_text('{"project": 3}')
    assert run(["apply", "--plan", "plan.json"]) == ProjectError.exit_code
    assert run(["plan", "missing.toml"]) == ProjectError.exit_code


def test_an_empty_file_wants_nothing():
    assert state_from({}, "file") == DesiredState()
