"""Only its owner can access a home, whatever the umask and whichever library created the files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from everloop.errors import ProjectError
from everloop.records import Run
from everloop.stores import Journal, Store, open_store
from everloop.stores.backup import backup, restore
from everloop.stores.permissions import exposed, settle
from everloop.stores.trust import Keyring
from everloop.stores.verify import verify

OPEN_BY_CHOICE = {"logs", "run"}


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["000", "022", "077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    with under(request.param):
        yield request.param


@contextmanager
def under(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


def modes(top: Path) -> dict[str, int]:
    """The modes of a folder and of everything in it."""
    found = {".": stat.S_IMODE(top.lstat().st_mode)}
    for path in top.rglob("*"):
        found[str(path.relative_to(top))] = stat.S_IMODE(path.lstat().st_mode)
    return found


def wide(top: Path) -> dict[str, str]:
    return {name: oct(mode) for name, mode in modes(top).items() if mode & 0o077}


def fill(store: Store, folder: Path) -> None:
    """Use every part of a home."""
    store.records.put(store.new(Run, name="r", started_at=store.now()))
    store.objects.add(b"small")
    (folder / "large").write_bytes(os.urandom(200_000))
    digest = store.objects.add_file(folder / "large")
    (folder / "tree").mkdir()
    (folder / "tree" / "a").write_text("a")
    store.objects.add_tree(folder / "tree")
    store.objects.path(digest)
    with Journal.create(store.journals, "run-1") as journal:
        journal.append(b"x")
    with store.lock("one"):
        pass
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(3):
        store.tables.append("predictions/delays", pl.DataFrame({"event_at": [moment], "value": [number]}))
    store.tables.compact("predictions/delays")
    store.simulate(moment)


def test_a_new_home_is_private(umask: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        fill(store, tmp_path)
        found = modes(home)
        assert wide(home) == {}
        assert {"everloop.db", "everloop.db-wal", "everloop.db-shm", "clock", "locks/one.lock"} <= set(found)
        assert found["."] == found["journals"] == found["tables/predictions/delays"] == 0o700
        assert list(exposed(home)) == []
        assert not [problem for problem in verify(store).problems if problem.kind == "permissions"]


def test_backups_and_restored_homes_are_private(umask: int, tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        fill(store, tmp_path)
        for name in ("kept.tar", "kept.tar.zst"):
            kept = backup(store, tmp_path / name)
            assert stat.S_IMODE(kept.stat().st_mode) == 0o600
            home = restore(kept, tmp_path / f"from-{name}")
            assert wide(home) == {}
            with open_store(home) as again:
                assert again.records.find(Run)[0].name == "r"
    assert not list(tmp_path.glob(".everloop-*"))


def test_keys_are_private(umask: int, tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.sign(f"sha256:{'0' * 64}")
    ring.trust(Keyring(tmp_path / "other").public_key(), "ann")
    ring.trust_digest(f"sha256:{'1' * 64}", "seen")
    assert wide(ring.folder) == {}


def test_keys_that_were_open_are_closed_when_the_folder_is_next_written(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.public_key()
    (ring.folder / "machine.key").chmod(0o644)
    ring.folder.chmod(0o755)
    ring.trust_digest(f"sha256:{'1' * 64}", "seen")
    assert wide(ring.folder) == {}


def test_caches_are_private(umask: int, tmp_path: Path) -> None:
    from everloop.stores import ContentStore, ObstoreBytes

    (tmp_path / "home").mkdir(mode=0o700)
    objects = ContentStore(ObstoreBytes("memory://"), cache=tmp_path / "home" / "cache")
    objects.path(objects.add(b"x"))
    assert wide(tmp_path / "home" / "cache") == {}


def test_exported_files_follow_the_umask(umask: int, tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        digest = store.objects.add(b"x" * 100_000)
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "run.sh").write_text("x")
        (tmp_path / "tree" / "run.sh").chmod(0o755)
        (tmp_path / "tree" / "read.me").write_text("x")
        tree = store.objects.add_tree(tmp_path / "tree")
        store.objects.fetch(digest, tmp_path / "out" / "file")
        store.objects.restore_tree(tree, tmp_path / "again")
    usual = 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "out" / "file").stat().st_mode) == usual
    assert stat.S_IMODE((tmp_path / "again" / "read.me").stat().st_mode) == usual
    assert stat.S_IMODE((tmp_path / "again" / "run.sh").stat().st_mode) == 0o777 & ~umask


def open_up(home: Path) -> None:
    """A home as earlier versions created it with a permissive umask."""
    for path in [home, *home.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)


def test_an_existing_home_is_closed_when_it_is_opened(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        fill(store, tmp_path)
    open_up(home)
    assert len(list(exposed(home))) > 10
    with open_store(home) as store:
        assert wide(home) == {}
        assert store.records.find(Run)[0].name == "r"


def test_a_home_is_closed_while_others_have_it_open(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as first:
        fill(first, tmp_path)
        open_up(home)
        with first.records.transaction(), open_store(home) as second:
            # Changing the mode of a database must not release its locks.
            assert second.records.find(Run)[0].name == "r"
            assert wide(home) == {}
        first.records.append_event("x", "y", "z")


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "file").write_text("x")
    (outside / "second").write_text("x")
    for path in (outside, outside / "file", outside / "second"):
        path.chmod(0o755)
    home = tmp_path / "home"
    open_store(home).close()
    (home / "tables").symlink_to(outside)
    (home / "journals" / "x.journal").symlink_to(outside / "file")
    (home / "journals" / "y.journal").hardlink_to(outside / "second")
    open_up_only = [home, home / "journals", home / "locks"]
    for path in open_up_only:
        path.chmod(0o777)
    open_store(home).close()
    assert {stat.S_IMODE(path.stat().st_mode) for path in open_up_only} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (outside, outside / "file", outside / "second")} == {0o755}


def test_a_folder_that_holds_other_things_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = tmp_path / "project"
    (project / "notes.txt").write_text("x")
    project.chmod(0o755)
    (project / "notes.txt").chmod(0o644)
    with open_store(project):
        assert stat.S_IMODE(project.stat().st_mode) == 0o755
        assert stat.S_IMODE((project / "notes.txt").stat().st_mode) == 0o644
        assert {name for name in wide(project) if name not in (".", "notes.txt")} == set()


def test_files_of_other_users_are_reported_and_not_changed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    open_store(home).close()
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    open_up(home)
    for path in [home, *home.rglob("*")]:
        os.lchown(path, 12345, 12345)
    with open_store(home) as store:
        assert stat.S_IMODE(home.stat().st_mode) == 0o777
        problems = [problem for problem in verify(store).problems if problem.kind == "permissions"]
    assert len(problems) == 1
    assert "everyone" in problems[0].message
    assert str(problems[0].repair).startswith("chmod -R go= ")


def test_logs_and_states_of_processes_follow_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "home"
    open_store(home).close()
    for name in sorted(OPEN_BY_CHOICE):
        (home / name).mkdir()
        (home / name).chmod(0o755)
    home.chmod(0o777)
    open_store(home).close()
    assert wide(home) == dict.fromkeys(OPEN_BY_CHOICE, "0o755")
    assert list(exposed(home)) == []


@pytest.mark.parametrize("by", ["file", "environment"])
def test_a_group_may_share_a_home_on_purpose(
    umask: int, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if by == "file":
        (tmp_path / "everloop.toml").write_text("[store]\nshared = true\n")
    else:
        monkeypatch.setenv("EVERLOOP_STORE_SHARED", "1")
    home = tmp_path / ".everloop"
    with open_store() as store:
        fill(store, tmp_path)
        found = modes(home)
    for name, mode in found.items():
        folder = (home / name).is_dir()
        assert not mode & 0o007, name
        if name.startswith("cache") or "objects/.tmp" in name:
            continue
        assert mode & 0o040, (name, oct(mode))
        if folder:
            assert mode & 0o2070 == 0o2070, (name, oct(mode))
        elif not name.startswith("objects/") and "/_digests/" not in name:
            # These are read-only, because they never change after they were written.
            assert mode & 0o020, (name, oct(mode))
    # The folder itself is marked, so it stays shared for processes without the setting.
    monkeypatch.delenv("EVERLOOP_STORE_SHARED", raising=False)
    monkeypatch.chdir("/")
    with open_store(home) as store:
        assert modes(home)["."] == 0o2770
        assert list(exposed(home)) == []


def test_a_home_becomes_shared_by_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        fill(store, tmp_path)
    monkeypatch.setenv("EVERLOOP_STORE_SHARED", "1")
    open_store(home).close()
    found = modes(home)
    assert found["."] == found["journals"] == 0o2770
    assert found["everloop.db"] == 0o660


def test_the_setting_is_a_boolean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "everloop.toml").write_text('[store]\nshared = "group"\n')
    with pytest.raises(ProjectError, match="'shared' in"):
        open_store()


def test_settling_costs_little(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        for number in range(300):
            store.objects.add(b"%d" % number)
    seen: list[str] = []
    real = os.stat

    def count(path: object, *args: object, **options: object) -> os.stat_result:
        seen.append(str(path))
        return real(path, *args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", count)
        settle(home)
    assert len(seen) < 20, "a home that is in order is not walked through"


def test_a_database_elsewhere_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "everloop.toml").write_text(f'[store]\nrecords = "{tmp_path}/elsewhere/r.db"\n')
    with under(0):
        open_store().close()
        (tmp_path / "elsewhere" / "r.db").chmod(0o666)
        with open_store() as store:
            store.records.append_event("x", "y", "z")
            assert {name for name in wide(tmp_path / "elsewhere") if name.startswith("r.db")} == set()
