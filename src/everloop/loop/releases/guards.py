"""Guards of a rollout that need no labels: failed requests, invalid answers, answers that are all the same, slowness.

`check_guards` follows the journals that the endpoint's processes append to, and reads only what is new, so it can run
every second beside the reconciler. A guard that is looked at every second must not raise the error of its test. Each
one bets on its rate: the factor `evidence` would grow if the rate were above the tolerated one, and is above 1,000 at
any time with a probability of at most 1 in 1,000 if it is not.

Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86 (2024); the bound
is Ville's inequality.

The log of failed requests does not say which version failed. So the guard of errors tolerates the share of failures
from before the release, and in addition `most_errors` of the candidate's requests.
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

    @property
    def tripped(self) -> bool:
        return self.evidence > 1.0 / FALSE_ALARM


class ReleaseTraffic:
    """What the guards know about the traffic of one step of a release. Not thread-safe."""

    def __init__(self, store: Store, release: Release, canary: Canary) -> None:
        from everloop.packages.signature import Signature
        from everloop.prediction_log.prediction_log import label_text
        from everloop.records import ModelVersion

        self.release = release
        self.canary = canary
        self.since = micros(step_started_at(release))
        self.errors = RateGuard("errors")
        self.invalid = RateGuard("invalid answers")
        self.slow = RateGuard("slow answers")
        self.over_limit = RateGuard("answers over the limit")
        self.base_errors = _errors_before(store, release)
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
        from everloop.prediction_log.prediction_log import PREDICTIONS, decode_entry, stream_name
        from everloop.stores.journals import list_journals

        requests = 0
        for path in list_journals(store.journals, stream_name(store, PREDICTIONS, self.release.endpoint)):
            for payload in self._new_frames(path):
                for group in decode_entry(payload).groups:
                    if group.arrived >= self.since:
                        requests += self._count(group)
        failed = 0
        for path in list_journals(store.journals, stream_name(store, FAILURES, self.release.endpoint)):
            for payload in self._new_frames(path):
                at, counts = read_failures(payload)
                if at >= self.since:
                    failed += sum(count for status, count in counts.items() if status >= 500)
        if requests + failed:
            tolerated = self.base_errors + self.release.percent / 100 * self.canary.most_errors
            self.errors.add(failed, requests + failed, min(tolerated, 0.5))

    def problem(self) -> tuple[str, dict[str, Json]] | None:
        """Return why the release has to end, with the evidence; None if no guard has tripped."""
        texts = {
            self.errors: "requests fail",
            self.invalid: f"answers of {self.release.candidate} are invalid",
            self.slow: f"answers of {self.release.candidate} take more than {self._limit_s * 1000:.3g} ms, "
            f"{self.canary.slowdown:g} times what 99 % of the champion's take",
            self.over_limit: f"answers of {self.release.candidate} take more than {self.canary.p99_ms or 0:g} ms",
        }
        for guard, text in texts.items():
            if guard.tripped:
                reason = f"{guard.events:,} of {guard.trials:,} {text}"
                evidence: dict[str, Json] = {
                    "guard": guard.name,
                    "events": guard.events,
                    "trials": guard.trials,
                    "evidence": guard.evidence,
                }
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

    def _count(self, group: Group) -> int:
        """Count the answers of one version to a request; returns how many requests these are, for a client."""
        candidate = group.version == self.release.candidate and group.role in ("canary", "shadow")
        if candidate:
            bad = sum(not self._is_valid(score) for score in group.scores)
            bad += sum(label not in self.classes for label in group.labels or ()) if self.classes else 0
            self.invalid.add(min(bad, len(group.scores)), len(group.scores), self.canary.most_errors)
            self.last_scores.extend(map(_comparable, group.scores))
            if len(self.champion_times) >= _LEAST_TIMES:
                self._limit_s = self._champion_limit()
                self.slow.add(int(group.seconds > self._limit_s), 1, _SLOW_SHARE)
            if self.canary.p99_ms is not None:
                self.over_limit.add(int(group.seconds * 1000 > self.canary.p99_ms), 1, 0.01)
        elif group.version == self.release.previous and group.role == "champion":
            self.champion_times.append(group.seconds)
            self.champion_scores.extend(map(_comparable, group.scores))
        return int(group.role in ("champion", "canary"))

    def _champion_limit(self) -> float:
        times = sorted(self.champion_times)
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        return max(self.canary.slowdown * p99, p99 + _LEAST_LIMIT_S)

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
    if kept is None or kept.since != micros(step_started_at(release)) or kept.canary != canary:
        kept = ReleaseTraffic(store, release, canary)
    kept.release = release
    _watched[key] = kept
    while len(_watched) > _MOST_WATCHED:
        _watched.popitem(last=False)
    return kept


def _errors_before(store: Store, release: Release) -> float:
    """The share of requests that failed in the day before the release, with room for chance."""
    import polars as pl

    from everloop.prediction_log.failure_log import FAILURES
    from everloop.prediction_log.prediction_log import PREDICTIONS, table_name

    since, until = release.created_at - _HISTORY, release.created_at
    failed = answered = 0
    failures, predictions = (table_name(store, what, release.endpoint) for what in (FAILURES, PREDICTIONS))
    if store.tables.exists(failures):
        rows = store.tables.scan(failures, since=since, until=until).filter(pl.col("status") >= 500)
        failed = int(rows.select(pl.col("requests").sum()).collect().item() or 0)
    if store.tables.exists(predictions):
        answered = store.tables.scan(predictions, since=since, until=until).select(pl.len()).collect().item()
    return (failed + 2.0 * math.sqrt(failed) + 1.0) / (answered + failed + 200.0)


def _comparable(score: Any) -> Any:
    return tuple(score) if isinstance(score, list) else score


__all__ = ["FALSE_ALARM", "RateGuard", "ReleaseTraffic", "check_guards"]
