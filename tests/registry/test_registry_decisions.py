"""What people decide about versions: agreement of others, history, archiving, comparison and the card."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import ConflictError, NotFoundError, TrustError, UsageError
from everloop.loop import promote, roll_back
from everloop.loop.releases.rollout import start_release
from everloop.records import EndpointRecord, GateResult, ModelVersion, Package, Run, Source
from everloop.registry import (
    ApprovalError,
    alias_at,
    alias_history,
    approve,
    archive,
    describe,
    diff_versions,
    find_alias,
    get_version,
    list_requests,
    register,
    reject,
    remove_alias,
    request_alias,
    set_alias,
    set_policy,
    tag,
    take_back_alias,
    unarchive,
    version_card,
    version_history,
    withdraw,
)
from everloop.serving.endpoint_state import routes_of, set_routes
from everloop.stores import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store


def version(store: Store, number: int, **fields: Any) -> ModelVersion:
    signature = {"task": "regression", "inputs": [{"name": "a|b<i>", "type": "int" if number < 3 else "float"}]}
    package = store.new(
        Package, digest=f"sha256:{number:064x}", format="linear", signature=signature, size_bytes=number
    )
    store.records.put(package)
    return register(store, "delays", package, **fields)


@pytest.fixture
def three(store: Store) -> list[str]:
    return [version(store, number).key for number in (1, 2, 3)]


def test_a_guarded_alias_needs_other_eyes(store: Store, three: list[str]) -> None:
    ann, bob, eve = (store.as_actor(f"user:{name}") for name in ("ann", "bob", "eve"))
    set_alias(ann, "delays", "champion", three[0])
    set_policy(store, "delays", "champion", 2)
    with pytest.raises(ApprovalError, match="2 other"):
        set_alias(ann, "delays", "champion", three[1])
    request = request_alias(ann, "delays", "champion", three[1], "better")
    assert request_alias(ann, "delays", "champion", three[1]).id == request.id
    with pytest.raises(TrustError, match=r"your own request \(user:ann made it"):
        approve(ann, request.id)
    assert approve(bob, request.id, "looks good").state == "open"
    with pytest.raises(ConflictError, match="has approved this request already"):
        approve(bob, request.id)
    with pytest.raises(ApprovalError):
        set_alias(ann, "delays", "champion", three[1])
    assert approve(eve, request.id).state == "approved"
    with pytest.raises(ApprovalError):
        set_alias(ann, "delays", "champion", three[2])  # another version than agreed
    set_alias(ann, "delays", "champion", three[1], reason="better")
    (used,) = list_requests(store, "delays")
    assert used.state == "applied"
    tenure = alias_history(store, "delays", "champion")[-1]
    assert (tenure.version, tenure.actor, tenure.approved_by) == (three[1], "user:ann", ("user:bob", "user:eve"))
    # Straight back without asking, but not to and fro.
    set_alias(bob, "delays", "champion", three[0], reason="rolled back")
    with pytest.raises(ApprovalError):
        set_alias(bob, "delays", "champion", three[1])
    with pytest.raises(ApprovalError, match="guarded"):
        remove_alias(ann, "delays", "champion")
    set_policy(store, "delays", "champion", 0)
    set_alias(ann, "delays", "champion", three[2])


def test_requests_end(store: Store, three: list[str]) -> None:
    ann, bob = store.as_actor("user:ann"), store.as_actor("user:bob")
    set_policy(store, "delays", "champion", 1)
    first = request_alias(ann, "delays", "champion", three[0])
    assert reject(bob, first.id, "no").state == "rejected"
    with pytest.raises(ConflictError, match="not open"):
        approve(bob, first.id)
    second = request_alias(ann, "delays", "champion", three[0])
    with pytest.raises(TrustError):
        withdraw(bob, second.id)
    assert withdraw(ann, second.id).state == "withdrawn"
    third, fourth = (request_alias(ann, "delays", "champion", key) for key in three[:2])
    approve(bob, third.id)
    set_alias(ann, "delays", "champion", three[0])
    with pytest.raises(ConflictError, match="not open any more: void"):
        approve(bob, fourth.id)
    with pytest.raises(UsageError, match="already"):
        request_alias(ann, "delays", "champion", three[0])
    with pytest.raises(UsageError):
        set_policy(store, "delays", "champion", 99)
    with pytest.raises(NotFoundError):
        approve(bob, "nothing")


def test_an_agreement_is_void_once_the_alias_has_moved(store: Store, three: list[str]) -> None:
    ann, bob, eve = (store.as_actor(f"user:{name}") for name in ("ann", "bob", "eve"))
    set_alias(store, "delays", "champion", three[0])
    set_policy(store, "delays", "champion", 1)
    for who, other in ((ann, bob), (eve, bob)):
        approve(other, request_alias(who, "delays", "champion", three[1]).id)
    set_alias(ann, "delays", "champion", three[1])
    take_back_alias(bob, "delays", "champion", reason="it was bad")
    # What Eve was granted for the same move must not bring the bad one back.
    with pytest.raises(ApprovalError):
        set_alias(eve, "delays", "champion", three[1])
    assert sorted(request.state for request in list_requests(store, "delays")) == ["applied", "void"]


def test_release_code_is_held_to_the_policy_as_well(store: Store, three: list[str]) -> None:
    ann, bob = store.as_actor("user:ann"), store.as_actor("user:bob")
    promote(ann, "delays", get_version(store, three[0]), "first")
    set_policy(store, "delays", "champion", 1)
    with pytest.raises(ApprovalError):
        promote(ann, "delays", get_version(store, three[1]), "now")
    place = store.records.get(EndpointRecord, "delays")
    assert [route.version for route in place.routes] == [three[0]]  # nothing of it is left
    approve(bob, request_alias(ann, "delays", "champion", three[1]).id)
    promote(ann, "delays", get_version(store, three[1]), "now")
    assert store.records.get(EndpointRecord, "delays").routes[0].version == three[1]


def test_who_was_champion_then(tmp_path: Path) -> None:
    start = datetime(2026, 5, 1, tzinfo=UTC)
    with open_store(tmp_path / "then", actor="user:ann") as store:
        clock = store.simulate(start)
        keys = [version(store, number).key for number in (1, 2)]
        clock.set(start + timedelta(days=1))
        set_alias(store, "delays", "champion", keys[0], reason="first")
        clock.set(start + timedelta(days=5))
        set_alias(store.as_actor("user:bob"), "delays", "champion", keys[1])
        clock.set(start + timedelta(days=9))
        remove_alias(store, "delays", "champion")
        clock.set(start + timedelta(days=12))
        set_alias(store, "delays", "champion", keys[0])
        noon = datetime(2026, 5, 3, 12, tzinfo=UTC)
        held = alias_at(store, "delays", "champion", noon)
        assert held is not None
        assert (held.version, held.actor, held.reason) == (keys[0], "user:ann", "first")
        told = [alias_at(store, "delays", "champion", start + timedelta(days=day)) for day in (0, 1, 5, 9, 11, 12, 40)]
        assert [one.version if one else None for one in told] == [None, keys[0], keys[1], None, None, keys[0], keys[0]]
        with pytest.raises(UsageError, match="timezone"):
            alias_at(store, "delays", "champion", datetime(2026, 5, 3))
        assert alias_history(store, "delays", "nobody") == []


def test_an_alias_is_taken_back(store: Store, three: list[str]) -> None:
    with pytest.raises(NotFoundError, match="There is no 'delays@staging'"):
        take_back_alias(store, "delays", "staging")
    set_alias(store, "delays", "staging", three[0])
    with pytest.raises(NotFoundError, match="first to hold"):
        take_back_alias(store, "delays", "staging")
    set_alias(store, "delays", "staging", three[1])
    assert take_back_alias(store, "delays", "staging", reason="too slow").version == three[0]
    last = alias_history(store, "delays", "staging")[-1]
    assert (last.reason, last.evidence) == ("too slow", {"rolled_back": three[1]})
    archive(store, three[1])
    with pytest.raises(ConflictError, match="archived"):
        take_back_alias(store, "delays", "staging")
    set_alias(store, "delays", "staging", three[2])
    set_policy(store, "delays", "staging", 1)
    take_back_alias(store, "delays", "staging")
    with pytest.raises(ApprovalError):
        take_back_alias(store, "delays", "staging")


def test_all_that_was_done_about_a_version(store: Store, three: list[str]) -> None:
    ann, bob = store.as_actor("user:ann"), store.as_actor("user:bob")
    set_policy(store, "delays", "champion", 1)
    describe(ann, three[0], "for winter")
    asked = request_alias(ann, "delays", "champion", three[0], "better")
    approve(bob, asked.id[:23], "the slices look right")
    set_alias(ann, "delays", "champion", three[0], reason="better")
    approve(bob, request_alias(ann, "delays", "champion", three[1]).id)
    set_alias(ann, "delays", "champion", three[1])
    archive(bob, three[0], "stale")
    store.records.delete(ModelVersion, get_version(store, three[0]).id)
    told = [(event.actor, event.kind, event.verb) for event in version_history(store, three[0])]
    assert told[1:] == [
        ("user:ann", "model_version", "described"),
        ("user:ann", "alias_request", "requested"),
        ("user:bob", "alias_request", "approved"),
        ("user:ann", "alias_request", "applied"),
        ("user:ann", "alias", "alias_set"),
        ("user:ann", "alias", "alias_set"),
        ("user:bob", "model_version", "archived"),
        (store.actor, "model_version", "deleted"),
    ]
    asked_event, agreed = version_history(store, three[0])[2:4]
    assert asked_event.data == {"alias": "delays@champion", "version": three[0], "reason": "better"}
    assert agreed.data["reason"] == "the slices look right"
    assert version_history(store, "delays@9") == []


def test_requests_are_named_by_the_beginning_of_their_id(store: Store, three: list[str]) -> None:
    set_policy(store, "delays", "champion", 1)
    first, second = (request_alias(store, "delays", "champion", key) for key in three[:2])
    same = "".join(a for a, b in zip(first.id, second.id, strict=True) if a == b)[:6]
    with pytest.raises(NotFoundError, match="Several"):
        approve(store.as_actor("user:bob"), same)
    for nothing in ("", "nothing"):
        with pytest.raises(NotFoundError, match="no request"):
            reject(store, nothing)


def test_archived_versions_hold_nothing(store: Store, three: list[str]) -> None:
    set_alias(store, "delays", "champion", three[0])
    with pytest.raises(ConflictError, match="delays@champion"):
        archive(store, three[0])
    assert archive(store, three[1], "stale").state == "archived"
    assert archive(store, three[1]).state == "archived"
    with pytest.raises(ConflictError, match="unarchive"):
        set_alias(store, "delays", "champion", three[1])
    assert unarchive(store, three[1]).state == "registered"
    set_alias(store, "delays", "champion", three[1])
    assert find_alias(store, "delays", "champion").version == three[1]  # type: ignore[union-attr]


def test_descriptions_and_tags(store: Store, three: list[str]) -> None:
    assert describe(store, three[0], "for **winter**").description == "for **winter**"
    assert tag(store, three[0], {"team": "ops", "x": "1"}).tags == {"team": "ops", "x": "1"}
    before = store.records.last_event()
    assert tag(store, three[0], {"x": "1"}).tags == {"team": "ops", "x": "1"}
    assert store.records.last_event() == before
    assert tag(store, three[0], {"x": None, "absent": None}).tags == {"team": "ops"}
    for bad in ({"": "x"}, {"n" * 251: "x"}, {"n": "v" * 8001}):
        with pytest.raises(UsageError):
            tag(store, three[0], bad)


def test_difference_and_card(store: Store) -> None:
    runs = []
    for number in (1, 2):
        source = Source(packages={"numpy": f"{number}.0", "same": "1"}, git_commit=f"c{number}")
        run = store.new(Run, name="r", started_at=store.now(), params={"depth": number, "same": 1}, source=source)
        store.records.put(run)
        runs.append(run.id)
    a = version(store, 1, run=runs[0], metrics={"auc": 0.7, "only_a": 1.0}, description="About it.")
    evaluation = {"metrics": {"auc": {"value": 0.75, "low": 0.7, "high": 0.8}}}
    b = version(store, 3, run=runs[1], evaluation=evaluation, tags={"team": "ops"})
    diff = diff_versions(store, a.key, b.key)
    assert diff.metrics["auc"].change == pytest.approx(0.05)
    assert (diff.metrics["only_a"].b, diff.metrics["only_a"].change) == (None, None)
    assert {name: (one.a, one.b) for name, one in diff.params.items()} == {"depth": (1, 2)}
    assert list(diff.packages) == ["numpy"]
    assert list(diff.signature) == ["inputs.a|b<i>"]
    assert diff.code["git commit"].b == "c2"
    assert not diff.same_package
    same = diff_versions(store, a.key, a.key)
    assert (same.params, same.facts, same.metrics["auc"].change) == ({}, {}, 0.0)
    gate = store.new(GateResult, gate="AtLeast", outcome="pass", candidate=b.key, message="0.75 >= 0.6\n# heading")
    store.records.put(gate)
    set_alias(store, "delays", "champion", b.key, reason="better")
    card = version_card(store, b.key)
    for part in (
        "# delays@2",
        "| `auc` | 0.75 | 0.7 to 0.8 |",
        "AtLeast | pass",
        "a\\|b&lt;i&gt;",
        runs[1],
        "champion",
        "better",
    ):
        assert part in card
    assert "\n# heading" not in card
    assert "About it." in version_card(store, a.key)


def test_one_person_has_one_pair_of_eyes(store: Store, three: list[str]) -> None:
    ada, token, other = (store.as_actor(f"user:{name}") for name in ("ada", "ada/ci", "ada/laptop"))
    set_policy(store, "delays", "champion", 2)
    asked = request_alias(ada, "delays", "champion", three[0])
    assert request_alias(token, "delays", "champion", three[0]).id == asked.id
    for credentials in (ada, token, other):
        with pytest.raises(TrustError, match="cannot approve your own"):
            approve(credentials, asked.id)
    # Names that begin alike are different people.
    assert approve(store.as_actor("user:adam/ci"), asked.id).state == "open"
    with pytest.raises(ConflictError, match="has approved this request already"):
        approve(store.as_actor("user:adam"), asked.id)
    assert withdraw(token, asked.id).state == "withdrawn"


def test_nobody_asks_for_or_agrees_to_what_cannot_be_used(store: Store, three: list[str]) -> None:
    ann, bob = store.as_actor("user:ann"), store.as_actor("user:bob")
    set_policy(store, "delays", "champion", 1)
    archive(store, three[1])
    with pytest.raises(ConflictError, match="unarchive"):
        request_alias(ann, "delays", "champion", three[1])
    asked = request_alias(ann, "delays", "champion", three[0])
    archive(store, three[0], "stale")
    assert [(one.id, one.state) for one in list_requests(store, "delays")] == [(asked.id, "void")]
    unarchive(store, three[0])
    again = request_alias(ann, "delays", "champion", three[0])
    store.records.delete(ModelVersion, get_version(store, three[0]).id)
    with pytest.raises(ConflictError, match="has been deleted"):
        approve(bob, again.id)


def test_routes_by_hand_are_held_to_the_policy(store: Store, three: list[str]) -> None:
    promote(store, "delays", get_version(store, three[0]), "first")
    set_policy(store, "delays", "champion", 1)
    for routes in (("delays@2=100",), ("delays@1=99", "delays@2=1")):
        with pytest.raises(ApprovalError, match="by hand"):
            set_routes(store, "delays", routes_of(routes))
    set_routes(store, "delays", routes_of(("delays@1=100", "delays@2=shadow")))
    start_release(store, "delays", get_version(store, three[1]), steps=(10, 100))
    set_routes(store, "delays", routes_of(("delays@1=95", "delays@2=5")))
    with pytest.raises(ApprovalError, match="by hand"):
        set_routes(store, "delays", routes_of(("delays@1=80", "delays@2=20")))
    set_policy(store, "delays", "champion", 0)
    set_routes(store, "delays", routes_of(("delays@1=80", "delays@2=20")))


def test_archived_versions_get_no_traffic(store: Store, three: list[str]) -> None:
    promote(store, "delays", get_version(store, three[0]), "first")
    read_before = get_version(store, three[1])
    archive(store, three[1])
    with pytest.raises(ConflictError, match="archived"):
        start_release(store, "delays", read_before, steps=(10, 100))
    with pytest.raises(ConflictError, match="archived"):
        set_routes(store, "delays", routes_of(("delays@1=90", "delays@2=10")))
    assert [route.version for route in store.records.get(EndpointRecord, "delays").routes] == [three[0]]


def test_going_back_passes_by_what_changed_no_version(store: Store, three: list[str]) -> None:
    for key in three[:2]:
        promote(store, "delays", get_version(store, key), "better")
    start_release(store, "delays", get_version(store, three[2]), steps=(10, 100))
    promote(store, "delays", get_version(store, three[1]), "no canary now")
    ended = roll_back(store, "delays", "bad after all")
    assert (ended.candidate, ended.previous) == (three[1], three[0])
    assert find_alias(store, "delays", "champion").version == three[0]  # type: ignore[union-attr]
    assert [route.version for route in store.records.get(EndpointRecord, "delays").routes] == [three[0]]
