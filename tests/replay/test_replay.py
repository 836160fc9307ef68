import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.errors import DataError, UsageError
from everloop.replay import replay
from everloop.replay.hindsight import Judge
from everloop.replay.policies import Policy, named_policies
from everloop.replay.policy_run import PolicyJob, Schedule, replayed_rows, run_policy
from everloop.replay.replay_history import KNOWN, build_history
from everloop.replay.replay_page import replay_page
from everloop.testing.leaks import leaks

START = datetime(2021, 1, 4, tzinfo=UTC)
DAY = timedelta(days=1)
DAYS = 140


def stream(days=DAYS, per_day=12, flip=90, seed=0):
    """A stream whose target follows `x` until day `flip`, and `-x` after it."""
    random = np.random.default_rng(seed)
    rows = days * per_day
    day = np.arange(rows) // per_day
    x, z = random.normal(size=rows), random.normal(size=rows)
    amount = np.where(day < flip, 10 * x, -10 * x) + 3 * z + random.normal(size=rows)
    at = [START + int(number) * DAY / per_day for number in range(rows)]
    return pl.DataFrame({"at": at, "x": x, "z": z, "amount": amount})


def replayed(frame, **options):
    given = {
        "target": "amount", "time": "at", "every": "1w", "labels_after": "1d", "processes": 1, "windows": False,
        "start": START + 56 * DAY, "policies": ["never", Policy("monthly", (el.Every("4w"),))],
    }  # fmt: skip
    return replay(frame, **{**given, **options})


@pytest.mark.slow
def test_a_stream_that_changes_needs_retraining():
    result = replayed(stream())
    never, monthly = result.outcome("never"), result.outcome("monthly")
    assert result.metric == "rmse"
    assert never.retrainings == 0
    assert monthly.retrainings == 2
    assert never.mean > monthly.mean
    # The first model is the same, so until the first retraining both have answered alike.
    assert [one.value for one in never.periods[:4]] == [one.value for one in monthly.periods[:4]]
    assert result.recommendation.name == "monthly"
    assert monthly.regret.value == 0
    assert never.regret.value > 1
    assert not result.recommendation.indistinguishable
    assert result.suggestion == ["retrain=[el.Every(interval='4w')],"]
    document = json.loads(json.dumps(result.to_json()))
    assert list(document["policies"]) == ["never", "monthly"]
    assert set(document["policies"]["never"]) >= {
        "periods", "incidents", "retrainings", "promotions", "rollbacks", "seconds"
    }  # fmt: skip
    assert document["recommended"] == "monthly"
    page = replay_page(result)
    assert page.count("<svg") == 1
    assert "://" not in page
    assert "script" not in page


@pytest.mark.slow
def test_a_poisoned_future_changes_no_result_before_it():
    now = START + 105 * DAY
    frame = stream()
    poisoned = frame.with_columns(
        [pl.when(pl.col("at") > now).then(pl.col(name) * -31 + 5).otherwise(pl.col(name)) for name in ("x", "z")]
    ).with_columns(
        pl.when(pl.col("at") + pl.duration(days=1) > now).then(999.0).otherwise(pl.col("amount")).alias("amount")
    )
    first, second = replayed(frame), replayed(poisoned)
    until = now - DAY
    for name in ("never", "monthly"):
        before = [one for one in first.outcome(name).periods if one.end <= until]
        assert len(before) >= 6
        assert before == [one for one in second.outcome(name).periods if one.end <= until]
        trainings = [
            [(one.at, one.state, one.trigger) for one in result.outcome(name).trainings if one.at <= until]
            for result in (first, second)
        ]
        assert trainings[0] == trainings[1]


def job(frame, folder, policy, *, loop=None, probe=None, every=7 * DAY, limit_s=600.0, **history):
    past = build_history(frame, target="amount", time="at", labels_after=DAY, **history)
    made = loop or el.Loop(
        "stream",
        data=el.Dataset(replayed_rows, target="amount", time="at", holdout="7d", labels_after="1d"),
        train=el.AutoTrain(metric="rmse", trials=1, candidates=["linear"], threads=1),
        gates=[el.NotWorseThan("champion", margin=1.0)],
        serve=el.Endpoint("stream"),
        watch=[el.Performance("rmse", labels_after="1d")] if policy.retrain else [],
        retrain=policy.retrain,
    )
    schedule = Schedule(start=START + 56 * DAY, end=START + 84 * DAY, every=every, delay=DAY)
    return PolicyJob(
        policy=policy, loop=made, history=past, schedule=schedule, home=folder, probe=probe, training_limit_s=limit_s
    )


