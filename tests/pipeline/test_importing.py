"""A project's modules are imported from the present text of their files, even after quick edits."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.pipeline import Graph, code_of, run_graph
from everloop.pipeline.code.project_modules import ProjectFinder

if TYPE_CHECKING:
    from everloop.stores import Store


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectFinder:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    finder = ProjectFinder()
    finder.add({}, [str(tmp_path)])
    return finder


def test_an_edit_within_the_same_second_counts(tmp_path: Path, finder: ProjectFinder) -> None:
    path = tmp_path / "hasty_constants.py"
    seen = []
    for limit in (4, 5, 6):
        path.write_text(f"LIMIT = {limit}")
        sys.modules.pop("hasty_constants", None)
        import hasty_constants  # type: ignore[import-not-found]

        seen.append(hasty_constants.LIMIT)
    assert seen == [4, 5, 6]
    assert not (tmp_path / "__pycache__").exists()


def test_what_is_installed_is_left_to_python(tmp_path: Path, finder: ProjectFinder) -> None:
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "somebody.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("NAME = 'somebody'")
    assert finder.find_spec("somebody", [str(installed.parent)]) is None
    assert finder.find_spec("json", None) is None
    assert finder.find_spec("no_such_module_anywhere", None) is None


TEXT = """
from everloop.pipeline import step

def times(number):
    return lambda function: lambda: function() * number

@times(1)
def look(): return 1

class Held:
    limit = 1

@step
def reads(): return look(), Held.limit
"""


def load(name: str) -> Any:
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def test_the_text_that_was_compiled_is_the_one_that_counts(tmp_path: Path, finder: ProjectFinder) -> None:
    path = tmp_path / "imported_once.py"
    path.write_text(TEXT)
    module = load("imported_once")
    before = code_of(module.reads).digest
    # An edit after the import, which this process does not run.
    path.write_text(TEXT.replace("@times(1)", "@times(2)"))
    assert code_of(module.reads).digest == before
    assert code_of(load("imported_once").reads).digest != before
    path.write_text(TEXT)
    assert code_of(load("imported_once").reads).digest == before


def test_an_old_compiled_file_is_known_for_what_it_is(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imported by Python itself: what runs then is the first edit, under a key of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "compiled_before.py"

    def edit(number: int) -> None:
        path.write_text(TEXT.replace("@times(1)", f"@times({number})").replace("limit = 1", f"limit = {number}"))
        os.utime(path, (1_790_000_000, 1_790_000_000))

    def turn() -> tuple[str, Any]:
        done = run_graph(Graph.wire([load("compiled_before").reads]), store)
        return done.step("reads").status, done.value("reads")

    edit(1)
    assert turn() == ("ran", (1, 1))
    edit(2)
    # Python runs the compiled file of the first edit. That result must not be found under the second.
    assert turn()[1] == (1, 1)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for compiled in (tmp_path / "__pycache__").iterdir():
        compiled.unlink()
    assert turn() == ("ran", (2, 2))
    sys.modules.pop("compiled_before")
