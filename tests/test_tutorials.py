"""The tutorials in docs, run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text())


def test_there_are_tutorials() -> None:
    assert "features.md" in TUTORIALS


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_every_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    # A tutorial may load a project. Its modules must not stay behind for other tests.
    monkeypatch.setenv("EVERLOOP_PROJECT", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "loop", raising=False)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": "tutorial"}
    try:
        run_blocks(name, blocks, names)
    finally:
        for module in [one for one, module in sys.modules.items() if is_inside(module, tmp_path)]:
            del sys.modules[module]


def run_blocks(name: str, blocks: list[str], names: dict[str, object]) -> None:
    for number, block in enumerate(blocks, 1):
        # The blocks have no `from __future__`, as a reader of the page has none.
        exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), names)  # noqa: S102 - our own documentation


def is_inside(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(folder)
