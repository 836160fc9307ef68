from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.errors import ConflictError, NotFoundError, ProjectError, ReadOnlyError, StoreVersionError, UsageError
from everloop.records import Run
from everloop.stores import FixedClock, SharedClock, Store, SystemClock, open_store
from everloop.stores.home import default_actor
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project" / "deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def run_in(store: Store, name: str = "r") -> Run:
    run = store.new(Run, name=name, started_at=store.now())
    store.records.put(run)
    return run


def test_a_new_home_has_its_parts(tmp_path: Path) -> None:
    with open_store(tmp_path / "new" / "home") as store:
        assert store.home == tmp_path / "new" / "home"
        assert (store.home / "everloop.db").is_file()
        assert (store.home / ".gitignore").read_text() == "*\n"
        assert store.journals.is_dir()
        assert isinstance(store.clock, SystemClock)
        assert store.project == store.records.project == "default"
        assert store.actor == store.records.actor == default_actor()
        store.objects.add(b"x")
        store.tables.append("t", pl.DataFrame({"event_at": [START]}))
        assert {path.name for path in store.home.iterdir()} >= {"objects", "tables"}


def test_the_default_actor_has_user_and_host() -> None:
    assert re.fullmatch(r"user:[^@]+@.+", default_actor())


def test_the_order_in_which_a_home_is_searched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store() as store:
        assert store.home == here / ".everloop"
    (here.parent / "everloop.toml").write_text('[project]\nname = "flights"\n[store]\nhome = "kept"\n')
    with open_store() as store:
        assert store.home == here.parent / "kept"
        assert store.project == "flights"
    monkeypatch.setenv("EVERLOOP_STORE", str(here / "named"))
    with open_store() as store:
        assert store.home == here / "named"
        assert store.project == "flights"
    with open_store("given", project="trains") as store:
        assert store.home == here / "given"
        assert store.project == "trains"


def test_the_parts_may_be_elsewhere(here: Path, tmp_path: Path) -> None:
    config = here / "everloop.toml"
    config.write_text(f'[store]\nrecords = "sub/r.db"\nobjects = "file://{tmp_path}/bucket"\ntables = "memory://"\n')
    with open_store() as store:
        digest = store.objects.add(b"x")
        assert (tmp_path / "bucket" / "sha256" / digest[7:9] / digest[9:]).is_file()
        assert (here / ".everloop" / "sub" / "r.db").is_file()
        assert store.tables.root == "memory:"
    with open_store(here / ".everloop") as store:
        assert store.objects.has(digest), "a home that is named as configured is the configured one"
    with open_store(here / "other") as store:
        assert not store.objects.has(digest)
    config.write_text(f'[store]\nrecords = "sqlite://{tmp_path}/there.db"\n')
    with open_store():
        assert (tmp_path / "there.db").is_file()


def test_records_on_a_server(here: Path, postgres_url: str) -> None:
    (here / "everloop.toml").write_text(f'[store]\nrecords = "{postgres_url}"\n')
    with open_store() as store, open_store() as other:
        run = run_in(store)
        assert other.records.get(Run, run.id) == run
        assert not (here / ".everloop" / "everloop.db").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[store", "Cannot read"),
        ("[store]\nhome = 1\n", "'home' in [store]"),
        ("store = 1\n", "not a table"),
        ('[store]\nobject = "x"\n', "unknown setting 'object'"),
        ("[project]\nname = 1\n", "not a string"),
        ('project = "x"\n', "not a table"),
    ],
)
def test_invalid_configurations(here: Path, text: str, word: str) -> None:
    (here / "everloop.toml").write_text(text)
    with pytest.raises(ProjectError, match=re.escape(word)):
        open_store()


def test_an_unknown_kind_of_records(here: Path) -> None:
    (here / "everloop.toml").write_text('[store]\nrecords = "oracle://x"\n')
    with pytest.raises(NotFoundError, match="oracle"):
        open_store()


def test_a_missing_home_is_not_created_without_create(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="everloop init"):
        open_store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    open_store(tmp_path / "home").close()
    open_store(tmp_path / "home", create=False).close()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "x" * 200])
def test_invalid_project_names(tmp_path: Path, store: Store, name: str) -> None:
    if name:
        with pytest.raises(UsageError, match="project"):
            open_store(tmp_path / "home", project=name)
    with pytest.raises(UsageError, match="project"):
        store.for_project(name)


