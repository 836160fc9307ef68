"""A project: how its folder is found, what `loop.py` may declare, and how mistakes in it are reported."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

import everloop as el
from everloop.cli.loop import store_of
from everloop.data.features import load_view, open_online
from everloop.errors import NotFoundError, ProjectError, UsageError
from everloop.loop import load_project
from everloop.loop.project_features import backfill, materialize
from everloop.loop.project_folder import find_folder
from everloop.stores import open_store
from everloop.tracking import start_run

SECOND = 'second = el.Loop("second", data=loop.data, train=loop.train)\n'


def add(shop, text):
    (shop.folder / "loop.py").write_text((shop.folder / "loop.py").read_text() + text)


# --- the folder --------------------------------------------------------------------------------------------


def test_the_folder_is_found_from_any_folder_below_it(shop, monkeypatch):
    assert find_folder(shop.folder / "data" / "orders") == shop.folder
    monkeypatch.chdir(shop.folder / "data")
    assert find_folder() == shop.folder
    assert load_project().folder == shop.folder


def test_the_nearest_project_is_meant(shop):
    inner = shop.folder / "data" / "inner"
    inner.mkdir()
    (inner / "loop.py").write_text("")
    assert find_folder(inner) == inner
    assert find_folder(inner.parent) == shop.folder


def test_a_folder_called_loop_py_is_not_a_project(tmp_path):
    (tmp_path / "loop.py").mkdir()
    with pytest.raises(ProjectError) as raised:
        find_folder(tmp_path)
    assert str(tmp_path) in raised.value.message
    assert "everloop init" in raised.value.help
    assert "everloop demo" in raised.value.help


def test_loading_tells_readers_where_the_project_is(shop):
    load_project(shop.folder)
    assert os.environ["EVERLOOP_PROJECT"] == str(shop.folder)
    assert sys.path[0] == str(shop.folder)
    load_project(shop.folder)
    assert sys.path.count(str(shop.folder)) == 1


# --- the loops ---------------------------------------------------------------------------------------------


def test_the_only_loop_needs_no_name(shop):
    project = load_project(shop.folder)
    assert list(project.loops) == ["shop"]
    assert project.loop() is project.loop("shop")


def test_with_two_loops_a_name_is_needed(shop):
    add(shop, SECOND)
    project = load_project(shop.folder)
    assert list(project.loops) == ["shop", "second"], "in the order of their declaration"
    assert project.loop("second").name == "second"
    with pytest.raises(NotFoundError, match="declares several loops") as raised:
        project.loop()
    assert "shop, second" in raised.value.help


def test_an_unknown_loop_is_an_error_that_lists_the_known_ones(shop):
    with pytest.raises(NotFoundError, match="declares no loop 'shap'") as raised:
        load_project(shop.folder).loop("shap")
    assert "shop" in raised.value.help


def test_two_loops_of_one_name_are_an_error(shop):
    add(shop, SECOND.replace('"second"', '"shop"'))
    with pytest.raises(ProjectError, match="two loops called 'shop'") as raised:
        load_project(shop.folder)
    assert "Rename one" in raised.value.help


def test_a_loop_with_two_variables_is_one_loop(shop):
    add(shop, "again = loop\n")
    assert list(load_project(shop.folder).loops) == ["shop"]


def test_a_loop_in_a_list_is_not_declared(shop):
    shop.change("loop.py", "loop = el.Loop(", "loops = el.Loop(")
    add(shop, "loops = [loops]\n")
    with pytest.raises(ProjectError, match="declares no loop") as raised:
        load_project(shop.folder)
    assert "loop = el.Loop(" in raised.value.help


def test_feature_views_are_collected_by_name(shop):
    add(shop, 'view = el.FeatureView("weather", orders, entity="shop", time="at")\n')
    assert list(load_project(shop.folder).views) == ["weather"]


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rules.py", "def keep(orders:\n    pass\n", "Syntax error in {}, line 1"),
        ("rules.py", "x = 1\ny = x / 0\n", "ZeroDivisionError in {}, line 2"),
        ("rules.py", "raise ValueError('no rules today')", "ValueError in {}, line 1: no rules today"),
        ("limits.py", "LEAST = 1\n", "ImportError in .*rules.py, line 2"),
        ("rules.py", "import sys\nsys.exit(0)\n", "SystemExit in {}, line 2"),
    ],
)
def test_a_mistake_in_an_imported_module_is_reported_where_it_is(shop, name, text, says):
    shop.write(name, text)
    with pytest.raises(ProjectError, match=says.format(f".*{name}")):
        load_project(shop.folder)


def test_a_mistake_in_a_declaration_keeps_its_own_help(shop):
    shop.change("loop.py", "steps=[20, 100]", "steps=[20, 90]")
    with pytest.raises(UsageError, match="Canary steps must rise") as raised:
        load_project(shop.folder)
    assert "Canary(steps=" in raised.value.help


@pytest.mark.parametrize("text", ["loop = (", "1 / 0", "raise SystemExit", "import everloop as el\nel.Every('soon')"])
def test_a_project_that_fails_leaves_the_modules_as_they_were(shop, text):
    known = load_project(shop.folder).loop()
    module = sys.modules["loop"]
    good = (shop.folder / "loop.py").read_text()
    shop.write("loop.py", text)
    with pytest.raises((ProjectError, UsageError)):
        load_project(shop.folder)
    assert sys.modules["loop"] is module
    shop.write("loop.py", good)
    assert load_project(shop.folder).loop().gates == known.gates


def test_ctrl_c_while_loading_is_not_a_mistake_of_the_project(shop):
    shop.write("loop.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_project(shop.folder)


# --- feature views of a project ----------------------------------------------------------------------------


def reports(*winds, day=1):
    return pl.DataFrame(
        {
            "origin": ["JFK"] * len(winds),
            "at": [datetime(2024, 1, day, hour, tzinfo=UTC) for hour in range(len(winds))],
            "wind": list(winds),
        }
    )


def view(source):
    return el.FeatureView("weather", source, entity="origin", time="at")


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(datetime(2024, 2, 1, tzinfo=UTC))
        yield opened


def test_rows_come_from_the_source_unless_they_are_given(store):
    weather = view(lambda: reports(10.0, 20.0))
    made = materialize(weather, store=store)
    assert (made.added, made.online) == (2, 0)
    assert materialize(weather, store=store).added == 0
    assert materialize(weather, rows=reports(10.0, 20.0, 30.0), store=store).added == 1


def test_rows_are_published_to_the_online_store_at_a_path(store, tmp_path):
    path = tmp_path / "online.db"
    made = materialize(view(None), rows=reports(10.0, 20.0), online=path, store=store)
    assert made.online == 1
    online = open_online(path)
    assert online.get("weather@1", {"origin": "JFK"}).values == {"wind": 20.0}
    # An online store that the caller has opened stays open.
    assert materialize(view(None), rows=reports(10.0, 20.0, 5.0), online=online, store=store).online == 1
    assert online.get("weather@1", {"origin": "JFK"}).values == {"wind": 5.0}
    online.close()


def test_a_backfill_adds_only_the_rows_of_its_range(store):
    hours = [datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in range(4)]
    weather = view(lambda: reports(0.0, 1.0, 2.0, 3.0))
    made = backfill(weather, start=hours[1], end=hours[3], store=store)
    assert made.added == 2
    assert backfill(weather, store=store).added == 2


def test_the_store_of_the_surrounding_run_is_used(store):
    with start_run("features", store=store):
        materialize(view(None), rows=reports(10.0))
    assert load_view(store, "weather").name == "weather"


def test_other_code_of_the_source_makes_a_new_version_of_the_view(store):
    first = materialize(view(lambda: reports(10.0)), store=store).view
    same = materialize(view(None), rows=reports(10.0), store=store).view
    other = materialize(view(lambda: reports(20.0)), store=store).view
    assert (first.key, other.key) == ("weather@1", f"weather@{other.version}")
    assert other.version > first.version
    assert len({first.code, same.code, other.code}) == 3


def test_a_command_uses_the_project_of_its_folder_and_not_of_the_current_one(tmp_path, monkeypatch):
    """`everloop models check --in shop` in the folder of another project, with one store for both."""
    for name in ("shop", "bank"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "everloop.toml").write_text(f'[project]\nname = "{name}"\n')
    monkeypatch.chdir(tmp_path / "bank")
    for home, named in ((Path("one"), None), (None, "one")):
        monkeypatch.chdir(tmp_path / "bank")
        if named is not None:
            monkeypatch.setenv("EVERLOOP_STORE", named)
        with store_of(tmp_path / "shop", home) as store:
            assert store.project == "shop"
            assert store.home == tmp_path / "bank" / "one"
