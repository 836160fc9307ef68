"""Findings: how they are made, and what earlier windows' ones say. No state is kept anywhere else.

Each check leaves one finding with the subject `window`, whose evidence names every subject's verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.monitoring.alarm_budget import MEMORY
from everloop.records import Finding, FindingKind, Json
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from everloop.stores import Condition, Store

WINDOW = "window"
"""The subject of the finding that sums a window up."""

_STALE_WINDOWS = 4


def new_finding(store: Store, **fields: Any) -> Finding:
    """A finding that is not yet put, with id, project and time from the store."""
    now = store.now()
    return Finding(id=new_id(now), project=store.project, created_at=now, **fields)


@dataclass(frozen=True, slots=True)
class CheckedWindow:
    """What is watched: a kind of finding about an endpoint and a version, of one metric where it is performance."""

    endpoint: str
    version: str | None
    kind: FindingKind
    metric: str | None = None

    def conditions(self) -> list[Condition]:
        version: Condition = ("version", "is", None) if self.version is None else ("version", "=", self.version)
        return [("endpoint", "=", self.endpoint), version, ("kind", "=", self.kind)]

    def sums_up(self, finding: Finding) -> bool:
        # A feature may be called `window` too; only a summary has all the subjects.
        of_this = finding.subject == WINDOW and "subjects" in finding.evidence
        return of_this and finding.evidence.get("metric") == self.metric


def find_suspects(store: Store, watched: CheckedWindow, since: datetime, until: datetime) -> set[str]:
    """The subjects that were a warning or an alarm in one of the two windows checked before this one.

    Only windows that do not overlap count, since rows that were seen twice are no second evidence; a window without
    traffic is passed over. What ended more than four window lengths ago is forgotten.
    """
    oldest = since - _STALE_WINDOWS * (until - since)
    earlier = store.records.find(
        Finding,
        *watched.conditions(),
        ("subject", "=", WINDOW),
        ("window_to", "<=", since),
        ("window_to", ">=", oldest),
        order="-window_to",
    )
    suspects: set[str] = set()
    seen, edge = 0, since
    for summary in filter(watched.sums_up, earlier):
        if summary.window_to > edge:
            continue
        states = summary.evidence.get("subjects", {}).items()
        suspects |= {subject for subject, state in states if state["verdict"] in ("warning", "alarm")}
        seen, edge = seen + 1, summary.window_from
        if seen == MEMORY:
            break
    return suspects


def find_checked(
    store: Store, watched: CheckedWindow, since: datetime, until: datetime, facts: Mapping[str, Json]
) -> list[Finding]:
    """What the last check of this very window found, if its summary's evidence agrees with `facts`; else nothing."""
    found = store.records.find(
        Finding, *watched.conditions(), ("window_from", "=", since), ("window_to", "=", until), order="id"
    )
    summaries = [finding for finding in found if watched.sums_up(finding)]
    if not summaries or any(summaries[-1].evidence.get(name) != fact for name, fact in facts.items()):
        return []
    told = set(summaries[-1].evidence["told"])
    return [*(finding for finding in found if finding.id in told), summaries[-1]]
