"""Check the quality of an endpoint's live data and service in one window, and store the findings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.monitoring.alarm_budget import MEMORY, budget_for
from everloop.monitoring.findings import WINDOW, CheckedSeries, find_checked, find_recently_flagged, new_finding
from everloop.monitoring.logged_windows import INPUT, read_window
from everloop.monitoring.quality.column_quality import (
    compare_constants,
    compare_share,
    constant_columns,
    measure_columns,
    measure_repeats,
)
from everloop.monitoring.quality.feature_skew import check_features
from everloop.monitoring.quality.quality_result import QualityResult, judge_window
from everloop.monitoring.quality.service_quality import check_service, read_service
from everloop.records import Contract, Finding, ModelVersion, Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    import polars as pl

    from everloop.records import Json
    from everloop.stores import Store

HISTORY = 30
"""How many earlier windows show what is usual for the columns of a version."""


def check_quality(
    store: Store,
    endpoint: str,
    version: str,
    since: datetime,
    until: datetime,
    *,
    latency_ms: float | None = None,
    views: Sequence[str] = (),
    alarms_per_month: float = 1.0,
    windows_per_month: float | None = None,
    keep: bool = True,
) -> list[Finding]:
    """Check the inputs of a version and the service of its endpoint in one window, and store the findings.

    Columns: the share of rows that break each rule of the version's contract, missing values, constant columns,
    repeated keys and inputs, and features that differ from their view. Service: the number of predictions, silence,
    latency, server errors, and the age of the newest label. Shares and amounts are compared with earlier windows, by
    tests that tolerate the variation between those. There is no alarm before there are three earlier windows.

    There is one finding for each warning and alarm. One more summarises the window: its subject is `window`, its
    severity `info`, and its evidence has every measurement. A check can only become an alarm if it was a warning or an
    alarm in one of the two windows checked before. Checking a window again returns the earlier findings, unless more
    predictions have arrived in the meantime.

    Args:
        since: start of the window, by `event_at` of the predictions.
        until: end of the window, exclusive.
        latency_ms: at most 1 % of the requests may take longer, in milliseconds. Default: no limit.
        views: feature views whose features are among the inputs.
        alarms_per_month: how many false alarms a month are tolerated, over all checks together.
        windows_per_month: how many windows a month are checked. Default: as many as fit into a month.
        keep: False returns the findings without storing them, for a watch, whose findings are stored together with
            the incidents that follow from them.

    Returns:
        The findings: alarms first, the summary of the window last.

    Raises:
        EmptySampleError: there are no predictions in the window, and it is not known whether that is usual.
        NotFoundError: the endpoint or a feature view does not exist.
        UsageError: the window has no length, the budget is not above 0, or a view does not fit the inputs.
    """
    budget = budget_for(alarms_per_month, until - since, windows_per_month)
    latency_s = None if latency_ms is None else latency_ms / 1000
    service, sorts = read_service(store, endpoint, since, until, latency_s=latency_s)
    log, inputs = _read_version(store, endpoint, version, since, until)
    contract, reference_rows = find_contract_of(store, version)
    facts: dict[str, Json] = {
        "rows": log.height,
        "predictions": service.rows,
        "responses": service.responses,
        "contract": contract.key if contract is not None else None,
        "latency_ms": latency_ms,
        "views": list(views),
        **asdict(budget),
    }
    check = CheckedSeries(endpoint, version, "quality")
    earlier = find_checked(store, check, since, until, facts)
    if earlier:
        # The findings of a window are of several kinds, and the search was for one.
        return [*store.records.get_many(Finding, earlier[-1].evidence["told"]), earlier[-1]]
    history = _read_history(store, check, since, until)
    results = check_service(service, sorts, latency_s=latency_s, unusual=history.unusual)
    if service.responses == 0 and results[0].basis == "none":
        raise EmptySampleError(
            f"'{endpoint}' has no predictions between {since.isoformat()} and {until.isoformat()}, and fewer than "
            "three earlier windows show what is usual.",
            help="Send requests, or choose a later window.",
        )
    constants: dict[str, Json] = {}
    if log.height:
        of_version = [item for item in history.summaries if item.version == version]
        shares = [*measure_columns(inputs, contract), *measure_repeats(log, [*_logged(log)], "entity")]
        same_contract = [item for item in of_version if item.evidence.get("contract") == facts["contract"]]
        results += [
            compare_share(
                share, _shares_of(share.key, same_contract, history.unusual.get(share.key, ())), reference_rows
            )
            for share in shares
        ]
        constants = constant_columns(inputs)
        filled = [item for item in of_version if item.evidence.get("rows")]
        results += compare_constants(constants, [item.evidence.get("constants", ()) for item in filled])
        results += check_features(store, log, inputs, views) if views else []
    recently_flagged = find_recently_flagged(store, check, since, until)
    judged = judge_window(results, budget, recently_flagged)
    found = [
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind=result.kind,
            severity=result.verdict,
            subject=result.subject,
            window_from=since,
            window_to=until,
            value=result.value,
            threshold=result.expected,
            message=f"{result.message}.",
            evidence={"rule": result.rule, "p_value": result.p_value, "basis": result.basis, **result.evidence},
        )
        for result in sorted(judged, key=lambda result: result.verdict)
        if result.verdict != "quiet"
    ]
    found.append(
        new_finding(
            store,
            endpoint=endpoint,
            version=version,
            kind="quality",
            severity="info",
            subject=WINDOW,
            window_from=since,
            window_to=until,
            value=float(service.rows),
            message=_summary(judged, service.rows),
            evidence={
                **facts,
                "told": [item.id for item in found],
                "suspects": sorted(recently_flagged),
                "constants": sorted(constants),
                "subjects": {result.key: result.state() for result in judged},
            },
        )
    )
    if keep:
        store.records.put(*found)
    return found


def find_contract_of(store: Store, version: str) -> tuple[Contract | None, int]:
    """Return the contract of the data that a version was trained on, and the number of rows of that data.

    The contract is None, and the number 0, if the version has no snapshot or its snapshot has no contract.
    """
    registered = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    if not registered or registered[0].snapshot is None:
        return None, 0
    snapshots = store.records.find(Snapshot, ("key", "=", registered[0].snapshot), limit=1)
    if not snapshots or snapshots[0].contract is None:
        return None, 0
    contracts = store.records.find(Contract, ("key", "=", snapshots[0].contract), limit=1)
    return (contracts[0], snapshots[0].rows) if contracts else (None, 0)


@dataclass(frozen=True, slots=True)
class _History:
    """The summaries of earlier windows of this length, newest first, and by key the windows that are not usual."""

    summaries: list[Finding]
    unusual: dict[str, set[datetime]] = field(default_factory=dict)


def _read_history(store: Store, check: CheckedSeries, since: datetime, until: datetime) -> _History:
    # Other versions count as well: the service is the same.
    found = store.records.find(
        Finding,
        ("endpoint", "=", check.endpoint),
        ("kind", "=", check.kind),
        ("subject", "=", WINDOW),
        ("window_to", "<=", since),
        order="-window_to",
        limit=4 * HISTORY,
    )
    summaries: dict[datetime, Finding] = {}
    for finding in filter(check.is_summary, found):
        known = summaries.get(finding.window_from)
        newer = known is None or known.id < finding.id
        if newer and finding.window_to - finding.window_from == until - since:
            summaries[finding.window_from] = finding
    newest = list(summaries.values())[:HISTORY]
    return _History(newest, _unusual(newest))


def _unusual(newest_first: Sequence[Finding]) -> dict[str, set[datetime]]:
    """By key, the windows that belong to an alarm or may still become one.

    A single warning is part of what varies: without it, the earlier windows would seem to vary too little.
    """
    unusual: dict[str, set[datetime]] = {}
    alarmed: dict[str, int] = {}
    for index, finding in enumerate(newest_first):
        for key, state in finding.evidence["subjects"].items():
            if state["verdict"] == "alarm":
                alarmed[key] = index
            if state["verdict"] != "quiet" and (index < MEMORY or index - alarmed.get(key, -MEMORY - 1) <= MEMORY):
                unusual.setdefault(key, set()).add(finding.window_from)
    return unusual


def _shares_of(key: str, summaries: Sequence[Finding], unusual: Collection[datetime]) -> list[tuple[float, float]]:
    """Count and rows of a share in earlier windows, oldest first, without unusual ones, unless most are unusual."""
    every: list[tuple[float, float]] = []
    calm: list[tuple[float, float]] = []
    for summary in summaries:
        state = summary.evidence["subjects"].get(key)
        rows = summary.evidence["rows"]
        if not rows:
            continue
        # A rule that no row broke is not listed.
        count, total = (0, rows) if state is None or "counts" not in state else state["counts"]
        every.append((count, total))
        if summary.window_from not in unusual:
            calm.append((count, total))
    return (calm if 2 * len(calm) >= len(every) else every)[::-1]


def _read_version(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A version's rows of the log, and their inputs by the names that the model knows. Both may be empty."""
    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_reading import read_inputs

    try:
        log = read_window(store, endpoint, since, until, version=version)
    except EmptySampleError:
        return pl.DataFrame(), pl.DataFrame()
    registered = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    if registered and registered[0].signature:
        return log, read_inputs(log, Signature.from_json(registered[0].signature))
    names = _logged(log)
    return log, log.select(pl.col(column).alias(name) for column, name in names.items())


def _logged(log: pl.DataFrame) -> dict[str, str]:
    """The columns of the inputs in the log, with their names."""
    return {column: column.removeprefix(INPUT) for column in log.columns if column.startswith(INPUT)}


def _summary(results: Sequence[QualityResult], rows: int) -> str:
    counts = {verdict: sum(result.verdict == verdict for result in results) for verdict in ("alarm", "warning")}
    flagged = [f"{count} {verdict}{'s' if count > 1 else ''}" for verdict, count in counts.items() if count]
    return f"{' and '.join(flagged) or 'Nothing unusual'} in {len(results)} checks of {rows} predictions."
