"""Compare the service in a window with earlier windows: volume, silence, latency, errors, and the age of labels.

A window is compared with those of the same hour and weekday if there are at least three, otherwise with those of the
same hour, otherwise with the windows before it. With fewer than three of any sort, nothing is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from everloop.monitoring.measures.window_tests import (
    LEAST_WINDOWS,
    LevelTest,
    binomial_tail,
    level_shift,
    share_increase,
)
from everloop.monitoring.quality.column_quality import LEAST_COUNT, LEAST_SHARE, percent
from everloop.monitoring.quality.quality_result import QualityResult, result_key
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from everloop.records import FindingKind
    from everloop.stores import Store

    Windows = list[tuple[datetime, datetime]]

EARLIER = 8
"""How many earlier windows of a sort are compared."""
LEAST_RATIO = 1.25
"""Volume and latency are not reported unless they differ from the usual by this factor."""
LEAST_AGE_RATIO = 2.0
"""Ages are not reported unless they are this many times the usual."""
SLOW_SHARE = 0.01
"""Share of the requests that may take longer than a declared limit, as for a 99th percentile."""
LEAST_TIMED = 100
"""A 99th percentile needs this many requests."""

_NOT_CONTENT = (401, 403, 404, 405)
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)
_LATENCY_SPREAD = 0.1
_AGE_SPREAD = 1.0
"""Standard deviation of the logarithm of an exponential waiting time is 1.28; those of scheduled deliveries is less."""


@dataclass(frozen=True, slots=True)
class ServiceWindow:
    """What an endpoint did in one window. Times are in seconds; None if nothing was answered or timed.

    Attributes:
        rows: predictions that clients received.
        timed: requests with a known latency.
        slow: those of them that took longer than the declared limit.
        requests: requests that were answered with predictions.
        errors: requests that were answered with a status of 500 or more.
        refused: requests that were answered with a status of 400 to 499, except those without permission and those
            for unknown paths.
        silence_s: time from the last prediction to the end of the window.
        label_age_s: age of the newest label at the end of the window.
    """

    since: datetime
    rows: int = 0
    timed: int = 0
    slow: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    requests: int = 0
    errors: int = 0
    refused: int = 0
    silence_s: float | None = None
    label_age_s: float | None = None

    @property
    def responses(self) -> int:
        return self.requests + self.errors + self.refused


def comparable_windows(since: datetime, until: datetime) -> list[Windows]:
    """Return the earlier windows that this one may be compared with, the most similar sort first."""
    span = until - since
    steps = [_WEEK] if _WEEK % span == timedelta(0) and span < _WEEK else []
    if span < _DAY and _DAY % span == timedelta(0):
        steps.append(_DAY)
    else:
        # Neighbours that are shorter than a day have other hours.
        steps.append(span)
    return [[(since - step * back, until - step * back) for back in range(1, EARLIER + 1)] for step in steps]


def read_service(
    store: Store, endpoint: str, since: datetime, until: datetime, *, latency_s: float | None = None
) -> tuple[ServiceWindow, list[list[ServiceWindow]]]:
    """Read what the endpoint did in a window, and in the earlier windows of each sort, newest first.

    Windows before the first prediction, and the one in which the endpoint was created, are left out.
    """
    sorts = comparable_windows(since, until)
    starts = sorted({start for sort in sorts for start, _ in sort} | {since})
    read = _read_windows(store, endpoint, starts, until - since, latency_s)
    created = store.records.get(EndpointRecord, endpoint).created_at
    opened = next((start for start in starts if read[start].rows), until)
    known = [[read[start] for start, end in sort if start >= opened and not start < created < end] for sort in sorts]
    return read[since], known


def check_service(
    window: ServiceWindow,
    sorts: Sequence[Sequence[ServiceWindow]],
    *,
    latency_s: float | None = None,
    unusual: Mapping[str, Collection[datetime]] | None = None,
) -> list[QualityResult]:
    """Compare a window with earlier ones.

    Args:
        sorts: earlier windows, the most similar sort first.
        latency_s: at most 1 % of the requests may take longer, in seconds.
        unusual: by key of a result, the starts of the windows that are not compared with, unless most are among them.
    """
    left_out = unusual or {}

    def usual(key: str) -> list[ServiceWindow]:
        for sort in sorts:
            calm = [item for item in sort if item.since not in left_out.get(key, ())]
            chosen = calm if 2 * len(calm) >= len(sort) else list(sort)
            if len(chosen) >= LEAST_WINDOWS:
                return chosen[::-1]
        return []

    results = [_volume(window, usual(result_key("predictions", "volume")))]
    ages: list[tuple[str, float | None, list[float | None]]] = [
        ("predictions", window.silence_s, [item.silence_s for item in usual(result_key("predictions", "age"))]),
        ("labels", window.label_age_s, [item.label_age_s for item in usual(result_key("labels", "age"))]),
    ]
    results += [_age(subject, age, earlier) for subject, age, earlier in ages if age is not None]
    if window.p50_s is not None:
        earlier = [item.p50_s for item in usual(result_key("latency", "p50"))]
        results.append(_latency("p50", window.p50_s, earlier))
    if window.p99_s is not None and window.timed >= LEAST_TIMED:
        earlier = [item.p99_s for item in usual(result_key("latency", "p99")) if item.timed >= LEAST_TIMED]
        results.append(_latency("p99", window.p99_s, earlier))
    if latency_s is not None and window.timed:
        results.append(_limit(window, latency_s))
    if window.responses:
        earlier_errors = [(item.errors, item.responses) for item in usual(result_key("errors", "server"))]
        results.append(_errors("server", window.errors, window.responses, earlier_errors))
        earlier_refused = [(item.refused, item.responses) for item in usual(result_key("errors", "refused"))]
        results.append(_errors("refused", window.refused, window.responses, earlier_refused))
    return results


def _volume(window: ServiceWindow, earlier: Sequence[ServiceWindow]) -> QualityResult:
    # Half a row keeps the logarithm of an empty window finite.
    counts = [item.rows + 0.5 for item in earlier]
    found = f"{window.rows} predictions" if window.rows else "No predictions"
    spread = 1 / math.sqrt(1 + sum(counts) / len(counts)) if counts else 0.0
    test = level_shift(window.rows + 0.5, counts, least_spread=spread)
    p_value = None
    if test is not None:
        far = _ratio(window.rows + 0.5, test.expected) >= LEAST_RATIO
        p_value = test.two_sided if far else 1.0
    return _compared("quality", "predictions", "volume", found, float(window.rows), test, p_value, _number)


def _age(subject: str, age: float, earlier: Sequence[float | None]) -> QualityResult:
    # One second is the precision of an age that matters here.
    known = [value + 1 for value in earlier if value is not None]
    test = level_shift(age + 1, known, least_spread=_AGE_SPREAD if subject == "predictions" else _LATENCY_SPREAD)
    what = "prediction" if subject == "predictions" else "label"
    message = f"The newest {what} is {_duration(age)} old at the end of the window"
    p_value = None
    if test is not None:
        p_value = test.increase if (age + 1) / test.expected >= LEAST_AGE_RATIO else 1.0
    return _compared("freshness", subject, "age", message, age, test, p_value, _age_text)


def _latency(rule: str, seconds: float, earlier: Sequence[float | None]) -> QualityResult:
    known = [value for value in earlier if value is not None and value > 0]
    test = level_shift(seconds, known, least_spread=_LATENCY_SPREAD) if seconds > 0 else None
    share = "Half" if rule == "p50" else "1 %"
    message = f"{share} of the requests took longer than {1000 * seconds:.3g} ms"
    p_value = None
    if test is not None:
        p_value = test.increase if seconds / test.expected >= LEAST_RATIO else 1.0
    return _compared("latency", "latency", rule, message, seconds, test, p_value, _milliseconds)


def _limit(window: ServiceWindow, latency_s: float) -> QualityResult:
    share = window.slow / window.timed
    message = f"{share:.2%} of {window.timed} requests took longer than {1000 * latency_s:g} ms"
    return QualityResult(
        "latency",
        "latency",
        "limit",
        f"{message}; at most {SLOW_SHARE:.0%} may",
        share,
        SLOW_SHARE,
        binomial_tail(window.slow, window.timed, SLOW_SHARE),
        "windows",
        (window.slow, window.timed),
        {"limit_s": latency_s, "slow": window.slow, "requests": window.timed},
    )


def _errors(rule: str, count: int, responses: int, earlier: Sequence[tuple[int, int]]) -> QualityResult:
    what = "failed with a server error" if rule == "server" else "were refused because of their content"
    message = f"{count} of {responses} requests {what}"
    value, counts = count / responses, (count, responses)
    known = [window for window in earlier if window[1] > 0]
    if len(known) < LEAST_WINDOWS:
        return QualityResult("quality", "errors", rule, message, value, counts=counts)
    test = share_increase(count, responses, known)
    p_value = test.p_value if count >= LEAST_COUNT and value - test.expected >= LEAST_SHARE else 1.0
    message = f"{message}; usually {percent(test.expected)}"
    return QualityResult("quality", "errors", rule, message, value, test.expected, p_value, "windows", counts)


def _compared(
    kind: FindingKind,
    subject: str,
    rule: str,
    message: str,
    value: float,
    test: LevelTest | None,
    p_value: float | None,
    text: Callable[[float], str],
) -> QualityResult:
    if test is None:
        return QualityResult(kind, subject, rule, message, value)
    message = f"{message}; usually about {text(test.expected)}"
    evidence = {"spread": test.spread, "increase": test.increase, "decrease": test.decrease}
    return QualityResult(
        kind, subject, rule, message, value, test.expected, p_value, "windows", evidence=dict(evidence)
    )


def _read_windows(
    store: Store, endpoint: str, starts: Sequence[datetime], span: timedelta, latency_s: float | None
) -> dict[datetime, ServiceWindow]:
    import polars as pl

    from everloop.prediction_log.label_matching import ANSWERED
    from everloop.prediction_log.log_reading import fold_logs, read_predictions

    fold_logs(store, endpoint)
    view = store.as_of(store.now())
    frame = read_predictions(view, endpoint, starts[0], starts[-1] + span, roles=ANSWERED)
    columns = frame.collect_schema().names()
    seconds = pl.col("seconds") if "seconds" in columns else pl.lit(None, dtype=pl.Float64)
    request = pl.col("request") if "request" in columns else pl.col("id")
    places = {(start - starts[0]) // span: start for start in starts}
    micros = span // timedelta(microseconds=1)
    place = (pl.col("event_at") - starts[0]).dt.total_microseconds() // micros
    inside = frame.select(place.alias("window"), "event_at", seconds.alias("seconds"), request.alias("request")).filter(
        pl.col("window").is_in(list(places))
    )
    # All rows of a request have its latency.
    each = inside.group_by("window", "request").agg(
        pl.len().alias("rows"), pl.col("event_at").max(), pl.col("seconds").first()
    )
    took = pl.col("seconds").filter(pl.col("seconds").is_finite())
    found = (
        each.group_by("window")
        .agg(
            pl.len().alias("requests"),
            pl.col("rows").sum(),
            pl.col("event_at").max(),
            took.len().alias("timed"),
            took.quantile(0.5).alias("p50"),
            took.quantile(0.99).alias("p99"),
            (took > (latency_s if latency_s is not None else math.inf)).sum().alias("slow"),
        )
        .collect()
    )
    ages = _label_ages(view, endpoint, starts, span)
    failed = _failures(store, view, endpoint, starts, span)
    windows = {
        start: ServiceWindow(start, label_age_s=ages.get(start), errors=failed[start][0], refused=failed[start][1])
        for start in starts
    }
    for row in found.iter_rows(named=True):
        start = places[row["window"]]
        windows[start] = replace(
            windows[start],
            rows=row["rows"],
            timed=row["timed"],
            slow=row["slow"],
            p50_s=row["p50"],
            p99_s=row["p99"],
            requests=row["requests"],
            silence_s=(start + span - row["event_at"]).total_seconds(),
        )
    return windows


def _failures(
    store: Store, view: Store, endpoint: str, starts: Sequence[datetime], span: timedelta
) -> dict[datetime, tuple[int, int]]:
    """Server errors and refused requests in each window."""
    import polars as pl

    from everloop.prediction_log.failure_log import client_failures, fold_failures

    if not store.read_only:
        fold_failures(store, endpoint)
    rows = client_failures(view, endpoint, since=starts[0], until=starts[-1] + span)
    if rows is None:
        return dict.fromkeys(starts, (0, 0))
    content = ~pl.col("status").is_in(_NOT_CONTENT) & (pl.col("status") < 500)
    counts = {}
    for start in starts:
        inside = (pl.col("event_at") >= start) & (pl.col("event_at") < start + span)
        requests = pl.col("requests").filter(inside & (pl.col("status") >= 500)).sum()
        counts[start] = pl.struct(requests, pl.col("requests").filter(inside & content).sum().alias("refused"))
    row = rows.select(value.alias(str(number)) for number, value in enumerate(counts.values())).collect().row(0)
    return {start: (each["requests"], each["refused"]) for start, each in zip(starts, row, strict=True)}


def _label_ages(view: Store, endpoint: str, starts: Sequence[datetime], span: timedelta) -> dict[datetime, float]:
    """The age of the newest label that had arrived by the end of each window, in seconds."""
    import polars as pl

    from everloop.prediction_log.prediction_log import LABELS, table_name

    table = table_name(view, LABELS, endpoint)
    if not view.tables.exists(table):
        return {}
    arrived = pl.col("arrived_at")
    newest = view.tables.scan(table).select(
        arrived.filter(arrived <= start + span).max().alias(str(number)) for number, start in enumerate(starts)
    )
    row = newest.collect().row(0)
    return {start: (start + span - at).total_seconds() for start, at in zip(starts, row, strict=True) if at is not None}


def _number(rows: float) -> str:
    return f"{max(0.0, rows - 0.5):.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _age_text(seconds: float) -> str:
    return _duration(max(0.0, seconds - 1))


def _ratio(one: float, other: float) -> float:
    return max(one / other, other / one)


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
