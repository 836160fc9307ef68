"""Guards of a rollout that need no labels: failed requests, invalid, far or equal answers, and slowness.

`check_guards` follows the journals that the endpoint's processes append to, and reads only what is new, so it can run
every second beside the reconciler. A guard that is looked at every second must not raise the error of its test. Each
one bets on its rate: the factor `evidence` would grow if the rate were above the tolerated one, and is above 1,000 at
any time with a probability of at most 1 in 1,000 if it is not.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024); the bound
is Ville's inequality.

Two bets have to be won before failed requests end a release: that the candidate fails to answer more than the
tolerated share of its requests, and that a failure is more often the candidate's than its share of the requests
explains. So an outage that hits both versions ends no release.

The evidence of a release is kept over all its steps. A process that begins to watch a release in its middle starts
without evidence, and bets for a smaller part of the permitted error: the k-th one for 1 / k(k + 1) of it. All of them
together are below the whole, however often processes are restarted.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, CorruptionError, NotFoundError
from everloop.loop.releases.rollout import abort_release, find_rolling, is_shadowing, step_started_at
from everloop.stores.clock import micros

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.loop.loop_definition import Loop
    from everloop.loop.releases.release_declarations import Canary
    from everloop.prediction_log.prediction_log import Group
    from everloop.records import Json, Release
    from everloop.stores import Store

FALSE_ALARM = 0.001
"""Probability that one guard ever ends a healthy release."""
_MULTIPLES = (3.0, 10.0, 30.0)
"""The rates that are bet on, in multiples of the tolerated one."""
_HIGHEST_RATE = 0.9
_SLOW_SHARE = 0.03
"""Share of the candidate's answers that may be slower than the limit, which is at least the champion's 99 %."""
_LEAST_LIMIT_S = 0.005
"""Differences below 5 ms are not slowness: a busy machine makes them."""
_CHAMPION_TIMES = 500
_LEAST_TIMES = 100
_BLAME = (3.0, 10.0, 100.0)
"""How many times as often as the champion's requests those of the candidate fail, in the bets on who is to blame."""
_RECENT_REQUESTS = 200.0
"""The candidate's share of the requests is measured over about this many of them."""
_PRIOR_REQUESTS = 10.0
_SAME_ANSWERS = 300
"""If this number of answers in a row are equal, and the champion's are not, the model is broken."""
_HISTORY = timedelta(days=1)
_MOST_WATCHED = 8
_watched: OrderedDict[tuple[str, str], ReleaseTraffic] = OrderedDict()


