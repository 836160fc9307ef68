"""The built-in triggers that look at incidents, data and labels, as a loop declares them.

Durations are strings such as `90s`, `15m`, `12h`, `14d` or `1w`; `2d12h` is their sum. Schedules are in `schedules`,
commits in `commit_trigger`, and calls in `trigger_calls`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_number, check_severity
from everloop.loop.triggers.trigger_protocol import Due as Due  # noqa: TC001  (others import it from here)
from everloop.stores.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from everloop.loop.triggers.retrain_limits import RetrainLimits
    from everloop.loop.triggers.trigger_protocol import TriggerContext
    from everloop.records import FindingKind, IncidentSeverity, Json


@dataclass(frozen=True, slots=True)
class _OnIncident:
    """Retrain if there is an incident of a kind about the current champion."""

    cooldown: str
    at_least: IncidentSeverity = "alarm"
    limits: RetrainLimits | None = None

    kind: ClassVar[FindingKind]

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_duration(f"{name}(cooldown=)", self.cooldown)
        check_severity(f"{name}(at_least=)", self.at_least)

    def check(self, context: TriggerContext) -> Due | None:
        return _on_incident(self, context)

    def next_at(self, context: TriggerContext) -> datetime | None:
        return _after_cooldown(self.cooldown, context)


@dataclass(frozen=True, slots=True)
class OnDrift(_OnIncident):
    """Trigger: retrain if there is a drift incident about the current champion. Needs a `Drift` watch.

    Args:
        cooldown: shortest time between the start of the last run and a run that this trigger starts.
        at_least: `"alarm"` for incidents that harm predictions, or are expected to; `"notice"` for all incidents.
        limits: further limits for this trigger.

    Raises:
        UsageError: `cooldown` is not a duration, or `at_least` is not a severity.

    Example:
        `OnDrift(cooldown="8w")`
    """

    cooldown: str = "2w"
    kind: ClassVar[FindingKind] = "drift"


@dataclass(frozen=True, slots=True)
class OnPerformance(_OnIncident):
    """Trigger: retrain if there is a performance incident about the current champion. Needs a `Performance` watch.

    The arguments are those of `OnDrift`.

    Raises:
        UsageError: `cooldown` is not a duration, or `at_least` is not a severity.

    Example:
        `OnPerformance(cooldown="6w")`
    """

    cooldown: str = "1w"
    kind: ClassVar[FindingKind] = "performance"


@dataclass(frozen=True, slots=True)
class OnNewData:
    """Trigger: retrain if the files or queries that the source steps read have changed.

    Args:
        cooldown: shortest time between the start of the last run and a run that this trigger starts.
        rows: with `folder` or `source`, the least number of new rows since the last run began.
        folder: files to count rows in, as a path, a glob or a URL that `el.read` accepts. With it, the source steps are
            not looked at.
        arrival: with `folder`, the column with the time when a row arrived. Then rows that arrive after the present of
            a simulated clock are not counted, so use it for a replay.
        source: an incremental source that a step reads with `el.read(source, cursor=cursor)`. Its rows after the cursor
            are counted; it is called at each check after the cool-down.
        cursor: the cursor column of `source`.
        limits: further limits for this trigger.

    Raises:
        UsageError: `cooldown` is not a duration, `rows` is not a positive whole number, or the arguments do not fit
            together.

    Example:
        `OnNewData(cooldown="1d")`, or `OnNewData(rows=1000, folder="data/orders/*.parquet")`
    """

    cooldown: str = "1d"
    rows: int | None = None
    folder: str | None = None
    arrival: str | None = None
    source: Callable[..., Any] | None = None
    cursor: str | None = None
    limits: RetrainLimits | None = None

    def __post_init__(self) -> None:
        check_duration("OnNewData(cooldown=)", self.cooldown)
        if self.rows is not None:
            check_number("OnNewData(rows=)", self.rows, least=1, whole=True)
        if (self.source is None) != (self.cursor is None) or (self.source is not None and self.folder is not None):
            raise UsageError(
                "OnNewData takes either folder=, or source= together with cursor=.",
                help='For example: OnNewData(rows=1000, source=orders, cursor="id")',
            )
        if self.rows is not None and self.folder is None and self.source is None:
            raise UsageError(
                f"OnNewData(rows={self.rows}) needs to know where to count rows.",
                help='Add folder=, for example: OnNewData(rows=1000, folder="data/orders/*.parquet")',
            )
        if self.folder is not None and (not isinstance(self.folder, str) or not self.folder):
            raise UsageError(
                f"OnNewData(folder=) is {self.folder!r}, but must be a path or a glob.",
                help="For example: 'data/*.csv'",
            )
        if self.arrival is not None and self.folder is None:
            raise UsageError(
                "OnNewData(arrival=) has no effect without folder=.", help="Add folder=, or leave arrival= out."
            )

    def check(self, context: TriggerContext) -> Due | None:
        if context.now() < _after_cooldown(self.cooldown, context):
            return None
        if self.folder is not None:
            return self._more_rows(context)
        if self.source is not None and self.cursor is not None:
            from everloop.data.sources.cursors import count_new

            new = count_new(self.source, self.cursor, context.store)
            name = getattr(self.source, "__name__", "the source")
            return self._due(context, new, name, {"new_rows": new}) if new >= (self.rows or 1) else None
        changed = [step for step in context.plan() if step.reason.startswith("source changed")]
        if not changed:
            return None
        return context.due("; ".join(step.reason for step in changed), {"steps": [step.name for step in changed]})

    def mark(self, context: TriggerContext) -> int | None:
        """Return the number of rows in `folder` now."""
        return None if self.folder is None else self._count(context)

    def next_at(self, context: TriggerContext) -> datetime | None:
        return _after_cooldown(self.cooldown, context)

    def _more_rows(self, context: TriggerContext) -> Due | None:
        now, before = self._count(context), context.mark if isinstance(context.mark, int) else 0
        new = now - before
        if new < (self.rows or 1):
            return None
        return self._due(context, new, str(self.folder), {"new_rows": new, "rows": now})

    @staticmethod
    def _due(context: TriggerContext, new: int, where: str, evidence: dict[str, Json]) -> Due:
        return context.due(f"{new:,} new {'row' if new == 1 else 'rows'} in {where}", evidence, str(new))

    def _count(self, context: TriggerContext) -> int:
        import polars as pl

        from everloop.data import read
        from everloop.data.table_inputs import as_utc, require_column

        rows = read(self.folder)
        if self.arrival is not None:
            schema = rows.collect_schema()
            require_column(self.arrival, schema, "arrival column")
            rows = rows.filter(as_utc(self.arrival, schema[self.arrival]) <= pl.lit(context.now()))
        return int(rows.select(pl.len()).collect().item())


@dataclass(frozen=True, slots=True)
class OnLabels:
    """Trigger: retrain when enough labels of the endpoint's predictions have arrived since the last run began.

    Args:
        rows: the least number of new labels.
        cooldown: shortest time between the start of the last run and a run that this trigger starts.
        limits: further limits for this trigger.

    Raises:
        UsageError: `rows` is not a positive whole number, or `cooldown` is not a duration.

    Example:
        `OnLabels(rows=5000)`
    """

    rows: int
    cooldown: str = "1d"
    limits: RetrainLimits | None = None

    def __post_init__(self) -> None:
        check_number("OnLabels(rows=)", self.rows, least=1, whole=True)
        check_duration("OnLabels(cooldown=)", self.cooldown)

    def check(self, context: TriggerContext) -> Due | None:
        if context.endpoint is None or context.now() < _after_cooldown(self.cooldown, context):
            return None
        import polars as pl

        from everloop.prediction_log.prediction_log import LABELS, table_name
        from everloop.stores.tables.delta_tables import ARRIVED_AT

        name = table_name(context.store, LABELS, context.endpoint)
        if not context.store.tables.exists(name):
            return None
        arrived = pl.col(ARRIVED_AT)
        new = context.store.tables.scan(name).filter(
            (arrived > pl.lit(context.last.started_at)) & (arrived <= pl.lit(context.now()))
        )
        count = int(new.select(pl.len()).collect().item())
        if count < self.rows:
            return None
        return context.due(f"{count:,} new labels", {"labels": count}, str(count))

    def next_at(self, context: TriggerContext) -> datetime | None:
        return _after_cooldown(self.cooldown, context)


def _after_cooldown(cooldown: str, context: TriggerContext) -> datetime:
    return context.last.started_at + parse_duration(cooldown)


def _on_incident(trigger: _OnIncident, context: TriggerContext) -> Due | None:
    from everloop.loop.releases.rollout import champion_of
    from everloop.monitoring.incidents.incident_actions import is_muted
    from everloop.monitoring.incidents.incident_engine import ongoing_incidents

    now = context.now()
    if context.endpoint is None or now < _after_cooldown(trigger.cooldown, context):
        return None
    champion = champion_of(context.store, context.model)
    incident = next(
        (
            one
            for one in ongoing_incidents(context.store, context.endpoint, trigger.kind)
            # What was seen before the last run began is answered by that run.
            if one.seen_at > context.last.started_at
            and not is_muted(one, now)
            and (one.severity == "alarm" or trigger.at_least == "notice")
            # An incident of a version that has been replaced needs no further run.
            and (not one.versions or champion in one.versions)
        ),
        None,
    )
    if incident is None:
        return None
    waited = format_duration(max(timedelta(0), now - incident.seen_at))
    evidence = {"incident": incident.id, "subjects": list(incident.subjects), "waited": waited}
    return context.due(incident.title.rstrip("."), evidence, incident.id)
