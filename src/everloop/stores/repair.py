"""Repairing problems that a check has found.

Only data that a checksum proves right, or that can be derived from other data, is written. The damaged originals are
moved to the home's folder `quarantine`, into a subfolder named after the time. Every repair is recorded as an event.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

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
from everloop.stores.journals import intact_part, repaired_journal, writer_alive
from everloop.stores.objects.manifests import DIGEST
from everloop.stores.objects.object_store import object_key
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
"""Order of the cures: rows before data that is derived from them, logs of tables before checkpoints, the rest last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The outcome for one problem."""

    problem: StoreProblem
    healed: bool
    message: str
    kept: str | None = None
    """Where the damaged original was moved, relative to the home."""


def can_heal(problem: StoreProblem, *, backup: bool = False) -> bool:
    """Whether `repair` would try to fix the problem."""
    return problem.cure is not None or (backup and problem.kind == "table" and problem.location is not None)


def repair(store: Store, report: VerifyReport, *, backup: Path | str | None = None) -> list[Repair]:
    """Repair those problems of a report by `verify` that can be repaired.

    Args:
        backup: a file that `everloop backup` wrote. Damaged objects and table files are restored from it if it has
            intact copies.

    Raises:
        NotFoundError: the backup does not exist.
    """
    return _Repair(store, None if backup is None else Path(backup)).run(report.problems)


def _storable(text: str) -> str:
    """Escape what is not valid Unicode: the damage may be in the very id of a record."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Repair:
    def __init__(self, store: Store, backup: Path | None) -> None:
        self.store = store
        self.backup = backup
        self._folder = store.home / FOLDER / f"{store.now():%Y%m%dT%H%M%S}-{system_micros() % 1_000_000:06}"
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
                done.append(Repair(problem=problem, healed=False, message="This problem cannot be repaired here."))
                continue
            cure = cures.get(problem.cure or "", self._from_backup)
            try:
                quarantined = cure(problem)
            except (EverloopError, OSError) as error:
                message = error.message if isinstance(error, EverloopError) else str(error)
                done.append(Repair(problem=problem, healed=False, message=message))
                continue
            self.store.records.append_event(
                "repaired",
                "store",
                _storable(problem.subject),
                data={
                    "kind": problem.kind,
                    "what": _storable(problem.message),
                    "cure": problem.cure or "backup",
                    "kept": quarantined,
                },
            )
            done.append(
                Repair(
                    problem=problem, healed=True, message=problem.heal or "Restored from the backup.", kept=quarantined
                )
            )
        return done

    # Rows

    def _sum(self, problem: StoreProblem) -> str | None:
        check, number, at = self._row_of(problem)
        crc, row = self._read_row(check, number, at)
        quarantined = self._quarantine_row(check, at, crc, row)
        with self._database.transaction():
            self._database.write(
                f"UPDATE {check.table} SET crc = ? WHERE {number} = ? AND crc = ?", (check.of(row), at, crc)
            )
        return quarantined

    def _row(self, problem: StoreProblem) -> str | None:
        check, number, at = self._row_of(problem)
        crc, row = self._read_row(check, number, at)
        repaired = check.repaired(row, crc)
        if repaired is None:
            raise CorruptionError("The row has changed since it was checked.", help=f"Run the repair again: {REPAIR}")
        quarantined = self._quarantine_row(check, at, crc, row)
        statement = f"UPDATE {check.table} SET {', '.join(f'{name} = ?' for name in check.columns)} WHERE {number} = ?"
        try:
            with self._database.transaction():
                self._database.write(statement, (*repaired, at))
        except CorruptionError:
            # An index still has the value from before the damage.
            self._reindex(check.table)
            with self._database.transaction():
                self._database.write(statement, (*repaired, at))
        return quarantined

    def _index(self, problem: StoreProblem) -> str | None:
        if self._reindexed or problem.message not in self.store.records.problems():
            # The repair of a row, or of an earlier problem, has fixed the indexes already.
            return None
        rows = [one for one in check_rows(self._database, [], Checked()) if one.kind in ("record", "row")]
        if rows:
            count = "1 row is" if len(rows) == 1 else f"{len(rows)} rows are"
            raise CorruptionError(f"{count} damaged, and rebuilding the indexes would hide that.")
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
        """Rebuild a table's indexes, unless their rows differ from those of the table."""
        database = self._database
        if not isinstance(database, SqliteDatabase):
            raise StoreError("everloop rebuilds only SQLite's indexes.", help="Use REINDEX on the server.")
        indexes = database.read(
            "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND (sql IS NULL OR sql NOT LIKE ?)",
            (table, "%WHERE%"),
        )
        for (index,) in indexes:
            for one, other in (("NOT INDEXED", f'INDEXED BY "{index}"'), (f'INDEXED BY "{index}"', "NOT INDEXED")):
                differing = database.read_raw(
                    f"SELECT rowid FROM {table} {one} EXCEPT SELECT rowid FROM {table} {other} LIMIT 1"
                )
                if differing:
                    raise CorruptionError(
                        f"The table '{table}' and its index '{index}' do not have the same rows.",
                        help="Restore a backup: everloop restore",
                    )
        with database.transaction():
            database.write(f"REINDEX {table}")

    def _search(self, problem: StoreProblem) -> str | None:
        if isinstance(self.store.records, SqlRecords):
            self.store.records.rebuild_entries(problem.location or problem.subject)
        return None

    # Tables

    def _log_entry(self, problem: StoreProblem) -> str | None:
        files = self.store.delta_tables.files(problem.subject)
        path = problem.location or ""
        version = int(Path(path).stem)
        known = files.load()
        entry = known.entries[version].encode()
        if hashlib.sha256(entry).hexdigest() != known.files[path][1]:
            raise CorruptionError("The copy of the log entry is damaged as well.")
        quarantined = self._quarantine_table_file(problem)
        files.replace(path, entry)
        return quarantined

    def _log_aside(self, problem: StoreProblem) -> str | None:
        quarantined = self._quarantine_table_file(problem)
        self.store.delta_tables.files(problem.subject).remove(problem.location or "")
        return quarantined

    def _checkpoint(self, problem: StoreProblem) -> str | None:
        from deltalake import DeltaTable

        quarantined = self._log_aside(problem)
        files = self.store.delta_tables.files(problem.subject)
        if files.size(HINT) is not None:
            files.remove(HINT)
        try:
            DeltaTable(f"{self.store.delta_tables.root}/{problem.subject}").create_checkpoint()
        except Exception as error:
            raise StoreError(f"Cannot write a new checkpoint: {error}") from error
        files.seal_all()
        return quarantined

    def _digests(self, problem: StoreProblem) -> str | None:
        files = self.store.delta_tables.files(problem.subject)
        path = problem.location or ""
        before = files.read(path)
        quarantined = self._quarantine_table_file(problem)
        files.remove(path)
        # Files without a digest are read to their end now.
        remaining = [one for one in check_table(files, Checked()) if one.cure != "digests"]
        if remaining:
            files.replace(path, before)
            raise CorruptionError(remaining[0].message)
        files.seal_all()
        return quarantined

    # Journals and objects

    def _journal(self, problem: StoreProblem) -> str | None:
        path = Path(problem.location or "")
        if writer_alive(path):
            raise StoreError("The process that writes this journal is still running.", help="Stop it first.")
        data = repaired_journal(path) if problem.cure == "journal-frame" else intact_part(path)
        if data is None:
            raise CorruptionError(
                "The journal has changed since it was checked.", help=f"Run the repair again: {REPAIR}"
            )
        quarantined = self._quarantine_file(path, path.relative_to(self.store.home))
        draft = path.with_name(f".{path.name}.repair")
        draft.write_bytes(data)
        draft.chmod(path.stat().st_mode & 0o777)
        draft.replace(path)
        return quarantined

    def _object(self, problem: StoreProblem) -> str | None:
        digest = problem.location or ""
        data = self._find_object(digest)
        if data is None:
            where = "the cache, the trees or the backup" if self.backup else "the cache or the trees"
            raise NotFoundError(f"The object {digest} is not in {where}.", help=f"Try: {REPAIR} --from BACKUP")
        objects = self.store.objects
        quarantined = None
        try:
            objects.prove(digest)
        except NotFoundError:
            pass
        except CorruptionError:
            damaged = objects.bytes_store.get(object_key(digest))
            quarantined = self._quarantine(damaged, Path("objects") / object_key(digest))
        else:
            return None
        objects.bytes_store.put(object_key(digest), data, if_absent=False)
        return quarantined

    def _find_object(self, digest: str) -> bytes | None:
        if not DIGEST.fullmatch(digest):
            return None
        cached = self.store.home / "cache" / object_key(digest)
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
        name = f"objects/{object_key(digest)}"
        return next((data for _, data in members(self.backup, {name}) if _is(data, digest)), None)

    def _from_backup(self, problem: StoreProblem) -> str | None:
        if self.backup is None:
            raise NotFoundError("This problem can only be repaired from a backup.", help=f"Try: {REPAIR} --from BACKUP")
        files = self.store.delta_tables.files(problem.subject)
        path = problem.location or ""
        recorded = files.load().files.get(path)
        if recorded is None:
            raise NotFoundError(f"There is no digest of '{path}', so a copy from the backup cannot be checked.")
        for _, data in members(self.backup, {f"tables/{problem.subject}/{path}"}):
            if _is(data, f"sha256:{recorded[1]}"):
                quarantined = self._quarantine_table_file(problem)
                files.replace(path, data)
                return quarantined
        raise NotFoundError(f"The backup has no intact copy of '{path}' of the table '{problem.subject}'.")

    # Quarantine: each method returns where the copy is, relative to the home.

    def _quarantine_table_file(self, problem: StoreProblem) -> str | None:
        files = self.store.delta_tables.files(problem.subject)
        try:
            data = files.read(problem.location or "")
        except NotFoundError:
            return None
        return self._quarantine(data, Path("tables") / problem.subject / (problem.location or ""))

    def _quarantine_row(self, check: RowSum, at: object, crc: int, row: Sequence[object]) -> str:
        entry = {"table": check.table, "number": at, "crc": crc, "row": dict(zip(check.columns, row, strict=True))}
        path = self._quarantine_path(Path("rows") / f"{check.table}.jsonl")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        return self._in_home(path)

    def _quarantine_file(self, path: Path, relative: Path) -> str:
        target = self._quarantine_path(relative)
        shutil.copy2(path, target)
        return self._in_home(target)

    def _quarantine(self, data: bytes, relative: Path) -> str:
        target = self._quarantine_path(relative)
        target.write_bytes(data)
        return self._in_home(target)

    def _quarantine_path(self, relative: Path) -> Path:
        target = self._folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.store.home / FOLDER).chmod(0o700)
        return target

    def _in_home(self, path: Path) -> str:
        return path.relative_to(self.store.home).as_posix()

    @property
    def _database(self) -> Database:
        if not isinstance(self.store.records, SqlRecords):
            raise StoreError("The records of this store are not in an SQL database, so they cannot be repaired.")
        return self.store.records.database

    def _row_of(self, problem: StoreProblem) -> tuple[RowSum, str, object]:
        """The table of a damaged row, the column that identifies the row, and its value there."""
        table, _, at = (problem.location or "").partition(" ")
        check = next(one for one in SUMS if one.table == table)
        number = self._database.row_id if check.number == "rowid" else check.number
        return check, number, at if number == "id" and table == "records" else int(at)

    def _read_row(self, check: RowSum, number: str, at: object) -> tuple[int, list[object]]:
        rows = self._database.read_raw(
            f"SELECT crc, {', '.join(check.columns)} FROM {check.table} WHERE {number} = ?", (at,)
        )
        if not rows or rows[0][0] is None:
            raise NotFoundError("The row no longer exists.")
        return rows[0][0], list(rows[0][1:])


def keep_database_log(home: Path, database: Path) -> str | None:
    """Copy a database and its damaged write-ahead log to the quarantine, and return the folder relative to the home.

    Call this before opening the database: SQLite then discards everything after the damage.
    """
    folder = home / FOLDER / f"log-{system_micros()}"
    folder.mkdir(parents=True, mode=0o700)
    for ending in ("", "-wal", "-shm"):
        path = database.with_name(f"{database.name}{ending}")
        if path.exists():
            shutil.copy2(path, folder / path.name)
    return folder.relative_to(home).as_posix()


def _is(data: bytes, digest: str) -> bool:
    return hashlib.sha256(data).hexdigest() == digest[7:]
