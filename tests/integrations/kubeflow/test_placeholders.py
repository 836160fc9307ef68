"""Placeholders in commands and constants."""

import json

import pytest

from everloop.errors import UsageError
from everloop.integrations.kubeflow.placeholders import (
    PlaceholderValues,
    fill_in,
    fill_in_constant,
    fill_in_words,
)

INPUT = {
    "inputs": {
        "parameterValues": {"text": 'a "b"', "n": 3, "f": 2.0, "xs": [1, "z"], "flag": True},
        "artifacts": {"d": {"artifacts": [{"name": "d", "uri": "gs://b/d", "metadata": {"k": 1}}]}},
    },
    "outputs": {"parameters": {"o": {"outputFile": "/x/o"}}, "artifacts": {}, "outputFile": "/x/out"},
}
VALUES = PlaceholderValues(INPUT, {"pipeline_job_name": "job-1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{$.inputs.parameters['text']}}!", 'a "b"!'),
        ('{{$.inputs.parameters["n"]}}', "3"),
        ("{{$.inputs.parameters['f']}}", "2"),
        ("{{$.inputs.parameters['xs']}}", '[1, "z"]'),
        ("{{$.inputs.parameters['flag']}}", "true"),
        ("{{$.outputs.parameters['o'].output_file}}", "/x/o"),
        ("{{$.inputs.artifacts['d'].path}}", "/gcs/b/d"),
        ("{{$.inputs.artifacts['d'].uri}}", "gs://b/d"),
        ("{{$.inputs.artifacts['d'].metadata['k']}}", "1"),
        ("--x={{$.pipeline_job_name}}", "--x=job-1"),
        ("{{plain}}", "{{plain}}"),
    ],
)
def test_placeholders_are_replaced(text, expected):
    assert fill_in(text, VALUES) == expected


def test_the_executor_input_comes_as_json_and_escaped():
    assert json.loads(fill_in("{{$}}", VALUES)) == INPUT
    assert json.loads(json.loads(f'"{fill_in("{{$.json_escape[1]}}", VALUES)}"')) == INPUT


@pytest.mark.parametrize(
    "text",
    [
        "{{$.inputs.parameters['missing']}}",
        "{{$.inputs.artifacts['missing'].path}}",
        "{{$.outputs.parameters['missing'].output_file}}",
        "{{$.inputs.artifacts['d'].metadata['missing']}}",
        "{{$.unknown_name}}",
    ],
)
def test_a_placeholder_without_a_value_is_refused(text):
    with pytest.raises(UsageError):
        fill_in(text, VALUES)


def test_concatenated_and_optional_words():
    words = [
        '{"Concat": ["--n=", "{{$.inputs.parameters[\'n\']}}"]}',
        '{"IfPresent": {"InputName": "text", "Then": ["--text", "{{$.inputs.parameters[\'text\']}}"]}}',
        '{"IfPresent": {"InputName": "missing", "Then": ["--missing"], "Else": "none"}}',
        '{"IfPresent": {"InputName": "missing", "Then": ["--missing"]}}',
        '{"Concat": ["a", {"IfPresent": {"InputName": "d", "Then": "b"}}]}',
        '{"other": 1}',
    ]
    assert fill_in_words(words, VALUES) == ["--n=3", "--text", 'a "b"', "none", "ab", '{"other": 1}']


def test_constants_refer_to_other_inputs_of_the_task():
    constant = {"a": ["x {{$.inputs.parameters['n']}}"], "b": 1, "c": "{{$.pipeline_job_name}}"}
    assert fill_in_constant(constant, {"n": 3}) == {"a": ["x 3"], "b": 1, "c": "{{$.pipeline_job_name}}"}