@pytest.mark.slow
def test_the_store_of_a_policy_never_holds_a_row_of_the_future(tmp_path):
    seen = []

    def probe(store, now):
        # Every way to read a store: lists, histories, searches, events, tables and their files.
        assert leaks(store, now) == []
        for name in store.tables.names():
            rows = store.tables.scan(name).collect()
            if name.startswith("aggregates"):
                continue
            assert (rows["arrived_at"] <= now).all(), name
            assert (rows["event_at"] <= now).all(), name
            seen.append(rows.height)
        assert store.now() == now

    # Another policy is ahead, and offers what it has trained in the future.
    shared = tmp_path / "shared"
    weekly = Policy("weekly", (el.Every("1w"),))
    run_policy(replace(job(stream(), tmp_path / "weekly", weekly), shared=shared))
    policy = Policy("monthly", (el.OnPerformance(), el.Every("2w")))
    trace = run_policy(replace(job(stream(), tmp_path / "monthly", policy, probe=probe), shared=shared))
    assert trace.error is None
    assert any(one.spared for one in trace.trainings)
    assert len(seen) >= 8
    assert max(seen) > 300


@pytest.mark.slow
def test_trainings_that_fail_are_rows_of_the_result(tmp_path):
    @el.step
    def broken(train: pl.DataFrame) -> object:
        raise ValueError("no disk in the drive")

    policy = Policy("weekly", (el.Every("1w"),))
    loop = el.Loop(
        "stream",
        data=el.Dataset(replayed_rows, target="amount", time="at", holdout="7d"),
        train=broken,
        serve=el.Endpoint("stream"),
        retrain=policy.retrain,
    )
    trace = run_policy(job(stream(), tmp_path, policy, loop=loop))
    assert {one.state for one in trace.trainings} == {"failed"}
    assert "no disk in the drive" in trace.trainings[0].why
    assert 1 < len(trace.trainings) <= 8
    assert trace.answered == 0


@pytest.mark.slow
def test_a_training_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_PROJECT", str(tmp_path / "project"))

    @el.step
    def endless(train: pl.DataFrame) -> object:
        import time

        while True:
            time.sleep(0.01)

    policy = Policy("never")
    loop = el.Loop(
        "stream",
        data=el.Dataset(replayed_rows, target="amount", time="at", holdout="7d"),
        train=endless,
        serve=el.Endpoint("stream"),
    )
    trace = run_policy(job(stream(), tmp_path, policy, loop=loop, limit_s=1.0))
    assert "took longer than 1 s" in trace.trainings[0].why
    assert {one.state for one in trace.trainings} == {"failed"}
    # The contract was inferred and written, but not into the user's project.
    assert not (tmp_path / "project").exists()
    assert list(tmp_path.glob("contracts/*.toml"))


@pytest.mark.slow
def test_a_policy_that_would_retrain_for_ever_trains_once_a_period(tmp_path):
    trace = run_policy(job(stream(), tmp_path, Policy("always", (el.Every("1m"),))))
    assert len(trace.trainings) == 4
    assert trace.error is None


@pytest.mark.slow
def test_labels_that_never_come_leave_no_metric_and_no_crash(tmp_path):
    frame = stream().with_columns(
        pl.when(pl.col("at") < START + 56 * DAY).then(pl.col("amount")).alias("amount"),
    )
    trace = run_policy(job(frame, tmp_path, Policy("performance", (el.OnPerformance(),))))
    assert trace.error is None
    assert trace.answered == 28 * 12
    history = build_history(frame, target="amount", time="at")
    assert history.table[KNOWN].null_count() == frame["amount"].null_count()
    schedule = Schedule(start=START + 56 * DAY, end=START + 84 * DAY, every=7 * DAY, delay=DAY)
    measured = Judge(history, schedule, "rmse", "regression", ()).periods(trace)
    assert [one.value for one in measured] == [None] * 4
    assert [one.rows for one in measured] == [84] * 4


