"""What can be healed of what a check has found, and healing it.

Only what a checksum proves right, or what follows from other things, is written. What is replaced is kept in the
home's folder `quarantine`, below the time of the repair, and each repair is an event.
"""

# ruff: noqa: S608 - only names that stand in this room are ever put into SQL; every value is a parameter.

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, EverloopError, NotFoundError, StoreError
from everloop.stores.backup import members
from everloop.stores.clock import system_micros
from everloop.stores.journals import mended, whole_part, writer_alive
from everloop.stores.objects.manifests import DIGEST
from everloop.stores.records.row_checksums import SUMS, RowSum
from everloop.stores.records.row_verification import REPAIR, check_rows
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.tables.table_digests import HINT
from everloop.stores.tables.table_verification import check_table
from everloop.stores.verify_report import Checked, StoreProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from everloop.stores.home import Store
    from everloop.stores.records.sql_logs import Database
    from everloop.stores.verify_report import VerifyReport

FOLDER = "quarantine"
_ORDER = ("sum", "row", "index", "search", "log-entry", "log-aside", "checkpoint", "hint", "digests")
"""Rows before what follows from them, and a table's log before its checkpoints. Everything else comes after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What became of one problem."""

    problem: StoreProblem
    healed: bool
    message: str
    kept: str | None = None
    """Where the damaged original is now, below the home."""


def can_heal(problem: StoreProblem, *, backup: bool = False) -> bool:
    """Whether `repair` would try."""
    return problem.cure is not None or (backup and problem.kind == "table" and problem.place is not None)


def repair(store: Store, report: VerifyReport, *, backup: Path | str | None = None) -> list[Repair]:
    """Heal what can be healed of what `verify` has found, and nothing else.

    Args:
        backup: a file that `everloop backup` wrote; damaged objects and files of tables are taken from it if it has
            them as they were.

    Raises:
        NotFoundError: there is no such backup.
    """
    return _Repair(store, None if backup is None else Path(backup)).run(report.problems)


