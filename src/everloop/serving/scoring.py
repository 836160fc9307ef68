"""Scores checked rows and logs the answers: picks a version per row, scores, appends to the log, and then returns.

This module knows no protocol. A protocol turns bytes into a `ScoreRequest` and a `ScoreResult` into bytes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, InsufficientStorageError, RequestError, UnavailableError, UsageError
from everloop.packages.signature import Signature, utc
from everloop.prediction_log.prediction_log import Group, PredictionLog, entity_text
from everloop.serving.protocols.protocol import TABLE_MARKS
from everloop.serving.protocols.unpacked_limits import check_row_sizes, check_rows
from everloop.serving.routing import position_of
from everloop.serving.schema_routing import VersionRows, fitting_rows, match_schemas
from everloop.serving.score_request import ScoreRequest, ScoreResult, ShadowOutcome, VersionScores
from everloop.serving.throughput import INSTANT_S
from everloop.stores.clock import EPOCH, micros, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import Json
    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.observability.endpoint_metrics import Metrics
    from everloop.serving.protocols.protocol import Request
    from everloop.serving.route_scorer import RouteScorer
    from everloop.serving.schema_routing import SchemaMatch
    from everloop.stores.clock import Clock

logger = logging.getLogger("everloop.serving")

MAX_EXPLAINED = 1_000
"""Rows of one request that can be explained. Explaining costs many times as much as scoring."""

Values = tuple[Any, ...]
_MICROSECOND = timedelta(microseconds=1)


def row_count(score_request: ScoreRequest) -> int:
    return len(score_request.values if score_request.values is not None else score_request.rows or ())


def score_and_log(
    loaded: LoadedEndpoint,
    score_request: ScoreRequest,
    log: PredictionLog,
    clock: Clock,
    http_request: Request | None = None,
) -> ScoreResult:
    """Score and log a request. Thread-safe.

    Args:
        http_request: claimed before its answer is logged; None: there is no deadline.

    Raises:
        DeadlineError: the deadline passed during scoring; nothing was logged.
        RequestError: the rows, keys or times are invalid; nothing was logged.
        TooLargeError: a row is too long for the log.
        InsufficientStorageError, UnavailableError: the answer could not be logged, so it is not returned.
    """
    size = row_count(score_request)
    if size == 0:
        raise RequestError("rows: there is no row to score.")
    check_rows(size, loaded.settings)
    entities = _entities(score_request.keys, size)
    body = b"" if http_request is None else http_request.body
    if not 0 < len(body) <= loaded.settings.max_row_bytes or body[:4] in TABLE_MARKS:
        # The texts of a row cannot be longer than the body that contains them.
        rows = (
            score_request.values
            if score_request.values is not None
            else (row.values() for row in score_request.rows or ())
        )
        check_row_sizes(rows, entities, loaded.settings)
    events = _events(score_request.event_at, size)
    if score_request.explain and size > MAX_EXPLAINED:
        raise RequestError(
            f"{size} rows are too many to explain.", help=f"Explain at most {MAX_EXPLAINED} rows per request."
        )
    schema_match = None if score_request.values is not None else match_schemas(loaded, score_request.rows or ())
    coerced = [*score_request.flags, *(schema_match.flags if schema_match is not None else ())]
    flags: list[dict[str, Json]] | None = coerced or None
    if loaded.checks is not None:
        flags = [*coerced, *_unseen(loaded, score_request, schema_match)]
    now = clock.now()
    request_id = new_id(now)
    arrived = micros(now)
    if score_request.values is not None and loaded.table.single:
        groups_of_rows = [VersionRows(loaded.champion, None, score_request.values)]
    else:
        groups_of_rows = _rows_by_version(loaded, score_request, schema_match, entities, request_id, size)
    parts, groups = [], []
    slowest, slowest_s = None, 0.0
    for version_rows in groups_of_rows:
        started = perf_counter()
        scorer = version_rows.scorer
        if http_request is not None:
            http_request.scored_by = (scorer.version, scorer.role)
        scores, labels, texts = scorer.score(version_rows.values)
        seconds = perf_counter() - started
        if seconds > slowest_s:
            slowest, slowest_s = scorer, seconds
        throughput = version_rows.scorer.throughput
        if seconds > INSTANT_S or len(version_rows.values) > throughput.rows:
            throughput.learn(len(version_rows.values), seconds)
        part = VersionScores(version_rows.scorer, version_rows.positions, scores, labels, version_rows.fallbacks)
        if score_request.explain:
            part.explanations = _explanations(version_rows)
        parts.append(part)
        groups.append(
            _group(
                part, texts, version_rows, request_id, arrived, perf_counter() - score_request.began, entities, events
            )
        )
    if http_request is not None:
        # If the deadline has passed, the version that took the longest is to blame.
        http_request.scored_by = None if slowest is None else (slowest.version, slowest.role)
        http_request.claim()
        http_request.scored_by = None
    logged = _log(loaded.settings, log, groups, request_id)
    shadow = None
    if loaded.shadows:
        shadow = _Shadow(loaded, score_request, log, request_id, arrived, entities, events).run
    unasked = schema_match.why if schema_match is not None else {}
    return ScoreResult(request_id, size, parts, shadow, perf_counter() - score_request.began, flags, logged, unasked)


def count(metrics: Metrics, result: ScoreResult) -> None:
    """Count an answer. Call it in the event loop's thread."""
    metrics.time_request(result.seconds)
    if not result.logged:
        metrics.unlogged.add(result.rows)
    if result.unasked:
        metrics.unasked.add(sum(rows for rows, _ in result.unasked.values()))
    for part in result.parts:
        rows = result.rows if part.positions is None else len(part.positions)
        metrics.count_predictions(part.scorer.version, part.scorer.role, rows)
        if part.fallbacks:
            metrics.fallbacks.add(part.fallbacks)


