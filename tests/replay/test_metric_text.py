import pytest
from hypothesis import given, strategies as st

from everloop.replay.metric_text import metric_text


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.69671, 4, False, "0.6967"),
        (783.12, 4, False, "783.1"),
        (12_345.6, 4, False, "12,346"),
        (1_470.4, 3, True, "+1,470"),
        (-198.4, 3, True, "-198"),
        (0.0, 3, True, "+0"),
    ],
)
def test_metrics_are_written_as_people_read_them(value, digits, sign, text):
    assert metric_text(value, digits, sign=sign) == text


@given(st.floats(0.001, 1e12), st.sampled_from([3, 4]))
def test_no_metric_has_an_exponent(value, digits):
    text = metric_text(value, digits)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.6 * 10 ** (1 - digits))
