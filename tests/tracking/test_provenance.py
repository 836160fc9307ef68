"""The provenance of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from everloop.tracking import capture_source, imported_packages, start_run
from everloop.tracking.provenance import GitState, git_state, uncommitted

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from everloop.stores import Store


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "clean"
    folder.mkdir()
    assert git_state(folder / "missing") == GitState()
    git(folder, "init", "-q")
    (folder / "a.py").write_text("a = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "data.csv").write_text("untracked files do not count")
    state = git_state(folder)
    assert (state.commit, state.dirty, state.root) == (commit, False, folder)
    assert state.branch == git(folder, "branch", "--show-current")
    assert uncommitted(state) is None
    changed = tmp_path / "changed"  # another name: an answer is remembered for seconds
    folder.rename(changed)
    (changed / "a.py").write_text("a = 2\n")
    (changed / "new.py").write_text("b = 1\n")
    state = git_state(changed)
    assert (state.commit, state.dirty, state.untracked) == (commit, True, ("new.py",))
    patch = uncommitted(state)
    assert patch is not None
    git(tmp_path, "clone", "-q", str(changed), "again")
    subprocess.run(["git", "apply"], input=patch, cwd=tmp_path / "again", check=True)
    assert (tmp_path / "again" / "a.py").read_text() == "a = 2\n"
    assert (tmp_path / "again" / "new.py").read_text() == "b = 1\n"
    assert not (tmp_path / "again" / "data.csv").exists()


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == GitState()


def test_a_machine_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "any") == GitState()


def test_packages_are_those_imported() -> None:
    import hypothesis  # noqa: F401 - so that it is imported

    found = imported_packages()
    assert found["pytest"] == version("pytest")
    assert found["hypothesis"] == version("hypothesis")
    assert "kfp" not in found
    assert not any(name in sys.stdlib_module_names for name in found)


def test_a_module_named_unlike_its_distribution() -> None:
    code = "import dateutil; from everloop.tracking import imported_packages as p; print(p()['python-dateutil'])"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == version("python-dateutil")


def test_what_a_run_imports_on_its_way_counts(store: Store) -> None:
    code = (
        "import sys; from everloop.stores import open_store; from everloop.tracking import start_run\n"
        "with open_store(sys.argv[1]) as store:\n"
        "    with start_run('train', store=store) as run:\n"
        "        assert 'cloudpickle' not in run.record.source.packages\n"
        "        import cloudpickle\n"
        "    print(run.record.source.packages['cloudpickle'])"
    )
    said = subprocess.run([sys.executable, "-c", code, str(store.home)], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == version("cloudpickle")


def test_the_code_of_a_run_is_said_while_it_goes_on(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.set_code("code:abc")
    assert run.record.source.code == "code:abc"
    assert run.record.source.python == platform.python_version()
    assert run.record.source.command == capture_source().command


def test_importing_the_room_loads_the_standard_library_only() -> None:
    code = (
        "import sys, everloop.tracking\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(t for t in tops - sys.stdlib_module_names if not t.startswith('_') and t != 'everloop'))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"