def count_shadows(metrics: Metrics, outcome: ShadowOutcome) -> None:
    """Count what the shadows scored. Call it in the shadows' thread."""
    metrics.shadow_failures.add(len(outcome.failed) + outcome.unlogged)
    for version in outcome.failed:
        metrics.count_failure(version, "shadow", 500)
    metrics.shadow_unasked.add(outcome.unasked)
    for version, rows in outcome.scored:
        metrics.count_predictions(version, "shadow", rows)


def plain_rows(score_request: ScoreRequest, signature: Signature) -> list[dict[str, Any]]:
    """The rows as dicts, in whichever form they were sent."""
    if score_request.values is not None:
        return [dict(zip(signature.names, row, strict=True)) for row in score_request.values]
    return [dict(row) for row in score_request.rows or ()]


def _unseen(
    loaded: LoadedEndpoint, score_request: ScoreRequest, schema_match: SchemaMatch | None
) -> list[dict[str, Json]]:
    """Flags for values that the champion has not seen in training, in the rows that fit it."""
    assert loaded.checks is not None  # noqa: S101 - the caller has checked
    if schema_match is None:
        values = (
            score_request.values
            if score_request.values is not None
            else loaded.signature.rows_of(score_request.rows or ())
        )
        return loaded.checks.find(values)
    champion_rows = schema_match.champions_rows()
    positions = [position for position, _ in champion_rows]
    try:
        found = loaded.checks.find([row for _, row in champion_rows])
    except RequestError as error:
        # The error counts only the rows that fit.
        at = int(error.message[len("rows[") :].partition("]")[0])
        raise RequestError(error.message.replace(f"rows[{at}]", f"rows[{positions[at]}]", 1), help=error.help) from None
    return [{**flag, "row": positions[flag["row"]]} for flag in found]


def _rows_by_version(
    loaded: LoadedEndpoint,
    score_request: ScoreRequest,
    schema_match: SchemaMatch | None,
    entities: list[str | None] | None,
    request: str,
    size: int,
) -> list[VersionRows]:
    """The rows grouped by the version that answers them."""
    picked: dict[int, list[int]] = {}
    pick = loaded.table.pick
    for position in range(size):
        key = entities[position] if entities else None
        picked.setdefault(pick(f"{request}-{position}" if key is None else key), []).append(position)
    if score_request.values is not None:
        values = score_request.values
        if len(picked) == 1:
            return [VersionRows(loaded.scorers[next(iter(picked))], None, values)]
        return [
            VersionRows(loaded.scorers[route], positions, [values[position] for position in positions])
            for route, positions in picked.items()
        ]
    assert schema_match is not None  # noqa: S101 - the rows are plain
    return schema_match.assign(picked)


def _group(
    part: VersionScores,
    texts: list[str] | None,
    version_rows: VersionRows,
    request: str,
    arrived: int,
    seconds: float,
    entities: list[str | None] | None,
    events: list[int | None] | None,
) -> Group:
    positions, values, inputs = part.positions, version_rows.values, part.scorer.logged_inputs
    if part.scorer.redaction is not None:
        values = part.scorer.redaction.rows(values)
    if version_rows.others is not None:
        values = [(*row, *others) for row, others in zip(values, version_rows.others, strict=True)]
        inputs = part.scorer.mixed_inputs
    if positions is not None:
        entities = [entities[position] for position in positions] if entities else None
        events = [events[position] for position in positions] if events else None
    return Group(
        request=request,
        arrived=arrived,
        seconds=seconds,
        version=part.scorer.version,
        role=part.scorer.role,
        inputs=inputs,
        positions=positions,
        entities=entities,
        events=events,
        scores=part.scores,
        labels=texts,
        rows=values,  # type: ignore[arg-type]
        unasked=version_rows.unasked,
        package=part.scorer.package,
    )


