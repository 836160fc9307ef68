"""What all commands share: help texts, empty lists, counts, streams, colours, Ctrl-C and where the store is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import typer

from everloop.cli.app import app
from everloop.cli.output import count, to_json
from everloop.stores import open_store
from everloop.tracking import start_run

ESCAPE = "\x1b"
VERBS = {
    "Accept", "Acknowledge", "Cancel", "Compile", "Make", "Move", "Pause", "Resume", "Take", "Train",
    "Add", "Abort", "Advance", "Approve", "Archive", "Back", "Build", "Change", "Check",
    "Close", "Compare", "Create", "Delete",
    "Export", "Find", "Follow", "Get", "Import", "Infer", "Inspect", "Keep", "List", "Manage", "Monitor", "Package",
    "Plot", "Print", "Profile", "Promote", "Re-encrypt", "Reject", "Remove", "Renew", "Replace", "Reproduce",
    "Restore", "Revoke", "Roll", "Run", "Score", "Send", "Serve", "Set", "Show", "Simulate", "Stop", "Trace", "Trust",
    "Unarchive", "Verify", "Withdraw", "Write",
}  # fmt: skip
"""The verbs that help texts start with; a new command may add one."""


def helps(command=None, path=("everloop",)):
    """Yield the path and the object of each command and group."""
    command = command or typer.main.get_command(app)
    yield " ".join(path), command
    for name, sub in getattr(command, "commands", {}).items():
        yield from helps(sub, (*path, name))


HELPS = dict(helps())


@pytest.mark.parametrize("path", HELPS)
def test_help_is_a_sentence_that_starts_with_a_verb(path):
    first, _, rest = HELPS[path].help.strip().partition("\n")
    assert first.split()[0].rstrip(",") in VERBS
    assert len(first) <= 100
    assert first.endswith((".", ".)"))
    assert not rest or rest.startswith("\n"), "the first sentence needs a line of its own"
    assert HELPS[path].help.strip().endswith(".")


@pytest.mark.parametrize("path", HELPS)
def test_every_option_and_argument_has_a_help(path):
    for parameter in HELPS[path].params:
        text = parameter.help
        assert text, parameter.name
        assert text[0].isupper() or text.startswith(("MODEL", "`")), text
        # A help may end with a command, which a full stop would spoil.
        assert text.endswith(".") or re.search(r"See: everloop [a-z -]+$", text), text


EMPTY = {
    "runs ls": "No runs yet. Start one with: everloop run",
    "data ls": "No snapshots yet. Add one with: everloop data add FILE DATASET",
    "features ls": "Start with: everloop features materialize",
    "models ls": "No model versions yet. Train one with: everloop run",
    "models requests": "To see closed ones, add --all.",
    "models policy": "Guard one with: everloop models policy MODEL@ALIAS --approvals 1",
    "endpoints ls": "No endpoints yet. Start with: everloop run",
    "monitor ls": "No open incidents. To see those that are over, add --all.",
    "monitor findings": "Endpoints are monitored while this command runs: everloop up",
    "release ls": "No releases yet. Start with: everloop run",
    "trust ls": "This machine's own key is created with its first package.",
    "users ls": "Add one with: everloop users add NAME --role admin",
    "tokens ls": "Create one with: everloop tokens create NAME --user USER",
    "webhooks ls": "Add one with: everloop webhooks add NAME URL",
    "events": "No events yet. Start with: everloop run",
}
"""A command -> what it says about an empty store, and what to do next."""


@pytest.fixture
def empty(everloop):
    """The command, in a folder whose store is empty."""
    open_store(".everloop", create=True).close()
    return everloop


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_list_says_what_to_do_next(empty, words):
    result = empty(*words.split())
    assert (result.code, result.err) == (0, "")
    assert EMPTY[words] in " ".join(result.out.split())
    assert empty(*words.split(), "--json").json == []


def test_every_list_has_an_empty_state():
    listing = {path.removeprefix("everloop ") for path in HELPS if path.endswith(" ls") and "releases" not in path}
    # The predictions of an endpoint are listed, and an empty store has no endpoint.
    assert listing - set(EMPTY) == {"predictions ls"}


def test_a_list_without_matches_does_not_say_that_there_is_nothing(empty):
    with open_store(".everloop") as store, start_run("one", store=store):
        pass
    assert (
        empty(["runs", "ls", "--where", "state='failed'"][0], "ls", "--state", "failed").out.strip() == "No runs match."
    )
    assert empty("runs", "ls", "--columns", "name", "--state", "failed").out.strip() == "No runs match."
    assert empty("runs", "ls", "--deleted").out.strip() == "There are no deleted runs."


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (12345, "12,345 rows")])
def test_counts_agree_with_their_nouns(number, text):
    assert count(number, "row") == text


def test_one_of_something_is_singular_in_every_message(everloop):
    pl.DataFrame({"x": [1.0]}).write_csv("one.csv")
    assert "one@1: 1 row\n" in everloop("data", "add", "one.csv", "one").out
    assert "1 row → out.csv" in everloop("data", "export", "one", "out.csv").out
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("a")
    assert "texts@1: 1 file\n" in everloop("data", "add", "texts", "texts", "--files").out
    with open_store(".everloop") as store, start_run("one", store=store) as run:
        run.log(loss=0.5)
    assert "1 point, last 0.5" in everloop("runs", "plot", run.id).out
    assert "secrets of 0 webhooks" in everloop("webhooks", "rekey").out
    found = everloop("verify").out
    assert not re.search(r"\b1 (records|objects|journals|tables|files|rows)\b", found), found


def test_the_store_is_named_by_an_option_a_variable_or_the_folder(everloop, monkeypatch, tmp_path):
    for name in ("here", "there", "elsewhere"):
        home = Path(".everloop") if name == "here" else tmp_path / name
        with open_store(home, create=True) as store, start_run(name, store=store):
            pass

    def names(*more):
        return [run["name"] for run in everloop("runs", "ls", "--json", *more).json]

    assert names() == ["here"]
    assert names("--home", str(tmp_path / "there")) == ["there"]
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "elsewhere"))
    assert names() == ["elsewhere"]
    assert names("--home", str(tmp_path / "there")) == ["there"]
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "nowhere"))
    missing = everloop("runs", "ls")
    assert missing.code == 3
    assert str(tmp_path / "nowhere") in "".join(missing.err.split("\n"))
    assert not (tmp_path / "nowhere").exists()


def piped(*arguments, buffered):
    """Run a command whose reader has closed the pipe already; return its exit code and what it printed on stderr."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from everloop.cli import main; main()", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", ["runs ls", "runs ls --json", "runs show nothing --json", "runs --help"])
