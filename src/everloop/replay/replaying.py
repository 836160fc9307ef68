"""Replay a loop or a plain table: what would each policy have done, and which one should you use?"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.loop import Drift, Every, Loop, Performance
from everloop.loop.gates.package_gates import Latency
from everloop.loop.triggers.trigger_declarations import OnDrift, OnPerformance
from everloop.replay.hindsight import Judge, paired_loss
from everloop.replay.loop_history import loop_history
from everloop.replay.policies import DECLARED, HALF_LIVES, MONTHLY, WEEKLY, WINDOWS, Policy, named_policies, with_policy
from everloop.replay.policy_processes import PolicyRunner
from everloop.replay.policy_run import PolicyJob, PolicyTrace, Schedule, replayed_rows
from everloop.replay.recommendation import Candidate, Recommendation, recommend
from everloop.replay.replay_history import ReplayHistory, build_history, check_row_count, thin
from everloop.replay.replay_result import PolicyOutcome, ReplayResult
from everloop.replay.replay_store import scratch_folder
from everloop.replay.table_loop import as_times, read_times, table_loop
from everloop.stores.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import polars as pl

    from everloop.loop import Watch

DEFAULT_POLICIES = ("never", "weekly", "monthly", "drift", "performance")
"""Policies of a plain table. Those of a loop add `declared`."""
ROWS_PER_PERIOD = 20_000
TRAINING_ROWS = 100_000
"""A training in a replay reads at most this many rows, drawn at random from those that were known."""
FIRST_PAST = 0.25
"""Without a start, the replay begins after this share of the history's time."""
LEAST_PAST = 100
"""Labelled rows that must be known when a replay begins."""
MOST_PERIODS = 1_000
USUAL_PERIODS = 104
"""Without a start, at most this many periods at the end of the history are replayed: of a week, two years."""


