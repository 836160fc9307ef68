"""Findings of checked windows become incidents in a store, with an event for every change."""

from __future__ import annotations

from datetime import timedelta

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


def summary(store, day=0, *, opens=(), restless=(), calm=(), harm=None, version="m@1"):
    """The summary of a window as `check_drift` makes it."""
    states = {name: {"verdict": "warning", "calm": False} for name in (*opens, *restless)}
    states |= {name: {"verdict": "quiet", "calm": True} for name in calm}
    evidence = {"subjects": states, "opens": list(opens), "harm": harm}
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
        finding(store, subject="age", value=9.0), finding(store, subject="city", value=0.5),
        summary(store, opens=["age", "city"], harm=harm),
    )  # fmt: skip
    assert news.severity == "notice"
    assert news.harm == "The predictions have hardly moved."
    assert news.weights["city"] > news.weights["age"]
    assert news.evidence == {"harm": harm}


def test_each_version_has_a_reference_of_its_own(store):
    """So drift and performance are news about a version; quality is news about the endpoint."""
    quiet = {"severity": "notice", "text": "Hardly moved.", "importance": {}}
    loud = {"severity": "alarm", "text": "Has fallen.", "importance": {"age": 0.5}}
    findings = [
        finding(store, subject="age", value=0.1), summary(store, opens=["age"], harm=quiet),
        finding(store, subject="age", value=0.1, version="m@2"),
        summary(store, opens=["age"], harm=loud, version="m@2"),
        summary(store, calm=["age"], version="m@3"),
        finding(store, kind="quality"), finding(store, kind="quality", version="m@2"),
    ]  # fmt: skip
    first, second, third, quality = news_of(findings, "drift", *window(0))
    assert [one.versions for one in (first, second, third, quality)] == [("m@1",), ("m@2",), ("m@3",), ("m@1", "m@2")]
    assert [one.severity for one in (first, second)] == ["notice", "alarm"]
    assert [one.harm for one in (first, second, third)] == ["Hardly moved.", "Has fallen.", ""]
    assert not third.reasons


def test_strong_reasons_come_from_the_summary(store):
    known = summary(store, opens=["age"])
    known.evidence["strong"] = ["age"]
    assert one_news(finding(store), known).strong == {"age"}
    assert one_news(finding(store), summary(store, opens=["age"])).strong == frozenset()


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
    evidence = {"active": {"age": {"watch": "drift", "calm": 0}}}
    other = put_incident(store, endpoint="arrivals", evidence=evidence)
    for day in range(CALM_WINDOWS + 1):
        assert update(store, day, summary(store, day, calm=["age"])) == []
    assert ongoing_incidents(store) == [other]
    assert ongoing_incidents(store, "delays") == []


def test_the_calm_of_one_version_does_not_end_the_incident_of_another(store):
    both = finding(store, version="m@1"), finding(store, version="m@2")
    first, second = update(store, 0, *both)
    assert (first.versions, second.versions) == (("m@1",), ("m@2",))
    for day in range(1, 1 + CALM_WINDOWS):
        changed = update(store, day, summary(store, day, calm=["age"]), finding(store, day, version="m@2"))
    assert [(one.id, one.state) for one in changed] == [(first.id, "resolved")]
    assert [one.id for one in ongoing_incidents(store)] == [second.id]


def test_a_strong_change_is_told_although_another_incident_is_ongoing(store):
    update(store, 0, finding(store))
    known = summary(store, 1, opens=["city"], restless=["age"])
    known.evidence["strong"] = ["city"]
    (opened,) = update(store, 1, finding(store, 1, "city"), known)
    assert opened.subjects == ("city",)
    assert [event.verb for event in store.records.events_since(0, kinds=["incident"])].count("opened") == 2


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
