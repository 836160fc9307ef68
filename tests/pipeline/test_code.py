"""What counts as the code of a step, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from everloop.pipeline import code_of
from everloop.pipeline.code.code_origin import find_distribution, origin_of

if TYPE_CHECKING:
    from conftest import Project

LOOP = """
    from everloop.pipeline import step
    import helpers

    @step
    def prepare(rows, scale: int = 2):
        return [helpers.clip(row) * scale for row in rows]
"""
HELPERS = """
    from limits import LIMIT

    def clip(value):
        return min(value, LIMIT)
"""
LIMITS = """
    LIMIT = 10
    OTHER = 1
"""


def parts(project: Project, name: str = "prepare") -> dict[str, str]:
    return code_of(getattr(project.load(), name)).parts


def test_parts_are_named_by_where_things_are_defined(project: Project) -> None:
    project.edit(loop=LOOP, helpers=HELPERS, limits=LIMITS)
    assert set(parts(project)) == {"loop.prepare", "helpers.clip", "limits.LIMIT"}


@pytest.mark.parametrize(
    "loop",
    [
        LOOP + "\n    # a comment\n",
        LOOP.replace("return [", "# why\n        return ["),
        LOOP.replace("        return [", '        """What it does."""\n        return ['),
        LOOP.replace("helpers.clip(row) * scale", "(helpers.clip( row )\n            * scale)"),
        LOOP.replace("    @step", "    UNUSED = 3\n\n\n    @step"),
        LOOP.replace("@step", "@step(retries=3, timeout_s=10)"),
        LOOP.replace("scale: int = 2", "scale: int = 3"),  # a default is a parameter, not code
    ],
)
def test_what_cannot_matter_changes_nothing(project: Project, loop: str) -> None:
    project.edit(loop=LOOP, helpers=HELPERS, limits=LIMITS)
    before = parts(project)
    project.edit(loop=loop, helpers=HELPERS.replace("(value):", "(value: float) -> float:"), limits=LIMITS)
    assert parts(project) == before


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"limits": LIMITS.replace("10", "11")}, {"limits.LIMIT"}),
        ({"limits": LIMITS.replace("OTHER = 1", "OTHER = 2")}, set()),
        ({"limits": LIMITS.replace("10", "5 + 5")}, set()),
        ({"limits": LIMITS.replace("10", "10.0")}, {"limits.LIMIT"}),
        ({"helpers": HELPERS.replace("min", "max")}, {"helpers.clip"}),
        ({"loop": LOOP.replace("* scale", "+ scale")}, {"loop.prepare"}),
        ({"loop": LOOP.replace("rows,", "rows: list,")}, {"loop.prepare"}),  # annotations of a step choose its inputs
    ],
)
def test_what_matters_is_named(project: Project, edit: dict[str, str], expected: set[str]) -> None:
    files = {"loop": LOOP, "helpers": HELPERS, "limits": LIMITS}
    project.edit(**files)
    before = parts(project)
    project.edit(**{**files, **edit})
    assert changed(before, parts(project)) == expected


REACHING = {
    "a class and its methods": (
        "class Scaler:\n    def fit(self): return FACTOR\n\n@step\ndef prepare(): return Scaler().fit()",
        {"loop.Scaler", "loop.FACTOR"},
    ),
    "a base class": (
        "class Base:\n    factor = FACTOR\n\nclass Scaler(Base): ...\n\n@step\ndef prepare(): return Scaler()",
        {"loop.Scaler", "loop.Base", "loop.FACTOR"},
    ),
    "a decorator": (
        "def twice(f):\n    def call(): return f() * FACTOR\n    return call\n\n@step\n@twice\ndef prepare(): return 1",
        {"loop.twice.<locals>.call", "loop.prepare", "loop.twice", "loop.FACTOR"},
    ),
    "a closure": (
        "def make(n):\n    def inner(): return n * FACTOR\n    return step(inner)\nprepare = make(3)",
        {"loop.make.<locals>.inner", "loop.make.<locals>.inner.n", "loop.FACTOR"},
    ),
    "a lambda": (
        "double = lambda x: x * FACTOR\n\n@step\ndef prepare(): return double(2)",
        {"loop.<lambda>", "loop.FACTOR"},
    ),
    "a partial": (
        "from functools import partial\ndef scale(f, x): return f * x * FACTOR\n"
        "double = partial(scale, 2)\n\n@step\ndef prepare(): return double(2)",
        {"loop.double", "loop.scale", "loop.FACTOR"},
    ),
    "a cached function": (
        "from functools import lru_cache\n@lru_cache\ndef load(): return FACTOR\n\n@step\ndef prepare(): return load()",
        {"loop.load", "loop.FACTOR"},
    ),
    "a table of functions": (
        "def add(x): return x + FACTOR\nTABLE = {'add': add}\n\n@step\ndef prepare(): return TABLE['add'](1)",
        {"loop.TABLE", "loop.add", "loop.FACTOR"},
    ),
    "another step that is called": (
        "@step\ndef other(): return FACTOR\n\n@step\ndef prepare(): return other() + 1",
        {"loop.other", "loop.FACTOR"},
    ),
    "an import inside the function": (
        "@step\ndef prepare():\n    from more import shift\n    return shift(FACTOR)",
        {"more.shift", "more.BY", "loop.FACTOR"},
    ),
    "a module inside a package": (
        "import pack.deep\n\n@step\ndef prepare(): return pack.deep.lift(FACTOR)",
        {"pack.deep.lift", "loop.FACTOR"},
    ),
    "a module used as a value": (
        "import more\n\n@step\ndef prepare(): return getattr(more, 'BY') + FACTOR",
        {"more", "more.BY", "loop.FACTOR"},
    ),
    "a star import": (
        "from more import *\n\n@step\ndef prepare(): return BY + FACTOR",
        {"more.BY", "loop.FACTOR"},
    ),
    "a settings object": (
        "class Settings:\n    def __init__(self): self.limit = FACTOR\nSETTINGS = Settings()\n\n"
        "@step\ndef prepare(): return SETTINGS.limit",
        {"loop.SETTINGS", "loop.Settings", "loop.FACTOR"},
    ),
    "a comprehension that shadows nothing": (
        "row = FACTOR\n\n@step\ndef prepare(): return [row for row in range(3)]",
        set(),
    ),
    "functions that call each other": (
        "def even(n): return n == 0 or odd(n - FACTOR)\ndef odd(n): return n != 0 and even(n - 1)\n\n"
        "@step\ndef prepare(): return even(4)",
        {"loop.even", "loop.odd", "loop.FACTOR"},
    ),
    "an expression of a package": (
        "import polars as pl\nLATE = pl.col('x') > FACTOR\n\n@step\ndef prepare(): return LATE",
        {"loop.LATE"},
    ),
}


@pytest.mark.parametrize("case", REACHING)
def test_code_is_reached_through(project: Project, case: str) -> None:
    body, expected = REACHING[case]
    head = "from everloop.pipeline import step\nFACTOR = 2\n"
    more = "BY = 4\ndef shift(x): return x + BY\n"
    project.edit(loop=head + body, more=more, pack____init__="", pack__deep="def lift(x): return x + 1")
    found = parts(project)
    assert set(found) - {"loop.prepare"} == expected - {"loop.prepare"}
    if expected:
        project.edit(loop=head.replace("2", "3") + body)
        assert changed(found, parts(project)) & {"loop.FACTOR", "loop.LATE"}


def test_versions_of_the_packages_that_the_code_uses_are_noted(project: Project) -> None:
    project.edit(
        loop="""
        from everloop.pipeline import step
        import polars as pl
        import pyarrow

        @step
        def prepare():
            import sklearn.linear_model
            return pl.DataFrame(), sklearn.linear_model.Ridge()
    """
    )
    packages = code_of(project.load().prepare).packages
    assert set(packages) == {"polars", "scikit_learn"}  # pyarrow is imported, but this step does not use it
    assert packages["polars"] == __import__("polars").__version__


def test_distributions_are_found_under_other_names() -> None:
    assert find_distribution("sklearn.linear_model") == find_distribution("sklearn")
    found = find_distribution("_pytest")
    assert found is not None
    assert found[0] == "pytest"
    assert find_distribution("no_such_module") is None
    assert (origin_of("json"), origin_of("polars"), origin_of("everloop.errors")) == ("standard", "package", "package")


def test_a_value_changed_in_memory_counts(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.edit(loop=LOOP, helpers=HELPERS, limits=LIMITS)
    module = project.load()
    before = code_of(module.prepare)
    assert code_of(module.prepare) is before
    monkeypatch.setattr(project.load("helpers"), "LIMIT", 11)
    assert changed(before.parts, code_of(module.prepare).parts) == {"limits.LIMIT"}


def test_a_container_changed_in_place_counts(project: Project) -> None:
    project.edit(loop="from everloop.pipeline import step\nKEYS = ['a']\n@step\ndef prepare(): return KEYS\n")
    module = project.load()
    before = code_of(module.prepare).digest
    module.KEYS.append("b")
    assert code_of(module.prepare).digest != before


WRITTEN = """
    from everloop.pipeline import step
    _CACHE = {}
    _COUNT = 0

    def load(key):
        global _COUNT
        _COUNT += 1
        if key not in _CACHE:
            _CACHE[key] = key * 2
        return _CACHE[key]

    @step
    def prepare(): return load(2)
