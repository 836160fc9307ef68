"""Findings of checked windows become incidents in a store, with an event for every change."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.monitoring.incidents.conftest import START
from tests.monitoring.incidents.incident_records import put_incident

from everloop.monitoring.incidents.incident_actions import acknowledge, list_incidents, resolve
from everloop.monitoring.incidents.incident_engine import (
    close_replaced,
    news_of,
    ongoing_incidents,
    update_incidents,
)
from everloop.monitoring.noise.incident_rate import CALM_WINDOWS
from everloop.records import Finding, Incident

DAY = timedelta(days=1)


def window(day):
    return START + day * DAY, START + (day + 1) * DAY


def finding(store, day=0, subject="age", severity="alarm", *, kind="drift", version="m@1", evidence=None, **fields):
    since, until = window(day)
    return store.new(
        Finding, endpoint="delays", version=version, kind=kind, severity=severity, subject=subject, window_from=since,
        window_to=until, message=f"'{subject}' has risen.", evidence=evidence or {}, **fields,
    )  # fmt: skip


def summary(store, day=0, *, opens=(), strong=(), restless=(), calm=(), harm=None, version="m@1"):
    """The summary of a window as `check_drift` makes it."""
    states = {name: {"verdict": "warning", "calm": False} for name in (*opens, *restless)}
    states |= {name: {"verdict": "quiet", "calm": True} for name in calm}
    evidence = {"subjects": states, "opens": list(opens), "strong": list(strong), "harm": harm}
    return finding(store, day, "window", "info", version=version, evidence=evidence)


def update(store, day, *findings, watch="drift"):
    since, until = window(day)
    return update_incidents(store, "delays", findings, watch=watch, since=since, until=until)


def one_news(*findings, watch="drift"):
    since, until = window(0)
    (news,) = news_of(findings, watch, since, until)
    return news


# --- what a window says --------------------------------------------------------------------------------------


def test_the_summary_says_which_subjects_are_a_reason(store):
    news = one_news(
        finding(store, subject="age", severity="warning", value=0.3),
        finding(store, subject="city", severity="alarm", value=0.2),
        summary(store, opens=["age"], restless=["wind"], calm=["gust"]),
    )
    assert dict(news.reasons) == {"age": "'age' has risen."}
    assert news.restless == {"age", "city", "wind"}
    assert (news.kind, news.watch, news.versions, news.severity) == ("drift", "drift", ("m@1",), "notice")


def test_without_a_summary_alarms_are_reasons(store):
    news = one_news(finding(store, subject="age"), finding(store, subject="city", severity="warning"))
    assert (set(news.reasons), news.restless, news.severity) == ({"age"}, {"age", "city"}, "alarm")


def test_a_finding_may_open_an_incident_that_is_a_notice(store):
    news = one_news(finding(store, subject="x", severity="warning", evidence={"opens": ["x"]}))
    assert (set(news.reasons), news.severity) == ({"x"}, "notice")


def test_information_alone_is_a_calm_window(store):
    news = one_news(finding(store, subject="window", severity="info"))
    assert (dict(news.reasons), news.restless) == ({}, frozenset())


def test_harm_decides_how_loud_it_is_and_what_comes_first(store):
    harm = {"severity": "notice", "text": "The predictions have hardly moved.", "importance": {"city": 0.6, "age": 0.1}}
    news = one_news(
        finding(store, subject="age", value=9.0), finding(store, subject="city", value=0.4),
        summary(store, opens=["age", "city"], harm=harm),
    )  # fmt: skip
    assert news.severity == "notice"
    assert news.harm == "The predictions have hardly moved."
    assert news.weights["city"] > news.weights["age"]
    assert news.evidence == {"harm": harm}


def test_each_version_has_news_of_its_own_about_drift_and_performance(store):
    """Each has a reference of its own, so one that is calm says nothing about another."""
    quiet = {"severity": "notice", "text": "Hardly moved.", "importance": {}}
    loud = {"severity": "alarm", "text": "Has fallen.", "importance": {"age": 0.5}}
    first, second, third = news_of(
        [
            finding(store, subject="age", value=0.1), summary(store, opens=["age"], harm=quiet),
            finding(store, subject="age", value=0.1, version="m@2"),
            summary(store, opens=["age"], strong=["age"], harm=loud, version="m@2"),
            summary(store, calm=["age"], version="m@3"),
        ],
        "drift", *window(0),
    )  # fmt: skip
    assert [one.versions for one in (first, second, third)] == [("m@1",), ("m@2",), ("m@3",)]
    assert [one.severity for one in (first, second, third)] == ["notice", "alarm", "notice"]
    assert [one.harm for one in (first, second, third)] == ["Hardly moved.", "Has fallen.", ""]
    assert [set(one.reasons) for one in (first, second, third)] == [{"age"}, {"age"}, set()]
    assert [set(one.strong) for one in (first, second, third)] == [set(), {"age"}, set()]
    assert [len(one.findings) for one in (first, second, third)] == [1, 1, 0]


def test_what_is_wrong_with_the_data_is_one_piece_of_news_for_all_versions(store):
    """The version that suffers most describes it, and one calm version does not hide another."""
    news = one_news(
        finding(store, kind="quality", severity="warning", value=0.1, evidence={"opens": ["age"]}),
        finding(store, kind="quality", value=0.1, version="m@2"),
        finding(store, kind="quality", subject="window", severity="info", version="m@3"),
    )
    assert (news.severity, set(news.reasons)) == ("alarm", {"age"})
    assert news.versions == ("m@1", "m@2")
    assert len(news.findings) == 2


def test_the_same_subject_is_told_once_in_the_words_of_the_largest_deviation(store):
    small = finding(store, kind="quality", value=0.1)
    large = finding(store, kind="quality", value=0.9)
    assert one_news(small, large).findings == (small.id, large.id)
    assert one_news(small, large).weights == one_news(large, small).weights


# --- the life of an incident in the store --------------------------------------------------------------------


def test_every_change_is_one_event_with_its_facts(store, clock):
    clock.go(days=1)
    update(store, 0, finding(store, severity="warning"), summary(store, opens=["age"]))
    clock.go(days=1)
    update(store, 1, finding(store, 1, "city", "warning"), summary(store, 1, opens=["city"]))
    acknowledge(store, ongoing_incidents(store, "delays", "drift")[0].id, "on it")
    harm = {"severity": "alarm", "text": "The score has moved."}
    clock.go(days=1)
    (louder,) = update(store, 2, finding(store, 2), summary(store, 2, opens=["age"], harm=harm))
    for day in range(3, 3 + CALM_WINDOWS):
        clock.go(days=1)
        changed = update(store, day, summary(store, day, calm=["age", "city"]))
    (resolved,) = changed
    assert store.records.find(Incident) == [resolved]
    assert (louder.state, resolved.state) == ("acknowledged", "resolved")
    events = store.records.events_since(0, kinds=["incident"])
    told = [event for event in events if event.verb != "updated"]
    assert [event.verb for event in told] == ["opened", "joined", "acknowledged", "escalated", "resolved"]
    assert [change.action for change in resolved.history] == ["open", "join", "acknowledge", "escalate", "resolve"]
    for event in told:
        assert (event.data["endpoint"], event.data["incident_kind"]) == ("delays", "drift")
    assert [event.data["severity"] for event in told] == ["notice", "notice", "notice", "alarm", "alarm"]
    assert told[-1].data["state"] == "resolved"


def test_a_window_that_says_nothing_new_writes_nothing(store):
    assert update(store, 0, summary(store, calm=["age"])) == []
    assert store.records.events_since(0, kinds=["incident"]) == []
    update(store, 0, finding(store))
    before = store.records.last_event()
    assert update(store, 0) == [], "the same window again"
    assert store.records.last_event() == before


def test_returned_incidents_can_be_updated(store):
    """They have the revision that is stored."""
    (opened,) = update(store, 0, finding(store))
    (joined,) = update(store, 1, finding(store, 1, "city"))
    assert (opened.revision, joined.revision) == (0, 1)
    store.records.update(joined)


def test_kinds_have_incidents_of_their_own(store):
    changed = update(
        store, 0, finding(store, kind="quality"), finding(store, subject="latency", kind="latency"), watch="quality"
    )
    assert {one.kind for one in changed} == {"quality", "latency"}
    for day in range(1, 1 + CALM_WINDOWS):
        # The latency is fine, so nothing is found about it. That is calm as well.
        changed = update(store, day, finding(store, day, kind="quality"), watch="quality")
    assert [(one.kind, one.state) for one in changed] == [("latency", "resolved")]
    assert [one.kind for one in ongoing_incidents(store)] == ["quality"]


def test_other_endpoints_are_left_alone(store):
    active = {"age": {"watch": "drift", "calm": 0}}
    other = put_incident(store, endpoint="arrivals", evidence={"active": active, "last_window": {"drift": ""}})
    for day in range(CALM_WINDOWS + 1):
        assert update(store, day, summary(store, day, calm=["age"])) == []
    assert ongoing_incidents(store) == [other]
    assert ongoing_incidents(store, "delays") == []


def test_a_strong_change_opens_an_incident_beside_an_ongoing_one(store):
    (first,) = update(store, 0, finding(store), summary(store, opens=["age"]))
    (second,) = update(
        store,
        1,
        finding(store, 1),
        finding(store, 1, "city"),
        summary(store, 1, opens=["age", "city"], strong=["city"]),
    )
    assert [one.id for one in ongoing_incidents(store, "delays", "drift")] == [first.id, second.id]
    assert (first.subjects, second.subjects) == (("age",), ("city",))
    (joined,) = update(store, 2, finding(store, 2, "wind"), summary(store, 2, opens=["wind"], restless=["age", "city"]))
    assert (joined.id, set(joined.subjects)) == (second.id, {"city", "wind"})


def test_at_most_three_incidents_of_a_kind_are_ongoing(store):
    names = ["a", "b", "c", "d", "e"]
    for day, name in enumerate(names):
        update(
            store, day, finding(store, day, name), finding(store, day, name, kind="quality"),
            summary(store, day, opens=[name], strong=[name], restless=names[:day]),
        )  # fmt: skip
    assert [set(one.subjects) for one in ongoing_incidents(store, kind="drift")] == [{"a"}, {"b"}, {"c", "d", "e"}]
    # Alarms about quality say nothing about strength, so they are one incident.
    assert [set(one.subjects) for one in ongoing_incidents(store, kind="quality")] == [set(names)]


def test_each_version_has_drift_incidents_of_its_own(store):
    (old,) = update(store, 0, finding(store), summary(store, opens=["age"]))
    both = [summary(store, 1, restless=["age"]), summary(store, 1, opens=["age"], version="m@2")]
    (new,) = update(store, 1, finding(store, 1, version="m@2"), *both)
    assert [one.versions for one in ongoing_incidents(store)] == [("m@1",), ("m@2",)]
    assert new.subjects == old.subjects
    # The calm of one version does not end the incident of the other.
    ended = []
    for day in range(2, 2 + CALM_WINDOWS):
        ended += update(store, day, summary(store, day, restless=["age"]), summary(store, day, version="m@2"))
    assert [one.id for one in ended] == [new.id]
    assert [one.id for one in ongoing_incidents(store)] == [old.id]
    # Nor do windows in which it did not answer.
    for day in range(6, 6 + CALM_WINDOWS):
        assert update(store, day, summary(store, day, version="m@2")) == []


def test_each_version_may_have_three(store):
    for day, name in enumerate(["a", "b", "c", "d"]):
        for version in ("m@1", "m@2"):
            update(
                store, day, finding(store, day, name, version=version),
                summary(store, day, opens=[name], strong=[name], restless="abc"[:day], version=version),
                watch=f"drift of {version}",
            )  # fmt: skip
    versions = [one.versions for one in ongoing_incidents(store)]
    assert sorted(versions) == [("m@1",)] * 3 + [("m@2",)] * 3


def test_an_incident_that_was_resolved_by_hand_opens_again_if_it_goes_on(store):
    (first,) = update(store, 0, finding(store))
    resolve(store, first.id)
    assert update(store, 1, summary(store, 1, calm=["age"])) == []
    (second,) = update(store, 2, finding(store, 2))
    assert second.id != first.id
    assert [one.id for one in list_incidents(store)] == [second.id]


def test_incidents_of_replaced_versions_are_closed(store):
    (drift,) = update(store, 0, finding(store))
    (quality,) = update(store, 0, finding(store, kind="quality"), watch="quality")
    assert close_replaced(store, "delays", ["m@1", "m@2"]) == []
    (closed,) = close_replaced(store, "delays", ["m@2"])
    assert (closed.id, closed.state, closed.history[-1].text) == (drift.id, "resolved", "m@1 no longer answers.")
    event = store.records.events_since(0, kinds=["incident"])[-1]
    assert (event.verb, event.data["reason"]) == ("resolved", "m@1 no longer answers.")
    assert [one.id for one in ongoing_incidents(store)] == [quality.id], "the data are still wrong"
    assert close_replaced(store, "delays", ["m@2"]) == []


def test_an_incident_whose_versions_are_not_known_is_not_closed_by_a_release(store):
    update(store, 0, finding(store, version=None))
    assert close_replaced(store, "delays", ["m@2"]) == []


def test_a_person_and_monitoring_change_the_same_incident(store):
    (opened,) = update(store, 0, finding(store))
    acknowledge(store, opened.id)
    (joined,) = update(store, 1, finding(store, 1, "city"))
    assert (joined.state, joined.revision) == ("acknowledged", 2)


def test_findings_of_earlier_versions_of_everloop_are_understood(store):
    """They had a limit, verdicts without `calm`, and no list of what opens an incident."""
    states = {"age": {"psi": 0.3, "p_value": 0.0, "limit": 0.1, "verdict": "alarm"}, "city": {"verdict": "quiet"}}
    old = finding(store, subject="window", severity="info", evidence={"subjects": states, "limit": 0.1, "told": []})
    news = one_news(finding(store, value=0.3, threshold=0.1, evidence={"limit": 0.1, "psi": 0.3}), old)
    assert (set(news.reasons), news.restless, news.severity) == ({"age"}, {"age"}, "alarm")


# --- whose harm it is ----------------------------------------------------------------------------------------


def test_only_the_incident_whose_own_subject_does_the_harm_becomes_an_alarm(store):
    update(store, 0, finding(store, severity="warning"), summary(store, opens=["age"]))
    update(store, 1, finding(store, 1, "city", "warning"), summary(store, 1, opens=["city"], strong=["city"]))
    harm = {"severity": "alarm", "text": "The score has moved.", "importance": {"age": 0.01, "city": 0.6}}
    both = [finding(store, 2, name, "warning") for name in ("age", "city")]
    update(store, 2, *both, summary(store, 2, opens=["age", "city"], harm=harm))
    found = {one.subjects: one.severity for one in ongoing_incidents(store, "delays", "drift")}
    assert found == {("age",): "notice", ("city",): "alarm"}


@pytest.mark.parametrize("importance", [{}, {"age": 0.01}])
def test_harm_without_a_known_cause_is_that_of_all_reasons(store, importance):
    harm = {"severity": "alarm", "text": "The score has moved.", "importance": importance}
    (opened,) = update(store, 0, finding(store, severity="warning"), summary(store, opens=["age"], harm=harm))
    assert opened.severity == "alarm"