def test_parts_that_add_up_to_the_target_are_not_features():
    from everloop.replay.table_loop import table_loop

    random = np.random.default_rng(0)
    frame = stream().drop("amount")
    parts = random.poisson(20, (frame.height, 2)).astype(float)
    frame = frame.with_columns(pl.Series("casual", parts[:, 0]), pl.Series("registered", parts[:, 1]))
    frame = frame.with_columns((pl.col("casual") + pl.col("registered")).alias("amount"))
    made = table_loop(
        frame, target="amount", time="at", key=None, exclude=[], labels_after=DAY, start=START + 56 * DAY,
        every=7 * DAY, metric=None,
    )  # fmt: skip
    assert set(made.loop.data.features) == {"x", "z"}
    assert any("'casual' and 'registered' are not used" in remark for remark in made.remarks)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"target": None}, UsageError, "target="),
        ({"target": "amuont"}, DataError, "amuont"),
        ({"time": "x"}, DataError, "not dates or times"),
        ({"every": "10s"}, UsageError, "too short"),
        ({"policies": ["sometimes"]}, UsageError, "sometimes"),
        ({"policies": []}, UsageError, "policy"),
        ({"policies": ["never", Policy("never")]}, UsageError, "'never'"),
        ({"start": START + 1000 * DAY}, DataError, "not one period"),
        ({"start": START + 56 * DAY, "end": START + 7 * DAY}, DataError, "replay ends on 2021-01-11"),
        ({"start": START}, DataError, "too few"),
        ({"every": "1m", "start": None}, UsageError, "periods"),
        ({"exclude": ["nope"]}, UsageError, "nope"),
        ({"metric": "roc_auc"}, UsageError, "roc_auc"),
        ({"rows_per_period": 3}, UsageError, "rows_per_period"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, error, named):
    with pytest.raises(error, match=named):
        replayed(stream(), **options)


def test_policies_have_names_and_readable_declarations():
    drift, own = named_policies(["drift"], ())[0], Policy("own", [el.OnNewData()], window="90d")
    assert drift.suggested_lines() == ["retrain=[el.OnDrift()],"]
    assert Policy("slow", [el.OnDrift(cooldown="8w")]).suggested_lines() == ["retrain=[el.OnDrift(cooldown='8w')],"]
    assert own.suggested_lines()[1] == "# in el.Dataset(...): window='90d',"
    assert own.memory == "the last 90d"
    assert own.rule == "retrain if new rows have arrived, on the last 90d"
    assert Policy("still").rule == "never retrain"
    assert named_policies(["monthly"], ())[0].rule == "retrain every 4w, on all the past"
    with pytest.raises(UsageError, match="window"):
        Policy("own", window="soon")


def test_the_schedule_covers_the_history_in_whole_periods():
    schedule = Schedule(start=START, end=START + 21 * DAY, every=7 * DAY, delay=DAY)
    assert schedule.periods == 3
    assert [(tick - START).days for tick in schedule.ticks()] == [8, 15, 22]


def test_the_room_is_callable_as_the_function():
    import everloop.replay

    assert callable(everloop.replay)
    with pytest.raises(UsageError, match="target="):
        el.replay(stream())


def test_labels_arrive_at_the_times_of_a_column_that_is_not_a_feature():
    from everloop.replay.replaying import _plan_of_table

    late = stream().with_columns(
        pl.when(pl.col("z") < 1).then(pl.col("at") + pl.duration(hours=30)).alias("billed").cast(pl.String)
    )
    loop, history, schedule, delay, _ = _plan_of_table(
        late, "amount", "at", None, [], None, "billed", START + 56 * DAY, None, 7 * DAY, None
    )
    assert set(loop.data.features) == {"x", "z"}
    assert delay == "1d6h"
    assert schedule.delay == timedelta(hours=30)
    # A label without a time of arrival never arrives.
    assert history.table[KNOWN].null_count() == late.filter(pl.col("z") >= 1).height
    assert (history.table[KNOWN] - history.table["__replay_event"]).drop_nulls().unique().to_list() == [108_000_000_000]


def test_months_are_means_of_the_periods_that_begin_in_them():
    from everloop.replay.hindsight import PeriodMetric, months_of

    def period(day, value):
        begin = START + day * DAY
        return PeriodMetric(begin=begin, end=begin + DAY, rows=9, labelled=9, value=value, low=None, high=None)

    found = months_of([period(0, 1.0), period(26, 3.0), period(28, None), period(30, 7.0)])
    assert found == {"2021-01": 2.0, "2021-02": 7.0}


@pytest.mark.slow
def test_the_example_of_the_docs_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(example, "docs/replay.md", "exec"), {})  # noqa: S102 - our own page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("own rmse ")
    assert "'2024-04'" in lines[1]


@pytest.mark.slow
def test_baselines_are_built_for_watches_alone(tmp_path):
    from everloop.monitoring import find_baseline

    found = []

    def probe(store, _now):
        found.append(find_baseline(store, "stream@1") is not None)

    run_policy(job(stream(), tmp_path / "weekly", Policy("weekly", (el.Every("4w"),)), probe=probe))
    watched = set(found)
    found.clear()
    made = job(stream(), tmp_path / "bare", Policy("weekly", (el.Every("4w"),)), probe=probe)
    run_policy(replace(made, loop=replace(made.loop, watch=())))
    assert watched == {True}
    assert set(found) == {False}