"""


def test_what_the_code_writes_to_is_no_constant(project: Project) -> None:
    project.edit(loop=WRITTEN)
    module = project.load()
    before = code_of(module.prepare)
    module.prepare()
    assert code_of(module.prepare).digest == before.digest
    assert "loop._CACHE" in before.parts
    project.edit(loop=WRITTEN.replace("_CACHE = {}", "_CACHE = {2: 5}"))
    assert changed(before.parts, parts(project)) == {"loop._CACHE"}


def test_a_file_edited_after_its_import_does_not_lend_its_text(project: Project) -> None:
    project.edit(loop=LOOP, helpers=HELPERS, limits=LIMITS)
    module = project.load()
    before = code_of(module.prepare).parts["loop.prepare"]
    path = project.folder / "loop.py"
    path.write_text(path.read_text().replace("* scale", "+ scale"))
    edited_text = code_of(module.prepare).parts["loop.prepare"]
    project.forget()
    imported_again = code_of(project.load().prepare).parts["loop.prepare"]
    # In memory is still the old function, whose text is gone: it is known by its instructions for now.
    assert len({before, edited_text, imported_again}) == 3


def test_lines_that_moved_after_the_import_change_nothing(project: Project) -> None:
    project.edit(loop=LOOP, helpers=HELPERS, limits=LIMITS)
    module = project.load()
    before = code_of(module.prepare).digest
    path = project.folder / "loop.py"
    path.write_text("# a new first line\n" + path.read_text())
    assert code_of(module.prepare).digest == before


def test_two_lambdas_on_a_line_are_told_apart(project: Project) -> None:
    text = "from everloop.pipeline import step\nf, g = lambda x: x + 1, lambda x: x + 2\na, b = step(f), step(g)\n"
    project.edit(loop=text)
    module = project.load()
    assert code_of(module.a).digest != code_of(module.b).digest
    one = code_of(module.a).digest
    project.edit(loop=text.replace("x + 2", "x + 3"))
    assert code_of(project.load().a).digest == one


def test_a_function_without_source_is_known_by_its_instructions() -> None:
    def made(text: str) -> object:
        space: dict[str, object] = {"__name__": "nowhere"}
        exec(text, space)  # noqa: S102 - code without a file
        return space["f"]

    one, same, other = (made(f"def f(): return {n}") for n in (1, 1, 2))
    digests = [code_of(function).digest for function in (one, same, other)]  # type: ignore[arg-type]
    assert digests[0] == digests[1] != digests[2]


SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    from everloop.pipeline import code_of, Graph, step
    from everloop.pipeline.fingerprint import fingerprint, parts_of
    import loop

    node = Graph.wire([loop.prepare], given={{"rows": [1]}}).get("prepare")
    print(fingerprint(parts_of(node, node.inputs, None)))
"""


def test_fingerprints_are_the_same_in_every_process(project: Project) -> None:
    project.edit(
        loop=LOOP.replace("scale: int = 2", "scale={'b', 'a', 'c', 'd'}, more={'x': {1, 2, 'z'}}").replace(
            "* scale", "in NAMES"
        )
        + "\n    NAMES = frozenset({'q', 'w', 'e', 'r', 't', 'y'})\n"
        + "    def unused(): return 'a' in {'z', 'y', 'x'}\n",
        helpers=HELPERS.replace("return", "if value in {'a', 'b', 'c'}: return 0\n        return"),
        limits=LIMITS,
    )
    script = textwrap.dedent(SCRIPT).format(folder=str(project.folder))
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1
    assert found.pop().startswith("fp:")


def test_a_script_and_a_module_have_the_same_code(project: Project) -> None:
    text = textwrap.dedent(LOOP) + "\nif __name__ == '__main__':\n"
    text += "    from everloop.pipeline import code_of\n    print(code_of(prepare).digest)\n"
    project.edit(loop=text, helpers=HELPERS, limits=LIMITS)
    shown = subprocess.run(
        [sys.executable, str(project.folder / "loop.py")], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert code_of(project.load().prepare).digest == shown
