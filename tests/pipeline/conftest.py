"""A store of its own for each test, and a folder of modules that can be edited and imported again."""

from __future__ import annotations

import importlib
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from everloop.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from everloop.stores import Store


@pytest.fixture(scope="session", autouse=True)
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_KEYS", str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


@dataclass
class Project:
    """A folder on the search path. `edit` writes files and forgets what was imported from them."""

    folder: Path
    names: set[str] = field(default_factory=set)

    def edit(self, **modules: str) -> None:
        for name, text in modules.items():
            path = self.folder / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            self.names.add(name.split("__")[0])
        self.forget()

    def forget(self) -> None:
        for module in [module for module in sys.modules if module.split(".")[0] in self.names]:
            del sys.modules[module]
        importlib.invalidate_caches()

    def load(self, name: str = "loop") -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    # Compiled files are told apart by whole seconds, and a test edits faster.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Project(folder)
    yield made
    made.forget()
