"""Small inline SVG charts for reports: distributions, a strip over time, and a metric with its interval.

Charts have whole coordinates and few elements, because a report with hundreds of columns must stay small. They are
stretched to the width of the page; lines keep their width. Text around them is HTML, so that it keeps its size.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from everloop.data.sketches.bins import NumericBins
from everloop.stores.printable import html_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.reports.monitoring_report import MetricPoint, MetricSeries, MonitoredColumn

WIDTH, HEIGHT = 240, 60
STRIP_HEIGHT = 20
METRIC_WIDTH, METRIC_HEIGHT = 700, 160
MOST_CATEGORIES = 6

_MOST_BARS = 60
_OUTSIDE = 8
"""Width of the bars for values outside of the reference's range."""
_NARROW = 0.002
"""If a bin is narrower than this part of the range, the bins are drawn with equal widths."""


def distribution(column: MonitoredColumn) -> str:
    """Draw the distributions of a column before (filled) and now (line); categories as rows."""
    if isinstance(column.reference.bins, NumericBins):
        return _histogram(column, column.reference.bins.edges)
    return _categories(column)


def strip(column: MonitoredColumn) -> str:
    """Draw how surprising each window was, in colour if it was flagged, and the limit; empty for a single window."""
    values = [min(value, 1e6) if math.isfinite(value) else 0.0 for value in column.strengths]
    if len(values) < 2:
        return ""
    # Neighbouring windows share a bar if there are many: the largest surprise and the worst verdict count.
    size = math.ceil(len(values) / _MOST_BARS)
    groups = [range(start, min(start + size, len(values))) for start in range(0, len(values), size)]
    top = max(*values, 2.0)
    step = WIDTH / len(groups)
    marks: dict[str, list[str]] = {"q": [], "w": [], "a": []}
    for index, group in enumerate(groups):
        verdicts = {column.verdicts[each] for each in group}
        kind = "a" if "alarm" in verdicts else "w" if "warning" in verdicts else "q"
        tall = max(1, round(STRIP_HEIGHT * max(values[each] for each in group) / top))
        marks[kind].append(f"M{round((index + 0.5) * step)} {STRIP_HEIGHT}v-{tall}")
    width = max(1, min(10, math.floor(step) - 1))
    paths = "".join(f'<path class="{kind}" d="{"".join(each)}"/>' for kind, each in marks.items() if each)
    limit = round(STRIP_HEIGHT * (1 - 1 / top))
    flagged = sum(verdict != "quiet" for verdict in column.verdicts)
    label = f"{flagged} of {len(values)} windows flagged"
    return (
        f'<svg class="st" viewBox="0 0 {WIDTH} {STRIP_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}" style="--w:{width}">{paths}<path class="l" d="M0 {limit}H{WIDTH}"/></svg>'
    )


def metric_chart(series: MetricSeries) -> str:
    """Draw a metric by window with its intervals, the reference as a band, and estimates as a dashed line."""
    low, high = metric_range(series)
    span = (high - low) or 1.0
    count = len(series.points)

    def x(index: int) -> int:
        return round((index + 0.5) * METRIC_WIDTH / count)

    def y(value: float) -> int:
        return round(METRIC_HEIGHT * (1 - (min(max(value, low), high) - low) / span))

    parts = [
        f'<svg class="metric" viewBox="0 0 {METRIC_WIDTH} {METRIC_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html_text(series.metric)} of {count} windows, from {low:.4g} to {high:.4g}">'
    ]
    known = series.reference
    if known.value is not None:
        top, bottom = y(known.high if known.high is not None else known.value), y(known.low or known.value)
        parts.append(f'<path class="band" d="M0 {top}H{METRIC_WIDTH}V{bottom}H0Z"/>')
        parts.append(f'<path class="known" d="M0 {y(known.value)}H{METRIC_WIDTH}"/>')
    for kind, points in (("estimate", series.estimates), ("line", series.points)):
        parts += [f'<path class="{kind}" d="{line}"/>' for line in _lines(points, x, y)]
    whiskers = "".join(
        f"M{x(index)} {y(point.low)}V{y(point.high)}"
        for index, point in enumerate(series.points)
        if point.low is not None and point.high is not None
    )
    parts.append(f'<path class="whisker" d="{whiskers}"/>' if whiskers else "")
    for kind, verdicts in (("dot", ("quiet", "warning")), ("dot a", ("alarm",))):
        dots = "".join(
            f"M{x(index)} {y(point.value)}h0"
            for index, (point, verdict) in enumerate(zip(series.points, series.verdicts, strict=True))
            if point.value is not None and verdict in verdicts
        )
        parts.append(f'<path class="{kind}" d="{dots}"/>' if dots else "")
    return "".join([*parts, "</svg>"])


