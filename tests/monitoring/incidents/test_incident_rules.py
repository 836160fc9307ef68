"""The rule of incidents, window by window: few ongoing incidents, in which nothing is counted twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, strategies as st

from everloop.monitoring.incidents.incident_actions import CLOSED, ONGOING
from everloop.monitoring.incidents.incident_rules import WindowNews, active_subjects, advance, close
from everloop.monitoring.noise.incident_rate import CALM_WINDOWS, MOST_ONGOING
from everloop.records import Incident, IncidentChange

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def news(day, *reasons, watch="drift", restless=(), days=1, **fields):
    """A window that begins on a day, with a sentence for each subject that is a reason."""
    since = START + day * DAY
    return WindowNews(
        kind="drift", since=since, until=since + days * DAY, watch=watch, versions=("m@1",) if reasons else (),
        reasons={subject: f"'{subject}' has risen." for subject in reasons}, restless=frozenset({*reasons, *restless}),
        findings=tuple(f"{subject}-{day}" for subject in reasons), **fields,
    )  # fmt: skip


class Stream:
    """The incidents of one kind at an endpoint, window by window."""

    def __init__(self, *incidents):
        self.incidents = list(incidents)
        self.numbers = itertools.count()

    @property
    def ongoing(self):
        return [one for one in self.incidents if one.state in ONGOING]

    def create(self, **fields):
        return Incident(id=f"i{next(self.numbers)}", project="p", created_at=START, **{**fields, "endpoint": "delays"})

    def see(self, window, now=None):
        """Apply a window; return the actions to announce."""
        steps = advance(self.ongoing, window, now or window.until, self.create)
        for step in steps:
            known = [at for at, one in enumerate(self.incidents) if one.id == step.incident.id]
            assert bool(known) == (step.action != "open")
            if known:
                assert self.incidents[known[0]].state in ONGOING, "what is over stays as it was"
                self.incidents[known[0]] = step.incident
            else:
                self.incidents.append(step.incident)
        return [step.action for step in steps if step.action is not None]


def after(*windows, incident=None):
    """Apply windows one by one to one incident; return it and the action of each window."""
    stream = Stream(*([incident] if incident is not None else []))
    actions = [stream.see(window) for window in windows]
    (last,) = stream.incidents
    assert all(len(each) <= 1 for each in actions)
    return last, [each[0] if each else None for each in actions]


# --- opening -------------------------------------------------------------------------------------------------


def test_a_window_without_a_reason_opens_nothing():
    stream = Stream()
    assert stream.see(news(0)) == []
    assert stream.see(news(0, restless=["age"], severity="alarm")) == []
    assert stream.incidents == []


def test_the_first_reason_opens_an_incident_that_says_what_has_happened():
    weights = {"age": 0.1, "city": 0.7, "wind": 0.2}
    window = news(3, *weights, weights=weights, harm="The mean prediction has risen.", evidence={"harm": {"x": 1}})
    incident, actions = after(window)
    assert actions == ["open"]
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


@pytest.mark.parametrize("interruption", [news(CALM_WINDOWS, restless=["age"]), news(CALM_WINDOWS, "age")])
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


def test_each_subject_counts_its_own_calm_windows():
    """One that has come back is named, but no longer prolongs the incident."""
    windows = [news(0, "age", "city"), *(news(1 + day, "city") for day in range(CALM_WINDOWS))]
    incident, _ = after(*windows)
    assert list(active_subjects(incident)) == ["city"]
    assert set(incident.subjects) == {"age", "city"}
    rest = [news(1 + CALM_WINDOWS + day, restless=["age"]) for day in range(CALM_WINDOWS)]
    over, actions = after(*rest, incident=incident)
    assert actions == [*[None] * (CALM_WINDOWS - 1), "resolve"]
    assert over.seen_at == windows[-1].until


def test_a_subject_that_comes_again_belongs_to_the_incident_again():
    windows = [news(0, "age", "city"), *(news(1 + day, "city") for day in range(CALM_WINDOWS)), news(9, "age", "city")]
    incident, actions = after(*windows)
    assert set(active_subjects(incident)) == {"age", "city"}
    assert actions == ["open", *[None] * (CALM_WINDOWS + 1)], "it is known already"


def test_a_window_that_is_checked_again_adds_subjects_but_no_calm():
    incident, _ = after(news(0, "age"), news(1))
    again, actions = after(*[news(1)] * 5, incident=incident)
    assert again == incident
    assert set(actions) == {None}
    joined, actions = after(news(1, "city"), incident=incident)
    assert actions == ["join"]
    assert set(joined.subjects) == {"age", "city"}
    assert joined.evidence["last_window"] == incident.evidence["last_window"]
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


# --- several at a time ---------------------------------------------------------------------------------------


def test_a_strong_change_opens_an_incident_beside_the_ongoing_one():
    stream = Stream()
    assert stream.see(news(0, "age")) == ["open"]
    assert stream.see(news(1, "age", "city", "wind", strong=frozenset({"city"}))) == ["open"]
    first, second = stream.incidents
    assert (first.subjects, set(second.subjects)) == (("age",), {"city", "wind"})
    assert second.began_at == START + DAY
    assert first.seen_at == second.seen_at == START + 2 * DAY
    assert stream.see(news(2, "gust", "age")) == ["join"], "what is weaker joins the newest"
    assert "gust" in stream.incidents[1].subjects


def test_each_of_several_ends_by_itself():
    stream = Stream()
    stream.see(news(0, "age"))
    stream.see(news(1, "city", strong=frozenset({"city"})))
    actions = [stream.see(news(2 + day, restless=["city"])) for day in range(CALM_WINDOWS)]
    assert [action for each in actions for action in each] == ["resolve"]
    assert [one.state for one in stream.incidents] == ["resolved", "open"]


def test_no_more_than_a_few_are_ongoing():
    stream = Stream()
    for day in range(MOST_ONGOING + 2):
        stream.see(news(day, f"c{day}", restless=[f"c{one}" for one in range(day)], strong=frozenset({f"c{day}"})))
    assert len(stream.incidents) == MOST_ONGOING
    assert len(stream.incidents[-1].subjects) == 3


# --- any sequence --------------------------------------------------------------------------------------------

SUBJECTS = st.sets(st.sampled_from(["age", "city", "wind", "prediction"]), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["daily", "weekly"]),
            SUBJECTS,
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
def test_any_sequence_leaves_few_ongoing_incidents_and_a_consistent_history(steps):
    stream = Stream()
    ends = {"daily": START, "weekly": START}
    now = START
    for step in steps:
        before = {one.id: one for one in stream.incidents}
        if isinstance(step, str):
            for one in stream.ongoing[:1]:
                at = stream.incidents.index(one)
                resolved_at = now if step in CLOSED else None
                closed = step == "replaced"
                stream.incidents[at] = (
                    close(one, now, "m@1 no longer answers.")
                    if closed
                    else replace(one, state=step, resolved_at=resolved_at)
                )
            continue
        watch, reasons, strong, restless, severity, again = step
        span = {"daily": DAY, "weekly": 7 * DAY}[watch]
        again = again and ends[watch] > START
        ends[watch] += timedelta(0) if again else span
        until, now = ends[watch], max(now, ends[watch])
        window = WindowNews(
            kind="drift", since=until - span, until=until, watch=watch, versions=("m@1",),
            reasons={name: f"'{name}' has risen." for name in sorted(reasons)}, restless=frozenset(reasons | restless),
            strong=frozenset(strong), severity=severity, weights=dict.fromkeys(reasons, 0.5),
            findings=tuple(f"{name}-{now}" for name in reasons),
        )  # fmt: skip
        ongoing = stream.ongoing
        actions = stream.see(window, now)
        assert len(stream.ongoing) <= MOST_ONGOING
        assert actions.count("open") <= 1
        if not ongoing:
            assert actions == (["open"] if reasons else [])
        elif not strong & reasons:
            assert "open" not in actions
        active = [subject for one in stream.ongoing for subject in active_subjects(one)]
        assert len(set(active)) == len(active), "a subject belongs to one ongoing incident"
        assert reasons <= set(active)
        for one in stream.incidents:
            if one.id not in before:
                continue
            known = before[one.id]
            assert set(known.subjects) <= set(one.subjects)
            assert one.history[: len(known.history)] == known.history
            assert len(one.history) - len(known.history) <= 1
            assert (one.severity == "alarm") >= (known.severity == "alarm")
            assert one.seen_at >= known.seen_at
            if one.state != known.state:
                assert (known.state in ONGOING, one.state, one.history[-1].action) == (True, "resolved", "resolve")
                assert not active_subjects(one)
    for one in stream.incidents:
        assert [change.action for change in one.history].count("open") == 1
        assert one.history[0].action == "open"
        assert [change.at for change in one.history] == sorted(change.at for change in one.history)
        assert sum(change.action == "escalate" for change in one.history) <= 1
        assert one.began_at < one.seen_at
        assert len(set(one.subjects)) == len(one.subjects)
        assert (one.resolved_at is None) == (one.state in ONGOING)
        assert msgspec.json.decode(msgspec.json.encode(one), type=Incident) == one
