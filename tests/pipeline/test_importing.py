"""A project's modules are what their files say, however fast somebody edits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from everloop.pipeline.importing import ProjectFinder


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
