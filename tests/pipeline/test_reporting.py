"""Progress of running steps, and the listener that receives it."""

from __future__ import annotations

import math

import everloop as el
from everloop.pipeline import Graph, Listener, StepProgress, run_graph
from everloop.records import Event
from everloop.stores import open_store


@el.step
def quiet() -> int:
    return 1


@el.step
def loud(quiet: int) -> int:
    for number in range(5):
        el.progress(number, 5, note=f"at {number}", unit="rows")
    el.progress(math.nan, math.inf)
    return quiet


class Heard(Listener):
    def __init__(self):
        self.news = []

    def on_progress(self, name, progress):
        self.news.append((name, progress))


def test_a_step_says_how_far_it_has_come(tmp_path):
    with open_store(tmp_path / "home") as store:
        heard = Heard()
        run_graph(Graph.wire([quiet, loud]), store, listener=heard)
        assert heard.news[:5] == [("loud", StepProgress(n, 5, f"at {n}", "rows")) for n in range(5)]
        # What is not a number is not shown as one.
        assert heard.news[5] == ("loud", StepProgress(0.0, None))
        again = Heard()
        run_graph(Graph.wire([quiet, loud]), store, listener=again)
        assert again.news == []  # cached: nothing runs, so nothing is said


def test_outside_of_a_run_it_does_nothing():
    el.progress(1, 2, note="nobody watches")


def test_events_at_a_bounded_rate(tmp_path, monkeypatch):
    with open_store(tmp_path / "home") as store:
        run_graph(Graph.wire([quiet, loud]), store)
        assert events(store) == []  # over in less than ten seconds
        monkeypatch.setattr("everloop.pipeline.step_recorder._EVENT_EVERY_S", 0.0)
        done = run_graph(Graph.wire([quiet, loud]), store, force=True)
        found = events(store)
        assert [event.data["note"] for event in found[:5]] == [f"at {n}" for n in range(5)]
        assert {event.subject for event in found} == {done.run}
        assert found[0].data == {"step": "loud", "done": 0.0, "total": 5.0, "unit": "rows", "note": "at 0"}


def events(store) -> list[Event]:
    return [event for event in store.records.events_since(0, kinds=("run",)) if event.verb == "progress"]


def test_a_text_for_people():
    assert StepProgress(31, 60, "7 trials", "s").text() == "31 of 60 s · 7 trials"
    assert StepProgress(1234.0).text() == "1,234"
    assert StepProgress(0, 10, unit="files").text() == "0 of 10 files"
