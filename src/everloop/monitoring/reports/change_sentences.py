"""Say in a sentence how a column has changed, for a product owner: what it was, and what it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.data.sketches.bins import NumericBins

if TYPE_CHECKING:
    from everloop.data.sketches.column_sketches import Sketch

_MISSING_POINTS = 0.05
"""A change of the missing share by at least this much is the most important fact about a column."""
_MEAN_STEP = 0.1
"""A mean that moves by less than this many standard deviations is not worth a sentence."""
_SPREAD_STEP = 0.1
_LONGEST_VALUE = 40


def change_sentence(name: str, reference: Sketch, current: Sketch) -> str:
    """Return the most important change of a column, as a sentence with its name.

    Args:
        reference: its distribution before.
        current: its distribution now, with the same cells.
    """
    subject = f"'{_short(name)}'"
    before, now = _share(reference, 0), _share(current, 0)
    if now >= 1 > before:
        return f"{subject} has no values any more."
    if abs(now - before) >= _MISSING_POINTS:
        return f"{subject} is missing in {_percents(reference, current, 0)}."
    if isinstance(reference.bins, NumericBins):
        return _numeric_sentence(subject, reference, current, reference.bins.edges)
    return _category_sentence(subject, reference, current)


def _numeric_sentence(subject: str, reference: Sketch, current: Sketch, edges: tuple[float, ...]) -> str:
    before, now = reference.moments, current.moments
    if before is not None and now is not None:
        if abs(now.mean - before.mean) >= _MEAN_STEP * before.deviation and now.mean != before.mean:
            verb = "risen" if now.mean > before.mean else "fallen"
            return f"{subject} has {verb} from {_number(before.mean)} to {_number(now.mean)} on average."
        if before.deviation > 0 and abs(now.deviation / before.deviation - 1) >= _SPREAD_STEP:
            verb = "more" if now.deviation > before.deviation else "less"
            return (
                f"{subject} varies {verb} than before: its standard deviation is {_number(now.deviation)}, "
                f"before it was {_number(before.deviation)}."
            )
    cell = _moved_cell(reference, current)
    if cell is None:
        return f"{subject} is distributed differently than before."
    if cell == 1:
        where = f"below {_number(edges[0])}"
    elif cell == len(reference.counts) - 1:
        where = f"above {_number(edges[-1])}"
    else:
        where = f"between {_number(edges[cell - 2])} and {_number(edges[cell - 1])}"
    return f"{subject} lies {where} in {_percents(reference, current, cell)}."


def _category_sentence(subject: str, reference: Sketch, current: Sketch) -> str:
    new = sum(current.unseen.values())
    if new and new / max(1, current.rows) >= 0.01:
        names = ", ".join(f"'{_short(value)}'" for value in list(current.unseen)[:3])
        return f"{subject} has new values: {names} ({_percent(new / current.rows)} of the rows)."
    cell = _moved_cell(reference, current)
    if cell is None:
        return f"{subject} is distributed differently than before."
    return f"{subject} has the value '{_short(reference.bins.labels[cell])}' in {_percents(reference, current, cell)}."


def _moved_cell(reference: Sketch, current: Sketch) -> int | None:
    """Return the cell whose share has changed most, besides that of missing values."""
    gaps = [
        abs(_share(current, cell) - _share(reference, cell)) if cell else 0.0 for cell in range(len(reference.counts))
    ]
    cell = max(range(len(gaps)), key=gaps.__getitem__)
    return cell if gaps[cell] > 0 else None


def _percents(reference: Sketch, current: Sketch, cell: int) -> str:
    return f"{_percent(_share(current, cell))} of the rows, before in {_percent(_share(reference, cell))}"


def _share(sketch: Sketch, cell: int) -> float:
    return sketch.counts[cell] / sketch.rows if sketch.rows else 0.0


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share * 100:.2g}%"


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
