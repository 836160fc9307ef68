"""Events as sentences for the terminal of `everloop up`."""

from __future__ import annotations

import pytest

from everloop.loop.worker.event_sentences import SENTENCES, event_sentences
from everloop.stores import open_store

DATA = {
    "loop": "shop",
    "trigger": "Every: 8w",
    "reason": "proven not worse by 0.01.",
    "runner": "host/scope/12/34",
    "attempt": 2,
    "error": "ValueError: {price} is missing",
}


@pytest.fixture
def said(tmp_path):
    """What is shown for an event with this data."""

    def show(kind, verb, data):
        with open_store(tmp_path / "store", actor="user:ann@host") as store:
            before = store.records.last_event()
            store.records.append_event(verb, kind, "id", "key", data)
            (event,) = store.records.events_since(before)
        return event_sentences(event)

    return show


@pytest.mark.parametrize(("kind", "verb"), [(kind, verb) for kind, verbs in SENTENCES.items() for verb in verbs])
def test_every_event_is_one_sentence_with_its_data(said, kind, verb):
    (line,) = said(kind, verb, DATA)
    for name, shown in (
        ("loop", "'shop'"),
        ("error", DATA["error"]),
        ("trigger", "Every: 8w."),
        ("reason", "by 0.01."),
    ):
        assert ("{" + name + "}" in SENTENCES[kind][verb]) == (shown in line)
    assert ".." not in line
    assert not line.endswith(" ")
    # Events of an earlier everloop may lack data.
    (bare,) = said(kind, verb, {})
    assert "None" not in bare.replace("attempt None", "")


def test_a_changed_project_is_listed_and_other_events_are_silent(said):
    data = {"files": ["loop.py"], "changes": ["A becomes B"], "steps": [{"loop": "l", "step": "s", "reason": "new"}]}
    assert said("loop", "reloaded", data) == [
        "Loaded the changed code (loop.py):",
        "  A becomes B",
        "  The next run of 'l' runs the step s: new",
    ]
    assert said("loop", "reloaded", {"changes": None, "steps": [1]})[0] == "Loaded the changed code ():"
    assert said("release", "guarded", {}) == []
    assert said("alias", "moved", {}) == []
