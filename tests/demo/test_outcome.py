"""What the demo says about incidents: hindsight from the live metric, and one line for each."""

from __future__ import annotations

import json
from dataclasses import replace

import polars as pl
import pytest
from tests.loop.sales_log import DAY, OPENS, label, log, release, sales
from tests.monitoring.incidents.incident_records import put_incident

from everloop.cli.demo_view import incident_line
from everloop.cli.output import to_json
from everloop.demo.outcome import JudgedIncident, judge_incident
from everloop.records import Incident
from everloop.stores import open_store

PLAIN = Incident(
    id="i", project="p", created_at=OPENS, endpoint="e", kind="drift", severity="alarm", began_at=OPENS,
    seen_at=OPENS + DAY, title="'price' has risen from 10 to 12.",
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(OPENS)
        release(opened)
        opened.clock.set(OPENS + 3 * DAY)
        yield opened


def incident(store, **fields):
    values = {"versions": ("m@1",), "began_at": OPENS, "seen_at": OPENS + DAY, **fields}
    return put_incident(store, "'price' has risen from 10 to 12.", endpoint="e", **values)


def answered(store, seed, start=OPENS, *, inverted=False):
    frame = sales(600, seed, start)
    log(store, frame)
    label(store, frame.with_columns(sold=~pl.col("sold")) if inverted else frame)


def test_an_incident_during_which_the_metric_fell_was_needed(store):
    answered(store, 1, inverted=True)
    answered(store, 2, OPENS + DAY)  # after the incident
    judged = judge_incident(store, incident(store))
    assert judged.verdict == "needed"
    assert judged.live < 0.5 < judged.expected
    assert judged.low <= judged.live <= judged.high < judged.expected


def test_an_incident_without_labels_is_not_judged(store):
    log(store, sales(600, 3))
    judged = judge_incident(store, incident(store))
    assert (judged.verdict, judged.live) == ("unknown", None)
    assert judge_incident(store, incident(store, versions=())).expected is None


@pytest.mark.parametrize(
    ("expected", "live", "low", "high", "verdict"),
    [
        (0.7, 0.6, 0.55, 0.65, "needed"),
        (0.7, 0.68, 0.6, 0.76, "open"),
        (0.7, 0.7, 0.6, 0.8, "not needed"),
        (0.7, 0.75, 0.7, 0.8, "not needed"),
        (0.7, 0.75, None, None, "unknown"),
        (None, 0.6, 0.55, 0.65, "unknown"),
    ],
)
def test_hindsight_is_certain_or_says_that_it_is_open(expected, live, low, high, verdict):
    assert JudgedIncident(PLAIN, expected, live, low, high).verdict == verdict


def test_an_incident_is_one_line_and_can_be_printed_as_json():
    alarm = PLAIN
    assert incident_line(alarm) == "[red]alarm      [/red] drift: 'price' has risen from 10 to 12."
    assert incident_line(replace(alarm, severity="notice")).startswith("[yellow]notice     [/yellow]")
    assert incident_line(replace(alarm, state="resolved")).startswith("[green]resolved[/green]")
    assert "[b]" not in incident_line(replace(alarm, title="[b]'price'[/b] has risen.")).replace("\\[b]", "")
    assert json.loads(to_json(alarm))["seen_at"] == "2024-01-02T00:00:00Z"