class RateGuard:
    """Evidence that a rate is above the tolerated one, valid at any number of looks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events = 0
        self.trials = 0
        self._logs = [0.0] * len(_MULTIPLES)

    def add(self, events: int, trials: int, tolerated: float) -> None:
        """Count trials, of which some were events. The tolerated rate may depend on what was seen before them."""
        self.events += events
        self.trials += trials
        for index, multiple in enumerate(_MULTIPLES):
            rate = min(multiple * tolerated, max(_HIGHEST_RATE, tolerated))
            bad, good = math.log(rate / tolerated), math.log1p(-rate) - math.log1p(-tolerated)
            self._logs[index] += events * bad + (trials - events) * good

    @property
    def evidence(self) -> float:
        """The factor by which the bets have grown; above 1 / `FALSE_ALARM` the guard has tripped."""
        return math.exp(min(max(self._logs), 700.0)) / len(self._logs)

    def tripped(self, false_alarm: float = FALSE_ALARM) -> bool:
        """Whether the rate is above the tolerated one.

        Args:
            false_alarm: the probability of a wrong True, over all looks together.
        """
        return self.evidence > 1.0 / false_alarm


class BlameGuard:
    """Evidence that a failure is more often the candidate's than its share of the requests explains.

    Each failure is a trial, and the candidate's are the events, so that it does not matter how many requests fail at
    the same time. It bets that the candidate's requests fail several times as often as the champion's.

    Args:
        share: the candidate's share of the requests before any was seen.
    """

    def __init__(self, share: float) -> None:
        self._prior = share
        self._candidate = self._both = 0.0
        self._logs = [0.0] * len(_BLAME)

    def add(self, failed: int, requests: int, champion_failed: int, champion_requests: int) -> None:
        """Count the requests of both versions since the last call, including those that failed."""
        kept = 0.5 ** ((requests + champion_requests) / _RECENT_REQUESTS)
        self._candidate = kept * self._candidate + requests
        self._both = kept * self._both + requests + champion_requests
        share = (self._candidate + _PRIOR_REQUESTS * self._prior) / (self._both + _PRIOR_REQUESTS)
        for index, multiple in enumerate(_BLAME):
            # The probability that a failure is the candidate's, over its share.
            factor = multiple / (multiple * share + 1.0 - share)
            self._logs[index] += failed * math.log(factor) + champion_failed * math.log(factor / multiple)

    @property
    def evidence(self) -> float:
        return math.exp(min(max(self._logs), 700.0)) / len(self._logs)


class ReleaseTraffic:
    """What the guards know about the traffic of a release, over all its steps. Not thread-safe.

    Args:
        watch: the number of this watch: 1 if no process has watched the release before.
    """

    def __init__(self, store: Store, release: Release, canary: Canary, watch: int = 1) -> None:
        from everloop.packages.signature import Signature
        from everloop.prediction_log.prediction_log import label_text
        from everloop.records import ModelVersion

        self.release = release
        self.canary = canary
        self.since = micros(step_started_at(release))
        self._failures_since = self.since
        self._began = False
        self.false_alarm = FALSE_ALARM / (watch * (watch + 1))
        self.errors = RateGuard("errors")
        self.invalid = RateGuard("invalid answers")
        self.far = RateGuard("far answers")
        self.slow = RateGuard("slow answers")
        self.over_limit = RateGuard("answers over the limit")
        self.blame = BlameGuard(0.5 if is_shadowing(release) else release.percent / 100)
        self.base_errors = _errors_before(store, release)
        self._requests = {release.candidate: 0, release.previous: 0}
        signature = Signature.from_json(store.records.get(ModelVersion, release.candidate).signature)
        self.is_share = signature.task != "regression"
        self.classes = frozenset(label_text(value) for value in signature.classes)
        self.offsets: dict[str, int] = {}
        self.champion_times: deque[float] = deque(maxlen=_CHAMPION_TIMES)
        self.last_scores: deque[Any] = deque(maxlen=_SAME_ANSWERS)
        self.champion_scores: deque[Any] = deque(maxlen=_SAME_ANSWERS)
        self._limit_s = math.inf

    def read(self, store: Store) -> None:
        """Count what has been appended to the journals since the last call."""
        from everloop.prediction_log.failure_log import FAILURES, read_failures
        from everloop.prediction_log.prediction_log import PREDICTIONS, decode_entry, stream_name, table_name
        from everloop.stores.journals import list_journals

        self._requests = dict.fromkeys(self._requests, 0)
        is_first, self._began = not self._began, True
        earliest = micros(store.now())
        # If the clock was set back, the present answers are from before the release by their times.
        self.since, self._failures_since = min(self.since, earliest), min(self._failures_since, earliest)
        table = table_name(store, PREDICTIONS, self.release.endpoint)
        for path in list_journals(store.journals, stream_name(store, PREDICTIONS, self.release.endpoint)):
            if is_first:
                # A journal may hold months of answers. Most of them have been folded.
                self.offsets[path.name] = max(0, store.tables.last_batch(table, path.name))
            for payload in self._new_frames(path):
                for group in decode_entry(payload).groups:
                    if group.arrived >= self.since:
                        earliest = min(earliest, group.arrived)
                        self._count(group)
        if is_first:
            # Answers may have been folded for longer than failures. Failures without the answers beside them would
            # look like a higher rate.
            self._failures_since = max(self.since, earliest)
        failed = dict.fromkeys(self._requests, 0)
        for path in list_journals(store.journals, stream_name(store, FAILURES, self.release.endpoint)):
            for payload in self._new_frames(path):
                entry = read_failures(payload)
                if entry.at >= self._failures_since:
                    for version, _, _, count in entry.versions:
                        failed[version] = failed.get(version, 0) + count
        candidate, champion = self.release.candidate, self.release.previous
        requests = self._requests[candidate] + failed[candidate]
        tolerated = min(self.base_errors + self.canary.most_errors, 0.5)
        self.errors.add(failed[candidate], requests, tolerated)
        self.blame.add(failed[candidate], requests, failed[champion], self._requests[champion] + failed[champion])

    def problem(self) -> tuple[str, dict[str, Json]] | None:
        """Return why the release has to end, with the evidence; None if no guard has tripped."""
        texts = {
            self.errors: f"requests to {self.release.candidate} fail",
            self.invalid: f"answers of {self.release.candidate} are invalid",
            self.far: f"answers of {self.release.candidate} are far outside the range of the champion's",
            self.slow: f"answers of {self.release.candidate} take more than {self._limit_s * 1000:.3g} ms, "
            f"{self.canary.slowdown:g} times what 99 % of the champion's take",
            self.over_limit: f"answers of {self.release.candidate} take more than {self.canary.p99_ms or 0:g} ms",
        }
        for guard, text in texts.items():
            if guard.tripped(self.false_alarm):
                if guard is self.errors and self.blame.evidence <= 1.0 / self.false_alarm:
                    # The champion's requests fail as well.
                    continue
                reason = f"{guard.events:,} of {guard.trials:,} {text}"
                evidence: dict[str, Json] = {
                    "guard": guard.name,
                    "events": guard.events,
                    "trials": guard.trials,
                    "evidence": guard.evidence,
                    "needed": 1.0 / self.false_alarm,
                }
                if guard is self.errors:
                    evidence["blame"] = self.blame.evidence
                return reason, evidence
        full = len(self.last_scores) == len(self.champion_scores) == _SAME_ANSWERS
        if full and len(set(self.last_scores)) == 1 and len(set(self.champion_scores)) > 1:
            text = f"the last {_SAME_ANSWERS} answers of {self.release.candidate} are all the same"
            return text, {"guard": "equal answers", "events": _SAME_ANSWERS, "trials": _SAME_ANSWERS}
        return None

    def _new_frames(self, path: Path) -> list[bytes]:
        from everloop.stores import read_journal

        frames = []
        end = self.offsets.get(path.name, 0)
        try:
            for payload, end in read_journal(path, end):  # noqa: B007, B020 - the offset of the last frame stays
                frames.append(payload)
        except NotFoundError:
            # It has been folded and removed since it was listed.
            return []
        except CorruptionError:
            # Folding reports the damage; what was read before it counts.
            pass
        self.offsets[path.name] = end
        return frames

    def _count(self, group: Group) -> None:
        """Count the answers of one version to a request."""
        candidate = group.version == self.release.candidate and group.role in ("canary", "shadow")
        if candidate:
            self._requests[group.version] += 1
            bad = sum(not self._is_valid(score) for score in group.scores)
            bad += sum(label not in self.classes for label in group.labels or ()) if self.classes else 0
            self.invalid.add(min(bad, len(group.scores)), len(group.scores), self.canary.most_errors)
            spread = self._champion_range()
            if spread is not None:
                low, high = spread
                self.far.add(
                    sum(not low <= score <= high for score in group.scores), len(group.scores), self.canary.most_errors
                )
            self.last_scores.extend(map(_comparable, group.scores))
            if len(self.champion_times) >= _LEAST_TIMES:
                self._limit_s = self._champion_limit()
                self.slow.add(int(group.seconds > self._limit_s), 1, _SLOW_SHARE)
            if self.canary.p99_ms is not None:
                self.over_limit.add(int(group.seconds * 1000 > self.canary.p99_ms), 1, 0.01)
        elif group.version == self.release.previous and group.role == "champion":
            self._requests[group.version] += 1
            self.champion_times.append(group.seconds)
            self.champion_scores.extend(map(_comparable, group.scores))

    def _champion_limit(self) -> float:
        times = sorted(self.champion_times)
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        return max(self.canary.slowdown * p99, p99 + _LEAST_LIMIT_S)

    def _champion_range(self) -> tuple[float, float] | None:
        """The range of the champion's last numbers, and as much again on both sides; None for classes or too few.

        The candidate may see other rows, and rightly answer some of them beyond what the champion has answered lately.
        An answer beyond this range is not of that kind, but for example in another unit.
        """
        if self.is_share or len(self.champion_scores) < _LEAST_TIMES:
            return None
        low, high = min(self.champion_scores), max(self.champion_scores)
        return (low - (high - low), high + (high - low)) if high > low else None

    def _is_valid(self, score: Any) -> bool:
        values = score if isinstance(score, list) else (score,)
        for value in values:
            if not isinstance(value, int | float) or not math.isfinite(value):
                return False
            if self.is_share and not -1e-9 <= value <= 1 + 1e-9:
                return False
        return True


def check_guards(loop: Loop, store: Store) -> Release | None:
    """Roll back the release under way if its traffic shows that it is bad; returns it then, otherwise None.

    It reads only what the endpoint has appended since the last call in this process, and is meant to be called every
    second. A process that starts in the middle of a release begins with what has not been folded yet.
    """
    endpoint = loop.serve
    if endpoint is None or endpoint.rollout is None or store.read_only:
        return None
    release = find_rolling(store, endpoint.name)
    if release is None or release.previous is None or (release.percent <= 0 and not is_shadowing(release)):
        return None
    traffic = _traffic_of(store, release, endpoint.rollout)
    traffic.read(store)
    found = traffic.problem()
    if found is None:
        return None
    reason, evidence = found
    try:
        return abort_release(store, release, reason, evidence)
    except ConflictError:
        # Another process has decided about the release since it was read. The next call looks at its new state.
        return None


def _traffic_of(store: Store, release: Release, canary: Canary) -> ReleaseTraffic:
    key = (f"{store.tables.root}@{store.project}", release.id)
    kept = _watched.pop(key, None)
    if kept is None or kept.canary != canary:
        kept = ReleaseTraffic(store, release, canary, _next_watch(store, release))
    kept.release = release
    _watched[key] = kept
    while len(_watched) > _MOST_WATCHED:
        _watched.popitem(last=False)
    return kept


def _next_watch(store: Store, release: Release) -> int:
    """Count the processes that have begun to watch a release, this one included. Each is an event."""
    seen, watches = 0, 1
    while True:
        events = store.records.events_since(seen, kinds=["release"], subject=release.id)
        if not events:
            break
        watches += sum(event.verb == "guarded" for event in events)
        seen = events[-1].seq
    store.records.append_event("guarded", "release", release.id, release.key, {"watch": watches})
    return watches


def _errors_before(store: Store, release: Release) -> float:
    """The share of requests that failed in the day before the release, with room for chance."""
    import polars as pl

    from everloop.prediction_log.failure_log import client_failures
    from everloop.prediction_log.prediction_log import PREDICTIONS, table_name

    since, until = release.created_at - _HISTORY, release.created_at
    failed = answered = 0
    failures = client_failures(store, release.endpoint, since=since, until=until)
    if failures is not None:
        rows = failures.filter(pl.col("status") >= 500)
        failed = int(rows.select(pl.col("requests").sum()).collect().item() or 0)
    predictions = table_name(store, PREDICTIONS, release.endpoint)
    if store.tables.exists(predictions):
        answered = store.tables.scan(predictions, since=since, until=until).select(pl.len()).collect().item()
    return (failed + 2.0 * math.sqrt(failed) + 1.0) / (answered + failed + 200.0)


def _comparable(score: Any) -> Any:
    return tuple(score) if isinstance(score, list) else score


__all__ = ["FALSE_ALARM", "BlameGuard", "RateGuard", "ReleaseTraffic", "check_guards"]
