"""Replay one policy: its requests, labels, watches, triggers, trainings, gates and rollouts, on a virtual clock.

Between two ticks the endpoint's routes do not change, so the requests between them are answered at once. At a tick the
labels that have become known are delivered, `reconcile` does what it does in `everloop up`, and a run that is due runs
on what is known by then.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, UnavailableError, UsageError
from everloop.loop import Due, Loop, OnNewData, run_loop
from everloop.loop.releases.rollout import champion_of, find_rolling
from everloop.loop.triggers.trigger_checks import last_run
from everloop.loop.unwatched_runs import without_baselines
from everloop.pipeline import step
from everloop.records import Incident, Json, Release
from everloop.replay.advancing import advance
from everloop.replay.replay_history import ReplayHistory
from everloop.replay.replay_store import replay_store
from everloop.replay.shared_trainings import SharedTrainings
from everloop.replay.traffic import Traffic
from everloop.stores.clock import SimulatedClock
from everloop.stores.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.replay.policies import Policy
    from everloop.stores import Store

MOST_FIRST_RUNS = 8
"""After this many first runs without a champion, a policy ends: nothing could answer its requests."""
SUB_TICKS = 7
"""While a candidate is being rolled out, the loop is reconciled this many times per period."""


class _LoadedHistories(dict[str, ReplayHistory]):
    """The histories that this process replays. A step's inputs are small values, so it gets a history by its name."""

    def __reduce__(self) -> str:
        # A step's cache key covers the values that its code uses. The rows are named by its inputs already.
        return "_histories"


_histories = _LoadedHistories()


