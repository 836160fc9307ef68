"""The HTML report: one small file that runs nothing, whatever the names in it, and readable in a browser."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.column_sketches import sketch_frame
from everloop.monitoring.reports.monitoring_report import (
    MetricPoint,
    MetricSeries,
    MonitoredColumn,
    MonitoringReport,
    QualityNote,
    TimeWindow,
)
from everloop.monitoring.reports.report_charts import distribution, metric_chart, metric_range, strip
from everloop.monitoring.reports.report_html import MOST_BYTES, monitoring_page
from everloop.records import Incident

START = datetime(2026, 3, 1, tzinfo=UTC)
EVIL = "<script>alert(1)</script>\"'&\u202e\x1b"


def sketches(before, now):
    """Sketches of two lists of values, with the bins of the first."""
    frame = pl.DataFrame({"x": before})
    bins, _ = choose_bins(frame, ["x"])
    return sketch_frame(frame, bins)["x"], sketch_frame(pl.DataFrame({"x": now}), bins)["x"]


def column(name="age", *, before=None, now=None, windows=30, verdict="alarm"):
    random = np.random.default_rng(1)
    known = random.normal(size=300) if before is None else before
    reference, current = sketches(known, known if now is None else now)
    verdicts = ("quiet",) * (windows - 1) + (verdict,)
    return MonitoredColumn(
        name=name, role="input", reference=reference, current=current, verdict=verdict, psi=0.4, strength=1.4,
        p_value=0.001, statistics={"jensen_shannon": 0.2, "ks": 0.1}, verdicts=verdicts,
        psi_by_window=tuple(random.exponential(0.05, windows)),
        strengths=tuple(random.exponential(0.5, windows)),
    )  # fmt: skip


def incident(title, *, severity="alarm", state="open", last=30):
    return Incident(
        id="i", project="", created_at=START, endpoint="", kind="drift", severity=severity, state=state, title=title,
        message=title, began_at=START + timedelta(days=10), seen_at=START + timedelta(days=last),
    )  # fmt: skip


def report(columns, *, windows=30, **fields):
    days = [START + timedelta(days=day) for day in range(windows + 1)]
    spans = tuple(TimeWindow(since=days[one], until=days[one + 1], rows=10) for one in range(windows))
    values = {"reference_name": "before.csv", "current_name": "now.csv", "reference_rows": 1000, "current_rows": 300}
    return MonitoringReport(**{**values, "windows": spans, "columns": tuple(columns), **fields})


def series(windows=30, **fields):
    points = tuple(
        MetricPoint(value=0.7 + day / 1000, low=0.6, high=0.8, rows=9) if day % 7 else MetricPoint()
        for day in range(windows)
    )
    values = {
        "metric": "roc_auc",
        "greater_is_better": True,
        "reference": MetricPoint(value=0.72, low=0.7, high=0.74, rows=1000),
        "points": points,
        "verdicts": ("quiet",) * (windows - 1) + ("alarm",),
    }
    return MetricSeries(**{**values, **fields})


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page, and checks that tags are closed in order."""

    VOID = ("meta", "path", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_runs_or_loads_whatever_the_names_are():
    evil = column(EVIL, before=[EVIL, "b"] * 50, now=[EVIL * 2, "b"] * 20)
    full = report(
        [evil, column()],
        current_name=EVIL, reference_name=EVIL, incidents=(incident(EVIL),), performance=series(metric=EVIL),
        quality=(QualityNote(column=EVIL, message=EVIL, grave=True),), skipped={EVIL: EVIL}, remarks=(EVIL,),
    )  # fmt: skip
    text = monitoring_page(full)
    page = Page(text)
    assert "script" not in page.tags
    assert set(page.tags) & {"link", "img", "iframe", "object", "form", "a"} == set()
    assert [value for name, value in page.attributes if name.startswith("on") or name in ("src", "href")] == []
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_answer_comes_first():
    for incidents, kind, answer in (
        ((incident("Age has risen."),), "alarm", "1 alarm needs attention. Age has risen."),
        ((incident("Age has risen.", severity="notice"),), "warn", "No alarm. 1 change to know about."),
        ((incident("Age has risen.", state="resolved"),), "ok", "1 earlier incident is over."),
        ((), "ok", "Nothing to worry about: 1 column behaves as in the reference."),
    ):
        text = monitoring_page(report([column()], incidents=incidents))
        assert f'class="answer {kind}"' in text
        assert answer in text
        assert text.index(answer) < text.index("<h2>Incidents") < text.index("<h2>Columns")


def test_performance_is_drawn_with_estimates_and_without_labels():
    estimates = tuple(MetricPoint(value=0.71, low=0.69, high=0.73, rows=10) for _ in range(30))
    text = monitoring_page(report([column()], performance=series(estimates=estimates)))
    Page(text)
    assert "estimated without labels" in text
    assert '<path class="estimate"' in text
    # Five windows without labels interrupt the line, the first one at its beginning.
    assert text.count('<path class="line"') == 5
    empty = series(points=(MetricPoint(),) * 30, verdicts=("quiet",) * 30, reference=MetricPoint())
    calm = monitoring_page(report([column()], performance=empty))
    Page(calm)
    assert [">alarm</span>" in one for one in (text, calm)] == [True, False], "the legend names what is drawn"
    assert "<dd>1.4 × limit</dd>" in calm
    assert metric_range(empty) == (0.0, 1.0)
    assert "nan" not in metric_chart(empty)
    one = series(windows=1, points=(MetricPoint(value=0.7, low=0.6, high=0.8, rows=9),), verdicts=("alarm",))
    single = monitoring_page(report([column(windows=1)], windows=1, performance=one))
    assert "<details><summary>Figures" not in single
    Page(single)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([1.0] * 50, [1.0] * 20),
        ([0.0, 1.0] * 50, [1.0] * 20),
        ([1.0, float("nan"), float("inf"), None] * 20, [None] * 9),
        ([1e300 * one for one in range(100)], [5.0]),
        ([0.0] * 80 + list(np.random.default_rng(0).normal(size=20)), [0.0] * 9),
        (["a"] * 9, [None, "b"]),
        ([str(one) for one in range(300)], ["x"] * 9),
        ([True, False] * 9, [True]),
    ],
)
def test_every_kind_of_column_is_drawn(before, now):
    drawn = distribution(column(before=before, now=now))
    Page(drawn)
    assert not re.search(r"nan|inf\b", drawn)


