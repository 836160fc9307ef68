"""Each field of MLflow's protocol has a limit, is refused with its name and the limit, and is fine just below it."""

from __future__ import annotations

import pytest

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError
from everloop.integrations.mlflow.tracking_api.field_limits import (
    ELEMENTS,
    LISTS,
    LONGEST_TEXT,
    MOST_ELEMENTS,
    TEXTS,
    most_characters,
    most_characters_each,
    most_elements,
)
from everloop.integrations.mlflow.tracking_api.name_rules import BATCH_BYTES, LONGEST_MODEL_TAG, LONGEST_TAG


@pytest.mark.parametrize("name", [*TEXTS, "anything_else"])
def test_texts(name):
    most = most_characters(name)
    assert Fields({name: "x" * most}).text(name) == "x" * most
    with pytest.raises(MlflowError) as refused:
        Fields({name: "x" * (most + 1)}).text(name)
    assert refused.value.status == 400
    assert f"'{name}'" in refused.value.message
    assert f"{most:,}" in refused.value.message


@pytest.mark.parametrize("name", [*LISTS, "anything_else"])
def test_lists(name):
    most = most_elements(name)
    assert len(Fields({name: [1] * most}).rows(name)) == most
    with pytest.raises(MlflowError) as refused:
        Fields({name: [1] * (most + 1)}).rows(name)
    assert f"'{name}'" in refused.value.message
    assert f"{most:,}" in refused.value.message


@pytest.mark.parametrize("name", [*ELEMENTS, "order_by", "anything_else"])
def test_elements(name):
    most = most_characters_each(name)
    assert Fields({name: ["a", "x" * most]}).texts(name)
    with pytest.raises(MlflowError) as refused:
        Fields({name: ["a", "x" * (most + 1)]}).texts(name)
    assert f"'{name}[1]'" in refused.value.message
    assert f"{most:,}" in refused.value.message


def test_what_mlflow_itself_limits_is_refused_in_its_words_first():
    assert most_characters("value") >= max(BATCH_BYTES, LONGEST_MODEL_TAG, LONGEST_TAG)
    assert LONGEST_TEXT > 500
    assert MOST_ELEMENTS > 1000


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"a": {"b": [1, "x\\u0000"]}}', "a.b[1]"),
        (b'{"a": [{"\\ud800": 1}]}', "a[0]"),
        (b'{"a": "\\udfff"}', "a"),
        (b'{"a": ' + b"9" * 301 + b"}", "a"),
        (b'{"a": -' + b"9" * 301 + b"}", "a"),
        (b'{"a": {"b": ' + b"[" * 200 + b"]" * 200 + b"}}", "a.b"),
        (b'"{\\"a\\": \\"\\\\u0000\\"}"', "a"),
    ],
)
def test_a_value_is_named_by_its_place(body, name):
    with pytest.raises(Exception, match="'a") as refused:
        Fields.of_body(body)
    assert f"'{name}" in str(refused.value)


@pytest.mark.parametrize(
    "body", [b'{"a": "\\u00e9 \\ud83d\\ude00"}', b'{"a": NaN, "b": 1e308}', b'{"a": %d}' % 10**299]
)
def test_odd_values_that_are_fine(body):
    assert "a" in Fields.of_body(body)._values