@step
def replayed_rows(history: str = "", until: str = "", window: str = "", most: int = 0) -> pl.DataFrame:
    """The rows of a history that were known at `until`, a time in ISO 8601. It replaces the loop's own data step."""
    from datetime import datetime

    return _histories[history].known_at(
        datetime.fromisoformat(until),
        window=parse_duration(window) if window else None,
        most=most or None,
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a replay starts and ends, and when it looks.

    Attributes:
        start: the first request that is answered, and the time of the first training.
        end: the last request is before this.
        every: time between two ticks, which is also the length of a period of the result.
        delay: how long after the end of a period its tick is, so that its last labels have arrived.
    """

    start: datetime
    end: datetime
    every: timedelta
    delay: timedelta = timedelta(0)

    def ticks(self) -> Iterator[datetime]:
        """Yield the ticks in order, the last one at or after `end`."""
        tick = self.start
        while tick < self.end:
            tick += self.every
            yield tick + self.delay

    @property
    def periods(self) -> int:
        """Number of periods; the last one may be shorter."""
        return -((self.start - self.end) // self.every)


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """One run of the loop in a replay."""

    at: datetime
    trigger: str
    state: str
    """State of its release, such as `completed` or `rejected`; `failed` if it ended with an error."""
    seconds: float
    """What the run took, or would have taken without the results of other policies."""
    why: str = ""
    candidate: str | None = None
    spared: float = 0.0
    """The part of the seconds that was spared, because another policy had trained on the same rows."""


@dataclass(kw_only=True)
class PolicyTrace:
    """Everything that happened to one policy. Arrays have one item for each row of the history."""

    policy: Policy
    scores: NDArray[np.float64] | None = None
    places: NDArray[np.intp] | None = None
    versions: NDArray[np.int32] | None = None
    keys: list[str] = field(default_factory=list)
    trainings: list[TrainingOutcome] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    expected: dict[str, float] = field(default_factory=dict)
    """Metric of each version on its held-out rows, before its release."""
    seconds: float = 0.0
    answered: int = 0
    until: datetime | None = None
    """How far the replay came."""
    task: str = ""
    metric: str = ""
    classes: tuple[Json, ...] = ()
    watched: bool = False
    """Whether the loop had watches."""
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    """Why the replay of this policy ended early."""

    @property
    def retrainings(self) -> list[TrainingOutcome]:
        """The runs after the one that gave the endpoint its first champion."""
        first = next((index for index, one in enumerate(self.trainings) if one.state == "completed"), -1)
        return self.trainings[first + 1 :]


@dataclass(frozen=True, kw_only=True)
class PolicyJob:
    """What one process needs to replay one policy."""

    policy: Policy
    loop: Loop
    history: ReplayHistory
    schedule: Schedule
    home: Path
    classes: tuple[Json, ...] = ()
    training_rows: int | None = None
    """At most this many rows are trained on at a time; None: all."""
    training_limit_s: float = 600.0
    shared: Path | None = None
    """A folder in which the policies of a replay share what they have trained; None: each trains for itself."""
    probe: Callable[[Store, datetime], None] | None = None
    """Called after every tick with the store and its time, for tests that look for rows of the future."""


def run_policy(
    job: PolicyJob,
    progress: Callable[[str, int], None] = lambda _policy, _tick: None,
    training: Callable[[bool], None] = lambda _begins: None,
) -> PolicyTrace:
    """Replay one policy from the first to the last tick.

    A failed training is an outcome, not the end. If the replay is interrupted or a part of the loop fails, the trace
    has what is known so far, and says why it ended.

    Args:
        job: the policy, its loop, and the history.
        progress: called with the policy's name and the number of each finished tick.
        training: called with True before a training, and with False after it.
    """
    began = perf_counter()
    trace = PolicyTrace(policy=job.policy, classes=job.classes)
    if job.loop.serve is None:
        raise UsageError(
            f"Loop '{job.loop.name}' has no endpoint, so there are no predictions to replay.",
            help="Add serve=el.Endpoint('name').",
        )
    _histories[job.policy.name] = job.history
    clock = SimulatedClock(job.schedule.start)
    try:
        objects = None if job.shared is None else job.shared / "objects"
        project = f"replay-{job.policy.name}"[:100]
        with _project_folder(job.home), replay_store(job.home, project, clock, objects) as store:
            traffic = Traffic(store, job.loop.serve.name, job.history, job.classes, watched=bool(job.loop.watch))
            shared = None if job.shared is None else SharedTrainings(job.shared / "trained", job.loop)
            running = _PolicyRun(job, store, clock, traffic, trace, job.loop.serve.name, training, shared)
            try:
                running.run(progress)
            except KeyboardInterrupt:
                trace.error = "interrupted"
            except EverloopError as error:
                trace.error = error.message
            running.collect()
    finally:
        del _histories[job.policy.name]
    trace.seconds = perf_counter() - began
    return trace


@dataclass
class _PolicyRun:
    job: PolicyJob
    store: Store
    clock: SimulatedClock
    traffic: Traffic
    trace: PolicyTrace
    endpoint: str
    training: Callable[[bool], None]
    shared: SharedTrainings | None

    def run(self, progress: Callable[[str, int], None]) -> None:
        schedule = self.job.schedule
        self.train("first: the loop has not run yet")
        for number, tick in enumerate(schedule.ticks(), start=1):
            if self.settled():
                # Nothing reads the logs any more, and no decision is left to make: only answers are needed.
                self.answer_rest()
                progress(self.job.policy.name, schedule.periods)
                return
            while self.rolling():
                between = self.clock.now() + schedule.every / SUB_TICKS
                if between >= tick:
                    break
                self.advance(between)
            due = self.advance(tick)
            if champion_of(self.store, self.job.loop.model) is None:
                self.first_again()
            elif tick < schedule.end:
                # A model that is trained at the last tick would answer nothing.
                due = due or self.new_rows()
                if due is not None:
                    self.train(f"{due.trigger}: {due.reason}")
            progress(self.job.policy.name, number)

    def settled(self) -> bool:
        """Whether nothing can change the routes any more: no trigger, no watch, no rollout, and a champion."""
        loop = self.job.loop
        idle = not loop.retrain and not loop.watch and self.job.probe is None
        return idle and champion_of(self.store, loop.model) is not None and not self.rolling()

    def answer_rest(self) -> None:
        end = self.job.schedule.end
        self.traffic.answer(self.clock.now(), end, log=False)
        self.clock.set(end)
        self.trace.until = end

    def rolling(self) -> bool:
        return find_rolling(self.store, self.endpoint) is not None

    def advance(self, until: datetime) -> Due | None:
        """Answer the requests up to `until`, deliver the labels, and reconcile the loop."""
        since = self.clock.now()
        self.trace.until = until
        if champion_of(self.store, self.job.loop.model) is None:
            self.clock.set(until)
            return None
        reconciliation = advance(
            self.job.loop, self.store, self.clock, self.traffic, since, until, end=self.job.schedule.end
        )
        for error in reconciliation.errors:
            if error.message not in self.trace.notes:
                self.trace.notes.append(error.message)
        if self.job.probe is not None:
            self.job.probe(self.store, until)
        return reconciliation.due

    def first_again(self) -> None:
        if len(self.trace.trainings) >= MOST_FIRST_RUNS:
            last = self.trace.trainings[-1]
            raise UnavailableError(
                f"After {MOST_FIRST_RUNS} runs no version has passed its gates, so nothing answers. The last run: "
                f"{last.state}; {last.why}",
                help="Start the replay later, or lower the gates.",
            )
        self.train("first: there is no champion yet")

    def new_rows(self) -> Due | None:
        """Whether an `OnNewData` trigger is due. Its own check looks at files, but a replay's rows come from memory."""
        trigger = next((one for one in self.job.policy.retrain if isinstance(one, OnNewData)), None)
        last = last_run(self.job.loop, self.store)
        if trigger is None or last is None or self.rolling():
            return None
        if self.clock.now() - last.started_at < parse_duration(trigger.cooldown):
            return None
        fresh = self.job.history.labels_between(last.started_at, self.clock.now()).height
        return Due("OnNewData", f"{fresh} rows have arrived") if fresh else None

    def train(self, trigger: str) -> None:
        """Run the loop on what is known now. Every error is an outcome of the run."""
        policy = self.job.policy
        params = {
            "replayed_rows.history": policy.name,
            "replayed_rows.until": self.clock.now().isoformat(),
            "replayed_rows.window": self.needed_past(),
            "replayed_rows.most": self.job.training_rows or 0,
        }
        began = perf_counter()
        candidate: str | None = None
        spared = 0.0
        self.training(True)
        try:
            if self.shared is not None:
                self.shared.fetch(self.store)
            baselines = nullcontext() if self.job.loop.watch else without_baselines()
            with baselines, _time_limit(self.job.training_limit_s) as stopped:
                loop_run = run_loop(self.job.loop, self.store, trigger=trigger, params=params)
        except EverloopError as error:
            # A step that was stopped fails like any other, so its message would not say why.
            state, why = "failed", self.too_long() if stopped else error.message
        except _TrainingTooLong:
            state, why = "failed", self.too_long()
        else:
            release = loop_run.release
            state = release.state if release is not None else "skipped"
            why = release.decisions[-1].reason if release is not None and release.decisions else "no new data"
            candidate = loop_run.version.key if loop_run.version is not None else None
            if self.shared is not None:
                spared = self.shared.keep(self.store, loop_run.steps)
        finally:
            self.training(False)
        now = self.clock.now()
        outcome = TrainingOutcome(
            at=now,
            trigger=trigger,
            state=state,
            seconds=perf_counter() - began + spared,
            why=why,
            candidate=candidate,
            spared=spared,
        )
        self.trace.trainings.append(outcome)

    def needed_past(self) -> str:
        """How old a row may be that is trained or tested on, so that a sample is drawn from such rows; empty: any."""
        data = self.job.loop.data
        if data.window is None or not isinstance(data.holdout, str):
            return ""
        gap = parse_duration(data.labels_after) if data.labels_after else timedelta(0)
        return format_duration(parse_duration(data.window) + parse_duration(data.holdout) + 2 * gap)

    def too_long(self) -> str:
        return f"the training took longer than {self.job.training_limit_s:g} s and was stopped"

    def collect(self) -> None:
        """Read the outcome of the replay from its store."""
        from everloop.loop.comparison.champions import deciding_metric
        from everloop.records import ModelVersion

        trace, traffic = self.trace, self.traffic
        trace.scores, trace.places, trace.versions = traffic.scores, traffic.places, traffic.versions
        trace.keys, trace.answered = traffic.keys, traffic.answered
        trace.watched = bool(self.job.loop.watch)
        trace.incidents = self.store.records.find(Incident, order="id")
        trace.releases = self.store.records.find(Release, order="id")
        versions = self.store.records.find(ModelVersion, order="id")
        for version in versions:
            value = version.evaluation.get("metrics", {}).get(self.metric_name(version), {}).get("value")
            if isinstance(value, int | float):
                trace.expected[version.key] = float(value)
        if versions:
            trace.task = str(versions[0].evaluation.get("task", ""))
            trace.metric = self.job.loop.live_metric or deciding_metric(versions[0])
        by_candidate = {release.candidate: release for release in trace.releases}
        # A rollout ends after its run, so the outcome of a run is that of its release at the end.
        trace.trainings = [
            replace(one, state=by_candidate[one.candidate].state, why=by_candidate[one.candidate].decisions[-1].reason)
            if one.candidate in by_candidate and one.state != "failed"
            else one
            for one in trace.trainings
        ]

    def metric_name(self, version: Any) -> str:
        from everloop.loop.comparison.champions import deciding_metric

        return self.job.loop.live_metric or deciding_metric(version)


@contextmanager
def _project_folder(folder: Path) -> Iterator[None]:
    """Let the loop write its contract below `folder`: the project's own may have been inferred from later rows."""
    before = os.environ.get("EVERLOOP_PROJECT")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["EVERLOOP_PROJECT"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["EVERLOOP_PROJECT"]
        else:
            os.environ["EVERLOOP_PROJECT"] = before


class _TrainingTooLong(BaseException):
    """Raised in a training that exceeds its limit. Not an Exception, so that no step catches and retries it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[list[float]]:
    """Stop the block after some seconds. Works in the main thread only, where Python runs signal handlers.

    Yields a list that holds the limit once the block has been stopped.
    """
    stopped: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.append(seconds)
        raise _TrainingTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
