"""The map of the house is true: docs name every room, and imports cost what is promised."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "everloop"


@pytest.fixture(scope="module", autouse=True)
def _forget_trees() -> Iterator[None]:
    yield
    _parsed.cache_clear()


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_architecture_names_every_room_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z_]+(?:\.py|/))` \|", text, flags=re.MULTILINE)
    rooms = {f"{path.name}/" for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.name for path in SOURCE.glob("*.py")} - {"__init__.py"}
    assert set(named) == rooms | modules
    assert len(named) == len(set(named))


def test_every_room_stands_in_the_import_contract():
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()} - {"testing"}
    assert {room for room in rooms if f"everloop.{room}" not in contract} == set()


def run_python(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return done.stderr


def imported(code: str) -> set[str]:
    return {line.rsplit("|", 1)[1].strip() for line in run_python(code).splitlines() if line.count("|") == 2}


ROOMS = [
    "stores",
    "tracking",
    "data",
    "pipeline",
    "training",
    "packages",
    "registry",
    "prediction_log",
    "http",
    "serving",
    "monitoring",
    "deploy",
    "loop",
    "replay",
    "ci",
    "server",
    "integrations",
    "demo",
]


@pytest.mark.parametrize("what", ["everloop", *(f"everloop.{room}" for room in ROOMS)])
def test_import_loads_only_the_standard_library(what):
    foreign = {
        name.partition(".")[0]
        for name in imported(f"import {what}")
        if name.partition(".")[0] not in sys.stdlib_module_names
    }
    # What a virtual environment itself loads at start-up is not ours.
    foreign -= {name.partition(".")[0] for name in imported("pass")}
    assert foreign == {"everloop"}


def test_help_loads_no_room_and_no_heavy_library():
    heavy = {"polars", "pyarrow", "numpy", "sklearn", "lightgbm", "deltalake", "litestar", "uvicorn", "httpx", "rich"}
    loaded = imported("from everloop.cli.app import run; run(['--help'])")
    assert not heavy & {name.partition(".")[0] for name in loaded}


def test_every_public_name_can_be_reached_and_says_what_it_is():
    import everloop

    for name in everloop.__all__:
        value = getattr(everloop, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), f"el.{name} has no docstring"


@pytest.mark.slow
def test_only_the_clock_reads_the_systems_time():
    # Parsing takes seconds, so only files are parsed whose text may hold such a call.
    suspect = re.compile(r"\b(?:datetime|time|date)\b[\s\\)]*\.[\s\\]*(?:now|utcnow|time|time_ns|today)\b")
    for path in SOURCE.rglob("*.py"):
        if path.name == "clock.py" or "template" in path.parts or "project" in path.parts:
            continue
        if not suspect.search(path.read_text(encoding="utf-8")):
            continue
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = f"{node.value.id}.{node.attr}"
                assert asked not in {"datetime.now", "datetime.utcnow", "time.time", "time.time_ns", "date.today"}, path


@pytest.mark.slow
def test_core_never_prints():
    for path in SOURCE.rglob("*.py"):
        if "cli" in path.relative_to(SOURCE).parts:
            continue
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"


def _lazy_packages():
    for path in SOURCE.rglob("__init__.py"):
        tree = _parsed(path)
        tables = [
            node.args[1]
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_exports"
        ]
        if tables:
            yield path, tree, ast.literal_eval(tables[0])


def test_lazy_packages_export_what_type_checkers_see():
    packages = list(_lazy_packages())
    assert len(packages) > 10
    for path, tree, table in packages:
        package = ".".join(["everloop", *path.parent.relative_to(SOURCE).parts])
        typed = {
            (imports.module, name.name)
            for block in tree.body
            if isinstance(block, ast.If)
            for imports in block.body
            if isinstance(imports, ast.ImportFrom) and imports.module.startswith("everloop")
            for name in imports.names
        }
        assert typed == {(f"{package}.{module}", name) for module, names in table.items() for name in names}, path


def _import_graph() -> dict[str, set[str]]:
    """Module to the modules that it imports: at load time, inside functions and for type checkers."""
    paths = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        if "template" not in parts and parts[1:3] != ("demo", "project"):
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        found = graph.setdefault(module, set())
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.Import):
                found.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    found.add(whole if whole in paths else node.module)
        found &= paths.keys()
        # A package lists the names of its modules for type checkers; that is not a dependency of the package.
        if path.name == "__init__.py" and "lazy_exports" in path.read_text(encoding="utf-8"):
            found &= {"everloop.lazy_exports", "everloop.errors", "everloop.version"}
    return graph


@pytest.mark.slow
def test_no_circle_of_modules_hides_in_local_or_type_checking_imports():
    graph = _import_graph()
    assert len(graph) > 400
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.slow
def test_no_class_has_grown_too_large():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= 25 or "testing" in path.parts, f"{path}: {node.name} has {len(methods)} methods"


def _modules() -> Iterator[Path]:
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).parts
        if "template" not in parts and parts[:2] != ("demo", "project"):
            yield path


def test_no_two_modules_share_a_name():
    named: dict[str, list[Path]] = {}
    for path in _modules():
        # A file of commands is named after its room, and so is a conformance suite.
        if path.name not in {"__init__.py", "__main__.py"} and path.relative_to(SOURCE).parts[0] not in {
            "cli",
            "testing",
        }:
            named.setdefault(path.name, []).append(path)
    assert [paths for paths in named.values() if len(paths) > 1] == []


def test_no_two_public_classes_share_a_name():
    named: dict[str, list[str]] = {}
    for path in _modules():
        for node in _parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                named.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in named.items() if len(paths) > 1} == {}
