"""Filter strings and orders: what they mean, and that nothing that a client writes is more than a wrong filter."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings, strategies as st

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, parse_filter, parse_order
from everloop.stores.records.like_patterns import is_like

GRAMMAR = Grammar(
    texts=frozenset({"name", "run_id"}),
    numbers=frozenset({"start_time"}),
    entities=frozenset({"attribute", "metric", "param", "tag"}),
    listed=frozenset({"run_id"}),
)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("metrics.auc > 0.9", [Term("metric", "auc", ">", 0.9)]),
        ("metric.`a b` <= -1e-3", [Term("metric", "a b", "<=", -1e-3)]),
        ('params."a.b" = "x"', [Term("param", "a.b", "=", "x")]),
        ("tags.t LIKE '%x' AND name = 'a''b'", [Term("tag", "t", "LIKE", "%x"), Term("attribute", "name", "=", "a'b")]),
        ("tags.`mlflow.x` is not null", [Term("tag", "mlflow.x", "IS NOT NULL", None)]),
        ("run_id not in ('a', 'b')", [Term("attribute", "run_id", "NOT IN", ("a", "b"))]),
        ("attributes.start_time>=5", [Term("attribute", "start_time", ">=", 5)]),
        ("metrics.val/loss = 1", [Term("metric", "val/loss", "=", 1)]),
    ],
)  # fmt: skip
def test_what_a_filter_says(text, terms):
    assert parse_filter(text, GRAMMAR) == terms


@pytest.mark.parametrize(
    "text",
    [
        "metrics.a", "metrics.a >", "metrics.a > 'x'", "params.a = 1", "name = 'a' or name = 'b'", "wrong = 'a'",
        "wrong.a = 'a'", "name IN ('a')", "run_id IN ()", "run_id IN ('a'", "(name = 'a')", "name = 'a';",
        "name = 'a' and", "and", "name LIKE 5", "'a' = 'b'", "metrics.a ~ 1", "name = 'a", "x" * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_filter(text):
    with pytest.raises(MlflowError) as refused:
        parse_filter(text, GRAMMAR)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("text", "pattern", "fits"),
    [
        ("abc", "abc", True), ("abc", "a%", True), ("abc", "%c", True), ("abc", "%b%", True), ("abc", "a_c", True),
        ("abc", "ab", False), ("abc", "%d%", False), ("", "%", True), ("ab", "a%b", True), ("a", "a%a", False),
        ("a.c", "a.c", True), ("abc", "a.c", False), ("a\nxc", "a%_c", True), ("abab", "%ab", True), ("", "", True),
        # What a backtracking matcher would never be done with.
        ("a" * 60, "%a" * 30 + "b", False),
    ],
)  # fmt: skip
def test_like(text, pattern, fits):
    assert is_like(text, pattern, any_case=False) is fits
    assert is_like(text.upper(), pattern, any_case=True) is fits


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("metrics.auc DESC", ("metric", "auc", False)),
        ("params.`a b`", ("param", "a b", True)),
        ("start_time asc", ("attribute", "start_time", True)),
    ],
)
def test_orders(text, order):
    assert parse_order(text, GRAMMAR) == order


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_a_bad_request(text):
    for parse in (parse_filter, parse_order):
        with suppress(MlflowError):
            assert parse(text, GRAMMAR) is not None
