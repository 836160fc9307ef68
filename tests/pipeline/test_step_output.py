"""What steps print is kept with their run, in every executor, and still appears where it was printed."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings

import pytest
from hypothesis import given, strategies as st

import everloop as el
from everloop.errors import StepError
from everloop.pipeline import Graph, run_graph
from everloop.pipeline.step_output import MOST_HEAD, MOST_TAIL, StepOutput, collect_output
from everloop.records import Artifact
from everloop.stores import open_store
from everloop.tracking import start_run


@el.step(cache=False)
def talks() -> int:
    print("to the output")  # noqa: T201
    print("to the error", file=sys.stderr)  # noqa: T201
    warnings.warn("take care", stacklevel=1)
    logging.getLogger("mine").warning("logged %d", 7)
    return 1


@el.step(cache=False)
def fails() -> int:
    print("before the end")  # noqa: T201
    raise ValueError("broken")


@el.step(cache=False)
def silent() -> int:
    return 2


@el.step(cache=False)
def prints_a_secret() -> int:
    print("password=hunter2-and-more")  # noqa: T201
    return 3


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


def run(store, step, **options):
    with start_run("steps", store=store) as active:
        result = run_graph(Graph.wire([step]), store, run=active, **options)
    return result, {one.name: one for one in store.records.find(Artifact, ("run", "=", active.id))}


@pytest.mark.parametrize("executor", ["inline", pytest.param("pool", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default")
def test_print_warnings_and_logging_are_kept(store, capsys, executor):
    result, artifacts = run(store, talks, executor=executor)
    text = store.objects.read(artifacts["talks.log"].digest).decode()
    # In this process pytest takes the warnings for its own report.
    for part in (
        "to the output\n",
        "to the error\n",
        "logged 7",
        *(["UserWarning: take care"] if executor == "pool" else []),
    ):
        assert text.count(part) == 1, text
    assert artifacts["talks.log"].step == "talks"
    assert "talks.log" not in result.steps[0].outputs.values()
    if executor == "inline":
        shown = capsys.readouterr()
        assert "to the output\n" in shown.out
        assert "to the error\n" in shown.err


@pytest.mark.parametrize("executor", ["inline", pytest.param("pool", marks=pytest.mark.slow)])
def test_a_step_that_fails_keeps_what_it_had_printed(store, executor):
    with start_run("steps", store=store) as active:
        result = run_graph(Graph.wire([fails]), store, run=active, executor=executor, check=False)
        assert isinstance(result.error, StepError)
    (log,) = store.records.find(Artifact, ("run", "=", active.id))
    assert store.objects.read(log.digest) == b"before the end\n"


def test_a_silent_step_keeps_no_log_and_streams_are_put_back(store):
    before = sys.stdout, sys.stderr, list(logging.getLogger().handlers)
    _, artifacts = run(store, silent)
    assert set(artifacts) == {"silent"}
    assert (sys.stdout, sys.stderr, list(logging.getLogger().handlers)) == before


def test_secrets_are_masked(store):
    _, artifacts = run(store, prints_a_secret)
    assert b"hunter2" not in store.objects.read(artifacts["prints_a_secret.log"].digest)


def test_threads_collect_only_what_they_print():
    found = {}
    together = threading.Barrier(4)

    def work(number):
        with collect_output() as output:
            for _ in range(50):
                together.wait()
                print(number)  # noqa: T201
        found[number] = output.text

    before = sys.stdout
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == {number: f"{number}\n" * 50 for number in range(4)}
    assert sys.stdout is before


@given(st.lists(st.tuples(st.sampled_from("ab\n"), st.integers(0, 400_000)), max_size=8))
def test_of_a_long_output_the_beginning_and_the_end_are_kept(parts):
    output = StepOutput()
    for character, count in parts:
        output.add(character * count)
    whole = "".join(character * count for character, count in parts)
    if len(whole) <= MOST_HEAD + MOST_TAIL:
        assert output.text == whole
    else:
        left_out = len(whole) - MOST_HEAD - MOST_TAIL
        gap = f"\n… {left_out:,} characters are left out …\n"
        assert output.text == whole[:MOST_HEAD] + gap + whole[-MOST_TAIL:]


UNCONFIGURED = """
import logging
from everloop.pipeline.step_output import collect_output

with collect_output() as output:
    logging.getLogger("mine").warning("by default")
    logging.basicConfig(level=logging.INFO, format="own %(message)s")
    logging.getLogger("mine").info("configured")
print(repr(output.text))
"""


def test_logging_that_is_not_configured_or_configured_in_the_step_works_as_without_everloop():
    done = subprocess.run([sys.executable, "-c", UNCONFIGURED], capture_output=True, text=True, check=True)
    assert done.stderr == "by default\nown configured\n"
    assert done.stdout == repr(done.stderr) + "\n"
