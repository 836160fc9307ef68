"""Conditions of tasks."""

from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from everloop.errors import UsageError
from everloop.integrations.kubeflow.trigger_conditions import evaluate

PARAMETERS = {"n": 3, "x": 2.5, "flag": True, "text": "it's", "items": [1, 2], "number": "7"}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("int(inputs.parameter_values['n']) > 2", True),
        ("inputs.parameter_values['flag'] == true", True),
        ("!(inputs.parameter_values['flag'] == true)", False),
        (r"inputs.parameter_values['text'] == 'it\'s'", True),
        ("inputs.parameter_values['text'] != \"it's\"", False),
        ("inputs.parameter_values['n'] == '3'", False),
        ("inputs.parameter_values['flag'] == 1", False),
        ("double(inputs.parameter_values['x']) >= 2.5 && int(inputs.parameter_values['number']) < 8", True),
        ("false || false || true && false", False),
        ("true || true && false", True),
        ("2 + 3 * 4 == 14 && (2 + 3) * 4 == 20", True),
        ("-7 / 2 == -3 && -7 % 2 == -1", True),
        ("2 in inputs.parameter_values['items']", True),
        ("inputs.parameter_values.n == 3", True),
        ("!!true", True),
        ("string(inputs.parameter_values['n']) + 'a' == '3a'", True),
        ("inputs.parameter_values['text'] == '=='", False),
    ],
)
def test_conditions_have_the_values_of_cel(condition, expected):
    assert evaluate(condition, PARAMETERS) is expected


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "1",
        "1 ==",
        "'a' < 1",
        "unknown == 1",
        "inputs.parameter_values['missing'] == 1",
        "__import__('os')",
        "1 / 0 == 1",
        "true == true true",
        "(" * 500 + "true" + ")" * 500,
        "!" * 500 + "true",
        "'open",
        "int('x') == 1",
    ],
)
def test_a_condition_that_has_no_value_is_refused(condition):
    with pytest.raises(UsageError, match="condition"):
        evaluate(condition, PARAMETERS)


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_comparisons_agree_with_python(left, right):
    values = {"a": left, "b": right}
    for sign, expected in (
        ("<", left < right),
        ("<=", left <= right),
        (">", left > right),
        (">=", left >= right),
        ("==", left == right),
        ("!=", left != right),
    ):
        condition = f"int(inputs.parameter_values['a']) {sign} int(inputs.parameter_values['b'])"
        assert evaluate(condition, values) is expected


@given(st.text())
def test_no_text_crashes_the_reader(text):
    with suppress(UsageError):
        assert evaluate(text, PARAMETERS) in (True, False)
