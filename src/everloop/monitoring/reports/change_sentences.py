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


def change_sentence(name: str, reference: Sketch, current: Sketch, direction: str | None = None) -> str:
    """Return the most important change of a column, as a sentence with its name.

    Args:
        reference: its distribution before.
        current: its distribution now, with the same cells.
        direction: the direction in which it has moved, as `noise/directions.py` names them. Default: chosen by size.
    """
    subject = "The prediction" if name == "prediction" else f"'{_short(name)}'"
    if direction is not None:
        found = _directed_sentence(subject, reference, current, direction)
        if found is not None:
            return found
    before, now = _share(reference, 0), _share(current, 0)
    if now >= 1 > before:
        return f"{subject} has no values any more."
    if abs(now - before) >= _MISSING_POINTS:
        return f"{subject} is missing in {_percents(reference, current, 0)}."
    if isinstance(reference.bins, NumericBins):
        return _numeric_sentence(subject, reference, current, (reference.bins.smallest, *reference.bins.edges[1:]))
    return _category_sentence(subject, reference, current)


def _directed_sentence(subject: str, reference: Sketch, current: Sketch, direction: str) -> str | None:
    """Return a sentence about one direction; None if it does not show in the numbers."""
    before, now = reference.moments, current.moments
    if direction == "missing" and reference.counts[0] != current.counts[0]:
        if _share(current, 0) >= 1 > _share(reference, 0):
            return f"{subject} has no values any more."
        return f"{subject} is missing in {_percents(reference, current, 0)}."
    if direction == "location" and before is not None and now is not None and now.mean != before.mean:
        verb = "risen" if now.mean > before.mean else "fallen"
        return f"{subject} has {verb} from {_number(before.mean)} to {_number(now.mean)} on average."
    if direction == "scale" and before is not None and now is not None and now.deviation != before.deviation:
        verb = "more" if now.deviation > before.deviation else "less"
        return (
            f"{subject} varies {verb} than before: its standard deviation is {_number(now.deviation)}, "
            f"before it was {_number(before.deviation)}."
        )
    if direction == "outside" and isinstance(reference.bins, NumericBins):
        low, high = reference.bins.smallest, reference.bins.edges[-1]
        share = _share(current, 1) + _share(current, len(current.counts) - 1)
        known = f"{_number(low)} to {_number(high)}"
        return f"{subject} is outside its known range, {known}, in {_percent(share)} of the rows."
    if direction in reference.bins.labels and not isinstance(reference.bins, NumericBins):
        cell = reference.bins.labels.index(direction)
        if cell not in (0, len(reference.counts) - 1):
            return f"{subject} has the value '{_short(direction)}' in {_percents(reference, current, cell)}."
    return None


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
    gaps = [abs(_share(current, cell) - _share(reference, cell)) for cell in range(len(reference.counts))]
    cell = max(range(1, len(gaps)), key=lambda each: (gaps[each], current.counts[each]))
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
