"""Reads of a step from outside are tracked: files, folders, environment variables."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.pipeline import Graph, plan, run_graph
from everloop.records import StepRun as StepRecord

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project
    from everloop.pipeline import GraphRun
    from everloop.stores import Store

# Steps here are written as users write them, and leave their files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HEAD = """
import glob, os, pathlib, json, csv, sqlite3, subprocess, threading, functools, tempfile, shutil
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pandas as pd, polars as pl, pyarrow as pa, pyarrow.parquet, pyarrow.csv, pyarrow.dataset
from everloop.pipeline import step
"""


@pytest.fixture
def data(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's folder, with data in three formats; it is the working folder."""
    folder = project.folder / "data"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(project.folder))
    monkeypatch.chdir(project.folder)
    write(folder, 1)
    return folder


def write(folder: Path, number: int) -> None:
    frame = pl.DataFrame({"a": [number]})
    frame.write_csv(folder / "t.csv")
    frame.write_parquet(folder / "t.parquet")
    frame.write_ndjson(folder / "t.jsonl")
    frame.write_ipc(folder / "t.arrow", compression="uncompressed")
    (folder / "t.npy").unlink(missing_ok=True)
    connection = sqlite3.connect(folder / "t.db")
    connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    connection.commit()
    connection.close()


def turn(project: Project, store: Store, executor: str = "inline") -> GraphRun:
    project.forget()
    return run_graph(Graph.wire([project.load().reads]), store, executor=executor)


