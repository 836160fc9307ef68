"""The tutorials in docs, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted(path.name for path in DOCS.glob("*.md") if "```python" in path.read_text())


def test_there_are_tutorials() -> None:
    assert "features.md" in TUTORIALS


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_block_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": "tutorial"}
    for number, block in enumerate(blocks, 1):
        # The blocks have no `from __future__`, as a reader of the page has none.
        exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), names)  # noqa: S102 - our own documentation