def replay(
    source: Loop | pl.DataFrame | pl.LazyFrame,
    *,
    target: str | None = None,
    time: str | None = None,
    key: str | None = None,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    labels_after: str | None = None,
    labels_arrive: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    every: str = "1w",
    policies: Sequence[str | Policy] | None = None,
    windows: bool = True,
    watch_all: bool = False,
    metric: str | None = None,
    rows_per_period: int = ROWS_PER_PERIOD,
    training_rows: int = TRAINING_ROWS,
    seed: int = 0,
    processes: int | None = None,
    project: Path | None = None,
    title: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ReplayResult:
    """Run a loop over history, once for each policy, and recommend a policy.

    Each policy has an empty store and a virtual clock. It sees a row only once its event has happened, and its label
    only once it has arrived. Watches, triggers, trainings, gates and rollouts are those of a live loop. Latency gates
    are left out, because a replay's requests are answered in bulk.

    Args:
        source: a loop, or a table. A table needs `target` and `time`.
        target: for a table: the column to predict.
        time: for a table: the column with the time of each row's event.
        key: for a table: the column that identifies a row.
        exclude: for a table: columns that a model must not use.
        include: for a table: columns that a model may use although they seem to know the target or to identify rows.
        labels_after: how long after its event a row's label arrives, such as `"7d"`. Default: as the loop declares;
            at once for a table.
        labels_arrive: for a table: column with the time at which each row's label arrived, instead of `labels_after`.
            A label without such a time never arrives.
        start: time of the first training. Default: after a quarter of the history.
        end: end of the last period. Default: the end of the history.
        every: length of a period, and the time between two looks at the loop.
        policies: names, such as `"weekly"`, or policies of your own. Default: `never`, `weekly`, `monthly`, `drift`,
            `performance`, and for a loop `declared`.
        windows: also replay the recommended policy and `monthly` with other training windows.
        watch_all: let every policy run all watches, so that incidents are listed for those that do not react to them as
            well. This takes longer.
        metric: for a table: the metric to compare by. Default: the first of its task, such as `rmse`.
        rows_per_period: at most this many rows of each period are replayed, chosen by a hash.
        training_rows: at most this many rows are trained on at a time.
        seed: seed of the trainings and of the intervals.
        processes: how many policies are replayed at once. Default: one per core.
        project: folder of the loop's project; needed to replay in several processes.
        title: what is replayed, for the report.
        progress: called with a policy's name, the number of finished periods and their total.

    Raises:
        UsageError: the arguments do not fit together.
        DataError: the history is too short, or nothing can be learned from it.
    """
    from everloop.training import AutoTrain

    began = perf_counter()
    span = parse_duration(every)
    if span < timedelta(minutes=1):
        raise UsageError(f"A period of {every} is too short to replay.", help="Use at least 1m, such as 1d or 1w.")
    for name, value in (("rows_per_period", rows_per_period), ("training_rows", training_rows)):
        if value < LEAST_PAST:
            raise UsageError(f"{name}={value} is too few.", help=f"Use at least {LEAST_PAST}.")
    if isinstance(source, Loop):
        if labels_arrive is not None:
            raise UsageError(
                f"labels_arrive='{labels_arrive}' is for a table, but this is the loop '{source.name}'.",
                help="Use labels_after=.",
            )
        plan = _plan_of_loop(source, labels_after, start, end, span)
    else:
        if target is None or time is None:
            raise UsageError("A table needs target= and time=.", help="For example: target='cnt', time='dteday'")
        plan = _plan_of_table(
            source, target, time, key, exclude, labels_after, labels_arrive, start, end, span, metric, include
        )
    loop, history, schedule, delay, remarks = plan
    if start is None and schedule.periods >= USUAL_PERIODS - 1:
        remarks.append(f"The last {schedule.periods} periods are replayed. To replay more of them: --from")
    if not isinstance(source, Loop) and isinstance(loop.train, AutoTrain):
        loop = replace(loop, train=replace(loop.train, seed=seed))
    thinned = thin(history, rows_per_period, span)
    if thinned.table.height < history.table.height:
        share = thinned.table.height / history.table.height
        remarks.append(f"Sampled: at most {rows_per_period:,} rows per period, {share:.0%} of all rows.")
    history = thinned
    chosen = _policies(policies, loop, isinstance(source, Loop))
    count = processes or min(os.cpu_count() or 1, len(chosen))
    if isinstance(source, Loop) and project is None:
        count = 1
    judge_classes = _classes(history, loop)

    def run(wanted: list[Policy], folder: Path, runner: PolicyRunner) -> tuple[list[PolicyTrace], bool]:
        jobs = [
            PolicyJob(
                policy=policy,
                loop=_replayed(with_policy(loop, policy, delay), policy, watch_all=watch_all),
                history=history,
                schedule=schedule,
                home=folder / policy.name,
                classes=judge_classes,
                training_rows=training_rows,
                shared=folder / "shared",
            )
            for policy in wanted
        ]
        # Long replays first, so that the processes end at about the same time.
        traces, stopped = runner.run(sorted(jobs, key=lambda job: -_expected_work(job.policy, span)))
        by_name = {trace.policy.name: trace for trace in traces}
        return [by_name[policy.name] for policy in wanted], stopped

    def report(name: str, tick: int) -> None:
        if progress is not None:
            progress(name, tick, schedule.periods)

    with (
        scratch_folder() as folder,
        PolicyRunner(folder, processes=count, project=project, progress=report) as runner,
    ):
        traces, interrupted = run(chosen, folder, runner)
        first = next((trace for trace in traces if trace.metric), None)
        if first is None:
            problem = next((trace.error for trace in traces if trace.error), "the replay was interrupted")
            failed = [one.why for trace in traces for one in trace.trainings if one.state == "failed"]
            raise DataError(
                f"No policy could be replayed: {failed[0] if failed else problem}", help="See: everloop replay --help"
            )
        judge = Judge(history, schedule, first.metric, first.task, judge_classes)
        if judge.together > 1:
            few = "few rows" if first.task != "binary" else "few rows, or few of one class"
            remarks.append(f"A period has {few}, so the metric is measured over {judge.together} periods at a time.")
        outcomes, advice = _judged(traces, judge, seed)
        more = _other_windows(chosen, advice, schedule, history) if windows and not interrupted and advice else []
        if more:
            found, interrupted = run(more, folder, runner)
            traces += [trace for trace in found if trace.metric]
            outcomes, advice = _judged(traces, judge, seed)
    # The end of the history that was not answered by anything is not part of any result.
    return ReplayResult(
        title=title or loop.name,
        metric=first.metric,
        greater_is_better=judge.metric.greater_is_better,
        start=schedule.start,
        end=schedule.end,
        every=every,
        labels_after=delay,
        rows=history.table.height,
        policies=outcomes,
        recommendation=advice,
        seconds=perf_counter() - began,
        remarks=remarks,
        interrupted=interrupted,
    )


Plan = tuple[Loop, ReplayHistory, Schedule, str, list[str]]


def _plan_of_table(
    source: Any,
    target: str,
    time: str,
    key: str | None,
    exclude: Sequence[str],
    labels_after: str | None,
    labels_arrive: str | None,
    start: datetime | None,
    end: datetime | None,
    span: timedelta,
    metric: str | None,
    include: Sequence[str] = (),
) -> Plan:
    import polars as pl

    from everloop.data.table_inputs import nearest

    table = source.collect() if isinstance(source, pl.LazyFrame) else pl.DataFrame(source)
    if target not in table.columns:
        raise DataError(f"The table has no column '{target}' for --target.", help=nearest(target, table.columns))
    check_row_count(table)
    if table[target].null_count() == table.height:
        raise DataError(f"The column '{target}' has no value in any row.", help="Use another --target.")
    if labels_after is not None and labels_arrive is not None:
        raise UsageError("Both labels_after and labels_arrive are given.", help="Use one of them.")
    delay = parse_duration(labels_after) if labels_after else timedelta(0)
    timed = read_times(table, time)
    if labels_arrive is not None:
        timed = as_times(timed, labels_arrive, "--labels-arrive")
    rough = build_history(timed, target=target, time=time, key=key, labels_after=delay, arrival=labels_arrive)
    if labels_arrive is not None:
        delay = _usual_delay(rough)
    schedule = _schedule(rough, start, end, span, delay)
    made = table_loop(
        timed, target=target, time=time, key=key, exclude=exclude, labels_after=delay, arrival=labels_arrive,
        start=schedule.start, every=span, metric=metric, include=include,
    )  # fmt: skip
    data = made.loop.data
    history = build_history(
        made.table, target=data.target, time=str(data.time), key=key, labels_after=delay, arrival=labels_arrive
    )
    light = "Each training is one LightGBM model with default settings, so that the replay is quick and repeatable."
    remarks = [*made.remarks, light]
    if untimed := table.height - timed.height:
        remarks.insert(0, f"{untimed:,} rows have no '{time}' and are left out.")
    if made.loop.serve is not None and made.loop.serve.rollout is None:
        remarks.append(
            "A period has too few rows for a canary: a retrained model takes over unless it is clearly worse on the "
            "rows held out."
        )
    return made.loop, history, schedule, format_duration(delay) if delay else "0s", remarks


def _usual_delay(history: ReplayHistory) -> timedelta:
    """The time after which nine of ten labels that arrive have arrived, in whole minutes."""
    import numpy as np

    arrived = history.known < 2**62
    if not arrived.any():
        raise DataError("No label has a time of arrival.", help="Name another column with --labels-arrive.")
    delays = history.known[arrived] - history.events[arrived]
    return timedelta(minutes=float(np.ceil(np.quantile(delays, 0.9) / 60e6)))


def _plan_of_loop(
    loop: Loop, labels_after: str | None, start: datetime | None, end: datetime | None, span: timedelta
) -> Plan:
    if loop.data.time is None:
        raise UsageError(
            f"The dataset of loop '{loop.name}' has no time column, so its history cannot be replayed.",
            help="Name it: el.Dataset(..., time='column').",
        )
    watched = next((one.labels_after for one in loop.watch if isinstance(one, Performance)), None)
    delay = labels_after or loop.data.labels_after or watched or "0s"
    found = loop_history(loop, parse_duration(delay), end)
    schedule = _schedule(found.history, start, end, span, parse_duration(delay))
    gates = tuple(gate for gate in loop.gates if not isinstance(gate, Latency))
    remarks = list(found.remarks)
    if len(gates) < len(loop.gates):
        remarks.append("Latency gates are left out: a replay answers requests in bulk.")
    return replace(loop, gates=gates), found.history, schedule, delay, remarks


def _schedule(
    history: ReplayHistory, start: datetime | None, end: datetime | None, every: timedelta, delay: timedelta
) -> Schedule:
    """When to begin and to end.

    Raises:
        DataError: too few rows are known at the start, or there is not a single period after it.
    """
    import numpy as np

    from everloop.loop.watches.window_checks import window_start
    from everloop.stores.clock import moment_of

    first, last = moment_of(int(history.events[0])), moment_of(int(history.events[-1]))
    known = np.sort(history.known)
    if start is None:
        begin = first + (last - first) * FIRST_PAST
        # A short history begins later, so that a first model has rows to learn from.
        wanted = min(3 * LEAST_PAST, max(LEAST_PAST, len(known) // 3))
        if len(known) > wanted and known[wanted] < 2**62:
            begin = max(begin, moment_of(int(known[wanted])))
        if last - begin <= MOST_PERIODS * every:
            begin = max(begin, last - USUAL_PERIODS * every)
        begin = window_start(begin, every) + every
    else:
        begin = start if start.tzinfo is not None else start.replace(tzinfo=UTC)
    finish = (
        last + timedelta(microseconds=1) if end is None else end if end.tzinfo is not None else end.replace(tzinfo=UTC)
    )
    finish = min(finish, last + timedelta(microseconds=1))
    if begin + every > finish:
        early = end is not None and finish <= last
        ends = f"The replay ends on {finish:%Y-%m-%d}" if early else f"The rows end on {last:%Y-%m-%d}"
        raise DataError(
            f"{ends}, so there is not one period of {format_duration(every)} after {begin:%Y-%m-%d}.",
            help=f"Use an earlier --from{', a later --to,' if early else ','} or a shorter --every.",
        )
    if int((known <= (begin - moment_of(0)) // timedelta(microseconds=1)).sum()) < LEAST_PAST:
        raise DataError(
            f"Fewer than {LEAST_PAST} labels are known on {begin:%Y-%m-%d}, which is too few for a first model.",
            help="Use a later --from, or a shorter --labels-after.",
        )
    if (finish - begin) // every > MOST_PERIODS:
        raise UsageError(
            f"There are {(finish - begin) // every:,} periods of {format_duration(every)}; at most {MOST_PERIODS:,} are"
            " replayed.",
            help="Use a longer --every, such as 1w, or a later --from.",
        )
    # Whole periods only: a short last one would count as much as the others.
    return Schedule(start=begin, end=begin + (finish - begin) // every * every, every=every, delay=delay % every)


def _policies(given: Sequence[str | Policy] | None, loop: Loop, from_loop: bool) -> list[Policy]:
    wanted = list(given) if given is not None else [*DEFAULT_POLICIES, *([DECLARED] if from_loop else [])]
    declared = loop.retrain if from_loop else (OnDrift(), OnPerformance())
    found: list[Policy] = []
    for one in wanted:
        found += [one] if isinstance(one, Policy) else named_policies([one], declared)
    # What the dataset declares holds for every policy that does not say otherwise.
    data = loop.data
    found = [
        replace(one, window=data.window, half_life=data.half_life)
        if one.window is None and one.half_life is None
        else one
        for one in found
    ]
    if not found:
        raise UsageError("No policy is named.", help="For example: policies=['never', 'weekly']")
    names = [policy.name for policy in found]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"Two policies have the name '{doubled}'.", help="Give one of them another name.")
    return found


def _replayed(loop: Loop, policy: Policy, *, watch_all: bool) -> Loop:
    """The loop with the history's rows as its data, and only the watches that a decision of the policy reads."""
    if watch_all:
        return replace(loop, data=replace(loop.data, source=replayed_rows, name=loop.data.name or loop.name))
    needed: list[Watch] = []
    for part in loop.watch:
        if isinstance(part, Drift):
            needed += [part] if any(isinstance(one, OnDrift) for one in policy.retrain) else []
        elif isinstance(part, Performance):
            needed += [part] if any(isinstance(one, OnPerformance) for one in policy.retrain) else []
        elif policy.name == DECLARED:
            needed.append(part)
    return replace(loop, data=replace(loop.data, source=replayed_rows, name=loop.data.name or loop.name), watch=needed)


def _classes(history: ReplayHistory, loop: Loop) -> tuple[Any, ...]:
    """The classes of the target, in hindsight, to align the scores of versions that know different ones."""
    from everloop.training.targets import find_classes, infer_task

    values = history.table[history.target]
    task = getattr(loop.train, "task", None) or infer_task(values)
    return tuple(find_classes(values, task, loop.positive))


def _expected_work(policy: Policy, span: timedelta) -> float:
    """About how long a policy takes, in the unit of a training per period. Watches cost something in every period."""

    def work(trigger: object) -> float:
        if not isinstance(trigger, Every):
            return 0.75
        # A policy trains at most once per period.
        return 1.0 if trigger.is_cron else min(1.0, span / parse_duration(trigger.interval))

    return sum(work(trigger) for trigger in policy.retrain)


def _judged(traces: list[PolicyTrace], judge: Judge, seed: int) -> tuple[list[PolicyOutcome], Recommendation | None]:
    greater = judge.metric.greater_is_better
    periods = {trace.policy.name: judge.periods(trace) for trace in traces}
    candidates = [
        Candidate(
            name=trace.policy.name,
            periods=periods[trace.policy.name],
            trainings=len(trace.retrainings),
            retrained_at=[one.at for one in trace.retrainings],
            seconds=sum(one.seconds for one in trace.trainings),
        )
        for trace in traces
        if trace.error is None
    ]
    advice: Recommendation | None = None
    best: Candidate | None = None
    if candidates:
        try:
            advice = recommend(candidates, judge.metric.name, greater_is_better=greater)
            best = next(one for one in candidates if one.name == advice.best)
        except EmptySampleError:
            advice = None
    outcomes = []
    often = max(traces, key=lambda trace: len(trace.retrainings), default=None)
    for trace in traces:
        retrained = often if often is not trace and often is not None and often.retrainings else None
        mine = periods[trace.policy.name]
        regret = None
        if best is not None and any(one.value is not None for one in mine):
            regret = paired_loss(mine, best.periods, greater_is_better=greater, seed=seed)
        outcomes.append(
            PolicyOutcome(
                policy=trace.policy,
                periods=mine,
                trainings=trace.trainings,
                retrainings=len(trace.retrainings),
                failed=sum(one.state == "failed" for one in trace.trainings),
                promotions=sum(one.state == "completed" and one.previous is not None for one in trace.releases),
                rollbacks=sum(one.state == "rolled_back" for one in trace.releases),
                rejections=sum(one.state == "rejected" for one in trace.releases),
                incidents=[judge.judge_incident(trace, one, retrained) for one in trace.incidents],
                watched=trace.watched,
                seconds=trace.seconds,
                training_seconds=sum(one.seconds for one in trace.trainings),
                answered=trace.answered,
                regret=regret,
                notes=trace.notes,
                error=trace.error,
            )
        )
    return outcomes, advice


def _other_windows(
    chosen: list[Policy], advice: Recommendation, schedule: Schedule, history: ReplayHistory
) -> list[Policy]:
    """Variants that train on another part of the past, of the recommended policy and of monthly retraining.

    Monthly retraining is cheap, and the window that suits it shows how fast the past becomes useless.
    """
    from everloop.stores.clock import moment_of

    by_name = {policy.name: policy for policy in chosen}
    bases = [by_name[name] for name in dict.fromkeys((advice.name, MONTHLY)) if name in by_name]
    bases = [base for base in bases if base.retrain and base.name != WEEKLY] or [by_name[advice.best]]
    span = schedule.end - moment_of(int(history.events[0]))
    made = []
    for base in bases:
        if not base.retrain or base.window is not None or base.half_life is not None:
            continue
        for text in WINDOWS:
            # A window that is longer than the past changes nothing; one of a few periods leaves too few rows.
            if 4 * schedule.every <= parse_duration(text) < span * 0.9:
                made.append(replace(base, name=f"{base.name}-{text}", window=text))
        for text in HALF_LIVES:
            if parse_duration(text) < span:
                made.append(replace(base, name=f"{base.name}-half-life-{text}", half_life=text))
    return [policy for policy in made if policy.name not in by_name]