def test_new_records_have_id_project_and_time(store: Store, clock: ManualClock) -> None:
    run = store.new(Run, name="r", started_at=clock.now())
    assert run.project == "flights"
    assert run.created_at == clock.now()
    assert store.new(Run, name="r", started_at=clock.now()).id > run.id
    assert store.new(Run, name="r", started_at=clock.now(), id="mine").id == "mine"


def test_views_share_one_home(store: Store) -> None:
    run = run_in(store)
    trains = store.for_project("trains")
    assert trains.records.find(Run) == []
    assert run_in(trains).project == "trains"
    assert store.records.find(Run) == [run]
    bob = store.as_actor("user:bob@desk")
    run_in(bob)
    assert store.records.events_since(0)[-1].actor == bob.actor == "user:bob@desk"
    assert bob.for_project("trains").actor == "user:bob@desk"


def test_a_view_of_the_past_of_a_store(store: Store, clock: ManualClock) -> None:
    digest = store.objects.add(b"x")
    run = run_in(store)
    store.tables.append("t", pl.DataFrame({"event_at": [START]}))
    then = clock.now()
    clock.advance()
    run_in(store)
    store.tables.append("t", pl.DataFrame({"event_at": [START]}))
    past = store.as_of(then)
    assert past.read_only
    assert not store.read_only
    assert isinstance(past.clock, FixedClock)
    assert past.now() == then
    assert past.records.find(Run) == [run]
    assert past.tables.scan("t").collect().height == 1
    assert past.objects.read(digest) == b"x"
    assert past.as_of(clock.now()).now() == then
    assert past.for_project("trains").records.find(Run) == []
    for write in (
        lambda: run_in(past),
        lambda: past.objects.add(b"y"),
        lambda: past.tables.append("t", pl.DataFrame({"event_at": [START]})),
        lambda: past.simulate(clock.now()),
        lambda: run_in(past.for_project("trains")),
    ):
        with pytest.raises(ReadOnlyError):
            write()


def test_a_simulated_clock_is_the_homes(tmp_path: Path) -> None:
    story = datetime(2013, 1, 1, tzinfo=UTC)
    with open_store(tmp_path / "home") as store:
        clock = store.simulate(story)
        assert store.now() == story
        assert run_in(store).created_at == story
        assert store.records.events_since(0)[0].at == story
        with open_store(tmp_path / "home") as other:
            assert isinstance(other.clock, SharedClock)
            clock.set(story + timedelta(days=1))
            assert other.now() == store.now() == story + timedelta(days=1)
            other.tables.append("t", pl.DataFrame({"event_at": [story]}))
            assert store.tables.scan("t").collect()["arrived_at"].to_list() == [story + timedelta(days=1)]
            with pytest.raises(ConflictError):
                other.simulate(story)
        with open_store(tmp_path / "home", clock=SystemClock()) as real:
            assert real.now() > story + timedelta(days=365)


def test_a_store_of_a_newer_everloop_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    open_store(tmp_path / "home").close()
    connection = sqlite3.connect(tmp_path / "home" / "everloop.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StoreVersionError, match=r"version 999.*up to \d"):
        open_store(tmp_path / "home")


def test_a_server_of_a_newer_everloop_is_left_alone(here: Path, postgres_url: str) -> None:
    import psycopg

    (here / "everloop.toml").write_text(f'[store]\nrecords = "{postgres_url}"\n')
    open_store().close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE everloop_version SET number = 999")
    with pytest.raises(StoreVersionError, match=r"version 999.*up to \d"):
        open_store()


def test_closing_twice_and_using_afterwards(tmp_path: Path) -> None:
    store = open_store(tmp_path / "home")
    store.close()
    store.close()
    with pytest.raises(UsageError, match="closed"):
        store.records.find(Run)


def test_a_forked_child_uses_the_store_of_its_parent(store: Store) -> None:
    run = run_in(store)
    with store.records.transaction():
        run_in(store, "kept")
        child = os.fork()
        if child == 0:
            # The child is not in the parent's transaction, and would wait for it if it wrote.
            alike = store.records.find(Run) == [run]
            os._exit(0 if alike else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = os.fork()
    if child == 0:
        run_in(store, "child")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [found.name for found in store.records.find(Run, order="name")] == ["child", "kept", "r"]
