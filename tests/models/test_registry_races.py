"""Several processes move the same alias at once, each by what it has read before."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from everloop.loop import promote
from everloop.models import alias_history, find_alias, get_version, list_requests, register, request_alias, set_policy
from everloop.records import Endpoint, ModelVersion, Package, Release

if TYPE_CHECKING:
    from everloop.stores import Store

MOVER = """
import json, random, sys, time
from everloop.errors import EverloopError
from everloop.loop import move_alias, promote
from everloop.models import approve, find_alias, get_version, set_alias
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
    assert [route.version for route in store.records.get(Endpoint, "delays").routes] == [last.version]
    assert len(store.records.find(Release, ("state", "=", "completed"))) == len(history)


def test_of_two_who_promote_at_once_the_later_has_the_last_word(store: Store) -> None:
    keys = versions(store, 3)
    promote(store, "delays", get_version(store, keys[0]), "first")
    said = at_once(store, ("user:ann", "promote", keys[1]), ("user:bob", "promote", keys[2]))
    assert said == [[keys[1]], [keys[2]]]
    history = alias_history(store, "delays", "champion")
    assert {tenure.version for tenure in history[1:]} == set(keys[1:])
    routes = store.records.get(Endpoint, "delays").routes
    assert [(route.version, route.percent) for route in routes] == [(history[-1].version, 100.0)]


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