def test_a_closed_pipe_ends_a_command_quietly(empty, words, buffered):
    assert piped(*words.split(), buffered=buffered) == (141, "")


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_ctrl_c_ends_a_command_without_a_traceback(empty, monkeypatch, more):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("everloop.tracking.search.run_search.search_runs", interrupted)
    result = empty("runs", "ls", *more)
    assert (result.code, result.out) == (130, "")
    assert result.err.strip() == "Interrupted. Finished work is kept: repeat the command to continue."


def test_an_interrupted_replay_does_not_promise_to_continue(empty, monkeypatch, capsys):
    Path("table.csv").write_text("t,y\n2024-01-01,1\n")
    known = SimpleNamespace(interrupted=True, to_json=lambda: {"policies": []})
    monkeypatch.setattr(import_module("everloop.replay"), "replay", lambda *_, **__: known)
    with pytest.raises(SystemExit) as ended:
        empty("replay", "table.csv", "--target", "y", "--time", "t", "--json")
    assert ended.value.code == 130
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ({"policies": []}, "")


def test_an_answer_other_than_yes_ends_a_command_as_ctrl_c_does(empty, monkeypatch):
    with open_store(".everloop") as store, start_run("one", store=store) as run:
        pass
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(typer.Abort))
    assert empty("runs", "rm", run.id).code == 130
    assert len(empty("runs", "ls", "--json").json) == 1


@pytest.fixture
def terminal(monkeypatch):
    """A function that makes both streams of the next command look like a terminal."""

    def prepare():
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm-256color")

    return prepare


def test_colours_are_for_terminals_only(empty, monkeypatch, terminal):
    monkeypatch.delenv("NO_COLOR")
    with open_store(".everloop") as store, start_run("one", store=store) as run:
        run.log(loss=0.5)
    commands = (("runs", "show", run.id), ("runs", "plot", run.id), ("runs", "show", "nothing"))
    for words in commands:
        result = empty(*words)
        assert ESCAPE not in result.out + result.err
    terminal()
    for words in commands:
        result = empty(*words)
        assert ESCAPE in result.out + result.err
    monkeypatch.setenv("NO_COLOR", "1")
    for words in commands:
        result = empty(*words)
        assert ESCAPE not in result.out + result.err


def test_names_cannot_send_codes_to_a_terminal(empty, terminal):
    with open_store(".everloop") as store, start_run("red \x1b[31m alert\x07", store=store) as run:
        pass
    terminal()
    for words in (("runs", "ls"), ("runs", "show", run.id), ("runs", "ls", "--columns", "name")):
        out = empty(*words).out
        assert "alert" in out
        assert ESCAPE not in out
        assert "\x07" not in out
    assert "\\u009b" in to_json({"name": "\x9b31m"})
