"""Every command that the web page shows exists, with the options that it shows."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import typer

from everloop.cli.app import app

PAGES = Path(__file__).parents[2] / "ui" / "src"
_OPTION = re.compile(r"--[a-z][a-z-]*")


def shown_commands():
    found = {}
    for path in sorted(PAGES.rglob("*.tsx")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.lstrip().startswith("//"):
                continue
            # What a command is built from stands in `${…}`; an option may be in there.
            for match in re.finditer(
                r"""(?:[>`"]|start it with: |Start it with: )everloop ((?:\$\{[^}]*\}|[^`"<])*)""", line
            ):
                text = match[1].strip()
                words = re.match(r"[a-z ]*", text)[0].split()
                if words:
                    found[f"{path.name}: {text[:80]}"] = (words, sorted(set(_OPTION.findall(line[match.start() :]))))
    return found


COMMANDS = shown_commands()


@cache
def _tree():
    return typer.main.get_command(app)


def test_the_page_shows_commands():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("name", COMMANDS)
def test_a_shown_command_exists(name):
    words, options = COMMANDS[name]
    found = _tree()
    for word in words:
        commands = getattr(found, "commands", None)
        if commands is None:
            break  # an argument
        assert word in commands, f"there is no command '{word}' in everloop {' '.join(words)}"
        found = commands[word]
    if getattr(found, "commands", None) is not None:
        return  # a verb is filled in when the page is shown; the tests in a browser read those
    known = {option for parameter in found.params for option in getattr(parameter, "opts", ())}
    assert set(options) <= known | {"--help"}, f"unknown options in {name}"
