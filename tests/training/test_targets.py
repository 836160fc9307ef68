"""Targets: inferred tasks, classes, and labels of other types."""

import numpy as np
import polars as pl
import pytest

from everloop.errors import DataError, TrainingError
from everloop.training.targets import encode_target, find_classes, infer_task


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([True, False, None], "binary", [False, True]),
        ([0, 1, 1], "binary", [0, 1]),
        ([0.0, 1.0, 1.0], "binary", [0, 1]),
        (["no", "yes"], "binary", ["no", "yes"]),
        (["a", "b", "c", None], "multiclass", ["a", "b", "c"]),
        ([3, 1, 2], "multiclass", [1, 2, 3]),
        (list(range(50)), "regression", []),
        ([0.5, 1.5, 2.5], "regression", []),
    ],
)
def test_task_and_classes_follow_the_values(values, task, classes):
    target = pl.Series("t", values)
    assert infer_task(target) == task
    assert find_classes(target, task) == classes


def test_categories_are_classes():
    target = pl.Series("t", ["b", "a", "c"], dtype=pl.Enum(["c", "b", "a"]))
    assert infer_task(target) == "multiclass"
    assert find_classes(target, "multiclass") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, None], "null in all 2 rows"),
        ([True, True, None], "one value only \\(True"),
        ([[1], [2], [3]], "neither a class nor a number"),
        ([f"id{k}" for k in range(300)], "300 distinct strings"),
    ],
)
def test_targets_that_teach_nothing_are_refused(values, said):
    with pytest.raises(TrainingError, match=said):
        infer_task(pl.Series("t", values))


def test_a_binary_task_has_two_values():
    with pytest.raises(TrainingError, match="3 distinct values"):
        find_classes(pl.Series("t", [1, 2, 3]), "binary")


@pytest.mark.parametrize(
    "labels", [[True, False, None], [1, 0, None], [1.0, 0.0, None], ["1", "0", None], ["true", "False", None]]
)
@pytest.mark.parametrize("classes", [[False, True], [0, 1], ["0", "1"]])
def test_labels_may_come_in_another_type(labels, classes):
    np.testing.assert_array_equal(encode_target(pl.Series("t", labels), "binary", classes), [1.0, 0.0, np.nan])


def test_classes_become_their_places():
    found = encode_target(pl.Series("t", ["c", "a", None, "b"]), "multiclass", ["a", "b", "c"])
    np.testing.assert_array_equal(found, [2.0, 0.0, np.nan, 1.0])


def test_a_strange_label_is_refused():
    with pytest.raises(DataError, match=r"'x', which is not a class of the model\. Its classes: 'a', 'b'"):
        encode_target(pl.Series("t", ["a", "x"]), "binary", ["a", "b"])
    with pytest.raises(DataError, match="type String"):
        encode_target(pl.Series("t", ["a"]), "regression", [])


def test_numbers_stay_numbers():
    np.testing.assert_array_equal(encode_target(pl.Series("t", [1, None, 3]), "regression", []), [1.0, np.nan, 3.0])


def test_the_positive_class_can_be_given():
    target = pl.Series("t", ["fraud", "legit", None])
    assert find_classes(target, "binary", "fraud") == ["legit", "fraud"]
    assert find_classes(target, "binary", "legit") == ["fraud", "legit"]
    assert find_classes(pl.Series("t", [0, 1]), "binary", False) == [1, 0]
    assert encode_target(target, "binary", ["legit", "fraud"])[:2].tolist() == [1.0, 0.0]
    with pytest.raises(TrainingError, match=r"'scam', which is not a value of the target 't'\. Its values: 'fraud'"):
        find_classes(target, "binary", "scam")
    with pytest.raises(TrainingError, match="more than two classes"):
        find_classes(pl.Series("t", ["a", "b", "c"]), "multiclass", "a")
    with pytest.raises(TrainingError, match="amounts"):
        find_classes(pl.Series("t", [0.5, 1.5]), "regression", 0.5)
