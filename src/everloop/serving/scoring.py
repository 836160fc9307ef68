"""From checked rows to logged answers: pick a version per row, score, append to the log, and only then answer.

No protocol is known here: a protocol turns bytes into an `ScoreRequest` and an `ScoreResult` into bytes.
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
from everloop.serving.routing import place_of
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
"""Rows of one request that are explained; that costs many times what scoring costs."""

Values = tuple[Any, ...]
_MICROSECOND = timedelta(microseconds=1)


def rows_of(ask: ScoreRequest) -> int:
    """How many rows are asked."""
    return len(ask.values if ask.values is not None else ask.rows or ())


def score_request(
    live: LoadedEndpoint, ask: ScoreRequest, log: PredictionLog, clock: Clock, request_sent: Request | None = None
) -> ScoreResult:
    """Score and log a request. Thread-safe.

    Args:
        request_sent: what is asked to `claim` itself before its answer is logged; None: no deadline is held.

    Raises:
        DeadlineError: its time ran out while it was scored; nothing was logged.
        RequestError: the rows, keys or times cannot be used; nothing was logged.
        TooLargeError: a row is too long for the log.
        InsufficientStorageError, UnavailableError: the answer could not be logged, so there is none.
    """
    size = rows_of(ask)
    if size == 0:
        raise RequestError("rows: there is no row to score.")
    check_rows(size, live.settings)
    entities = _entities(ask.keys, size)
    body = b"" if request_sent is None else request_sent.body
    if not 0 < len(body) <= live.settings.max_row_bytes or body[:4] in TABLE_MARKS:
        # The texts of a row are not longer than the text that it came in.
        rows = ask.values if ask.values is not None else (row.values() for row in ask.rows or ())
        check_row_sizes(rows, entities, live.settings)
    events = _events(ask.event_at, size)
    if ask.explain and size > MAX_EXPLAINED:
        raise RequestError(f"{size} rows are too many to explain.", help=f"Explain at most {MAX_EXPLAINED} at once.")
    understood = None if ask.values is not None else match_schemas(live, ask.rows or ())
    mended = [*ask.flags, *(understood.flags if understood is not None else ())]
    flags: list[dict[str, Json]] | None = mended or None
    if live.checks is not None:
        flags = [*mended, *_unseen(live, ask, understood)]
    now = clock.now()
    request = new_id(now)
    arrived = micros(now)
    if ask.values is not None and live.table.single:
        shares = [VersionRows(live.champion, None, ask.values)]
    else:
        shares = _shares(live, ask, understood, entities, request, size)
    parts, groups = [], []
    for share in shares:
        started = perf_counter()
        scores, labels, texts = share.scorer.score(share.values)
        seconds = perf_counter() - started
        pace = share.scorer.pace
        if seconds > INSTANT_S or len(share.values) > pace.rows:
            pace.learn(len(share.values), seconds)
        part = VersionScores(share.scorer, share.places, scores, labels, share.fallbacks)
        if ask.explain:
            part.explanations = _explained(share)
        parts.append(part)
        groups.append(_group(part, texts, share, request, arrived, perf_counter() - ask.began, entities, events))
    if request_sent is not None:
        request_sent.claim()
    logged = _log(live.settings, log, groups, request)
    shadow = None
    if live.shadows:
        shadow = _Shadow(live, ask, log, request, arrived, entities, events).run
    unasked = understood.why if understood is not None else {}
    return ScoreResult(request, size, parts, shadow, perf_counter() - ask.began, flags, logged, unasked)


def count(metrics: Metrics, given: ScoreResult) -> None:
    """Add an answer to the counters. In the event loop's thread."""
    metrics.time_request(given.seconds)
    if not given.logged:
        metrics.unlogged.add(given.rows)
    if given.unasked:
        metrics.unasked.add(sum(rows for rows, _ in given.unasked.values()))
    for part in given.parts:
        rows = given.rows if part.places is None else len(part.places)
        metrics.count_predictions(part.scorer.version, part.scorer.role, rows)
        if part.fallbacks:
            metrics.fallbacks.add(part.fallbacks)


def count_shadows(metrics: Metrics, outcome: ShadowOutcome) -> None:
    """Add what the shadows did to the counters. In the shadows' thread."""
    metrics.shadow_failures.add(outcome.failures)
    metrics.shadow_unasked.add(outcome.unasked)
    for version, rows in outcome.scored:
        metrics.count_predictions(version, "shadow", rows)


def plain_rows(ask: ScoreRequest, signature: Signature) -> list[dict[str, Any]]:
    """The rows as dicts, whichever way they came."""
    if ask.values is not None:
        return [dict(zip(signature.names, row, strict=True)) for row in ask.values]
    return [dict(row) for row in ask.rows or ()]


def _unseen(live: LoadedEndpoint, ask: ScoreRequest, understood: SchemaMatch | None) -> list[dict[str, Json]]:
    """What the champion has not seen in training, of the rows that it understands."""
    assert live.checks is not None  # noqa: S101 - the caller has looked
    if understood is None:
        values = ask.values if ask.values is not None else live.signature.rows_of(ask.rows or ())
        return live.checks.find(values)
    kept = understood.champions_rows()
    places = [place for place, _ in kept]
    try:
        found = live.checks.find([row for _, row in kept])
    except RequestError as error:
        # It numbers the rows that it was given.
        at = int(error.message[len("rows[") :].partition("]")[0])
        raise RequestError(error.message.replace(f"rows[{at}]", f"rows[{places[at]}]", 1), help=error.help) from None
    return [{**flag, "row": places[flag["row"]]} for flag in found]


