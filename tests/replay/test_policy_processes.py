import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import everloop as el
from everloop.replay import policy_processes
from everloop.replay.policies import Policy
from everloop.replay.policy_processes import PolicyRunner
from everloop.replay.policy_run import PolicyJob, Schedule, replayed_rows
from everloop.replay.replay_history import build_history

START = datetime(2021, 1, 4, tzinfo=UTC)
DAY = timedelta(days=1)


def jobs(folder, names, train, limit_s=600.0):
    rows = 60 * 24
    frame = pl.DataFrame(
        {
            "at": [START + number * DAY / 24 for number in range(rows)],
            "x": [float(number * 7919 % 101) for number in range(rows)],
        }
    ).with_columns((pl.col("x") * 2).alias("amount"))
    history = build_history(frame, target="amount", time="at")
    loop = el.Loop(
        "stream",
        data=el.Dataset(replayed_rows, target="amount", time="at", holdout="7d"),
        train=train,
        serve=el.Endpoint("stream"),
    )
    schedule = Schedule(start=START + 28 * DAY, end=START + 42 * DAY, every=7 * DAY)
    return [
        PolicyJob(
            policy=Policy(name),
            loop=loop,
            history=history,
            schedule=schedule,
            home=folder / name,
            training_limit_s=limit_s,
        )
        for name in names
    ]


@pytest.mark.slow
def test_a_training_that_hangs_in_native_code_costs_only_its_own_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(policy_processes, "NATIVE_GRACE_S", 1.0)

    @el.step
    def deaf(train: pl.DataFrame) -> object:
        # Native code runs no Python signal handler; blocking the signal has the same effect.
        import signal
        import time

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(600)

    @el.step
    def broken(train: pl.DataFrame) -> object:
        raise ValueError("no disk in the drive")

    given = [*jobs(tmp_path, ["hangs"], deaf, limit_s=15.0), *jobs(tmp_path, ["fails", "fails-too"], broken)]
    began = time.monotonic()
    with PolicyRunner(tmp_path, processes=2) as runner:
        traces, interrupted = runner.run(given)
    assert time.monotonic() - began < 400
    assert not interrupted
    assert [trace.policy.name for trace in traces] == ["hangs", "fails", "fails-too"]
    assert "cannot interrupt, so its process was stopped" in traces[0].error
    for trace in traces[1:]:
        assert "no disk in the drive" in trace.trainings[0].why


@pytest.mark.slow
def test_processes_stay_for_the_policies_of_the_next_call_and_end_with_the_runner(tmp_path):
    @el.step
    def broken(train: pl.DataFrame) -> object:
        import os

        raise ValueError(f"process {os.getpid()}.")

    def processes(traces):
        return {int(re.search(r"process (\d+)\.", one.why)[1]) for trace in traces for one in trace.trainings}

    with PolicyRunner(tmp_path, processes=2) as runner:
        first, _ = runner.run(jobs(tmp_path, ["a", "b", "c"], broken))
        # A single policy is replayed in the parent, unless there are processes that have loaded everything already.
        second, _ = runner.run(jobs(tmp_path, ["d"], broken))
    assert [trace.policy.name for trace in (*first, *second)] == ["a", "b", "c", "d"]
    assert len(processes(first)) <= 2
    assert os.getpid() not in processes(first)
    assert processes(second) <= processes(first)
    for process in processes(first):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.slow
def test_ctrl_c_ends_parallel_policies_with_what_is_known(tmp_path):
    script = tmp_path / "replaying.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from datetime import UTC, datetime, timedelta

            import polars as pl

            import everloop as el

            def main():
                start = datetime(2021, 1, 4, tzinfo=UTC)
                frame = pl.DataFrame({
                    "at": [start + timedelta(hours=number) for number in range(24 * 700)],
                    "x": [float(number * 7919 % 101) for number in range(24 * 700)],
                }).with_columns((pl.col("x") ** 2).alias("amount"))
                policies = [el.Policy(name, [el.Every("1d")]) for name in ("one", "two", "three")]
                result = el.replay(
                    frame, target="amount", time="at", every="1d", policies=policies, windows=False, processes=2,
                    progress=lambda name, tick, ticks: print(name, tick, flush=True),
                )
                print("interrupted:", result.interrupted, [one.error for one in result.policies], flush=True)

            if __name__ == "__main__":
                main()
        """)
    )
    # A group of its own, so that the signal reaches all of its processes as Ctrl-C does.
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(el.__file__).parents[1])},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(("one", "two")):
            break
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert "interrupted: True" in rest
    assert rest.count("'interrupted'") == 3
