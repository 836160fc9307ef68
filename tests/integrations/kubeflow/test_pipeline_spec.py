"""Reading compiled pipelines."""

import pytest
from tests.integrations.kubeflow.pipeline_files import component, output_of, pipeline, python_executor, task

from everloop.errors import NotFoundError, UsageError
from everloop.integrations.kubeflow.pipeline_spec import parse_pipeline, plain, read_pipeline

ONE = python_executor("def one() -> int:\n    return 1\n", "one")


def test_a_pipeline_is_read_with_its_parts():
    spec = parse_pipeline(pipeline({"a": task("one")}, {"one": component("one")}, {"one": ONE}))
    assert spec.name == "small"
    assert list(spec.components) == ["comp-one"]


def test_settings_of_a_platform_are_reported():
    text = pipeline({"a": task("one")}, {"one": component("one")}, {"one": ONE})
    spec = parse_pipeline(f"{text}---\nplatforms:\n  kubernetes:\n    deploymentSpec: {{}}\n")
    assert "kubernetes" in spec.remarks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("just text", "has no 'root'"),
        ("kind: Workflow\nspec: {}\n", "Workflow"),
        ("implementation: {}\nname: old\n", "kfp 1"),
        ("root: {}\n", "lacks a part"),
        ("root:\n  dag:\n    tasks: [1]\n", "another form"),
        ("", "has no 'root'"),
    ],
)
def test_other_files_are_refused_with_the_reason(text, message):
    with pytest.raises(UsageError, match=message):
        parse_pipeline(text, "file.yaml")


def test_references_to_nothing_and_circles_are_found():
    parts = {"one": component("one")}, {"one": ONE}
    with pytest.raises(UsageError, match="component 'comp-two'"):
        parse_pipeline(pipeline({"a": task("two")}, *parts))
    with pytest.raises(UsageError, match="needs the task 'b'"):
        parse_pipeline(pipeline({"a": task("one", needs=("b",))}, *parts))
    with pytest.raises(UsageError, match="need each other"):
        parse_pipeline(pipeline({"a": task("one", x=output_of("b")), "b": task("one", x=output_of("a"))}, *parts))
    with pytest.raises(UsageError, match="executor"):
        parse_pipeline(pipeline({"a": task("one")}, {"one": component("missing")}, {"one": ONE}))


def test_a_missing_file_and_one_that_is_not_text(tmp_path):
    with pytest.raises(NotFoundError):
        read_pipeline(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        read_pipeline(tmp_path / "bytes.yaml")


def test_numbers_of_a_struct_become_integers_where_they_are_whole():
    assert plain({"a": [1.0, 2.5], "b": True}) == {"a": [1, 2.5], "b": True}
