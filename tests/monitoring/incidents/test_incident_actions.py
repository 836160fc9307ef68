"""Incidents: what people may do with them, in which state, and what is recorded."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.monitoring.incidents.incident_records import put_incident

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.monitoring.incidents.incident_actions import (
    ONGOING,
    accept,
    acknowledge,
    get_incident,
    is_muted,
    list_incidents,
    mute,
    resolve,
    unmute,
)
from everloop.records import Incident

ACTIONS = {"acknowledge": acknowledge, "mute": mute, "unmute": unmute, "accept": accept, "resolve": resolve}
ALLOWED = {
    "acknowledge": {"open"},
    "mute": set(ONGOING),
    "unmute": {"muted"},
    "accept": set(ONGOING),
    "resolve": set(ONGOING),
}


def test_each_change_is_recorded_once_with_its_actor(store, clock):
    incident = put_incident(store)
    clock.go(hours=1)
    changed = acknowledge(store.as_actor("user:bob"), incident.id, "on it")
    assert (changed.state, changed.revision) == ("acknowledged", 1)
    assert [(one.action, one.actor, one.text) for one in changed.history[1:]] == [("acknowledge", "user:bob", "on it")]
    assert changed.history[1].at == clock.moment
    opened, event = store.records.events_since(0, kinds=["incident"])
    assert (opened.verb, event.verb, event.actor, event.subject) == ("opened", "acknowledged", "user:bob", incident.id)
    facts = {"endpoint": "delays", "severity": "alarm", "state": "acknowledged", "reason": "on it"}
    assert facts.items() <= event.data.items()
    assert event.data["title"] == incident.title


def test_muting_ends_by_itself_or_by_hand(store, clock):
    incident = put_incident(store)
    acknowledge(store, incident.id)
    muted = mute(store, incident.id, clock.moment + timedelta(days=3), "known until Monday")
    assert is_muted(muted, clock.moment)
    assert not is_muted(muted, clock.moment + timedelta(days=3))
    assert is_muted(mute(store, incident.id), clock.moment + timedelta(days=999))
    back = unmute(store, incident.id)
    assert (back.state, back.muted_until) == ("acknowledged", None)
    other = put_incident(store)
    mute(store, other.id)
    assert unmute(store, other.id).state == "open"


def test_accepting_and_resolving_close_an_incident(store, clock):
    first, second, third = (put_incident(store) for _ in range(3))
    clock.go(days=1)
    assert accept(store, first.id, "new tariff").state == "accepted"
    assert resolve(store, second.id).resolved_at == clock.moment
    assert [one.id for one in list_incidents(store)] == [third.id]
    assert [one.id for one in list_incidents(store, closed=True)] == [third.id, second.id, first.id]
    assert [one.id for one in list_incidents(store, state="accepted")] == [first.id]
    assert list_incidents(store, severity="notice", closed=True) == []
    assert list_incidents(store, endpoint="other", closed=True) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=7))
def test_only_allowed_changes_happen_and_each_is_in_the_history(store, actions):
    incident = put_incident(store)
    done = ["open"]
    for action in actions:
        before = get_incident(store, incident.id)
        if before.state in ALLOWED[action]:
            ACTIONS[action](store, incident.id)
            done.append(action)
        else:
            with pytest.raises(ConflictError, match=f"is {before.state}, so it cannot be"):
                ACTIONS[action](store, incident.id)
            assert get_incident(store, incident.id) == before
    after = get_incident(store, incident.id)
    assert [change.action for change in after.history] == done
    assert (after.resolved_at is not None) == (after.state in ("accepted", "resolved"))
    events = store.records.events_since(0, kinds=["incident"], subject=incident.id)
    assert len(events) == len(done)


def test_ids_may_be_shortened_from_both_ends(store, clock):
    first, second = put_incident(store, "first"), put_incident(store, "second")
    assert get_incident(store, first.id[-6:]) == first
    with pytest.raises(NotFoundError) as several:
        get_incident(store, first.id[:8])
    assert "2 incidents match" in several.value.message
    assert f"{second.id} (second)" in str(several.value.help)
    clock.go(days=400)
    later = put_incident(store, "later")
    assert get_incident(store, later.id[:10]) == later


def test_an_unknown_id_names_the_nearest_ones(store):
    put_incident(store, "first")
    second = put_incident(store, "second")
    for wrong in ("nonsense", "", second.id[:-1] + "x"):
        with pytest.raises(NotFoundError) as error:
            acknowledge(store, wrong)
        assert f"'{wrong}'" in error.value.message
        assert f"{second.id} (second)" in str(error.value.help)
    with pytest.raises(NotFoundError, match="everloop monitor ls"):
        get_incident(store.for_project("empty"), "nonsense")


def test_muting_until_the_past_is_refused(store, clock):
    incident = put_incident(store)
    for until, problem in ((clock.moment, "which is past"), (datetime(2027, 1, 1), "no time zone")):
        with pytest.raises(UsageError, match=problem):
            mute(store, incident.id, until)
    assert get_incident(store, incident.id) == incident


def test_a_change_from_an_old_copy_is_refused(store):
    incident = put_incident(store)
    acknowledge(store, incident.id)
    with pytest.raises(ConflictError):
        store.records.update(replace(incident, state="resolved"))
    assert store.records.get(Incident, incident.id).state == "acknowledged"
