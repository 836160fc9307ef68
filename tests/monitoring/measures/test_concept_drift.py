import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.concept_drift import (
    Array,
    ConceptReference,
    ConceptSums,
    ConceptTask,
    ConceptTest,
    concept_reference,
    sum_labels,
)

TASKS: tuple[ConceptTask, ...] = ("binary", "regression")


def stream(
    task: ConceptTask, rows: int, generator: np.random.Generator, *, flipped: bool = False
) -> tuple[Array, Array]:
    """Predictions that are slightly wrong, and labels; if flipped, the relation is reversed around its mean."""
    if task == "binary":
        p = generator.beta(1.5, 3, rows)
        chance = 0.02 + 0.9 * p
        return p, (generator.random(rows) < np.clip(0.64 - chance if flipped else chance, 0, 1)).astype(np.float64)
    p = generator.normal(size=rows)
    return p, (-p if flipped else p) + generator.standard_t(4, rows) * (1 + 0.3 * np.abs(p))


def after(test: ConceptTest, windows: int, generator: np.random.Generator, *, flipped: bool = False) -> ConceptTest:
    task = test.reference.task
    for _ in range(windows):
        test = test.look(sum_labels(test.reference, *stream(task, 100, generator, flipped=flipped)))
    return test


def started(task: ConceptTask, generator: np.random.Generator, rows: int = 2_000, **options: float) -> ConceptTest:
    return ConceptTest(concept_reference(task, *stream(task, rows, generator)), **options)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_many_looks_at_an_unchanged_stream_keep_the_error(task: ConceptTask) -> None:
    alarms = 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        # Without a tolerance, only the test itself protects against the 150 looks.
        alarms += after(started(task, generator, alpha=0.05, tolerance=0.0), 150, generator).drifted
    assert alarms <= 1


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_ten_thousand_looks_keep_the_error(task: ConceptTask) -> None:
    generator = np.random.default_rng(7)
    assert not after(started(task, generator, alpha=0.05, tolerance=0.0), 10_000, generator).drifted


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("quiet", [0, 3, 400])
def test_a_flipped_relation_is_found_within_a_few_windows(task: ConceptTask, quiet: int) -> None:
    generator = np.random.default_rng(quiet)
    test = after(started(task, generator), quiet, generator)
    assert not test.drifted
    test = after(test, 8, generator, flipped=True)
    assert test.drifted
    assert test.p_value <= test.alpha
    found = test.likely_start()
    assert found is not None
    assert abs(found[0] - quiet) <= 3
    # Where predictions were high, labels are now lower than expected, and the other way round.
    gaps = [entry["gap"] for entry in test.gaps()]
    assert gaps[0] > 0 > gaps[-1]


def test_a_general_shift_and_a_shift_in_one_bin_are_found() -> None:
    generator = np.random.default_rng(1)
    fresh = started("binary", generator, rows=10_000)
    higher, local = fresh, fresh
    for _ in range(60):
        p, _ = stream("binary", 500, generator)
        moved = np.clip(0.02 + 0.9 * p + 0.1, 0, 1)
        higher = higher.look(sum_labels(fresh.reference, p, (generator.random(500) < moved).astype(float)))
        top = np.where(p > 0.6, 0.35, 0.02 + 0.9 * p)
        local = local.look(sum_labels(fresh.reference, p, (generator.random(500) < top).astype(float)))
    assert higher.drifted
    assert all(entry["gap"] == pytest.approx(0.1, abs=0.05) for entry in higher.gaps())
    assert local.drifted
    assert [abs(entry["gap"]) > 0.1 for entry in local.gaps()] == [False] * 7 + [True]


def test_larger_errors_of_a_regression_are_found() -> None:
    generator = np.random.default_rng(2)
    test = started("regression", generator)
    for _ in range(10):
        p, y = stream("regression", 200, generator)
        test = test.look(sum_labels(test.reference, p, p + 2 * (y - p)))
    assert test.drifted


