"""Checking the files of a Delta table, its log, checkpoints and data, against their digests."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.stores.tables.table_digests import HINT, LOG
from everloop.stores.verify_report import StoreProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores.tables.table_digests import Digests, TableFiles
    from everloop.stores.verify_report import Checked

RESTORE = "everloop verify --repair --from BACKUP"


def check_table(files: TableFiles, checked: Checked) -> Iterator[StoreProblem]:
    """Compare every file of the table with its digest."""
    return _TableCheck(files, checked).run()


class _TableCheck:
    def __init__(self, files: TableFiles, checked: Checked) -> None:
        self.files = files
        self.checked = checked
        self.known: Digests = files.load()
        self.log = files.log_versions()
        self.checkpoints = files.checkpoints()

    def run(self) -> Iterator[StoreProblem]:
        self.checked.files += self.known.count
        self.checked.size_bytes += self.known.size_bytes
        for path in self.known.damaged:
            heal = "Read its files to the end, and compute the digests again."
            yield self._problem(f"The list of digests '{path}' is damaged.", path, heal=heal, cure="digests")
        intact = [version for version, path in self.checkpoints.items() if self._compare(path) is None]
        log_problems = [*self._check_log(max(intact, default=-1)), *self._check_checkpoints(set(intact))]
        yield from log_problems
        if not log_problems:
            yield from self._check_hint()
            yield from self._check_data()
        else:
            yield from self._check_known_data()

    def _check_log(self, checkpoint: int) -> Iterator[StoreProblem]:
        """Check the log.

        Args:
            checkpoint: version of the newest intact checkpoint. Missing log entries up to it are not a problem.
        """
        for version in sorted(self.log.keys() | self.known.versions):
            path = f"{LOG}/{version:020}.json"
            if version not in self.log:
                if version <= checkpoint or self.files.size(path) is not None:
                    continue
                problem: str | None = f"The log entry {version} of the table '{self.files.name}' is missing."
            else:
                problem = self._compare(path) if path in self.known.files else self._parse_entry(path)
            if problem is None:
                continue
            if self._has_copy(version):
                heal = "Restore the entry from its copy."
                yield self._problem(problem, path, heal=heal, cure="log-entry")
            elif version <= checkpoint:
                heal = "Move it to the quarantine: a later checkpoint contains the same data."
                yield self._problem(problem, path, heal=heal, cure="log-aside")
            else:
                yield self._problem(problem, path)

    def _check_checkpoints(self, intact: set[int]) -> Iterator[StoreProblem]:
        for version, path in sorted(self.checkpoints.items()):
            if version in intact:
                continue
            problem = self._compare(path)
            if problem is None:
                continue
            base = max((other for other in intact if other < version), default=-1)
            entries = range(base + 1, version + 1)
            complete = all(
                one in self.log and (self._compare(self.log[one]) is None or self._has_copy(one)) for one in entries
            )
            heal = "Move it to the quarantine and write a new one from the log entries."
            yield self._problem(problem, path, heal=heal if complete else None, cure="checkpoint" if complete else None)

    def _check_hint(self) -> Iterator[StoreProblem]:
        """Check that the hint at the newest checkpoint matches it. It is often replaced, so it has no digest."""
        for _ in range(2):
            try:
                data = self.files.read(HINT)
            except NotFoundError:
                return
            problem = self._hint_problem(data)
            if problem is None:
                self.checked.files += 1
                self.checked.size_bytes += len(data)
                return
            self.checkpoints = self.files.checkpoints()
        heal = "Move it to the quarantine: without it, readers find the newest checkpoint in the list of files."
        yield self._problem(f"'{HINT}' of the table '{self.files.name}' {problem}.", HINT, heal=heal, cure="hint")

    def _hint_problem(self, data: bytes) -> str | None:
        try:
            hint = json.loads(data)
            version = hint["version"]
        except (ValueError, KeyError, TypeError):
            return "cannot be read"
        if version not in self.checkpoints:
            return f"refers to the checkpoint {version}, which does not exist"
        size = hint.get("sizeInBytes")
        if size is not None and size != self.files.size(self.checkpoints[version]):
            return f"has a wrong size for the checkpoint {version}"
        return None

    def _check_data(self) -> Iterator[StoreProblem]:
        try:
            active = self.files.active()
        except NotFoundError:
            # Dropped since it was listed.
            return
        except Exception as error:
            # deltalake raises half a dozen different exceptions for missing and damaged logs.
            if self.files.size(f"{LOG}/{0:020}.json") is None and not self.log and self.known.count == 0:
                message = f"The log of the table '{self.files.name}' is empty."
            else:
                message = f"The table '{self.files.name}' cannot be read: {error}"
            yield self._problem(message, LOG)
            return
        for path in sorted(active):
            if path in self.known.files:
                problem = self._compare(path)
            else:
                problem = self._parse_data(path)
            if problem is not None and path in self._active_again():
                yield self._problem(problem, path)

    def _check_known_data(self) -> Iterator[StoreProblem]:
        """If the log is damaged, check all existing data files that have a digest."""
        for path in sorted(self.known.files):
            if path.startswith(LOG) or self.files.size(path) is None:
                continue
            problem = self._compare(path)
            if problem is not None:
                yield self._problem(problem, path)

    def _active_again(self) -> dict[str, int]:
        """The data files now. A damaged file does not matter if it has been replaced in the meantime."""
        try:
            return self.files.active()
        except Exception:
            return {}

    def _compare(self, path: str) -> str | None:
        recorded = self.known.files.get(path)
        if recorded is None:
            return self._parse_data(path) if path.endswith(".parquet") else self._parse_entry(path)
        problem = self.files.check(path, recorded)
        self.checked.files += 1
        self.checked.size_bytes += recorded[0]
        return problem

    def _parse_entry(self, path: str) -> str | None:
        try:
            data = self.files.read(path)
            for line in data.splitlines():
                json.loads(line)
        except NotFoundError:
            return None
        except ValueError as error:
            return f"The log entry '{path}' of the table '{self.files.name}' cannot be read: {error}."
        self._count_unsealed(len(data))
        return None

    def _parse_data(self, path: str) -> str | None:
        """Read a Parquet file that has no digest to its end."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        local = self.files.local(path)
        try:
            # Without pyarrow's own threads: if they still hold Python objects when the interpreter exits, releasing
            # them can abort the process.
            source: Any = str(local) if local is not None else pa.BufferReader(self.files.read(path))
            with pq.ParquetFile(source, pre_buffer=False, memory_map=False) as file:
                for _ in file.iter_batches(use_threads=False):
                    pass
        except (NotFoundError, FileNotFoundError):
            return f"The file '{path}' of the table '{self.files.name}' is missing."
        except (OSError, ValueError, pa.ArrowException) as error:
            return f"The file '{path}' of the table '{self.files.name}' cannot be read: {error}"
        self._count_unsealed(self.files.size(path) or 0)
        return None

    def _count_unsealed(self, size: int) -> None:
        self.checked.files += 1
        self.checked.size_bytes += size
        self.checked.unsealed_files += 1

    def _has_copy(self, version: int) -> bool:
        entry, recorded = self.known.entries.get(version), self.known.files.get(f"{LOG}/{version:020}.json")
        return entry is not None and recorded is not None and hashlib.sha256(entry.encode()).hexdigest() == recorded[1]

    def _problem(self, message: str, path: str, *, heal: str | None = None, cure: Any = None) -> StoreProblem:
        return StoreProblem(
            kind="table",
            subject=self.files.name,
            message=message,
            repair="everloop verify --repair" if heal else RESTORE,
            heal=heal,
            cure=cure,
            location=path,
        )
