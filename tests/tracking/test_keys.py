"""Keys that give the same name are refused, and the error names both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import UsageError
from everloop.tracking import start_run
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.journal_frames import checked_params, metrics_of

if TYPE_CHECKING:
    from everloop.stores import Store


@pytest.mark.parametrize(
    ("metrics", "name", "both"),
    [
        ({"a": {"b": 1}, "a/b": 2}, "a/b", ("{'a': {'b': …}}", "{'a/b': …}")),
        ({"a/b": 1, "a": {"b": 1}}, "a/b", ("{'a/b': …}", "{'a': {'b': …}}")),
        ({"a": {"b/c": 1}, "a/b": {"c": 2}}, "a/b/c", ("{'a': {'b/c': …}}", "{'a/b': {'c': …}}")),
        ({"a": [1, 2], "a/1": 2}, "a/1", ("{'a': {'1': …}}", "{'a/1': …}")),
        ({"v": {"a": {"b": 1}, "a/b": 2}}, "v/a/b", ("{'v': {'a': {'b': …}}}", "{'v': {'a/b': …}}")),
    ],
)
def test_metrics_of_one_name(store: Store, metrics: dict[str, Any], name: str, both: tuple[str, str]) -> None:
    with start_run("train", store=store) as run:
        for step in (None, 3):
            with pytest.raises(UsageError, match=re.escape(f"the metric '{name}'")) as caught:
                run.log(metrics, step=step)
            assert all(key in caught.value.message for key in both)
        run.log(fine=1.0)
    assert run.record.metrics == {"fine": 1.0}


@pytest.mark.parametrize(
    ("params", "name", "both"),
    [
        ({1: "x", "1": "y"}, "1", ("keys 1 and '1'",)),
        ({"1": "x", 1: "x"}, "1", ("keys '1' and 1",)),
        ({True: "x", "True": "y"}, "True", ("True and 'True'",)),
        ({None: 1, "None": 2}, "None", ("None and 'None'",)),
        ({0.5: 1, "0.5": 2}, "0.5", ("0.5 and '0.5'",)),
        ({PurePosixPath("a"): 1, "a": 2}, "a", ("PurePosixPath('a') and 'a'",)),
        ({"a\0": 1, "a\N{SYMBOL FOR NULL}": 2}, "a\N{SYMBOL FOR NULL}", ("'a\\x00'",)),
        ({"m": {1: "x", "1": "y"}}, "1", ("1 and '1'",)),
        ({"m": [{"deep": {1: "x", "1": "y"}}]}, "1", ("1 and '1'",)),
        ({"a": {"b": 1}, "a.b": 2}, "a.b", ("{'a': {'b': …}}", "{'a.b': …}")),
        ({"a": {"b": 1}, "a/b": 1}, "a/b", ("{'a': {'b': …}}", "{'a/b': …}")),
        ({"m": {"a": {"b": 1}, "a.b": 2}}, "m.a.b", ("{'m': {'a': {'b': …}}}", "{'m': {'a.b': …}}")),
    ],
)
def test_parameters_of_one_name(store: Store, params: dict[Any, Any], name: str, both: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"the parameter '{name}'")) as caught:
        start_run("train", store=store, params=params)
    assert all(key in caught.value.message for key in both)
    with start_run("train", store=store) as run:
        with pytest.raises(UsageError, match="both give the parameter"):
            run.log_params(params)
        with pytest.raises(UsageError, match="both give the parameter"):
            run.params.update(params)
    assert run.record.params == {}


def test_tags_of_one_name(store: Store) -> None:
    with pytest.raises(UsageError, match="keys 1 and '1' both give the tag '1'"):
        start_run("train", store=store, tags={1: "x", "1": "y"})  # type: ignore[dict-item]
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="True and 'True'"):
        run.set_tags({True: "x", "True": "y"})  # type: ignore[dict-item]
    assert run.record.tags == {}


def test_a_name_in_the_dict_and_by_keyword(store: Store) -> None:
    with start_run("train", store=store) as run:
        with pytest.raises(UsageError, match="'lr' is given twice: as 1 in the dict and as 2 by keyword"):
            run.log_params({"lr": 1}, lr=2)
        with pytest.raises(UsageError, match="metric 'loss' is given twice"):
            run.log({"loss": 1}, loss=2)
        with pytest.raises(UsageError, match="tag 'a' is given twice"):
            run.set_tags({"a": 1}, a=2)
    record = run.record
    assert (record.params, record.metrics, record.tags) == ({}, {}, {})


def test_a_name_of_an_earlier_call(store: Store) -> None:
    with start_run("train", store=store, params={"a": {"b": 1}, 1: "x"}) as run:
        for name in ("a.b", "a/b"):
            with pytest.raises(UsageError, match=re.escape(f"both give the parameter '{name}'")):
                run.log_params({name: 2})
        run.log_params({"a.b": 1})  # the very same value
        # One name for the store: a later value replaces the earlier, as ever.
        run.log_params({"1": "y"})
        run.log_params(a={"b": 1, "c": 3})
    assert run.record.params == {"a": {"b": 1, "c": 3}, "1": "y", "a.b": 1}


def test_names_that_only_look_alike_are_fine(store: Store) -> None:
    params = {"val.loss": 1, "val/loss": 2, "val": {"acc": 3}, "a": {}, "a.b": 4}
    with start_run("train", store=store, params=params) as run:
        run.log({"a": 3, "a.b": 2, "val": {"x": 1}, "val/y": 2})
    assert run.record.params == params
    assert run.record.metrics == {"a": 3.0, "a.b": 2.0, "val/x": 1.0, "val/y": 2.0}


KEYS = st.sampled_from(["a", "b", "a/b", "b/a", "0"])
NESTED = st.recursive(
    st.floats(0, 1) | st.lists(st.floats(0, 1), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def names(value: Any, before: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [name for key, item in value.items() for name in names(item, f"{before}/{key}")]
    if isinstance(value, list):
        return [name for index, item in enumerate(value) for name in names(item, f"{before}/{index}")]
    return [before[1:]]


@settings(max_examples=50)
@given(metrics=st.dictionaries(KEYS, NESTED, max_size=4))
def test_metrics_are_refused_exactly_if_two_have_one_name(metrics: dict[str, Any]) -> None:
    spelled = names(metrics)
    if len(set(spelled)) < len(spelled):
        with pytest.raises(UsageError, match="both give the metric"):
            metrics_of(metrics)
    else:
        assert list(metrics_of(metrics)) == spelled


@settings(max_examples=50)
@given(
    params=st.dictionaries(
        st.integers(0, 3) | st.sampled_from(["0", "1", "True", "x"]) | st.none(), st.integers(0, 9), max_size=4
    )
)
def test_parameters_are_refused_exactly_if_two_have_one_text(params: dict[Any, int]) -> None:
    spelled = [journal_frames.text(key) for key in params]
    if len(set(spelled)) < len(spelled):
        with pytest.raises(UsageError, match="both give the parameter"):
            checked_params(params)
    else:
        assert checked_params(params) == dict(zip(spelled, params.values(), strict=True))
