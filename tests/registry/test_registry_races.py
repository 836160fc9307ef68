"""Several processes decide about the same alias or version at once, each by what it has read before: on SQLite and on
PostgreSQL, whoever comes second is told so, and nothing is left half done."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import EverloopError
from everloop.loop import promote
from everloop.records import EndpointRecord, ModelVersion, Package, Release
from everloop.registry import (
    alias_history,
    approve,
    archive,
    find_alias,
    get_version,
    list_requests,
    register,
    request_alias,
    set_alias,
    set_policy,
    unarchive,
)
from everloop.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores import Store

ROUNDS = 12

MOVER = """
import json, random, sys, time
from everloop.errors import EverloopError
from everloop.loop import move_alias, promote
from everloop.registry import approve, find_alias, get_version, set_alias
from everloop.stores import open_store

home, actor, what, *rest = sys.argv[1:]
said = []
with open_store(home, actor=actor) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "compare-and-set":
        # Turn after turn: look who holds it, and move it from there.
        for turn in range(25):
            held = find_alias(store, "delays", "champion").version
            time.sleep(random.uniform(0, 0.004))
            try:
                move_alias(store, "delays", "champion", rest[turn % len(rest)], f"{actor} {turn}", expect=held)
                said.append([held, rest[turn % len(rest)]])
            except EverloopError as error:
                assert "held by" in error.message, error.message
    elif what == "promote":
        try:
            promote(store, "delays", get_version(store, rest[0]), actor)
            said.append(rest[0])
        except EverloopError as error:
            said.append(type(error).__name__)
    else:
        try:
            said.append(approve(store, rest[0]).state)
        except EverloopError as error:
            said.append(type(error).__name__)
print(json.dumps(said), flush=True)
"""


DECIDER = """
import json, sys
from everloop.errors import EverloopError
from everloop.loop import promote, roll_back
from everloop.registry import (
    approve, archive, get_version, reject, remove_alias, request_alias, set_alias, take_back_alias, unarchive, withdraw
)
from everloop.registry.annotations import check_unused
from everloop.records import ModelVersion
from everloop.stores import open_store

with open_store(sys.argv[1]) as opened:
    def delete(key):
        with store.records.transaction():
            version = get_version(store, key)
            check_unused(store, version)
            store.records.delete(ModelVersion, version.id)

    calls = {
        "approve": lambda id: approve(store, id).state,
        "reject": lambda id: reject(store, id).state,
        "withdraw": lambda id: withdraw(store, id).state,
        "request": lambda alias, key: request_alias(store, "delays", alias, key).state,
        "set": lambda alias, key, expect: set_alias(store, "delays", alias, key, expect=expect).version,
        "set anyway": lambda alias, key: set_alias(store, "delays", alias, key).version,
        "back": lambda alias: take_back_alias(store, "delays", alias).version,
        "archive": lambda key: archive(store, key).state,
        "delete": delete,
        "promote": lambda key: promote(store, "delays", get_version(store, key), "now").candidate,
        "rollback": lambda: roll_back(store, "delays", "back").previous,
    }
    print("ready", flush=True)
    for line in sys.stdin:
        actor, what, *rest = json.loads(line)
        store = opened.as_actor(actor)
        try:
            said = [True, calls[what](*rest)]
        except EverloopError as error:
            said = [False, f"{type(error).__name__}: {error.message}"]
        print(json.dumps(said), flush=True)
