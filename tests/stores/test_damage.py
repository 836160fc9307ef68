"""If one bit anywhere is flipped, either `verify` reports it, or everything is read as before."""

from __future__ import annotations

import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from everloop.errors import CorruptionError, EverloopError
from everloop.records import Point, Run
from everloop.stores import Store, open_store
from everloop.stores.backup import backup, restore
from everloop.stores.home import StoreUrls, find_store_urls, open_urls
from everloop.stores.records.row_checksums import SUMS
from everloop.stores.records.row_verification import iterate_rows
from everloop.stores.repair import repair
from everloop.stores.verify import check_before_opening, seal, verify
from everloop.testing import damage
from everloop.testing.stores import START, ManualClock

KINDS = ("database", "journal", "object", "log", "digests", "table data", "checkpoint", "key")
HEALED = ("journal", "log", "digests", "checkpoint")
"""Types of files in which a single flipped bit can always be repaired without a backup."""
FLIPS = int(os.environ.get("EVERLOOP_FUZZ", "0")) or 4
SEED = random.SystemRandom().randrange(10_000) if "EVERLOOP_FUZZ" in os.environ else 11


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A home and the digest of everything that can be read from it."""
    home = tmp_path_factory.mktemp("whole") / "home"
    damage.build(home)
    return home, damage.values(home)


@pytest.fixture
def copy(whole: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


def test_an_undamaged_home_passes_the_check(whole: tuple[Path, str]) -> None:
    report = damage.check(whole[0])
    assert not isinstance(report, EverloopError)
    assert report.ok
    assert report.unchecked == ()
    seen = report.checked
    assert (seen.unsealed_files, seen.unsealed_rows) == (0, 0)
    assert seen.rows > 1000
    assert seen.size_bytes > 400_000
    assert sorted(damage.files(whole[0])) == sorted(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_detected_or_harmless(whole: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    home, values = whole
    flips = FLIPS * 3 if kind == "database" else FLIPS
    outcome = damage.attack(home, tmp_path, kind, damage.files(home)[kind], flips, SEED, values, repairs=True)
    assert outcome.missed == [], f"seed {SEED}"
    assert outcome.wrongly == [], f"seed {SEED}"
    if kind != "database":
        # Only database files have unused bytes.
        assert outcome.harmless == 0
    if kind in HEALED:
        assert outcome.healed == outcome.seen


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_backup_is_not_restored(whole: tuple[Path, str], tmp_path: Path, *, compressed: bool) -> None:
    home, values = whole
    with open_store(home, create=False) as store:
        source = backup(store, tmp_path / ("b.tar.zst" if compressed else "b.tar"))
    assert damage.values(_with_keys(restore(source, tmp_path / "again"), home)) == values
    shuffled = random.Random(SEED)
    for number in range(FLIPS):
        damaged = tmp_path / f"damaged-{number}{''.join(source.suffixes)}"
        shutil.copy(source, damaged)
        at = shuffled.randrange(damaged.stat().st_size * 8)
        damage.flip(damaged, at)
        target = tmp_path / f"home-{number}"
        try:
            restore(damaged, target)
        except EverloopError:
            assert not target.exists()
        else:
            assert damage.values(_with_keys(target, home)) == values, at


@pytest.mark.slow
def test_lost_frames_of_a_log_are_detected(tmp_path: Path) -> None:
    """After a crash, SQLite silently discards everything after a damaged frame of its log."""
    home = tmp_path / "home"
    code = (
        "import os, sys; from everloop.records import Run; from everloop.stores import open_store\n"
        "store = open_store(sys.argv[1], project='flights')\n"
        "for n in range(8): store.records.put(store.new(Run, name=f'r{n}', started_at=store.now(), state='finished'))\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(home)], check=True, timeout=60)
    urls, _ = find_store_urls(home)
    assert check_before_opening(urls) == []
    shuffled = random.Random(SEED)
    log = home / "everloop.db-wal"
    before = log.read_bytes()
    for at in [*shuffled.sample(range(len(before) * 8), FLIPS), len(before) * 8 - 3]:
        damage.flip(log, at)
        assert check_before_opening(urls) != [], at
        log.write_bytes(before)
    # An incomplete frame at the end, as a killed writer leaves it, is not damage.
    log.write_bytes(before + before[-4120:-2000])
    assert check_before_opening(urls) == []
    with open_store(home, create=False, project="flights") as store:
        assert len(store.records.find(Run)) == 8


def test_single_flipped_bits_of_rows_are_corrected(copy: Path) -> None:
    """Also if an index still has the value from before the damage."""
    with sqlite3.connect(copy / "everloop.db") as connection:
        for statement in (
            "UPDATE records SET body = replace(body, 'run-7', 'run-6') WHERE body LIKE '%\"run-7\"%'",
            "UPDATE points SET at = at + 1 WHERE seq = 4 AND at % 2 = 0",
            "UPDATE events SET actor = 'user:cnn@desk' WHERE seq = 3",
            "UPDATE metrics SET crc = crc + 1 WHERE id = 1 AND crc % 2 = 0",
            # Two flipped bits, which a checksum cannot locate.
            "UPDATE events SET actor = 'user:bnn@desk' WHERE seq = 5",
        ):
            connection.execute(statement)
    connection.close()
    with open_store(copy, create=False, project="flights", clock=ManualClock()) as store:
        report = verify(store)
        assert {one.kind for one in report.problems} == {"record", "row"}
        repairs = repair(store, report)
        events = store.records.events_since(0, kinds=["store"])
        assert len([event for event in events if event.verb == "repaired"]) == sum(one.healed for one in repairs)
        for done in repairs:
            assert done.kept is None or (copy / done.kept).is_file()
        assert [one.problem.subject for one in repairs if not one.healed] == ["events 5"]
        assert [one.subject for one in verify(store).problems] == ["events 5"]


def test_other_damage_is_repaired_from_a_backup(whole: tuple[Path, str], copy: Path, tmp_path: Path) -> None:
    with open_store(whole[0], create=False) as store:
        source = backup(store, tmp_path / "kept.tar.zst")
    kinds = damage.files(copy)
    for path in (kinds["object"][0], kinds["table data"][0], kinds["table data"][1]):
        damage.flip(path, 81)
    kinds["object"][1].unlink()
    kinds["table data"][1].unlink()
    report = damage.check(copy)
    assert not isinstance(report, EverloopError)
    assert len(report.problems) >= 4
    assert not damage.heal(copy).ok
    assert damage.heal(copy, backup=source).ok
    assert damage.values(copy) == whole[1]


def test_damage_is_not_compacted_away(copy: Path) -> None:
    path = next(one for one in damage.files(copy)["table data"] if damage.TABLE in str(one))
    damage.flip(path, 8 * 200)
    with open_store(copy, create=False, clock=ManualClock()) as store:
        for use in (
            lambda: store.tables.compact(damage.TABLE),
            lambda: store.tables.scan(damage.TABLE, verify=True),
            lambda: store.tables.forget(damage.TABLE, START.replace(year=2100)),
        ):
            with pytest.raises(CorruptionError, match="digest"):
                use()
        assert store.tables.tidy(damage.TABLE, most_files=2) is False
        assert len(store.tables.scan("labels/delays", verify=True).collect()) == 1600


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_missing_database_is_not_created_again(copy: Path, how: str) -> None:
    path = copy / "everloop.db"
    path.unlink()
    if how == "empty":
        path.touch()
    found = damage.check(copy)
    assert isinstance(found, CorruptionError)
    assert how in found.message
    assert path.exists() == (how == "empty")


def test_homes_of_earlier_versions_are_sealed(copy: Path, whole: tuple[Path, str]) -> None:
    with sqlite3.connect(copy / "everloop.db") as connection:
        for table in ("records", "revisions", "events", "metrics", "points"):
            connection.execute(f"UPDATE {table} SET crc = NULL")  # noqa: S608
    connection.close()
    for folder in (copy / "tables").rglob("_digests"):
        shutil.rmtree(folder)
    with open_store(copy, create=False, project="flights", clock=ManualClock()) as store:
        report = verify(store)
        assert report.ok
        assert report.checked.unsealed_rows == report.checked.rows
        assert report.checked.unsealed_files > 20
        rows, files = seal(store)
        assert (rows, files > 20) == (report.checked.rows, True)
        again = verify(store)
        assert again.ok
        assert (again.checked.unsealed_rows, again.checked.unsealed_files) == (0, 0)
        # A table of an earlier version can be appended to, and digests are added.
        store.tables.append(damage.TABLE, pl.DataFrame({"event_at": [START], "score": [1.0], "carrier": ["c"]}))
        assert verify(store).checked.unsealed_files == 0
        store.tables.compact(damage.TABLE)
        store.tables.vacuum(damage.TABLE, keep_hours=0)
        assert verify(store).ok


def test_digests_of_many_commits_are_merged(store: Store) -> None:
    frame = pl.DataFrame({"event_at": [START], "x": [1]})
    for _ in range(23):
        store.tables.append("t", frame)
    folder = store.home / "tables" / "t" / "_digests"
    assert len(list(folder.iterdir())) == 23
    store.tables.vacuum("t", keep_hours=1)
    assert len(list(folder.iterdir())) < 12
    report = verify(store)
    assert report.ok
    assert report.checked.unsealed_files == 0
    # Dropping a table also removes its digests.
    store.tables.drop("t")
    store.tables.append("t", frame)
    assert verify(store).ok


def test_digests_missing_after_a_kill_are_added_by_the_next_writer(store: Store) -> None:
    frame = pl.DataFrame({"event_at": [START], "x": [1]})
    for _ in range(4):
        store.tables.append("t", frame)
    folder = store.home / "tables" / "t" / "_digests"
    for number in (2, 3):
        (folder / f"{number:020}.json").unlink()
    assert verify(store).checked.unsealed_files == 4
    store.tables.append("t", frame)
    assert verify(store).checked.unsealed_files == 0
    # Missing last entries of a log are damage, not an earlier version of the table.
    (store.home / "tables" / "t" / "_delta_log" / f"{4:020}.json").unlink()
    (problem,) = verify(store).problems
    assert problem.cure == "log-entry"


def _with_keys(home: Path, other: Path) -> Path:
    shutil.copytree(other / "keys", home / "keys", dirs_exist_ok=True)
    return home


def test_rows_on_a_server_have_checksums_as_well(postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    home = tmp_path / "home"
    urls = StoreUrls(home=home, records=postgres_url, objects=str(home / "objects"), tables=str(home / "tables"))
    with open_urls(urls, project="flights", clock=ManualClock()) as store:
        run = store.new(Run, name="run-7", started_at=store.now(), state="finished", params={"lr": 0.5})
        store.records.put(run)
        store.records.update(run)
        points = [Point(key="loss", value=value, step=1, at=START) for value in (0.5, math.nan, math.inf, -0.0)]
        store.records.append_points(f"run:{run.id}", points)
        assert verify(store).problems == ()
        assert verify(store).checked.rows == 9
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("UPDATE records SET body = replace(body, 'run-7', 'run-6')")
            connection.execute("UPDATE points SET step = 5 WHERE step = 1 AND value = 0.5")
            connection.execute("UPDATE events SET crc = NULL")
        report = verify(store)
        assert sorted(one.cure or "" for one in report.problems) == ["row", "row"]
        assert all(done.healed for done in repair(store, report))
        report = verify(store)
        assert report.ok
        assert report.checked.unsealed_rows == 2
        assert seal(store) == (2, 0)
        assert store.records.get(Run, run.id).name == "run-7"


def test_moved_deleted_and_restored_records_keep_right_checksums(store: Store) -> None:
    run = store.new(Run, name="r", started_at=store.now(), state="finished", params={"a": 1})
    store.records.put(run)
    store.records.append_points(f"run:{run.id}", [Point(key="loss", value=1.0, step=1, at=START)])
    (run,) = store.records.update(run)
    store.records.delete(Run, run.id)
    assert verify(store).ok
    store.records.restore(Run, run.id)
    store.records.move(Run, run.id, "trains")
    report = verify(store)
    assert report.ok
    assert report.checked.unsealed_rows == 0


@pytest.mark.slow
def test_the_process_of_a_check_ends_normally(whole: tuple[Path, str]) -> None:
    """Threads of a library that still held Python objects used to abort the process at its exit."""
    environment = {**os.environ, "EVERLOOP_KEYS": str(whole[0] / "keys")}
    command = [sys.executable, "-c", "from everloop.cli import main; main()", "verify", "--home", str(whole[0])]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        assert (done.returncode, "The store is intact" in done.stdout) == (0, True), done.stderr


def test_rows_out_of_order_do_not_make_the_check_endless() -> None:
    class Damaged:
        """A database with a flipped bit in a row's number: it finds the row 12 as 28, before the others."""

        row_id = "rowid"

        def read_raw(self, statement: str, values: tuple[int, ...]) -> list[tuple[Any, ...]]:
            after, _ = values
            return [(number, 1, "x") for number in (28, 13, 14, 24) if number > after or number == 28]

    (metrics,) = (check for check in SUMS if check.table == "metrics")
    assert [at for at, _, _ in iterate_rows(Damaged(), metrics)][:4] == [28, 13, 14, 24]


def test_a_record_whose_id_is_no_longer_unicode_is_repaired(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "everloop.db")) as database, database:
        (old,) = database.execute("SELECT id FROM records LIMIT 1").fetchone()
        broken = bytearray(old.encode())
        broken[5] ^= 0x80
        database.execute("UPDATE records SET id = CAST(? AS TEXT) WHERE id = ?", (bytes(broken), old))
    assert not damage.check(copy).ok
    assert damage.heal(copy).ok


@pytest.mark.parametrize("at", [42, -1])
def test_bits_of_a_key_that_do_not_change_it_are_noticed_as_well(copy: Path, at: int) -> None:
    path = copy / "keys" / "machine.key"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(content))
    report = damage.check(copy)
    assert isinstance(report, EverloopError) or not report.ok
