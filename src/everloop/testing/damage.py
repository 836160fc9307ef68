"""Damage tests: a home with all types of files that everloop writes, in which one bit at a time is flipped."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.errors import EverloopError
from everloop.records import KINDS, Alias, Artifact, ModelVersion, Package, Point, Run
from everloop.stores import Journal, Store, open_store, read_journal
from everloop.stores.home import find_store_urls
from everloop.stores.records.expressions import Compare
from everloop.stores.repair import repair
from everloop.stores.trust import Keyring
from everloop.stores.verify import check_before_opening, verify
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores.verify_report import VerifyReport

TABLE = "predictions/delays"


@dataclass
class DamageOutcome:
    """The results of flipping bits in one type of file."""

    seen: int = 0
    """Number of flips that the check has detected."""
    healed: int = 0
    """Number of detected flips that were repaired."""
    wrongly: list[str] = field(default_factory=list)
    """Flips after which the check found nothing wrong with the repaired home, although it had changed."""
    harmless: int = 0
    """Number of flips without any effect on what is read."""
    missed: list[str] = field(default_factory=list)
    """Flips that changed what is read and were not detected."""

    @property
    def total(self) -> int:
        return self.seen + self.harmless + len(self.missed)


def build(home: Path, *, rows: int = 400, commits: int = 13) -> None:
    """Create a home with runs, their parameters, points and revisions, a package as a tree, a table with a checkpoint,
    a compacted table, a journal and keys."""
    shuffled = random.Random(7)  # noqa: S311
    clock = ManualClock()
    with open_store(home, project="flights", actor="user:ann@desk", clock=clock) as store:
        for number in range(12):
            run = store.new(
                Run, name=f"run-{number}", started_at=store.now(), params={"lr": number / 7, "layers": [1, 2]},
                tags={"note": "a longer text " * 30},
            )  # fmt: skip
            store.records.put(run)
            points = [
                Point(key=key, value=shuffled.random(), step=step, at=START + timedelta(seconds=step))
                for key in ("loss", "auc")
                for step in range(40)
            ]
            store.records.append_points(f"run:{run.id}", points)
            clock.advance()
            (ended,) = store.records.update(_finished(run, store))
            if number == 3:
                store.records.delete(Run, ended.id)
            if number == 4:
                store.records.delete(Run, ended.id)
                store.records.restore(Run, ended.id)
        folder = home.parent / f"{home.name}-package"
        folder.mkdir()
        (folder / "everloop.json").write_text('{"model": 1}')
        (folder / "model.txt").write_bytes(shuffled.randbytes(90_000))
        digest = store.objects.add_tree(folder)
        shutil.rmtree(folder)
        store.records.put(
            store.new(Package, digest=digest, format="lightgbm", signature={}, size_bytes=2),
            store.new(ModelVersion, model="delays", version=1, package=digest, run=run.id),
            store.new(Alias, model="delays", name="champion", version="delays@1"),
            store.new(
                Artifact, run=run.id, name="a", type="bytes", digest=store.objects.add(shuffled.randbytes(20_000)),
                size_bytes=20_000,
            ),
        )  # fmt: skip
        for name, most in ((TABLE, commits), ("labels/delays", 4)):
            for number in range(most):
                frame = pl.DataFrame(
                    {
                        "event_at": [START + timedelta(seconds=number * rows + row) for row in range(rows)],
                        "score": [shuffled.random() for _ in range(rows)],
                        "carrier": [f"carrier-{row % 7}" for row in range(rows)],
                    }
                )
                store.tables.append(name, frame, batch=("w", number))
        store.tables.compact("labels/delays")
        with Journal.create(store.journals, "predictions-delays") as journal:
            for number in range(20):
                journal.append(shuffled.randbytes(60) + bytes([number]))
        Keyring(home / "keys").sign(digest)


def _finished(run: Run, store: Store) -> Run:
    return replace(run, state="finished", ended_at=store.now(), metrics={"auc": 0.75})


def values(home: Path) -> str:
    """A digest of everything in the home, as the library reads it."""
    contents: list[Any] = []
    with open_store(home, create=False, project="flights", clock=ManualClock()) as store:
        for kind in KINDS.values():
            for record in store.records.find(kind):
                contents += [record, store.records.history(kind, record.id)]
        found = store.records.search(Run, Compare(("state",), "=", "finished"), order=[(("params", "lr"), True)])
        contents.append([hit.id for hit in found])
        paths = [("params", "lr"), ("params", "layers"), ("tags", "note"), ("metrics", "auc"), ("name",)]
        contents.append(store.records.values_at(Run, [hit.id for hit in found], paths))
        contents.append(store.records.search_names(Run, "params"))
        for run in store.records.find(Run):
            contents.append(store.records.read_points(f"run:{run.id}"))
        contents.append([one for one in store.records.events_since(0, limit=100_000) if one.verb != "repaired"])
        for digest, _ in store.objects.digests():
            contents.append(store.objects.read(digest))
            if store.objects.is_tree(digest):
                contents += [(entry.path, store.objects.read_entry(entry)) for entry in store.objects.tree(digest)]
        for name in store.tables.names():
            contents += [name, store.tables.last_batch(name, "w")]
            contents.append(store.tables.scan(name).collect().sort("event_at").rows())
        for path in sorted(store.journals.glob("*.journal")):
            contents.append([payload for payload, _ in read_journal(path)])
    contents.append([(one.name, one.id) for one in Keyring(home / "keys").listing()])
    return hashlib.sha256(repr(contents).encode()).hexdigest()


def check(home: Path) -> VerifyReport | EverloopError:
    """Check the home as `everloop verify` does."""
    os.environ["EVERLOOP_KEYS"] = str(home / "keys")
    try:
        found = check_before_opening(find_store_urls(home)[0])
        with open_store(home, create=False, project="flights", clock=ManualClock()) as store:
            return verify(store, found=found)
    except EverloopError as error:
        return error


def heal(home: Path, *, backup: Path | None = None) -> VerifyReport:
    """Repair the home as `everloop verify --repair` does, and return the report of another check."""
    os.environ["EVERLOOP_KEYS"] = str(home / "keys")
    with open_store(home, create=False, project="flights", clock=ManualClock()) as store:
        repair(store, verify(store), backup=backup)
        return verify(store)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at >> 3] ^= 1 << (at & 7)
    path.chmod(0o644)
    path.write_bytes(data)


KIND_OF = {
    ".db": "database",
    ".db-wal": "write-ahead log",
    ".journal": "journal",
    ".key": "key",
}


def kind_of_file(path: Path, home: Path) -> str | None:
    below = path.relative_to(home).parts
    if path.suffix in KIND_OF:
        return KIND_OF[path.suffix]
    if below[0] == "objects":
        return "object"
    if "_digests" in below:
        return "digests"
    if "_delta_log" in below:
        return "checkpoint" if path.name.endswith(".parquet") else "log"
    return "table data" if path.suffix == ".parquet" else None


def files(home: Path) -> dict[str, list[Path]]:
    """The files of the home by type, without data files that a table no longer uses."""
    found: dict[str, list[Path]] = {}
    with open_store(home, create=False, clock=ManualClock()) as store:
        active = {f"{name}/{path}" for name in store.tables.names() for path in store.delta_tables.files(name).active()}
    for path in sorted(home.rglob("*")):
        kind = kind_of_file(path, home) if path.is_file() else None
        if kind == "table data" and path.relative_to(home / "tables").as_posix() not in active:
            continue
        if kind is not None:
            found.setdefault(kind, []).append(path)
    return found


def attack(
    home: Path, scratch: Path, kind: str, paths: list[Path], flips: int, seed: int, whole: str, *, repairs: bool = False
) -> DamageOutcome:
    """Flip one bit at a time in a copy of the home, then check and read the copy.

    Args:
        whole: `values` of the undamaged home.
        repairs: also repair each copy.
    """
    outcome = DamageOutcome()
    shuffled = random.Random(f"{seed} {kind}")  # noqa: S311
    sizes = [path.stat().st_size for path in paths]
    for number in range(flips):
        (path,) = shuffled.choices(paths, weights=sizes)
        at = shuffled.randrange(path.stat().st_size * 8)
        copy = scratch / f"{kind.replace(' ', '-')}-{number}"
        shutil.copytree(home, copy)
        flip(copy / path.relative_to(home), at)
        report = check(copy)
        if isinstance(report, EverloopError) or report.problems:
            outcome.seen += 1
            if repairs and not isinstance(report, EverloopError):
                after = heal(copy)
                same = after.ok and _same(copy, whole)
                outcome.healed += same
                if after.ok and not same:
                    outcome.wrongly.append(f"{path.relative_to(home)} bit {at}")
        else:
            if _same(copy, whole):
                outcome.harmless += 1
            else:
                outcome.missed.append(f"{path.relative_to(home)} bit {at}")
        shutil.rmtree(copy)
    return outcome


def _same(home: Path, whole: str) -> bool:
    try:
        return values(home) == whole
    except Exception:
        return False
