"""The report of `everloop verify`: the problems found, and how much was checked."""

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
"""How `repair` can fix a problem. `repair.py` has one function for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreProblem:
    """One problem found by a check."""

    kind: str
    """`records`, `record`, `row`, `search`, `object`, `tree`, `reference`, `journal`, `table`, `permissions`, `key`,
    `clock` or `run`."""
    subject: str
    message: str
    repair: str | None = None
    """A command that helps, if there is one."""
    heal: str | None = None
    """What `everloop verify --repair` would do about it. None if it cannot fix the problem."""
    cure: Cure | None = None
    location: str | None = None
    """What the cure works on: a path, a digest, or a table and the number of a row."""


@dataclass(slots=True, kw_only=True)
class Checked:
    """How much a check has read."""

    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    """Database rows: records, their earlier revisions, events, metrics and points."""
    unsealed_files: int = 0
    """Table files without a digest, because an earlier version wrote them or their writer was killed. The check can
    only read them to the end."""
    unsealed_rows: int = 0
    """Rows without a checksum, written by an earlier version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of a check."""

    problems: tuple[StoreProblem, ...]
    counts: dict[str, int]
    """Number of records, objects, journals and tables that were checked."""
    checked: Checked = field(default_factory=Checked)
    unchecked: tuple[StoreProblem, ...] = ()
    """What could not be checked, because a server did not respond or permission was denied."""

    @property
    def ok(self) -> bool:
        return not self.problems
