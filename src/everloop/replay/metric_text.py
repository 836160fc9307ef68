"""Write metrics as people read them: a few digits, and never with an exponent for large numbers."""

from __future__ import annotations


def metric_text(value: float, digits: int = 4, *, sign: bool = False) -> str:
    """Return a metric as text, such as `0.6967`, `783.1` or `12,345`.

    Args:
        value: the metric, or a difference of two.
        digits: significant digits. Whole numbers with more digits are written in full.
        sign: also write a plus.
    """
    plus = "+" if sign else ""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:{plus},.0f}"
    return f"{value:{plus}.{digits}g}"
