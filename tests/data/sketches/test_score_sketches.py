from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.score_sketches import (
    SCORE_CELLS,
    LabelSketch,
    MulticlassLabelSketch,
    add_label_sketches,
    label_sketch_from_plain,
    score_cells,
    sketch_labels,
)
from everloop.errors import UsageError

Task = Literal["binary", "multiclass", "regression"]
SCORES = st.floats(0, 1, width=32)
ROWS = st.tuples(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), SCORES, st.sampled_from([0.0, 1.0, 2.0, float("nan")]))
PARTS = st.lists(st.lists(ROWS, max_size=8), min_size=3, max_size=3)
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def sketched(task: Task, rows: list[tuple[float, float, float]]) -> LabelSketch:
    y, scores, predicted = (np.asarray([row[at] for row in rows], dtype=np.float64) for at in range(3))
    if task == "binary":
        y = np.minimum(y, 1)
    return sketch_labels(task, y, scores, predicted, classes=3)


def total(*sketches: LabelSketch) -> LabelSketch:
    found = add_label_sketches(sketches)
    assert found is not None
    return found


def same(one: Any, other: Any) -> None:
    if isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif other is None or isinstance(other, bytes):
        assert one == other
    else:
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=50)
@given(PARTS)
def test_adding_is_the_sketch_of_the_union(task: Task, parts: list[list[tuple[float, float, float]]]) -> None:
    a, b, c = (sketched(task, part) for part in parts)
    expected = sketched(task, [row for part in parts for row in part]).to_plain()
    same(total(total(a, b), c).to_plain(), expected)
    same(total(a, total(b, c)).to_plain(), expected)
    same(total(c, a, b).to_plain(), expected)


@pytest.mark.parametrize("task", TASKS)
@settings(deadline=None, max_examples=30)
@given(st.lists(ROWS, max_size=30))
def test_the_plain_form_restores_a_sketch(task: Task, rows: list[tuple[float, float, float]]) -> None:
    sketch = sketched(task, rows)
    same(label_sketch_from_plain(sketch.to_plain()).to_plain(), sketch.to_plain())
    assert label_sketch_from_plain(sketch.to_plain()).rows == sketch.rows


def test_cells_rise_with_the_score() -> None:
    scores = np.sort(np.concatenate([[-1.0, 0.0, 1e-12, 1.0, 2.0], np.random.default_rng(0).uniform(size=1000)]))
    cells = score_cells(scores)
    assert bool((np.diff(cells) >= 0).all())
    assert (cells[0], cells[-1]) == (0, SCORE_CELLS - 1)
    # Scores whose odds differ by one percent are in different cells.
    assert score_cells(np.asarray([0.2]))[0] < score_cells(np.asarray([0.2016]))[0]


def test_unlike_sketches_are_not_added() -> None:
    with pytest.raises(UsageError, match="cannot be added"):
        total(sketched("binary", []), sketched("regression", []))
    with pytest.raises(UsageError, match="3 and 4 classes"):
        total(sketched("multiclass", []), MulticlassLabelSketch(4, {}))
    assert add_label_sketches([]) is None