class _Repair:
    def __init__(self, store: Store, backup: Path | None) -> None:
        self.store = store
        self.backup = backup
        self._aside = store.home / FOLDER / f"{store.now():%Y%m%dT%H%M%S}-{system_micros() % 1_000_000:06}"
        self._reindexed = False

    def run(self, problems: Sequence[StoreProblem]) -> list[Repair]:
        cures: dict[str, Callable[[StoreProblem], str | None]] = {
            "sum": self._sum,
            "row": self._row,
            "index": self._index,
            "search": self._search,
            "log-entry": self._log_entry,
            "log-aside": self._log_aside,
            "checkpoint": self._checkpoint,
            "hint": self._log_aside,
            "digests": self._digests,
            "journal-frame": self._journal,
            "journal-tail": self._journal,
            "object": self._object,
        }
        done = []
        for problem in sorted(problems, key=lambda one: _ORDER.index(one.cure) if one.cure in _ORDER else len(_ORDER)):
            if not can_heal(problem, backup=self.backup is not None):
                done.append(Repair(problem=problem, healed=False, message="Nothing here can heal it."))
                continue
            cure = cures.get(problem.cure or "", self._from_backup)
            try:
                kept = cure(problem)
            except (EverloopError, OSError) as error:
                message = error.message if isinstance(error, EverloopError) else str(error)
                done.append(Repair(problem=problem, healed=False, message=message))
                continue
            self.store.records.append_event(
                "repaired",
                "store",
                problem.subject,
                data={"kind": problem.kind, "what": problem.message, "cure": problem.cure or "backup", "kept": kept},
            )
            done.append(
                Repair(problem=problem, healed=True, message=problem.heal or "Taken from the backup.", kept=kept)
            )
        return done

    # Rows

    def _sum(self, problem: StoreProblem) -> str | None:
        check, number, at = self._place(problem)
        crc, row = self._read_row(check, number, at)
        kept = self._keep_row(check, at, crc, row)
        with self._database.transaction():
            self._database.write(
                f"UPDATE {check.table} SET crc = ? WHERE {number} = ? AND crc = ?", (check.of(row), at, crc)
            )
        return kept

    def _row(self, problem: StoreProblem) -> str | None:
        check, number, at = self._place(problem)
        crc, row = self._read_row(check, number, at)
        whole = check.mended(row, crc)
        if whole is None:
            raise CorruptionError("The row has changed since it was checked.", help=f"Run it again: {REPAIR}")
        kept = self._keep_row(check, at, crc, row)
        statement = f"UPDATE {check.table} SET {', '.join(f'{name} = ?' for name in check.columns)} WHERE {number} = ?"
        try:
            with self._database.transaction():
                self._database.write(statement, (*whole, at))
        except CorruptionError:
            # An index still has the value from before the damage.
            self._reindex(check.table)
            with self._database.transaction():
                self._database.write(statement, (*whole, at))
        return kept

    def _index(self, problem: StoreProblem) -> str | None:
        if self._reindexed or problem.message not in self.store.records.problems():
            # Writing a row again, or an earlier problem, has put the indexes right.
            return None
        rows = [one for one in check_rows(self._database, [], Checked()) if one.kind in ("record", "row")]
        if rows:
            raise CorruptionError(f"{len(rows)} rows are damaged, and indexes made from them would hide that.")
        for table in ("records", "revisions", "events", "metrics", "points"):
            self._reindex(table)
        with self._database.transaction():
            self._database.write("REINDEX")
        self._reindexed = True
        left = self.store.records.problems()
        if left:
            raise CorruptionError(left[0])
        return None

    def _reindex(self, table: str) -> None:
        """Make a table's indexes again, unless they know of other rows than the table has."""
        database = self._database
        if not isinstance(database, SqliteDatabase):
            raise StoreError("Only SQLite's indexes are made again here.", help="Use REINDEX on the server.")
        indexes = database.read(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND (sql IS NULL OR sql NOT LIKE ?)",
            (table, "%WHERE%"),
        )
        for (index,) in indexes:
            for one, other in (("NOT INDEXED", f'INDEXED BY "{index}"'), (f'INDEXED BY "{index}"', "NOT INDEXED")):
                strange = database.read_raw(
                    f"SELECT rowid FROM {table} {one} EXCEPT SELECT rowid FROM {table} {other} LIMIT 1"
                )
                if strange:
                    raise CorruptionError(
                        f"The table '{table}' and its index '{index}' do not have the same rows.",
                        help="Restore a backup: everloop restore",
                    )
        with database.transaction():
            database.write(f"REINDEX {table}")

    def _search(self, problem: StoreProblem) -> str | None:
        if isinstance(self.store.records, SqlRecords):
            self.store.records.list_again(problem.place or problem.subject)
        return None

    # Tables

    def _log_entry(self, problem: StoreProblem) -> str | None:
        files = self.store.tables.files(problem.subject)
        path = problem.place or ""
        version = int(Path(path).stem)
        known = files.load()
        entry = known.entries[version].encode()
        if hashlib.sha256(entry).hexdigest() != known.files[path][1]:
            raise CorruptionError("The copy of the entry is not what it was.")
        kept = self._keep_table_file(problem)
        files.replace(path, entry)
        return kept

    def _log_aside(self, problem: StoreProblem) -> str | None:
        kept = self._keep_table_file(problem)
        self.store.tables.files(problem.subject).remove(problem.place or "")
        return kept

    def _checkpoint(self, problem: StoreProblem) -> str | None:
        from deltalake import DeltaTable

        kept = self._log_aside(problem)
        files = self.store.tables.files(problem.subject)
        if files.size(HINT) is not None:
            files.remove(HINT)
        try:
            DeltaTable(f"{self.store.tables.root}/{problem.subject}").create_checkpoint()
        except Exception as error:
            raise StoreError(f"No new checkpoint was written: {error}") from error
        files.seal_all()
        return kept

    def _digests(self, problem: StoreProblem) -> str | None:
        files = self.store.tables.files(problem.subject)
        path = problem.place or ""
        before = files.read(path)
        kept = self._keep_table_file(problem)
        files.remove(path)
        # What has no digest now is read to its end.
        left = [one for one in check_table(files, Checked()) if one.cure != "digests"]
        if left:
            files.replace(path, before)
            raise CorruptionError(left[0].message)
        files.seal_all()
        return kept

    # Journals and objects

    def _journal(self, problem: StoreProblem) -> str | None:
        path = Path(problem.place or "")
        if writer_alive(path):
            raise StoreError("Its writer is alive.", help="Stop it first.")
        data = mended(path) if problem.cure == "journal-frame" else whole_part(path)
        if data is None:
            raise CorruptionError("The journal has changed since it was checked.", help=f"Run it again: {REPAIR}")
        kept = self._keep(path, path.relative_to(self.store.home))
        draft = path.with_name(f".{path.name}.repair")
        draft.write_bytes(data)
        draft.chmod(path.stat().st_mode & 0o777)
        draft.replace(path)
        return kept

    def _object(self, problem: StoreProblem) -> str | None:
        digest = problem.place or ""
        data = self._find_object(digest)
        if data is None:
            where = "the cache, the trees or the backup" if self.backup else "the cache or the trees"
            raise NotFoundError(f"The object {digest} is not in {where}.", help=f"Try: {REPAIR} --from BACKUP")
        objects = self.store.objects
        kept = None
        try:
            objects.prove(digest)
        except NotFoundError:
            pass
        except CorruptionError:
            kept = self._keep_bytes(objects.bytes_store.get(_object_key(digest)), Path("objects") / _object_key(digest))
        else:
            return None
        objects.bytes_store.put(_object_key(digest), data, if_absent=False)
        return kept

    def _find_object(self, digest: str) -> bytes | None:
        if not DIGEST.fullmatch(digest):
            return None
        cached = self.store.home / "cache" / _object_key(digest)
        if cached.is_file() and _is(cached.read_bytes(), digest):
            return cached.read_bytes()
        for other, _ in self.store.objects.digests():
            try:
                entries = self.store.objects.tree(other) if self.store.objects.is_tree(other) else []
                for entry in entries:
                    if entry.digest == digest and entry.pack is not None:
                        return self.store.objects.read_entry(entry)
            except EverloopError:
                continue
        if self.backup is None:
            return None
        name = f"objects/{_object_key(digest)}"
        return next((data for _, data in members(self.backup, {name}) if _is(data, digest)), None)

    def _from_backup(self, problem: StoreProblem) -> str | None:
        if self.backup is None:
            raise NotFoundError("No backup was named.")
        files = self.store.tables.files(problem.subject)
        path = problem.place or ""
        noted = files.load().files.get(path)
        if noted is None:
            raise NotFoundError("There is no digest of what the file was.")
        for _, data in members(self.backup, {f"tables/{problem.subject}/{path}"}):
            if _is(data, f"sha256:{noted[1]}"):
                kept = self._keep_table_file(problem)
                files.replace(path, data)
                return kept
        raise NotFoundError(f"The backup has no whole '{path}' of the table '{problem.subject}'.")

    # Keeping what is replaced

    def _keep_table_file(self, problem: StoreProblem) -> str | None:
        files = self.store.tables.files(problem.subject)
        try:
            data = files.read(problem.place or "")
        except NotFoundError:
            return None
        return self._keep_bytes(data, Path("tables") / problem.subject / (problem.place or ""))

    def _keep_row(self, check: RowSum, at: object, crc: int, row: Sequence[object]) -> str:
        told = {"table": check.table, "number": at, "crc": crc, "row": dict(zip(check.columns, row, strict=True))}
        path = self._prepared(Path("rows") / f"{check.table}.jsonl")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        return self._shown(path)

    def _keep(self, path: Path, below: Path) -> str:
        target = self._prepared(below)
        shutil.copy2(path, target)
        return self._shown(target)

    def _keep_bytes(self, data: bytes, below: Path) -> str:
        target = self._prepared(below)
        target.write_bytes(data)
        return self._shown(target)

    def _prepared(self, below: Path) -> Path:
        target = self._aside / below
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.store.home / FOLDER).chmod(0o700)
        return target

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.store.home).as_posix()

    @property
    def _database(self) -> Database:
        if not isinstance(self.store.records, SqlRecords):
            raise StoreError("Only records in a SQL database can be healed.")
        return self.store.records.database

    def _place(self, problem: StoreProblem) -> tuple[RowSum, str, object]:
        table, _, at = (problem.place or "").partition(" ")
        check = next(one for one in SUMS if one.table == table)
        number = self._database.row_id if check.number == "rowid" else check.number
        return check, number, at if number == "id" and table == "records" else int(at)

    def _read_row(self, check: RowSum, number: str, at: object) -> tuple[int, list[object]]:
        rows = self._database.read_raw(
            f"SELECT crc, {', '.join(check.columns)} FROM {check.table} WHERE {number} = ?", (at,)
        )
        if not rows or rows[0][0] is None:
            raise NotFoundError("The row is gone.")
        return rows[0][0], list(rows[0][1:])


def keep_database_log(home: Path, database: Path) -> str | None:
    """Copy a database and its damaged write-ahead log aside, before opening it makes SQLite forget what is behind the
    damage; returns where to, below the home."""
    folder = home / FOLDER / f"log-{system_micros()}"
    folder.mkdir(parents=True, mode=0o700)
    for ending in ("", "-wal", "-shm"):
        path = database.with_name(f"{database.name}{ending}")
        if path.exists():
            shutil.copy2(path, folder / path.name)
    return folder.relative_to(home).as_posix()


def _object_key(digest: str) -> str:
    return f"sha256/{digest[7:9]}/{digest[9:]}"


def _is(data: bytes, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest[7:]