@dataclass(slots=True)
class _Shadow:
    """Scores a request with every shadow after its answer has been sent."""

    loaded: LoadedEndpoint
    score_request: ScoreRequest
    log: PredictionLog
    request: str
    arrived: int
    entities: list[str | None] | None
    events: list[int | None] | None

    def run(self) -> ShadowOutcome:
        outcome = ShadowOutcome([])
        groups = []
        rows = plain_rows(self.score_request, self.loaded.signature)
        for scorer in self.loaded.shadows:
            began = perf_counter()
            positions = self._mirrored(scorer, len(rows))
            if positions is not None and not positions:
                continue
            try:
                mirrored = rows if positions is None else [rows[position] for position in positions]
                at, values = fitting_rows(scorer, mirrored)
                if len(values) < len(mirrored):
                    # The other rows are not evidence about the shadow, since it cannot score them.
                    outcome.unasked += len(mirrored) - len(values)
                    positions = at if positions is None else [positions[number] for number in at]
                if not values:
                    continue
                scores, labels, texts = scorer.score(values)
            except Exception as error:
                # A shadow's package may raise anything. Clients never see it.
                outcome.failed.append(scorer.version)
                logger.warning("The shadow %s did not score request %s: %s", scorer.version, self.request, error)
                continue
            part = VersionScores(scorer, positions, scores, labels)
            seconds = perf_counter() - began
            version_rows = VersionRows(scorer, positions, values)
            groups.append(
                _group(part, texts, version_rows, self.request, self.arrived, seconds, self.entities, self.events)
            )
            outcome.scored.append((scorer.version, len(values)))
        if groups:
            try:
                _log(self.loaded.settings, self.log, groups, self.request, wait=False)
            except (EverloopError, OSError) as error:
                logger.warning("Cannot log the shadows' scores of request %s: %s", self.request, error)
                return ShadowOutcome([], unlogged=len(self.loaded.shadows))
        return outcome

    def _mirrored(self, scorer: RouteScorer, size: int) -> list[int] | None:
        """The rows that a shadow scores, by its share of the keys; None: all, which shares of 0 and 100 mean."""
        percent = scorer.route.percent
        if percent in (0, 100):
            return None
        keys = [(self.entities or [None] * size)[position] or f"{self.request}-{position}" for position in range(size)]
        return [
            position for position, key in enumerate(keys) if position_of(f"{self.loaded.name}~shadow", key) < percent
        ]


def _log(
    settings: EndpointSettings, log: PredictionLog, groups: Sequence[Group], request: str, *, wait: bool = True
) -> bool:
    """Log an answer as the settings say; False: the disk is full, and the endpoint answers all the same."""
    if settings.log_sample < 1.0 and int(request[-8:], 16) >= settings.log_sample * 2**32:
        # The last digits of an id are random.
        return True
    try:
        log.append(groups, wait=wait)
    except (InsufficientStorageError, UnavailableError, OSError) as error:
        if settings.log_full != "answer":
            raise
        logger.warning("Cannot log the answer to request %s: %s", request, error)
        return False
    return True


def _explanations(version_rows: VersionRows) -> list[dict[str, Json]]:
    names = version_rows.scorer.names
    try:
        return version_rows.scorer.predictor.explain(
            [dict(zip(names, row, strict=True)) for row in version_rows.values]
        )
    except UsageError as error:
        raise RequestError(f"explain: {error.message}", help=error.help) from None


def _entities(keys: Sequence[str | float | None] | None, size: int) -> list[str | None] | None:
    if keys is None:
        return None
    if len(keys) != size:
        raise RequestError(f"keys: there are {len(keys)} keys for {size} rows. Send one per row.")
    return [key if key is None or type(key) is str else entity_text(key) for key in keys]


def _events(moments: Sequence[datetime | None] | None, size: int) -> list[int | None] | None:
    if moments is None:
        return None
    if len(moments) != size:
        raise RequestError(f"event_at: there are {len(moments)} times for {size} rows. Send one per row.")
    return [
        None if moment is None else (utc(moment, f"event_at[{position}]") - EPOCH) // _MICROSECOND
        for position, moment in enumerate(moments)
    ]
