"""Every way to leave a step other than returning, such as `sys.exit`, fails the step with a reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from everloop.errors import StepError, WorkerLostError
from everloop.pipeline import Graph, run_graph, step
from everloop.records import Run, StepRun as StepRecord

if TYPE_CHECKING:
    from everloop.stores import Store


class Quiet(BaseException):
    """Not an `Exception`, as the panics of Polars are not."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def _deep(number: int = 0) -> int:
    return _deep(number + 1) + 1


def _raise(error: BaseException) -> NoReturn:
    raise error


WAYS: dict[str, tuple[Callable[[], object], str]] = {
    "sys.exit(0)": (lambda: sys.exit(0), "it called sys.exit(0)"),
    "sys.exit()": (lambda: sys.exit(), "it called sys.exit(None)"),
    "sys.exit(text)": (lambda: sys.exit("enough"), "it called sys.exit('enough')"),
    "KeyboardInterrupt": (lambda: _raise(KeyboardInterrupt()), "it raised KeyboardInterrupt itself"),
    "GeneratorExit": (lambda: _raise(GeneratorExit()), "it raised GeneratorExit"),
    "StopIteration": (lambda: next(iter(())), "StopIteration"),
    "StopAsyncIteration": (lambda: _raise(StopAsyncIteration()), "StopAsyncIteration"),
    "recursion": (_deep, "RecursionError: maximum recursion depth exceeded"),
    "memory": (lambda: _raise(MemoryError()), "MemoryError"),
    "a class of its own": (lambda: _raise(Quiet("hush")), "Quiet: hush"),
    "an error without text": (lambda: _raise(MuteError()), "MuteError: (its text cannot be shown: RuntimeError)"),
}


@pytest.mark.parametrize("executor", ["inline", "pool"])
@pytest.mark.parametrize("way", WAYS)
def test_leaving_a_step_fails_it(store: Store, way: str, executor: str) -> None:
    leave, said = WAYS[way]

    @step
    def leaves() -> object:
        return leave()

    @step
    def after(leaves: object) -> object:
        return leaves

    with pytest.raises(StepError) as caught:
        run_graph(Graph.wire([leaves, after]), store, executor=executor)
    assert said in str(caught.value)
    assert "'leaves'" in str(caught.value)
    statuses = {record.name: record.status for record in store.records.find(StepRecord)}
    assert statuses == {"leaves": "failed", "after": "skipped"}
    assert store.records.find(StepRecord, ("name", "=", "leaves"))[0].error
    assert store.records.find(Run)[0].state == "failed"


def test_such_a_failure_is_tried_again(store: Store, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    @step(retries=1, backoff_s=0.0)
    def leaves() -> int:
        if not mark.exists():
            mark.touch()
            sys.exit(3)
        return 5

    assert run_graph(Graph.wire([leaves]), store).value("leaves") == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leave", "said"),
    [
        (lambda: os._exit(0), "ended with exit code 0"),
        (lambda: os._exit(9), "ended with exit code 9"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os.closerange(3, 200), "closed the pipes between its worker and this process"),
    ],
)
def test_a_worker_that_is_lost_fails_its_step(store: Store, leave: Callable[[], object], said: str) -> None:
    @step
    def leaves() -> object:
        return leave()

    with pytest.raises(WorkerLostError, match=said):
        run_graph(Graph.wire([leaves]), store, executor="pool")

    @step
    def fine() -> int:
        return 1

    assert run_graph(Graph.wire([fine]), store, executor="pool").value("fine") == 1


def test_os_exit_fails_a_step_of_this_process_but_ends_its_children(store: Store) -> None:
    @step
    def leaves() -> int:
        child = os.fork()
        if child == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        try:
            os._exit(0)
        except Exception:
            return 1

    before = os._exit
    with pytest.raises(StepError, match=r"it called os\._exit\(0\)"):
        run_graph(Graph.wire([leaves]), store)
    assert os._exit is before
    assert store.records.find(Run)[0].state == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("on", ["local", "pool"])
def test_the_command_line_fails_as_well(tmp_path: Path, on: str) -> None:
    (tmp_path / "loop.py").write_text(
        textwrap.dedent("""
            import sys
            import everloop as el

            @el.step
            def table():
                sys.exit(0)

            @el.step
            def model(table):
                return None

            loop = el.Loop("leaving", data=el.Dataset(table, target="y"), train=model)
        """)
    )
    done = _everloop(tmp_path, "run", "--on", on)
    assert done.returncode == 7
    assert "it called sys.exit(0)" in done.stderr


@pytest.mark.slow
def test_a_project_that_exits_while_it_is_imported_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text("import sys\nsys.exit(0)\n")
    done = _everloop(tmp_path, "run")
    assert done.returncode not in (0, 1)
    assert "SystemExit" in done.stderr
    assert "line 2" in done.stderr


def _everloop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "everloop"), *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