def _shares(
    live: LoadedEndpoint,
    ask: ScoreRequest,
    understood: SchemaMatch | None,
    entities: list[str | None] | None,
    request: str,
    size: int,
) -> list[VersionRows]:
    """The rows by the version that answers them."""
    picked: dict[int, list[int]] = {}
    pick = live.table.pick
    for place in range(size):
        key = entities[place] if entities else None
        picked.setdefault(pick(f"{request}-{place}" if key is None else key), []).append(place)
    if ask.values is not None:
        values = ask.values
        if len(picked) == 1:
            return [VersionRows(live.scorers[next(iter(picked))], None, values)]
        return [
            VersionRows(live.scorers[route], places, [values[place] for place in places])
            for route, places in picked.items()
        ]
    assert understood is not None  # noqa: S101 - the rows are plain
    return understood.share(picked)


def _group(
    part: VersionScores,
    texts: list[str] | None,
    share: VersionRows,
    request: str,
    arrived: int,
    seconds: float,
    entities: list[str | None] | None,
    events: list[int | None] | None,
) -> Group:
    places, values, inputs = part.places, share.values, part.scorer.logged_inputs
    if part.scorer.redaction is not None:
        values = part.scorer.redaction.rows(values)
    if share.others is not None:
        values = [(*row, *others) for row, others in zip(values, share.others, strict=True)]
        inputs = part.scorer.mixed_inputs
    if places is not None:
        entities = [entities[place] for place in places] if entities else None
        events = [events[place] for place in places] if events else None
    return Group(
        request=request,
        arrived=arrived,
        seconds=seconds,
        version=part.scorer.version,
        role=part.scorer.role,
        inputs=inputs,
        places=places,
        entities=entities,
        events=events,
        scores=part.scores,
        labels=texts,
        rows=values,  # type: ignore[arg-type]
        unasked=share.unasked,
        package=part.scorer.package,
    )


@dataclass(slots=True)
class _Shadow:
    """Scores a request with every shadow, unheard, after its answer has gone."""

    live: LoadedEndpoint
    ask: ScoreRequest
    log: PredictionLog
    request: str
    arrived: int
    entities: list[str | None] | None
    events: list[int | None] | None

    def run(self) -> ShadowOutcome:
        outcome = ShadowOutcome([])
        groups = []
        rows = plain_rows(self.ask, self.live.signature)
        for scorer in self.live.shadows:
            began = perf_counter()
            places = self._mirrored(scorer, len(rows))
            if places is not None and not places:
                continue
            try:
                mirrored = rows if places is None else [rows[place] for place in places]
                at, values = fitting_rows(scorer, mirrored)
                if len(values) < len(mirrored):
                    # The rest has no place in its evidence: it was never asked.
                    outcome.unasked += len(mirrored) - len(values)
                    places = at if places is None else [places[number] for number in at]
                if not values:
                    continue
                scores, labels, texts = scorer.score(values)
            except EverloopError as error:
                outcome.failures += 1
                logger.warning("The shadow %s did not score request %s: %s", scorer.version, self.request, error)
                continue
            part = VersionScores(scorer, places, scores, labels)
            seconds = perf_counter() - began
            share = VersionRows(scorer, places, values)
            groups.append(_group(part, texts, share, self.request, self.arrived, seconds, self.entities, self.events))
            outcome.scored.append((scorer.version, len(values)))
        if groups:
            try:
                _log(self.live.settings, self.log, groups, self.request, wait=False)
            except (EverloopError, OSError) as error:
                logger.warning("The shadows' scores of request %s are lost: %s", self.request, error)
                return ShadowOutcome([], len(self.live.shadows))
        return outcome

    def _mirrored(self, scorer: RouteScorer, size: int) -> list[int] | None:
        """The rows that a shadow sees: its share of the keys; None: all, as with a share of 0 or 100."""
        percent = scorer.route.percent
        if percent in (0, 100):
            return None
        keys = [(self.entities or [None] * size)[place] or f"{self.request}-{place}" for place in range(size)]
        return [place for place, key in enumerate(keys) if place_of(f"{self.live.name}~shadow", key) < percent]


def _log(
    settings: EndpointSettings, log: PredictionLog, groups: Sequence[Group], request: str, *, wait: bool = True
) -> bool:
    """Write what was answered, as the settings say; False: there is no space, and it is answered all the same."""
    if settings.log_sample < 1.0 and int(request[-8:], 16) >= settings.log_sample * 2**32:
        # The last digits of an id are random.
        return True
    try:
        log.append(groups, wait=wait)
    except (InsufficientStorageError, UnavailableError, OSError) as error:
        if settings.log_full != "answer":
            raise
        logger.warning("The answer to request %s is not in the log: %s", request, error)
        return False
    return True


def _explained(share: VersionRows) -> list[dict[str, Json]]:
    names = share.scorer.names
    try:
        return share.scorer.predictor.explain([dict(zip(names, row, strict=True)) for row in share.values])
    except UsageError as error:
        raise RequestError(f"explain: {error.message}", help=error.help) from None


def _entities(keys: Sequence[str | float | None] | None, size: int) -> list[str | None] | None:
    if keys is None:
        return None
    if len(keys) != size:
        raise RequestError(f"keys: there are {len(keys)} keys for {size} rows.")
    return [key if key is None or type(key) is str else entity_text(key) for key in keys]


def _events(moments: Sequence[datetime | None] | None, size: int) -> list[int | None] | None:
    if moments is None:
        return None
    if len(moments) != size:
        raise RequestError(f"event_at: there are {len(moments)} times for {size} rows.")
    return [
        None if moment is None else (utc(moment, f"event_at[{place}]") - EPOCH) // _MICROSECOND
        for place, moment in enumerate(moments)
    ]
