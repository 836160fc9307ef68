"""The parts of a check: the sample, what a change touches, changes for clients, the verdict, and the comment's text."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.ci.change_report import ChangeReport, MetricComparison, decide
from everloop.ci.comment import MARKER, MOST_CHARACTERS, comment_text, report_junit
from everloop.ci.git_changes import GitChange
from everloop.ci.recent_replay import replay_recent
from everloop.ci.report_pictures import gains_picture
from everloop.ci.sampling import take_sample
from everloop.ci.schema_changes import contract_changes, signature_changes
from everloop.ci.step_changes import StepChanges, TouchedStep, compare_steps
from everloop.packages.signature import Input, Signature
from everloop.records import Contract

STARTS = datetime(2024, 1, 1, tzinfo=UTC)


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(st.integers(0, 60), min_size=1, max_size=120), rows=st.integers(1, 80))
def test_a_sample_is_stable_keeps_the_order_and_whole_keys(keys, rows):
    table = pl.DataFrame({"key": keys, "at": range(len(keys))})
    taken = take_sample(table, rows, "key")
    assert taken.equals(take_sample(table, rows, "key"))
    assert taken["at"].is_sorted()
    assert min(rows, len(keys)) <= taken.height
    chosen = set(taken["key"])
    assert taken.height == sum(key in chosen for key in keys)
    # The order of the rows does not decide who is in it.
    assert set(take_sample(table.reverse(), rows, "key")["key"]) == chosen


def test_a_sample_without_a_key_is_taken_by_content():
    table = pl.DataFrame({"x": range(1000), "s": [None, "a"] * 500})
    taken = take_sample(table, 100, None)
    assert taken.height == 100
    assert taken["x"].is_sorted()
    assert 300 < taken["x"].mean() < 700


def step(code: str, needs: list[str] = [], **more: str) -> dict:  # noqa: B006 - never changed
    return {"parts": {"code:m.f": code, "input:wiring": repr(needs), **more}, "needs": needs, "home": "m"}


def test_a_changed_step_touches_what_follows_it_and_nothing_else():
    before = {"a": step("1"), "b": step("1", ["a"]), "c": step("1"), "d": step("1", ["b"]), "gone": step("1")}
    after = {"a": step("1"), "b": step("2", ["a"]), "c": step("1"), "d": step("1", ["b"]), "new": step("1")}
    found = compare_steps(before, after, GitChange("0", "1", ("features.py",)))
    assert {one.name: one.direct for one in found.touched} == {"b": True, "d": False, "new": True}
    assert found.touched[0].reason == "code changed: f"
    assert found.touched[1].reason == "follows b"
    assert found.removed == ("gone",)
    wired = compare_steps({"a": step("1", ["x"])}, {"a": step("1", ["y"])}, GitChange("0", "1", ()))
    assert wired.touched[0].reason == "its inputs are wired differently"


@pytest.mark.parametrize(
    ("name", "touches"),
    [
        ("README.md", False), ("docs/x.png", False), ("tests/test_x.py", False), (".github/workflows/x.yml", False),
        ("helpers.py", False), ("../other/data.csv", False), ("LICENSE", False), ("data/x.csv", True),
        ("contracts/shop.toml", True), ("uv.lock", True), ("requirements-dev.txt", True), ("query.sql", True),
    ],
)  # fmt: skip
def test_files_that_a_step_may_read_touch_every_step(name, touches):
    same = {"a": step("1")}
    found = compare_steps(same, same, GitChange("0", "1", (name,)))
    assert bool(found.touched) is touches
    if touches:
        assert name in found.touched[0].reason


def signature(*inputs: Input, **more) -> Signature:
    return Signature(inputs=inputs, **{"task": "binary", "classes": (False, True), **more})


A = Input(name="a", type="float")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (signature(A), []),
        (signature(A, Input(name="b", type="int")), [("'b' (int) is new", True)]),
        (signature(Input(name="b", type="int")), [("'b' (int) is new", True), ("'a' is removed", True)]),
        (signature(Input(name="b", type="int"), ignored=("a",)), [("'b'", True), ("'a' is not used", False)]),
        (signature(Input(name="a", type="string")), [("float → string", True)]),
        (signature(Input(name="a", type="float", nullable=False)), [("must not be null", True)]),
        (signature(A, task="regression", classes=()), [("binary → regression", True)]),
        (signature(A, classes=("no", "yes")), [("classes changed", True)]),
    ],
)
def test_changes_for_clients_are_named(after, expected):
    found = signature_changes(signature(A), after)
    assert len(found) == len(expected)
    for change, (text, breaking) in zip(found, expected, strict=True):
        assert text in change.what
        assert change.breaking is breaking


def test_a_wider_type_does_not_break_clients_and_fewer_categories_do():
    whole, closed = Input(name="a", type="int"), Input(name="c", type="string", categories=("x", "y"), closed=True)
    assert [one.breaking for one in signature_changes(signature(whole), signature(A))] == [False]
    narrower = Input(name="c", type="string", categories=("x",), closed=True)
    found = signature_changes(signature(closed), signature(narrower))
    assert [(one.breaking, "'y' are refused" in one.what) for one in found] == [(True, True)]
    assert signature_changes(signature(narrower), signature(closed)) == ()


def test_rules_of_a_contract_are_compared():
    def contract(*columns: dict) -> Contract:
        return Contract(id="c", project="p", created_at=STARTS, dataset="d", version=1, columns=columns)

    before = contract({"name": "x", "type": "float", "max": 1.0, "nulls": 0.1}, {"name": "y", "type": "int"})
    after = contract({"name": "x", "type": "float", "max": 2.0, "nulls": 0.3}, {"name": "z", "type": "int"})
    assert contract_changes(before, after) == ("column 'z' is new", "column 'y' is removed", "'x': max 1 → 2")
    assert contract_changes(before, before) == ()


def report(**changes) -> ChangeReport:
    steps = StepChanges((TouchedStep("prepare", "code changed", direct=True),))
    given = {"loop": "shop", "base": "0" * 40, "head": "1" * 40, "changed_files": (), "steps": steps}
    return ChangeReport(**{**given, "candidate": "sha256:1", "metric": "roc_auc", **changes})


def test_a_worse_metric_warns_only_beyond_chance():
    def verdict(high: float) -> str:
        metric = MetricComparison("roc_auc", 0.6, 0.5, 0.7, 0.7, -0.1, -0.2, high, deciding=True)
        return decide(report(metrics=(metric,)), 0)[0]

    assert verdict(-0.01) == "warn"
    assert verdict(0.01) == "pass"
    assert decide(report(), 3) == ("warn", ("3 rows break the contract and were set aside",))


hostile = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=60, deadline=None)
@given(text=hostile)
def test_no_text_of_a_change_becomes_markup(text):
    wicked = f"<img src=x onerror=alert(1)> @everyone ![x](y) | `{text}"
    made = report(changed_files=(wicked,), reasons=(wicked,), remarks=(wicked,), data=(wicked,), verdict="warn")
    shown = comment_text(made)
    outside = re.sub(r"`[^`\n]*`", "", shown)
    assert not re.search(r"(?<!\\)<(?!/?details|/?summary|!-- everloop-ci)", outside)
    assert "@everyone" not in outside
    assert "\u202e" not in shown
    assert shown.count(MARKER) == 1
    ET.fromstring(report_junit(made).encode("utf-8", "replace"))  # noqa: S314 - written here


def test_a_long_report_fits_into_a_comment():
    files = tuple(f"data/{'x' * 2000}{number}.csv" for number in range(100))
    made = report(changed_files=files, data=tuple("y" * 9000 for _ in range(12)))
    text = comment_text(made)
    assert len(text) <= MOST_CHARACTERS + 200
    assert "left out" in text


def test_a_picture_has_a_row_for_each_gain():
    metrics = tuple(MetricComparison(f"m<{n}", 1.0, 0.9, 1.1, 1.0, 0.0, -0.1, 0.1) for n in range(3))
    root = ET.fromstring(gains_picture(report(metrics=metrics)))  # noqa: S314 - written here
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 3
    assert gains_picture(report()) == ""


def test_a_replay_covers_the_last_weeks_or_says_why_not(monkeypatch):
    asked = {}

    def replay(loop, **options):
        asked.update(options)
        one = SimpleNamespace(mean=0.7, retrainings=2, promotions=1, rollbacks=0)
        return SimpleNamespace(outcome=lambda name: one)

    rows = pl.DataFrame({"at": [STARTS + timedelta(days=day) for day in range(60)], "n": range(60)})
    loop = SimpleNamespace(data=SimpleNamespace(time="at"))
    run = SimpleNamespace(context=SimpleNamespace(rows=rows))
    monkeypatch.setitem(sys.modules, "everloop.replay", SimpleNamespace(replay=replay))
    found, remark = replay_recent(loop, run, "4w", Path())
    assert [one.policy for one in found] == ["declared", "never"]
    assert (found[0].mean, remark) == (0.7, "")
    assert asked["start"] == STARTS + timedelta(days=59 - 28)
    assert replay_recent(loop, run, None, Path())[1].startswith("not requested")
    loop.data.time = "n"
    assert "does not hold times" in replay_recent(loop, run, "4w", Path())[1]
    loop.data.time = "at"
    monkeypatch.setitem(sys.modules, "everloop.replay", None)
    assert "no replay" in replay_recent(loop, run, "4w", Path())[1]