def metric_range(series: MetricSeries) -> tuple[float, float]:
    """Return the lowest and highest value on the chart's axis."""
    every = (series.reference, *series.points, *series.estimates)
    numbers = [point.value for point in every if point.value is not None]
    if not numbers:
        return 0.0, 1.0
    lows = sorted(point.low for point in every if point.low is not None)
    highs = sorted(point.high for point in every if point.high is not None)
    # The widest intervals, of windows with few labels, are cut: they would flatten the line.
    low = min([*numbers, *lows[len(lows) // 5 :][:1]])
    high = max([*numbers, *highs[: len(highs) - len(highs) // 5][-1:]])
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin


def _lines(points: Sequence[MetricPoint], x: Callable[[int], int], y: Callable[[float], int]) -> Iterator[str]:
    """Return one path for each run of windows with a value."""
    for known, run in itertools.groupby(enumerate(points), key=lambda item: item[1].value is not None):
        if known:
            places = [(x(index), y(point.value)) for index, point in run if point.value is not None]
            yield "M" + "L".join(f"{at} {height}" for at, height in places)


def _histogram(column: MonitoredColumn, edges: tuple[float, ...]) -> str:
    places = _places(edges)
    before, now = _heights(column.reference, places), _heights(column.current, places)
    top = max(*before, *now) or 1.0
    moments = [sketch.moments for sketch in (column.reference, column.current)]
    means = " and ".join(f"{one.mean:.4g}" if one is not None else "none" for one in moments)
    known = column.reference.moments
    low, high = (known.low, known.high) if known is not None else (edges[0], edges[-1])
    outer = [0, *places, WIDTH]
    shapes = (
        f'<path class="{kind}" d="M0 {HEIGHT}{_steps(outer, heights, top)}{end}"/>'
        for kind, heights, end in (("b", before, f"V{HEIGHT}Z"), ("n", now, f"V{HEIGHT}"))
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="means: {means}">{"".join(shapes)}</svg>'
        f'<p class="ax"><span>{_edge(low)}</span><span>{_edge(high)}</span></p>'
    )


def _places(edges: tuple[float, ...]) -> list[int]:
    """Return the x of each edge. The outermost bins of a numeric feature can be long tails; they are cut."""
    inner = WIDTH - 2 * _OUTSIDE
    if len(edges) > 4:
        margin = (edges[-2] - edges[1]) * 0.2
        low, high = max(edges[0], edges[1] - margin), min(edges[-1], edges[-2] + margin)
        cut = [min(max(edge, low), high) for edge in edges]
        widths = [upper - lower for lower, upper in itertools.pairwise(cut)]
        if high > low and math.isfinite(high - low) and min(widths) >= _NARROW * (high - low):
            return [_OUTSIDE + round(inner * (edge - low) / (high - low)) for edge in cut]
    return [_OUTSIDE + round(inner * index / (len(edges) - 1 or 1)) for index in range(len(edges))]


def _heights(sketch: Sketch, places: list[int]) -> list[float]:
    """Return the density of each cell but the first: share of the rows by width on the chart."""
    rows = sketch.rows or 1
    outer = [0, *places, WIDTH]
    return [
        count / rows / max(1, upper - lower)
        for count, (lower, upper) in zip(sketch.counts[1:], itertools.pairwise(outer), strict=True)
    ]


def _steps(outer: list[int], heights: list[float], top: float) -> str:
    parts = []
    for height, right in zip(heights, outer[1:], strict=True):
        parts.append(f"V{HEIGHT - round((HEIGHT - 2) * height / top)}H{right}")
    return "".join(parts)


def _categories(column: MonitoredColumn) -> str:
    labels = column.reference.bins.labels
    pairs = []
    for cell in range(1, len(labels)):
        before, now = _share(column.reference, cell), _share(column.current, cell)
        if before or now:
            pairs.append((labels[cell], before, now))
    pairs.sort(key=lambda pair: -max(pair[1:]))
    rows = [
        f'<div><span title="{html_text(shortened(label, 120))}">{html_text(shortened(label, 16))}</span>'
        f'<i style="--b:{before * 100:.0f}%;--n:{now * 100:.0f}%"></i><span>{_percents(before, now)}</span></div>'
        for label, before, now in pairs[:MOST_CATEGORIES]
    ]
    if len(pairs) > MOST_CATEGORIES:
        rest = pairs[MOST_CATEGORIES:]
        before, now = sum(pair[1] for pair in rest), sum(pair[2] for pair in rest)
        rows.append(
            f'<div><span class="faint">{len(rest)} others</span><i style="--b:{before * 100:.0f}%;'
            f'--n:{now * 100:.0f}%"></i><span>{_percents(before, now)}</span></div>'
        )
    return f'<div class="cat">{"".join(rows)}</div>'


def _percents(before: float, now: float) -> str:
    return f"{before * 100:.0f} → {now * 100:.0f} %"


def shortened(text: str, length: int) -> str:
    """Cut a text to a length, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _share(sketch: Sketch, cell: int) -> float:
    return sketch.counts[cell] / sketch.rows if sketch.rows else 0.0


def _edge(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.2g}"
