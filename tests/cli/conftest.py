"""The command line, run in this process, in a folder of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import pytest

from everloop.cli.app import run


@dataclass
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def everloop(tmp_path, monkeypatch, capsys):
    """Call the command; `cd` is the folder."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before_path, before_modules = list(sys.path), set(sys.modules)

    def call(*arguments: str) -> Said:
        from everloop.cli import output

        # The consoles hold the streams that they were made with.
        output.console.cache_clear()
        output.messages.cache_clear()
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    yield call
    sys.path[:] = before_path
    for name in set(sys.modules) - before_modules:
        if name in ("loop", "features"):
            sys.modules.pop(name, None)