"""


class Deciders:
    """Two processes that each do one thing when told, both at once, as often as wanted."""

    def __init__(self, store: Store) -> None:
        command = [sys.executable, "-c", DECIDER, str(store.home)]
        self.children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        for child in self.children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"

    def both(self, *asked: tuple[str | None, ...]) -> list[tuple[bool, str]]:
        """For each of the two whether it was done, and what it said: `(actor, what, …)`."""
        for child, one in zip(self.children, asked, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(one) + "\n")
        for child in self.children:
            assert child.stdin is not None
            child.stdin.flush()
        said = [json.loads(child.stdout.readline()) for child in self.children if child.stdout is not None]
        return [(bool(done), str(what)) for done, what in said]

    def close(self) -> None:
        for child in self.children:
            child.communicate(timeout=60)
            assert child.returncode == 0


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        (tmp_path / "everloop.toml").write_text(f'[store]\nhome = "home"\nrecords = "{url}"\n')
    monkeypatch.chdir(tmp_path)
    with open_store(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def deciders(store: Store) -> Iterator[Deciders]:
    made = Deciders(store)
    yield made
    made.close()


def at_once(store: Store, *asked: tuple[str, ...]) -> list[Any]:
    """Let a process for each start, and when all have opened the store, let them go."""
    home = str(store.home)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MOVER, home, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments in asked
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        told = [child.communicate(timeout=60)[0] for child in children]
        assert [child.returncode for child in children] == [0] * len(children)
        return [json.loads(text) for text in told]
    finally:
        for child in children:
            child.kill()
            child.wait()


def versions(store: Store, count: int) -> list[str]:
    made = []
    for number in range(1, count + 1):
        package = store.new(Package, digest=f"sha256:{number:064x}", format="linear", signature={}, size_bytes=1)
        store.records.put(package)
        made.append(register(store, "delays", package).key)
    return made


@pytest.mark.slow
def test_every_move_starts_from_the_version_that_it_expected(store: Store) -> None:
    keys = versions(store, 5)
    promote(store, "delays", get_version(store, keys[0]), "first")
    moves = at_once(store, *(("user:" + who, "compare-and-set", *mine) for who, mine in
                             (("ann", (keys[1], keys[2])), ("bob", (keys[3], keys[4])))))  # fmt: skip
    history = alias_history(store, "delays", "champion")
    # Who was told that it moved, moved it, and nobody else did.
    done = sorted((held, to) for moved in moves for held, to in moved if held != to)
    steps = [(before.version, after.version) for before, after in pairwise(history)]
    assert sorted(steps) == done
    # Each that was refused met a move of the other's.
    assert len(steps) >= 25
    last = find_alias(store, "delays", "champion")
    assert last is not None
    assert last.version == history[-1].version
    # No half release is left: alias, traffic and versions' states say the same.
    assert [route.version for route in store.records.get(EndpointRecord, "delays").routes] == [last.version]
    assert len(store.records.find(Release, ("state", "=", "completed"))) == len(history)


@pytest.mark.slow
def test_of_two_who_promote_at_once_the_later_has_the_last_word(store: Store) -> None:
    keys = versions(store, 3)
    promote(store, "delays", get_version(store, keys[0]), "first")
    said = at_once(store, ("user:ann", "promote", keys[1]), ("user:bob", "promote", keys[2]))
    assert said == [[keys[1]], [keys[2]]]
    history = alias_history(store, "delays", "champion")
    assert {tenure.version for tenure in history[1:]} == set(keys[1:])
    routes = store.records.get(EndpointRecord, "delays").routes
    assert [(route.version, route.percent) for route in routes] == [(history[-1].version, 100.0)]


@pytest.mark.slow
def test_an_agreement_is_used_once(store: Store) -> None:
    keys = versions(store, 3)
    promote(store, "delays", get_version(store, keys[0]), "first")
    set_policy(store, "delays", "champion", 2)
    asked = request_alias(store.as_actor("user:ann"), "delays", "champion", keys[1])
    voices = at_once(store, *((f"user:{who}", "approve", asked.id) for who in ("bob", "bob", "eve")))
    # Bob has one voice, however often he raises it.
    assert sorted(voice for (voice,) in voices) == ["ConflictError", "approved", "open"]
    said = at_once(store, ("user:ann", "promote", keys[1]), ("user:ann", "promote", keys[2]))
    assert said == [[keys[1]], ["ApprovalError"]]
    assert [request.state for request in list_requests(store, "delays")] == ["applied"]
    states = {version.key: version.state for version in store.records.find(ModelVersion)}
    assert states == {keys[0]: "released", keys[1]: "released", keys[2]: "registered"}


def holder(store: Store, alias: str) -> str | None:
    found = find_alias(store, "delays", alias)
    return found.version if found else None


@pytest.mark.slow
def test_of_two_with_the_same_expectation_one_moves_it(store: Store, deciders: Deciders) -> None:
    keys = versions(store, 3)
    expected: str | None = None
    for turn in range(ROUNDS):
        a, b = (key for key in keys if key != expected) if expected else keys[:2]
        said = deciders.both(("user:ann", "set", "live", a, expected), ("user:bob", "set", "live", b, expected))
        assert sorted(done for done, _ in said) == [False, True], said
        (won,) = [what for done, what in said if done]
        (told,) = [what for done, what in said if not done]
        assert f"is held by {won}, not by {expected or 'nobody'}" in told
        assert holder(store, "live") == won
        assert len(alias_history(store, "delays", "live")) == turn + 1
        expected = won


@pytest.mark.slow
@pytest.mark.parametrize("other", ["withdraw", "reject"])
def test_an_agreement_and_the_end_of_what_is_asked(store: Store, deciders: Deciders, other: str) -> None:
    keys = versions(store, 2)
    for turn in range(ROUNDS):
        # Each alias is another story, and starts without a holder.
        alias = f"a{turn}"
        set_policy(store, "delays", alias, 1)
        asked = request_alias(store.as_actor("user:ann"), "delays", alias, keys[0])
        ender = "user:ann" if other == "withdraw" else "user:eve"
        agreed, ended = deciders.both(("user:bob", "approve", asked.id), (ender, other, asked.id))
        (request,) = list_requests(store, "delays", alias)
        if other == "withdraw":
            # What was agreed to can still be withdrawn, what was withdrawn cannot be agreed to.
            assert ended == (True, "withdrawn")
            assert agreed in (
                (True, "approved"),
                (False, "ConflictError: The request is not open any more: withdrawn."),
            )
            assert request.state == "withdrawn"
        else:
            assert sorted((agreed[0], ended[0])) == [False, True]
            assert request.state == ("approved" if agreed[0] else "rejected")
        moved, again = deciders.both(
            ("user:ann", "set anyway", alias, keys[0]), ("user:eve", "set anyway", alias, keys[1])
        )
        assert moved[0] is (request.state == "approved")
        assert not again[0]
        assert holder(store, alias) == (keys[0] if moved[0] else None)


@pytest.mark.slow
def test_an_agreement_and_another_move(store: Store, deciders: Deciders) -> None:
    keys = versions(store, 3)
    for turn in range(ROUNDS):
        alias = f"a{turn}"
        set_alias(store, "delays", alias, keys[0])
        set_alias(store, "delays", alias, keys[1])
        set_policy(store, "delays", alias, 1)
        asked = request_alias(store.as_actor("user:ann"), "delays", alias, keys[2])
        agreed, back = deciders.both(("user:bob", "approve", asked.id), ("user:eve", "back", alias))
        assert back == (True, keys[0])
        assert agreed in ((True, "approved"), (False, "ConflictError: The request is not open any more: void."))
        assert [one.state for one in list_requests(store, "delays", alias)] == ["void"]
        with pytest.raises(EverloopError):
            set_alias(store, "delays", alias, keys[2])


@pytest.mark.slow
def test_an_agreement_is_used_or_withdrawn(store: Store, deciders: Deciders) -> None:
    keys = versions(store, 1)
    for turn in range(ROUNDS):
        alias = f"a{turn}"
        set_policy(store, "delays", alias, 1)
        asked = request_alias(store.as_actor("user:ann"), "delays", alias, keys[0])
        approve(store.as_actor("user:bob"), asked.id)
        said = deciders.both(("user:eve", "set anyway", alias, keys[0]), ("user:ann", "withdraw", asked.id))
        assert sorted(done for done, _ in said) == [False, True]
        (request,) = list_requests(store, "delays", alias)
        assert (request.state, holder(store, alias)) == (("applied", keys[0]) if said[0][0] else ("withdrawn", None))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["archive", "delete"])
def test_a_version_is_promoted_or_goes(store: Store, deciders: Deciders, end: str) -> None:
    keys = versions(store, ROUNDS + 1)
    promote(store, "delays", get_version(store, keys[0]), "first")
    for key in keys[1:]:
        before = holder(store, "champion")
        taken, gone = deciders.both(("user:ann", "promote", key), ("user:bob", end, key))
        assert taken[0] is not gone[0], (taken, gone)
        assert holder(store, "champion") == (key if taken[0] else before)
        routes = [route.version for route in store.records.get(EndpointRecord, "delays").routes]
        assert routes == [holder(store, "champion")]
    for version in store.records.find(ModelVersion, ("state", "=", "archived")):
        assert version.key != holder(store, "champion")


@pytest.mark.slow
def test_what_is_asked_for_is_archived_meanwhile(store: Store, deciders: Deciders) -> None:
    keys = versions(store, 1)
    set_policy(store, "delays", "champion", 1)
    for _ in range(ROUNDS):
        asked, archived = deciders.both(("user:ann", "request", "champion", keys[0]), ("user:bob", "archive", keys[0]))
        assert archived == (True, "archived")
        assert asked in ((True, "open"), (False, f"ConflictError: '{keys[0]}' is archived."))
        assert list_requests(store, "delays", state="open") == []
        unarchive(store, keys[0])
    archive(store, keys[0])


@pytest.mark.slow
def test_going_back_and_on_at_once(store: Store, deciders: Deciders) -> None:
    keys = versions(store, 3)
    for key in keys[:2]:
        promote(store, "delays", get_version(store, key), "in order")
    for turn in range(ROUNDS):
        before = alias_history(store, "delays", "champion")
        onward = keys[2] if turn % 2 else keys[1]
        said = deciders.both(("user:ann", "promote", onward), ("user:bob", "rollback"))
        assert said[0] == (True, onward)
        after = alias_history(store, "delays", "champion")
        assert after[: len(before) - 1] == before[:-1]
        now = after[-1].version
        # Either order, and nothing between: the last word is one of the two's.
        assert now in (onward, said[1][1] if said[1][0] else onward)
        routes = store.records.get(EndpointRecord, "delays").routes
        assert [(route.version, route.percent) for route in routes] == [(now, 100.0)]
        assert get_version(store, now).state == "released"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["archive", "delete"])
def test_a_version_is_given_an_alias_or_goes(store: Store, deciders: Deciders, end: str) -> None:
    for turn, key in enumerate(versions(store, ROUNDS)):
        given, gone = deciders.both(("user:ann", "set anyway", f"a{turn}", key), ("user:bob", end, key))
        assert given[0] is not gone[0], (given, gone)
        assert holder(store, f"a{turn}") == (key if given[0] else None)