def test_the_e_value_of_one_bin_is_the_published_one() -> None:
    # One bin, one start, no tolerance and a certain reference: the mixture of Fan's exponential supermartingales.
    reference = ConceptReference("binary", 10**9, (), (), ((0.0,),), ((0.0,),))
    p, y = np.full(30, 0.5), np.array([1.0] * 24 + [0.0] * 6)
    test = ConceptTest(reference, alpha=0.05, tolerance=0.0).look(sum_labels(reference, p, y))
    total, squares = 0.5 * (24 - 6), 30 * 0.25
    bets = [0.75 / 2**step for step in range(9)]
    expected = np.mean(
        [math.exp(sign * bet * total - (-math.log(1 - bet) - bet) * squares) for bet in bets for sign in (1, -1)]
    )
    # The first of all possible starts has half the weight.
    assert math.exp(test.log_e_value) == pytest.approx(expected / 2)


labelled = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, math.nan])), max_size=30)


@settings(max_examples=30, deadline=None)
@given(labelled, labelled)
def test_sums_of_parts_are_the_sums_of_the_whole(
    first: list[tuple[float, float]], second: list[tuple[float, float]]
) -> None:
    reference = started("binary", np.random.default_rng(3)).reference
    one, other, both = (
        sum_labels(reference, np.array([p for p, _ in rows]), np.array([y for _, y in rows]))
        for rows in (first, second, first + second)
    )
    total = one + other
    assert total.counts == both.counts == (other + one).counts
    assert np.asarray(total.sums) == pytest.approx(np.asarray(both.sums), abs=1e-9)
    assert np.asarray(total.squares) == pytest.approx(np.asarray(both.squares), abs=1e-9)
    assert ConceptSums.from_json(json.loads(json.dumps(total.to_json()))) == total


@pytest.mark.parametrize("task", TASKS)
def test_the_state_survives_json(task: ConceptTask) -> None:
    generator = np.random.default_rng(4)
    test = after(started(task, generator), 40, generator)
    reference = ConceptReference.from_json(json.loads(json.dumps(test.reference.to_json())))
    assert reference == test.reference
    assert ConceptTest.from_json(reference, json.loads(json.dumps(test.to_json()))) == test
    assert len(test.starts) <= 24


def test_constant_predictions_and_agreeing_labels_have_one_bin() -> None:
    reference = concept_reference("binary", np.full(500, 0.2), np.zeros(500))
    assert reference.labels == ("all predictions",)
    test = ConceptTest(reference)
    assert test.gaps() == []
    assert test.look(sum_labels(reference, np.zeros(0), np.zeros(0))) is test
    test = test.look(sum_labels(reference, np.full(50, 0.2), np.ones(50)))
    assert test.drifted
    constant = concept_reference("regression", np.full(500, 3.0), np.full(500, 3.0))
    assert not ConceptTest(constant).look(sum_labels(constant, np.full(90, 3.0), np.full(90, 3.0))).drifted


def test_bad_input_is_refused_with_the_value() -> None:
    generator = np.random.default_rng(5)
    p, y = stream("binary", 200, generator)
    with pytest.raises(UsageError, match=r"between 0 and 1, not 1\.5"):
        concept_reference("binary", p + np.eye(200)[0] * (1.5 - p[0]), y)
    with pytest.raises(UsageError, match="0 or 1, not 2"):
        concept_reference("binary", p, y + 1)
    with pytest.raises(UsageError, match="same length"):
        concept_reference("binary", p, y[1:])
    with pytest.raises(UsageError, match="no task 'ranking'"):
        concept_reference("ranking", p, y)  # type: ignore[arg-type]
    with pytest.raises(EmptySampleError, match="at least 50 labelled rows, not 10"):
        concept_reference("binary", p[:10], y[:10])
    with pytest.raises(UsageError, match="alpha"):
        ConceptTest(concept_reference("binary", p, y), alpha=0.0)
    one, other = (sum_labels(concept_reference("binary", p[:rows], y[:rows]), p, y) for rows in (60, 200))
    with pytest.raises(UsageError, match="different bins"):
        one + other