READERS = [
    "open('data/t.csv').read()",
    "open('data/t.csv', 'rb', buffering=0).read()",
    "os.read(os.open('data/t.csv', os.O_RDONLY), 99)",
    "pathlib.Path('data/t.csv').read_text()",
    "list(csv.reader(open('data/t.csv')))",
    "[json.loads(line) for line in open('data/t.jsonl')]",
    "np.loadtxt('data/t.csv', skiprows=1).tolist()",
    "np.fromfile('data/t.csv', dtype='u1').tolist()",
    "pd.read_csv('data/t.csv').a.tolist()",
    "pd.read_csv(pathlib.Path('data') / 't.csv').a.tolist()",
    "pd.read_parquet('data/t.parquet').a.tolist()",
    "pd.read_feather('data/t.arrow').a.tolist()",
    "pl.read_csv('data/t.csv')",
    "pl.read_csv(source='data/t.csv')",
    "pl.scan_csv('data/t.csv')",
    "pl.scan_csv('data/*.csv')",
    "pl.scan_csv(['data/t.csv'])",
    "pl.read_parquet('data/t.parquet')",
    "pl.scan_parquet('data/*.parquet')",
    "pl.read_ndjson('data/t.jsonl')",
    "pl.read_ipc('data/t.arrow')",
    "pa.parquet.read_table('data/t.parquet').to_pylist()",
    "pa.parquet.ParquetFile('data/t.parquet').read().to_pylist()",
    "pa.csv.read_csv('data/t.csv').to_pylist()",
    "pa.dataset.dataset('data/t.parquet').to_table().to_pylist()",
    "sqlite3.connect('data/t.db').execute('SELECT max(a) FROM t').fetchall()",
    "list(ThreadPoolExecutor(2).map(lambda name: open(name).read(), ['data/t.csv']))",
    "shutil.copyfile('data/t.csv', os.path.join(tempfile.mkdtemp(), 'x')) and open('data/t.csv').read()",
]


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_a_step_reads_is_noticed(project: Project, store: Store, data: Path, reader: str) -> None:
    project.edit(loop=f"{HEAD}\n@step\ndef reads():\n    found = {reader}\n    return found\n")
    assert turn(project, store).step("reads").status == "ran"
    assert turn(project, store).step("reads").status == "cached"
    write(data, 2)
    again = turn(project, store).step("reads")
    assert again.status == "ran"
    assert again.reason.startswith("source changed: data/")
    assert turn(project, store).step("reads").status == "cached"


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "pool"])
def test_copying_the_environment_and_temporary_files_leave_a_step_cached(
    project: Project, store: Store, data: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.edit(
        loop=f"{HEAD}\n@step\ndef reads():\n    given = {{**os.environ, 'MORE': '1'}}\n"
        "    with tempfile.NamedTemporaryFile(dir='data') as scratch:\n        scratch.write(b'x')\n"
        "        scratch.seek(0)\n        return scratch.read() and len(given) > 1\n"
    )
    assert turn(project, store, executor).step("reads").status == "ran"
    found = turn(project, store, executor).step("reads")
    assert found.status == "cached", found.reason
    assert not [one for one in found.observed if one["kind"] != "environment"]
    monkeypatch.setenv("WATCHED_NEW", "1")
    assert turn(project, store, executor).step("reads").status == "cached"


@pytest.mark.parametrize("executor", ["inline", "pool"])
def test_files_and_variables_are_noticed_in_every_executor(
    project: Project, store: Store, data: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHED_LIMIT", "1")
    project.edit(
        loop=f"{HEAD}\ndef limit(): return os.getenv('WATCHED_LIMIT')\n"
        "@step\ndef reads(): return limit(), open('data/t.csv').read(), os.environ.get('WATCHED_OTHER', '-')\n"
    )
    assert turn(project, store, executor).value("reads") == ("1", "a\n1\n", "-")
    assert turn(project, store, executor).step("reads").status == "cached"
    monkeypatch.setenv("WATCHED_LIMIT", "2")
    changed = turn(project, store, executor)
    assert changed.step("reads").reason == "source changed: environment variable WATCHED_LIMIT (another value)"
    assert changed.value("reads") == ("2", "a\n1\n", "-")
    monkeypatch.setenv("WATCHED_OTHER", "secret-of-mine")
    changed = turn(project, store, executor)
    assert changed.step("reads").reason == "source changed: environment variable WATCHED_OTHER (not set before)"
    assert "secret-of-mine" not in repr(changed.step("reads").observed)
    monkeypatch.delenv("WATCHED_OTHER")
    assert turn(project, store, executor).value("reads") == ("2", "a\n1\n", "-")
    write(data, 3)
    assert turn(project, store, executor).value("reads") == ("2", "a\n3\n", "-")


LISTINGS = [
    "sorted(os.listdir('data/in'))",
    "sorted(glob.glob('data/in/*'))",
    "sorted(path.name for path in pathlib.Path('data/in').iterdir())",
    "sorted(path.name for path in pathlib.Path('data').rglob('*.txt'))",
    "sorted(name for _, _, names in os.walk('data/in') for name in names)",
]


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_new_file_in_a_listed_folder_is_noticed(project: Project, store: Store, data: Path, listing: str) -> None:
    (data / "in").mkdir()
    (data / "in" / "a.txt").write_text("a")
    project.edit(loop=f"{HEAD}\n@step\ndef reads(): return {listing}\n")
    turn(project, store)
    assert turn(project, store).step("reads").status == "cached"
    (data / "in" / "b.txt").write_text("b")
    again = turn(project, store).step("reads")
    assert again.reason.startswith("source changed: data")
    assert turn(project, store).step("reads").status == "cached"


def test_a_file_that_is_missing_is_missed(project: Project, store: Store, data: Path) -> None:
    project.edit(
        loop=f"{HEAD}\n@step\ndef reads():\n    try:\n        return open('data/extra.csv').read()\n"
        "    except FileNotFoundError:\n        return 'none'\n"
    )
    assert turn(project, store).value("reads") == "none"
    assert turn(project, store).step("reads").status == "cached"
    (data / "extra.csv").write_text("more")
    assert turn(project, store).value("reads") == "more"


OWN_FILES = {
    "written, then read": "pathlib.Path('data/own.txt').write_text('x')\n    open('data/own.txt').read()",
    "renamed into place": "pathlib.Path('data/p').write_text('x')\n    os.replace('data/p', 'data/own.txt')\n"
    "    open('data/own.txt').read()",
    "read, then added to": "p = pathlib.Path('data/log.txt')\n"
    "    p.write_text((p.read_text() if p.exists() else '') + 'x')",
    "a scratch folder": "with tempfile.TemporaryDirectory(dir='data') as t:\n"
    "        pl.DataFrame({'a': [1]}).write_csv(t + '/x.csv')\n        pl.read_csv(t + '/x.csv')",
    "written by Polars": "pl.DataFrame({'a': [os.getpid()]}).write_parquet('data/own.parquet')\n"
    "    pl.read_parquet('data/own.parquet')",
    "written by pandas": "pd.DataFrame({'a': [1]}).to_csv('data/own.csv')\n    pd.read_csv('data/own.csv')",
    "a folder of its own": "os.makedirs('data/out', exist_ok=True)\n    open('data/out/a', 'w').close()\n"
    "    os.listdir('data/out')",
    "a database": "c = sqlite3.connect('data/own.db')\n    c.execute('CREATE TABLE IF NOT EXISTS t (a)')\n"
    "    c.execute('INSERT INTO t VALUES (1)')\n    c.commit()\n    c.close()",
    "a source": "open('loop.py').read()",
}


@pytest.mark.parametrize("case", OWN_FILES)
def test_what_a_step_writes_itself_does_not_make_it_stale(
    project: Project, store: Store, data: Path, case: str
) -> None:
    project.edit(loop=f"{HEAD}\n@step\ndef reads():\n    {OWN_FILES[case]}\n    return 1\n")
    assert turn(project, store).step("reads").status == "ran"
    found = turn(project, store).step("reads")
    assert found.status == "cached", found.reason


def test_a_helper_that_remembers_its_file_counts_for_every_step(project: Project, store: Store, data: Path) -> None:
    project.edit(
        loop=f"{HEAD}\n@functools.cache\ndef table(): return open('data/t.csv').read()\n"
        "_HELD = None\ndef held():\n    global _HELD\n    if _HELD is None: _HELD = open('data/t.jsonl').read()\n"
        "    return _HELD\n"
        "@step\ndef first(): return table() + held()\n@step\ndef reads(first): return table() + held() + first[:0]\n"
    )
    turn(project, store)
    assert {step.status for step in turn(project, store).steps} == {"cached"}
    seen = {step.name: len(step.observed) for step in store.records.find(StepRecord)}
    assert seen == {"first": 2, "reads": 2}
    write(data, 2)
    again = turn(project, store)
    assert {step.status for step in again.steps} == {"ran"}
    assert again.value("reads") == 'a\n2\n{"a":2}\n'


def test_a_file_that_changes_while_the_step_runs_makes_it_run_again(project: Project, store: Store, data: Path) -> None:
    project.edit(
        loop=f"{HEAD}\n@step\ndef reads():\n    found = open('data/t.csv').read()\n"
        "    if '1' in found: subprocess.run(['sh', '-c', 'echo a > data/t.csv; echo 2 >> data/t.csv'], check=True)\n"
        "    return found\n"
    )
    assert turn(project, store).value("reads") == "a\n1\n"
    again = turn(project, store)
    assert again.step("reads").reason == "source changed: data/t.csv (it changed while the step ran)"
    assert again.value("reads") == "a\n2\n"
    assert turn(project, store).step("reads").status == "cached"


def test_what_cannot_be_noticed_is_said(project: Project, store: Store, data: Path) -> None:
    project.edit(loop=f"{HEAD}\n@step\ndef reads(): return subprocess.run(['cat', 'data/t.csv']).returncode\n")
    turn(project, store)
    expected = "cached (not noticed: what the program 'cat' reads)"
    assert turn(project, store).step("reads").reason == expected
    assert plan(Graph.wire([project.load().reads]), store)[0].reason == expected


def test_what_is_read_outside_a_step_or_by_packages_does_not_count(project: Project, store: Store, data: Path) -> None:
    project.edit(
        loop=f"{HEAD}\nimport zoneinfo, datetime, email.parser, importlib.metadata\n@step\ndef reads():\n"
        "    import colorsys\n    importlib.metadata.version('polars')\n    zoneinfo.ZoneInfo('Europe/Paris')\n"
        "    open('/etc/hosts').close()\n    open(os.devnull).close()\n    os.environ.get('PWD')\n    return 1\n"
    )
    turn(project, store)
    open(data / "t.csv").close()  # noqa: PTH123 - the plain way
    assert os.environ.get("HOME") is not None
    assert store.records.find(StepRecord)[0].observed == ()
