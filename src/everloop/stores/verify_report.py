"""What a check of a home can find, and what it says that it has looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Cure = Literal[
    "row",
    "sum",
    "index",
    "search",
    "log",
    "log-end",
    "log-entry",
    "log-aside",
    "checkpoint",
    "hint",
    "digests",
    "journal-tail",
    "journal-frame",
    "object",
    "points-cache",
]
"""What `repair` can do about a problem; `repair.py` holds one function for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreProblem:
    """One thing that is not as it should be."""

    kind: str
    """`records`, `record`, `row`, `search`, `object`, `tree`, `reference`, `journal`, `table`, `permissions`, `key`,
    `clock` or `run`."""
    subject: str
    message: str
    repair: str | None = None
    """The command that helps, where one does."""
    heal: str | None = None
    """What `everloop verify --repair` would do about it; None where it can do nothing."""
    cure: Cure | None = None
    place: str | None = None
    """For the cure: a path, or a table and a row's number."""


@dataclass(slots=True, kw_only=True)
class Checked:
    """How much a check has read and compared."""

    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    """Of the database: records, their earlier revisions, events, metrics and points."""
    unsealed_files: int = 0
    """Files of tables without a digest, because an earlier version wrote them or their writer was killed. They were
    read to the end, and no more than that can be said of them."""
    unsealed_rows: int = 0
    """Rows without a checksum, which an earlier version wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a check has looked at and found."""

    problems: tuple[StoreProblem, ...]
    counts: dict[str, int]
    """How many records, objects, journals and tables were looked at."""
    checked: Checked = field(default_factory=Checked)
    unchecked: tuple[StoreProblem, ...] = ()
    """What could not be read, because it did not answer or may not be read, and so is neither whole nor damaged."""

    @property
    def ok(self) -> bool:
        return not self.problems
