from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Alias, ModelVersion, Package
from everloop.registry import alias_history, find_alias, get_version, list_versions, register, set_alias
from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

SIGNATURE: dict[str, Any] = {"task": "regression", "classes": [], "inputs": [{"name": "a", "type": "int"}]}


def package(store: Store, number: int) -> Package:
    made = store.new(Package, digest=f"sha256:{number:064x}", format="linear", signature=SIGNATURE, size_bytes=1)
    store.records.put(made)
    return made


def test_numbers_rise_and_the_same_package_keeps_its_own(store: Store) -> None:
    first, second = package(store, 1), package(store, 2)
    assert register(store, "delays", first).key == "delays@1"
    assert register(store, "delays", second).key == "delays@2"
    assert register(store, "delays", first).key == "delays@1"
    assert register(store, "delays", second.digest).key == "delays@2"
    assert register(store, "other", first).key == "other@1"
    assert [version.key for version in list_versions(store, "delays")] == ["delays@2", "delays@1"]


def test_lineage_and_metrics(store: Store) -> None:
    version = register(
        store,
        "delays",
        package(store, 1),
        run="run-1",
        snapshot="flights@3",
        code="code:1",
        evaluation={
            "metrics": {"roc_auc": {"value": 0.7, "low": 0.6, "high": 0.8}, "rows": 10, "note": "x", "ok": True}
        },
        tags={"team": "ops"},
    )
    assert version.metrics == {"roc_auc": 0.7, "rows": 10.0}
    assert (version.run, version.snapshot, version.code) == ("run-1", "flights@3", "code:1")
    assert version.signature == SIGNATURE
    (event,) = [event for event in store.records.events_since(0) if event.kind == "model_version"]
    assert (event.verb, event.key) == ("registered", "delays@1")


def test_number_of_a_deleted_version_is_not_given_again(store: Store) -> None:
    register(store, "delays", package(store, 1))
    second = register(store, "delays", package(store, 2))
    store.records.delete(ModelVersion, second.id)
    assert register(store, "delays", package(store, 3)).key == "delays@3"


def test_many_register_at_once(tmp_path: Path, store: Store) -> None:
    packages = [package(store, number) for number in range(12)]
    keys: list[str] = []
    errors: list[BaseException] = []

    def work(which: int) -> None:
        try:
            with open_store(tmp_path / "home") as own:
                # Two threads for each package: the second must find what the first has made.
                keys.append(register(own, "delays", packages[which % 6]).key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(keys) == sorted(2 * [f"delays@{number}" for number in range(1, 7)])


@pytest.mark.parametrize("name", ["", "a@b", "a/b", "-a", "x" * 129, "a b"])
def test_names_that_make_no_key(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name for a model"):
        register(store, name, package(store, 1))


def test_unknown_package(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no package"):
        register(store, "delays", "sha256:" + "0" * 64)


def test_references(store: Store) -> None:
    first, second = (register(store, "delays", package(store, number)) for number in (1, 2))
    assert get_version(store, "delays").key == second.key
    set_alias(store, "delays", "champion", first.key)
    assert get_version(store, "delays").key == first.key
    assert get_version(store, "delays@champion").key == first.key
    assert get_version(store, "delays@2").key == second.key
    assert get_version(store, first.id).key == first.key


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("delays@9", "Versions: 1–2; aliases: champion"),
        ("delays@best", "Versions: 1–2"),
        ("nope@1", "models: delays"),
        ("delays@", "Versions: 1–2"),
        ("delays@-1", "Versions: 1–2"),
        ("delays@1.5", "Versions: 1–2"),
        ("delays@" + "9" * 30, "Versions: 1–2"),
    ],
)
def test_references_to_nothing_say_what_exists(store: Store, ref: str, message: str) -> None:
    register(store, "delays", package(store, 1))
    set_alias(store, "delays", "champion", register(store, "delays", package(store, 2)).key)
    with pytest.raises(NotFoundError, match=message):
        get_version(store, ref)


def test_alias_moves_by_compare_and_set_and_keeps_its_history(store: Store) -> None:
    keys = [register(store, "delays", package(store, number)).key for number in range(3)]
    assert find_alias(store, "delays", "champion") is None
    assert alias_history(store, "delays", "champion") == []
    set_alias(store, "delays", "champion", keys[0], reason="first", expect=None)
    with pytest.raises(ConflictError, match=keys[0]):
        set_alias(store, "delays", "champion", keys[1], expect=None)
    with pytest.raises(ConflictError, match="not by"):
        set_alias(store, "delays", "champion", keys[1], expect=keys[2])
    set_alias(store, "delays", "champion", keys[1], reason="better", evidence={"auc": [0.7, 0.8]}, expect=keys[0])
    set_alias(store, "delays", "champion", keys[1], reason="again")
    set_alias(store, "delays", "champion", keys[0], reason="rolled back")
    history = alias_history(store, "delays", "champion")
    assert [(tenure.version, tenure.reason) for tenure in history] == [
        (keys[0], "first"),
        (keys[1], "better"),
        (keys[0], "rolled back"),
    ]
    assert history[1].evidence == {"auc": [0.7, 0.8]}
    assert history[0].until == history[1].since
    assert history[-1].until is None
    assert len(store.records.find(Alias)) == 1


def test_alias_goes_to_versions_of_its_own_model_only(store: Store) -> None:
    register(store, "delays", package(store, 1))
    other = register(store, "other", package(store, 2))
    with pytest.raises(UsageError, match="not a version of 'delays'"):
        set_alias(store, "delays", "champion", other.key)
    with pytest.raises(UsageError, match="not a valid name for an alias"):
        set_alias(store, "other", "7", other.key)
    with pytest.raises(NotFoundError):
        set_alias(store, "delays", "champion", "delays@7")


def test_as_of_a_moment_the_champion_was_another(store: Store) -> None:
    first, second = (register(store, "delays", package(store, number)) for number in (1, 2))
    set_alias(store, "delays", "champion", first.key)
    then = store.now()
    set_alias(store, "delays", "champion", second.key)
    assert get_version(store.as_of(then), "delays@champion").key == first.key
    assert get_version(store, "delays@champion").key == second.key