def test_long_series_become_few_bars():
    short, long = strip(column(windows=60)), strip(column(windows=1000))
    assert len(re.findall(r"M\d+ 20v", long)) <= 60
    assert len(long) < 1.3 * len(short)
    assert 'class="a"' in long
    assert strip(column(windows=1)) == ""


@pytest.mark.slow
def test_five_hundred_columns_fit_and_the_worst_come_first():
    one = column(windows=60)
    names = [f"a_feature_with_a_rather_long_name_{number:03d}" for number in range(500)]
    columns = [replace(one, name=name, verdict="quiet") for name in names]
    text = monitoring_page(report(columns, windows=60, performance=series(60), incidents=(incident("Drift."),) * 80))
    assert len(text.encode()) <= MOST_BYTES
    assert all(name in text for name in names)
    Page(text)


@pytest.mark.slow
def test_thousands_of_columns_and_very_long_names_fit_too():
    one = column(windows=60, before=["category " * 30] * 9, now=["\u4e2d" * 300] * 9)
    columns = [replace(one, name="\u4e2d" * 500 + str(number)) for number in range(3000)]
    notes = tuple(QualityNote(column="\u4e2d" * 500, message="\u4e2d" * 5000) for _ in range(500))
    long = incident("\u4e2d" * 5000)
    text = monitoring_page(report(columns, windows=60, incidents=(long,) * 200, quality=notes))
    assert len(text.encode()) <= MOST_BYTES
    assert "columns have moved less than these" in text


@pytest.mark.slow
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, need):
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        need("chromium", "Chromium", "install the package chromium")
    long = column("a_name_without_any_place_to_break_" * 3, before=["oslo" * 30, "b"] * 9)
    page = monitoring_page(
        report([column(), long], performance=series(), incidents=(incident("'age' has risen from 40 to 55."),))
    )
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    environment = {**os.environ, "HOME": str(tmp_path)}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"], env=environment
        )
        problems = []
        for width in (1280, 400):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message: problems.append(message.text))
            tab.goto((tmp_path / "report.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator(".answer").inner_text().startswith("Alarm")
        browser.close()
    assert problems == []
