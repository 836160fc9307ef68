"""How a column has changed, in a sentence."""

from __future__ import annotations

import pytest
from tests.monitoring.reports.test_report_html import sketches

from everloop.monitoring.reports.change_sentences import change_sentence

WIDE = [float(number) for number in range(100)]


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        (WIDE, [value + 50 for value in WIDE], "'x' has risen from 49.5 to 99.5 on average."),
        (WIDE, [value - 50 for value in WIDE], "'x' has fallen from 49.5 to -0.5 on average."),
        (WIDE, [49.5 + (value - 49.5) * 2 for value in WIDE], "'x' varies more than before: its standard deviation is"),
        (WIDE, [49.5 + (value - 49.5) / 2 for value in WIDE], "'x' varies less than before: its standard deviation is"),
        (WIDE, [None] * 9, "'x' has no values any more."),
        (WIDE, [None] * 30 + WIDE[:70], "'x' is missing in 30% of the rows, before in 0%."),
        ([*WIDE, *[None] * 100], WIDE, "'x' is missing in 0% of the rows, before in 50%."),
        (WIDE, WIDE, "'x' is distributed differently than before."),
        ([5.0] * 9, [5.0] * 9, "'x' is distributed differently than before."),
        ([5.0] * 9, [6.0] * 9, "'x' has risen from 5 to 6 on average."),
        (["a", "b"] * 9, ["a", "b"] * 9, "'x' is distributed differently than before."),
        (["a", "b"] * 9, ["a"] * 9, "'x' has the value 'a' in 100% of the rows, before in 50%."),
        (["a", "b"] * 9, ["a", "<i>"] * 9, "'x' has new values: '<i>' (50% of the rows)."),
        ([True, False] * 9, [True] * 9, "'x' has the value 'true' in 100% of the rows, before in 50%."),
    ],
)
def test_sentences(before, now, sentence):
    assert change_sentence("x", *sketches(before, now)).startswith(sentence)


def test_a_numeric_change_of_shape_names_a_range():
    before = [float(number) for number in range(-50, 50)]
    now = [value if not 20 < abs(value) < 32 else (28.0 if value > 0 else -28.0) for value in before]
    sentence = change_sentence("x", *sketches(before, now))
    assert sentence == "'x' lies between -31 and -26 in 11% of the rows, before in 5%."
    assert change_sentence("y" * 99, *sketches(before, now)).startswith(f"'{'y' * 39}…'")


def test_the_known_range_begins_with_a_value_and_not_with_the_float_below_it():
    rain = [0.0] * 90 + [0.1, 0.2, 0.41] * 3
    sentence = change_sentence("rain", *sketches(rain, [*rain, 3.0]), "outside")
    assert sentence == "'rain' is outside its known range, 0 to 0.41, in 1% of the rows."
