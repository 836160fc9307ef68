"""Run the command line in this process, in an empty folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest

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
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    sys.path[:] = before_path
    for name in set(sys.modules) - before_modules:
        if name in ("loop", "features"):
            sys.modules.pop(name, None)
