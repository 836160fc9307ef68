"""The rule of incidents, window by window: one ongoing incident, in which nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, strategies as st

from everloop.monitoring.incidents.incident_actions import CLOSED, ONGOING
from everloop.monitoring.incidents.incident_rules import WindowNews, advance, close
from everloop.monitoring.noise.incident_rate import CALM_WINDOWS
from everloop.records import Incident, IncidentChange

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def create(**fields):
    return Incident(id="i", project="p", created_at=START, **{**fields, "endpoint": "delays"})


def news(day, *reasons, watch="drift", restless=(), days=1, **fields):
    """A window that begins on a day, with a sentence for each subject that is a reason."""
    since = START + day * DAY
    return WindowNews(
        kind="drift", since=since, until=since + days * DAY, watch=watch, versions=("m@1",) if reasons else (),
        reasons={subject: f"'{subject}' has risen." for subject in reasons}, restless=frozenset({*reasons, *restless}),
        findings=tuple(f"{subject}-{day}" for subject in reasons), **fields,
    )  # fmt: skip


def after(*windows, incident=None):
    """Apply windows one by one; return the incident and the actions."""
    actions = []
    for one in windows:
        incident, action = advance(incident, one, one.until, create)
        actions.append(action)
    return incident, actions


# --- opening -------------------------------------------------------------------------------------------------


def test_a_window_without_a_reason_opens_nothing():
    assert advance(None, news(0), START, create) == (None, None)
    assert advance(None, news(0, restless=["age"], severity="alarm"), START, create) == (None, None)


def test_the_first_reason_opens_an_incident_that_says_what_has_happened():
    weights = {"age": 0.1, "city": 0.7, "wind": 0.2}
    window = news(3, *weights, weights=weights, harm="The mean prediction has risen.", evidence={"harm": {"x": 1}})
    incident, action = advance(None, window, START + 4 * DAY, create)
    assert action == "open"
    assert (incident.state, incident.severity, incident.kind) == ("open", "notice", "drift")
    assert incident.subjects == ("city", "wind", "age"), "the most important first"
    assert incident.title == "'city' has risen. 2 more have changed as well."
    assert incident.message == "The mean prediction has risen. 'wind' has risen. 'age' has risen."
    assert (incident.began_at, incident.seen_at) == (START + 3 * DAY, START + 4 * DAY)
    assert incident.versions == ("m@1",)
    assert incident.findings == ("age-3", "city-3", "wind-3")
    assert incident.history == (IncidentChange(at=START + 4 * DAY, action="open", text=incident.title),)
    assert incident.evidence["harm"] == {"x": 1}


def test_a_long_list_of_subjects_is_cut_in_the_message_only():
    incident, _ = after(news(0, *(f"c{number}" for number in range(40))))
    assert len(incident.subjects) == 40
    assert incident.title.endswith("39 more have changed as well.")
    assert incident.message.endswith("And 35 more.")
    assert incident.message.count("has risen") == 4
    two, _ = after(news(0, "a", "b"))
    assert two.title.endswith("1 more has changed as well.")


# --- joining -------------------------------------------------------------------------------------------------


def test_a_new_subject_joins_and_a_known_one_only_prolongs():
    incident, actions = after(news(0, "age"), news(1, "age"), news(2, "city", "age"))
    assert actions == ["open", None, "join"]
    assert set(incident.subjects) == {"age", "city"}
    assert incident.seen_at == START + 3 * DAY
    assert incident.began_at == START
    assert [change.action for change in incident.history] == ["open", "join"]
    assert incident.history[-1].text == "'city' has risen."
    assert incident.findings == ("age-0", "age-1", "city-2", "age-2")


def test_a_subject_is_described_by_the_window_in_which_it_deviated_most():
    def window(day, weight):
        return replace(news(day, "age", weights={"age": weight}), reasons={"age": f"'age' on day {day}."})

    incident, _ = after(window(0, 1.0), window(1, 3.0), window(2, 2.0))
    assert incident.title == "'age' on day 1."


def test_the_harm_is_that_of_the_worst_window():
    def window(day, weight, harm, severity="notice"):
        return news(day, "age", weights={"age": weight}, harm=harm, severity=severity)

    assert after(window(0, 1.0, "some."), window(1, 3.0, "much."), window(2, 2.0, "less."))[0].message == "much."
    louder, _ = after(window(0, 3.0, "nothing suffers."), window(1, 1.0, "the score has moved.", "alarm"))
    assert louder.message == "the score has moved."


def test_a_notice_becomes_an_alarm_once_and_never_quiet_again():
    incident, actions = after(
        news(0, "age"), news(1, "age", severity="alarm", harm="The score has moved."), news(2, "age"),
        news(3, "age", severity="alarm"),
    )  # fmt: skip
    assert actions == ["open", "escalate", None, None]
    assert incident.severity == "alarm"
    assert [(change.action, change.text) for change in incident.history][1:] == [("escalate", "The score has moved.")]


@pytest.mark.parametrize("state", ["acknowledged", "muted"])
def test_what_a_person_has_decided_stays(state):
    incident, _ = after(news(0, "age"))
    muted_until = START + 30 * DAY if state == "muted" else None
    decided = replace(incident, state=state, muted_until=muted_until)
    louder, actions = after(news(1, "city", severity="alarm"), news(2, restless=["age"]), incident=decided)
    assert actions == ["escalate", None]
    assert (louder.state, louder.muted_until) == (state, muted_until)
    over, actions = after(*(news(3 + day) for day in range(CALM_WINDOWS)), incident=louder)
    assert (actions[-1], over.state) == ("resolve", "resolved")


# --- the end -------------------------------------------------------------------------------------------------


def test_it_is_over_after_calm_windows_in_a_row():
    calm = [news(1 + day) for day in range(CALM_WINDOWS)]
    incident, actions = after(news(0, "age"), *calm)
    assert actions == ["open", *[None] * (CALM_WINDOWS - 1), "resolve"]
    assert (incident.state, incident.resolved_at) == ("resolved", calm[-1].until)
    assert incident.seen_at == START + DAY
    assert incident.history[-1].text == "Nothing deviates any more."


@pytest.mark.parametrize("interruption", [news(CALM_WINDOWS, restless=["age"]), news(CALM_WINDOWS, "city")])
def test_a_restless_window_starts_the_count_again(interruption):
    before = [news(day) for day in range(1, CALM_WINDOWS)]
    later = [news(CALM_WINDOWS + 1 + day) for day in range(CALM_WINDOWS)]
    _, actions = after(news(0, "age"), *before, interruption, *later)
    assert "resolve" not in actions[:-1]
    assert actions[-1] == "resolve"


def test_restless_subjects_that_do_not_belong_to_it_do_not_prolong_it():
    incident, actions = after(news(0, "age"), *(news(1 + day, restless=["city"]) for day in range(CALM_WINDOWS)))
    assert actions[-1] == "resolve"
    assert incident.subjects == ("age",)


def test_a_window_that_is_checked_again_adds_subjects_but_no_calm():
    incident, _ = after(news(0, "age"), news(1))
    again, actions = after(*[news(1)] * 5, incident=incident)
    assert again == incident
    assert set(actions) == {None}
    joined, actions = after(news(1, "city"), incident=incident)
    assert actions == ["join"]
    assert set(joined.subjects) == {"age", "city"}
    assert joined.evidence["watches"] == incident.evidence["watches"]
    assert joined.seen_at == START + 2 * DAY


def test_each_watch_that_contributed_must_see_calm_windows_of_its_own():
    """A weekly watch and a daily one: seven calm days say nothing about what the weekly one has found."""
    incident, _ = after(news(0, "returns", watch="weekly", days=7), news(7, "age", watch="daily"))
    days = [news(8 + day, watch="daily") for day in range(6)]
    incident, actions = after(*days, incident=incident)
    assert set(actions) == {None}
    weeks = [news(7 * week, watch="weekly", days=7) for week in range(1, CALM_WINDOWS)]
    incident, actions = after(*weeks, incident=incident)
    assert set(actions) == {None}
    _, actions = after(news(7 * CALM_WINDOWS, watch="weekly", days=7), incident=incident)
    assert actions == ["resolve"]


def test_the_calm_of_a_watch_that_did_not_contribute_does_not_count():
    incident, _ = after(news(0, "returns", watch="weekly", days=7))
    same, actions = after(*(news(day, watch="daily") for day in range(7, 20)), incident=incident)
    assert same == incident
    assert set(actions) == {None}


def test_versions_that_deviate_meanwhile_are_added():
    second = replace(news(1, "age"), versions=("m@2", "m@1"))
    incident, _ = after(news(0, "age"), second)
    assert incident.versions == ("m@1", "m@2")


def test_monitoring_closes_with_a_reason():
    incident, _ = after(news(0, "age"))
    closed = close(incident, START + 2 * DAY, "m@1 no longer answers.")
    assert (closed.state, closed.resolved_at) == ("resolved", START + 2 * DAY)
    assert closed.history[-1] == IncidentChange(at=START + 2 * DAY, action="resolve", text="m@1 no longer answers.")


# --- any sequence --------------------------------------------------------------------------------------------

SUBJECTS = st.sets(st.sampled_from(["age", "city", "wind", "prediction"]), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["daily", "weekly"]),
            SUBJECTS,
            SUBJECTS,
            st.sampled_from(["notice", "alarm"]),
            st.booleans(),
        ),
        st.sampled_from(["acknowledged", "muted", "accepted", "resolved", "replaced"]),
    ),
    max_size=40,
)


@given(STEPS)
def test_any_sequence_leaves_one_ongoing_incident_and_a_consistent_history(steps):
    incidents: list[Incident] = []
    ends = {"daily": START, "weekly": START}
    calm: dict[str, int] = {}
    now = START
    for step in steps:
        ongoing = [one for one in incidents if one.state in ONGOING]
        assert len(ongoing) <= 1
        current = ongoing[0] if ongoing else None
        if isinstance(step, str):
            if current is not None and step == "replaced":
                incidents[-1] = close(current, now, "m@1 no longer answers.")
            elif current is not None:
                incidents[-1] = replace(current, state=step, resolved_at=now if step in CLOSED else None)
            continue
        watch, reasons, restless, severity, again = step
        span = {"daily": DAY, "weekly": 7 * DAY}[watch]
        if not again or ends[watch] == START:
            ends[watch] += span
            again = False
        until, now = ends[watch], max(now, ends[watch])
        window = WindowNews(
            kind="drift", since=until - span, until=until, watch=watch, versions=("m@1",),
            reasons={name: f"'{name}' has risen." for name in sorted(reasons)}, restless=frozenset(reasons | restless),
            severity=severity, weights=dict.fromkeys(reasons, 0.5), findings=tuple(f"{name}-{now}" for name in reasons),
        )  # fmt: skip
        known = current is not None and watch in calm
        later, action = advance(current, window, now, create)
        # The rule in a few lines, counted beside the code.
        if current is None:
            calm = {watch: 0} if reasons else {}
            assert action == ("open" if reasons else None)
        elif known and current.evidence["watches"][watch]["last_window"] >= until.isoformat():
            assert action in (None, "join", "escalate")
        elif known or reasons:
            calm[watch] = 0 if reasons or restless & set(current.subjects) else calm.get(watch, 0) + 1
            over = not reasons and not restless & set(current.subjects) and min(calm.values()) >= CALM_WINDOWS
            assert (action == "resolve") == over
        if later is None:
            assert current is None
            assert not reasons
            continue
        if current is None:
            incidents.append(later)
        else:
            incidents[-1] = later
            assert set(current.subjects) <= set(later.subjects)
            assert later.history[: len(current.history)] == current.history
            assert len(later.history) - len(current.history) == (action is not None)
            assert (later.severity == "alarm") >= (current.severity == "alarm")
            assert later.state == ("resolved" if action == "resolve" else current.state)
        assert reasons <= set(later.subjects)
    for one in incidents:
        assert [change.action for change in one.history].count("open") == 1
        assert one.history[0].action == "open"
        assert [change.at for change in one.history] == sorted(change.at for change in one.history)
        assert sum(change.action == "escalate" for change in one.history) <= 1
        assert one.began_at < one.seen_at
        assert len(set(one.subjects)) == len(one.subjects)
        assert (one.resolved_at is None) == (one.state in ONGOING)
        assert msgspec.json.decode(msgspec.json.encode(one), type=Incident) == one
