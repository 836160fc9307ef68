"""Create findings, and look up those of earlier windows. Findings are the only state of monitoring.

Each check of a window stores one finding with the subject `window`, whose evidence has the verdict on every subject.
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
"""Subject of the finding that summarises a window."""

_STALE_WINDOWS = 4


def new_finding(store: Store, **fields: Any) -> Finding:
    """Create a finding with id, project and time from the store, without storing it."""
    now = store.now()
    return Finding(id=new_id(now), project=store.project, created_at=now, **fields)


@dataclass(frozen=True, slots=True)
class CheckedSeries:
    """A series of checks: the kind of its findings, the endpoint, the version and, for performance, the metric."""

    endpoint: str
    version: str | None
    kind: FindingKind
    metric: str | None = None

    def conditions(self) -> list[Condition]:
        version: Condition = ("version", "is", None) if self.version is None else ("version", "=", self.version)
        return [("endpoint", "=", self.endpoint), version, ("kind", "=", self.kind)]

    def is_summary(self, finding: Finding) -> bool:
        # A feature may also be called `window`, but only a summary lists the subjects.
        summary = finding.subject == WINDOW and "subjects" in finding.evidence
        return summary and finding.evidence.get("metric") == self.metric


def find_recently_flagged(store: Store, check: CheckedSeries, since: datetime, until: datetime) -> set[str]:
    """Return the subjects that were a warning or an alarm in one of the two windows checked before this one.

    Windows that overlap do not count, because the same rows are not evidence twice. Windows without predictions are
    skipped. Windows that ended more than four window lengths ago are ignored.
    """
    oldest = since - _STALE_WINDOWS * (until - since)
    earlier = store.records.find(
        Finding,
        *check.conditions(),
        ("subject", "=", WINDOW),
        ("window_to", "<=", since),
        ("window_to", ">=", oldest),
        order="-window_to",
    )
    recently_flagged: set[str] = set()
    windows, start = 0, since
    for summary in filter(check.is_summary, earlier):
        if summary.window_to > start:
            continue
        states = summary.evidence.get("subjects", {}).items()
        recently_flagged |= {subject for subject, state in states if state["verdict"] in ("warning", "alarm")}
        windows, start = windows + 1, summary.window_from
        if windows == MEMORY:
            break
    return recently_flagged


def find_summaries(store: Store, check: CheckedSeries, since: datetime, until: datetime) -> list[Finding]:
    """Return the summaries of windows that were checked between two moments, in the order of the checks."""
    found = store.records.find(
        Finding,
        *check.conditions(),
        ("subject", "=", WINDOW),
        ("window_from", ">=", since),
        ("window_to", "<=", until),
        order="id",
    )
    return [finding for finding in found if check.is_summary(finding)]


def find_checked(
    store: Store, check: CheckedSeries, since: datetime, until: datetime, facts: Mapping[str, Json]
) -> list[Finding]:
    """Return the findings of the last check of this window if the evidence of its summary has these `facts`."""
    found = store.records.find(
        Finding, *check.conditions(), ("window_from", "=", since), ("window_to", "=", until), order="id"
    )
    summaries = [finding for finding in found if check.is_summary(finding)]
    if not summaries or any(summaries[-1].evidence.get(name) != fact for name, fact in facts.items()):
        return []
    ids = set(summaries[-1].evidence["told"])
    return [*(finding for finding in found if finding.id in ids), summaries[-1]]
