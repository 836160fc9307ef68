"""Plot curves in a terminal with Braille dots, two across and four down in each character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

COLOURS = ("cyan", "magenta", "yellow", "green", "red", "blue")
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_EMPTY = 0x2800

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y, of equal length, with x ascending."""


def draw_curves(curves: Sequence[Curve], width: int, height: int) -> list[str]:
    """Return the lines of a plot in rich's markup, with the minimum and maximum at the edges.

    Points that are not finite leave a gap. Curves are coloured in the order of `COLOURS`.

    Args:
        width: width of the plot including its labels, in characters; at least 30.
        height: height of the plot without the line of the x axis, in lines; at least 2.
    """
    shown = [
        [(x, y) if math.isfinite(x) and math.isfinite(y) else None for x, y in zip(xs, ys, strict=True)]
        for xs, ys in curves
    ]
    everything = [point for points in shown for point in points if point]
    if not everything:
        return ["no finite values"]
    left, right = min(x for x, _ in everything), max(x for x, _ in everything)
    low, high = min(y for _, y in everything), max(y for _, y in everything)
    labels = [f"{high:.4g}", f"{low:.4g}"]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 10)
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for number, points in enumerate(shown):
        dots = [
            point
            and (_scaled(point[0], left, right, columns * 2), height * 4 - 1 - _scaled(point[1], low, high, height * 4))
            for point in points
        ]
        for column, row in _joined(dots):
            at = (row // 4, column // 2)
            bits, _ = cells.get(at, (0, number))
            cells[at] = (bits | _DOTS[row % 4][column % 2], number)
    lines = []
    for row in range(height):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        line = "".join(_cell(cells.get((row, column))) for column in range(columns))
        lines.append(f"{label:>{margin}} ┤{line}")
    ends = f"{left:g}", f"{right:g}"
    lines.append(" " * (margin + 2) + ends[0] + " " * max(columns - len(ends[0]) - len(ends[1]), 1) + ends[1])
    return lines


def _cell(cell: tuple[int, int] | None) -> str:
    if cell is None:
        return " "
    bits, number = cell
    return f"[{COLOURS[number % len(COLOURS)]}]{chr(_EMPTY + bits)}[/]"


def _scaled(value: float, low: float, high: float, size: int) -> int:
    if high == low:
        return size // 2
    # Halving first keeps the difference of very large numbers within the range of a float.
    return min(int((value / 2 - low / 2) / (high / 2 - low / 2) * (size - 1) + 0.5), size - 1)


def _joined(dots: list[tuple[int, int] | None]) -> set[tuple[int, int]]:
    """Connect each dot to the next with a line of dots. None leaves a gap."""
    found = {dot for dot in dots if dot}
    for one, other in pairwise(dots):
        if one is None or other is None:
            continue
        (x0, y0), (x1, y1) = one, other
        steps = max(abs(x1 - x0), abs(y1 - y0))
        for step in range(1, steps):
            found.add((round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)))
    return found
