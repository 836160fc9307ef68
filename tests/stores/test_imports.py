"""What importing `everloop.stores` loads, and that its public names are documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import everloop.stores

ROOM = Path(everloop.stores.__file__).parent

# Modules that the interpreter, a site file or a coverage tool loads before everloop.
PRELUDE = "import sys\nbefore = set(sys.modules)\n"
TELL = (
    "tops = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
    "print(*sorted(tops - set(sys.stdlib_module_names) - {'everloop'}))\n"
)


def loaded_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PRELUDE + program + TELL], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_loads_only_the_standard_library() -> None:
    assert loaded_by("import everloop.stores\n") == []
    assert loaded_by("from everloop.stores import Clock, SystemClock, new_id, observe, Journal, RecordStore\n") == []


def test_a_store_without_tables_loads_neither_frames_nor_buckets(tmp_path: Path) -> None:
    program = (
        "from everloop.stores import open_store\n"
        f"store = open_store({str(tmp_path / 'home')!r})\n"
        "store.objects.add(b'x')\n"
        "store.records.last_event()\n"
    )
    assert set(loaded_by(program)) - {"typing_extensions"} == {"msgspec"}


def test_every_public_name_is_there_and_documented() -> None:
    for name in everloop.stores.__all__:
        thing = getattr(everloop.stores, name)
        assert name in ("Condition", "Op") or (thing.__doc__ or "").strip(), name
    assert set(everloop.stores.__all__) <= set(dir(everloop.stores))
    with pytest.raises(AttributeError, match="nothing"):
        _ = everloop.stores.nothing


def test_the_names_for_type_checkers_are_the_names_at_run_time() -> None:
    (block,) = (
        node
        for node in ast.parse((ROOM / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    names = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(everloop.stores.__all__)


def test_both_dialects_have_the_same_steps() -> None:
    from everloop.stores.records.migrations import migrations

    sqlite, postgres = migrations("sqlite"), migrations("postgres")
    assert [(step.number, step.name) for step in sqlite] == [(step.number, step.name) for step in postgres]
    assert [step.number for step in sqlite] == list(range(1, len(sqlite) + 1))
