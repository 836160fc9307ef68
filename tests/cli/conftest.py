"""Run the command line in this process, in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.furnished_store import furnish

from everloop.cli.app import run


@dataclass
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def everloop(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in an empty folder, which is the current one."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before_path, before_modules = list(sys.path), set(sys.modules)

    def call(*arguments: str) -> Result:
        from everloop.cli import output

        # A console keeps the streams that existed when it was created.
        output.console.cache_clear()
        output.messages.cache_clear()
        capsys.readouterr()
        # A command may enter its project's folder, in its own process.
        before_folder, before_store = Path.cwd(), os.environ.get("EVERLOOP_STORE")
        code = run([str(argument) for argument in arguments])
        os.chdir(before_folder)
        if before_store is None:
            os.environ.pop("EVERLOOP_STORE", None)
        else:
            os.environ["EVERLOOP_STORE"] = before_store
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    sys.path[:] = before_path
    for name in set(sys.modules) - before_modules:
        if name in ("loop", "features"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def _furnished_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnished")
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        patch.chdir(folder / "work")
        ids = furnish(folder / "work")
    sys.modules.pop("loop", None)
    return folder, ids


@pytest.fixture
def furnished(everloop, _furnished_once, tmp_path):
    """The command, in a copy of the furnished folder. Words in braces, such as `{run}`, stand for ids."""
    folder, ids = _furnished_once
    shutil.copytree(folder / "work", Path.cwd(), dirs_exist_ok=True)
    shutil.copytree(folder / "keys", tmp_path / "keys")

    def call(words: str) -> Result:
        return everloop(*words.format(**ids).split())

    call.ids = ids
    return call
