"""The same code and rows are trained once for all policies, and the results are those of training again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.records import Artifact, StepRun
from everloop.replay.policies import Policy
from everloop.replay.policy_run import PolicyJob, Schedule, replayed_rows, run_policy
from everloop.replay.replay_history import build_history
from everloop.replay.shared_trainings import SharedTrainings
from everloop.stores import scratch_store
from everloop.stores.clock import SimulatedClock

START = datetime(2021, 1, 4, tzinfo=UTC)
DAY = timedelta(days=1)
WEEKLY = Policy("weekly", (el.Every("1w"),))
MONTHLY = Policy("monthly", (el.Every("2w"),))


def stream(seed=0, days=90, per_day=12):
    random = np.random.default_rng(seed)
    x = random.normal(size=days * per_day)
    at = [START + number * DAY / per_day for number in range(days * per_day)]
    return pl.DataFrame({"at": at, "x": x, "amount": 10 * x + random.normal(size=len(x))})


def job(frame, folder, policy):
    loop = el.Loop(
        "stream",
        data=el.Dataset(replayed_rows, target="amount", time="at", holdout="7d"),
        train=el.AutoTrain(metric="rmse", trials=1, candidates=["linear"], threads=1),
        gates=[el.NotWorseThan("champion", margin=1.0)],
        serve=el.Endpoint("stream"),
        retrain=policy.retrain,
    )
    schedule = Schedule(start=START + 56 * DAY, end=START + 84 * DAY, every=7 * DAY)
    history = build_history(frame, target="amount", time="at")
    return PolicyJob(policy=policy, loop=loop, history=history, schedule=schedule, home=folder)


@pytest.mark.slow
def test_a_policy_takes_the_models_that_another_has_trained(tmp_path):
    shared = tmp_path / "shared"
    alone = run_policy(job(stream(), tmp_path / "alone", MONTHLY))
    run_policy(replace(job(stream(), tmp_path / "weekly", WEEKLY), shared=shared))
    after = run_policy(replace(job(stream(), tmp_path / "monthly", MONTHLY), shared=shared))
    assert len(after.trainings) >= 2
    assert all(one.spared > 0 for one in after.trainings)
    assert all(one.seconds > one.spared for one in after.trainings)
    assert all(one.spared == 0 for one in alone.trainings)
    np.testing.assert_array_equal(after.scores, alone.scores)
    assert [(one.at, one.state, one.trigger) for one in after.trainings] == [
        (one.at, one.state, one.trigger) for one in alone.trainings
    ]


@pytest.mark.slow
def test_models_of_other_rows_or_windows_are_not_taken(tmp_path):
    shared = tmp_path / "shared"
    run_policy(replace(job(stream(), tmp_path / "one", MONTHLY), shared=shared))
    other = run_policy(replace(job(stream(seed=1), tmp_path / "two", MONTHLY), shared=shared))
    assert all(one.spared == 0 for one in other.trainings)


def test_results_of_the_future_are_not_fetched(tmp_path):
    made = job(stream(), tmp_path, WEEKLY).loop
    clock = SimulatedClock(START + 10 * DAY)
    written = SharedTrainings(tmp_path / "trained", made)
    with scratch_store("one", clock, folder=tmp_path, objects=tmp_path / "objects") as store:
        digest = store.objects.add(b"a model")
        artifact = store.new(Artifact, run="r", step="train", name="train", type="json", digest=digest, size_bytes=7)
        step = store.new(
            StepRun, run="r", name="train", status="ran", reason="new", fingerprint="sha256:ab/c", code="c",
            outputs={"result": artifact.id}, seconds=3.0,
        )  # fmt: skip
        store.records.put(artifact, step)
        assert written.keep(store, [step, replace(step, name="snapshot", fingerprint="other")]) == 0.0
    early = SimulatedClock(START + 10 * DAY - timedelta(seconds=1))
    with scratch_store("two", early, folder=tmp_path, objects=tmp_path / "objects") as store:
        reader = SharedTrainings(tmp_path / "trained", made)
        assert reader.fetch(store) == 0
        early.set(START + 10 * DAY)
        assert reader.fetch(store) == 1
        assert reader.fetch(store) == 0
        found = store.records.find(StepRun)
        assert [one.fingerprint for one in found] == ["sha256:ab/c"]
        assert store.objects.has(store.records.get(Artifact, found[0].outputs["result"]).digest)
        assert reader.keep(store, [replace(found[0], status="cached", seconds=0.0)]) == 3.0


def test_warm_starts_are_not_shared(tmp_path):
    made = job(stream(), tmp_path, WEEKLY).loop
    warm = replace(made, train=el.AutoTrain(metric="rmse", trials=1, warm_start=True))
    assert SharedTrainings(tmp_path / "a", warm).steps == frozenset()
    assert "train" in SharedTrainings(tmp_path / "b", made).steps
