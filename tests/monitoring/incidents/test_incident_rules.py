"""The rule of incidents, window by window: up to three ongoing incidents, in which nothing is counted twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from everloop.monitoring.incidents.incident_actions import CLOSED, ONGOING
from everloop.monitoring.incidents.incident_rules import WindowNews, active_subjects, advance, close, contributes
from everloop.monitoring.noise.incident_rate import CALM_SURPRISE, CALM_WINDOWS, MOST_ONGOING, STRONG, IncidentRule
from everloop.records import Incident, IncidentChange

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)


_numbers = count()


def create(**fields):
    return Incident(id=f"i{next(_numbers)}", project="p", created_at=START, **{**fields, "endpoint": "delays"})


def news(day, *reasons, watch="drift", restless=(), days=1, **fields):
    """A window that begins on a day, with a sentence for each subject that is a reason."""
    since = START + day * DAY
    return WindowNews(
        kind="drift", since=since, until=since + days * DAY, watch=watch, versions=("m@1",) if reasons else (),
        reasons={subject: f"'{subject}' has risen." for subject in reasons}, restless=frozenset({*reasons, *restless}),
        findings=tuple(f"{subject}-{day}" for subject in reasons), **fields,
    )  # fmt: skip


class Watched:
    """Incidents of one kind, oldest first, as windows come."""

    def __init__(self, *incidents):
        self.incidents = list(incidents)

    @property
    def ongoing(self):
        return [one for one in self.incidents if one.state in ONGOING]

    def see(self, window, now=None):
        """Apply a window; return the steps."""
        steps = advance(self.ongoing, window, now or window.until, create)
        for step in steps:
            at = [one.id for one in self.incidents].index(step.incident.id) if step.action != "open" else None
            self.incidents[slice(len(self.incidents), None) if at is None else slice(at, at + 1)] = [step.incident]
        return steps


def after(*windows, incident=None):
    """Apply windows one by one; return the only incident and the actions."""
    watched = Watched(*([incident] if incident is not None else []))
    actions = []
    for one in windows:
        steps = watched.see(one)
        assert len(steps) <= 1
        actions.append(steps[0].action if steps else None)
    (incident,) = watched.incidents
    return incident, actions


# --- opening -------------------------------------------------------------------------------------------------


def test_a_window_without_a_reason_opens_nothing():
    assert advance([], news(0), START, create) == []
    assert advance([], news(0, restless=["age"], strong=frozenset({"age"}), severity="alarm"), START, create) == []


def test_the_first_reason_opens_an_incident_that_says_what_has_happened():
    weights = {"age": 0.1, "city": 0.7, "wind": 0.2}
    window = news(3, *weights, weights=weights, harm="The mean prediction has risen.", evidence={"harm": {"x": 1}})
    (step,) = advance([], window, START + 4 * DAY, create)
    incident = step.incident
    assert step.action == "open"
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


def test_each_subject_counts_its_own_calm_windows():
    incident, _ = after(news(0, "age"), news(1, "city"), news(2, restless=["city"]))
    assert active_subjects(incident) == {"age": {"watch": "drift", "calm": 2}, "city": {"watch": "drift", "calm": 0}}
    incident, actions = after(news(3, restless=["city"]), news(4), news(5), incident=incident)
    assert list(active_subjects(incident)) == ["city"], "age has left"
    assert incident.subjects == ("age", "city"), "but it is still told about"
    # What has left neither prolongs the incident nor is calm again.
    incident, actions = after(news(6, restless=["age"]), incident=incident)
    assert actions == ["resolve"]


def test_a_subject_that_has_left_is_new_if_it_comes_back():
    incident, _ = after(news(0, "age", "city"), *(news(1 + day, "city") for day in range(CALM_WINDOWS)), news(9, "age"))
    assert active_subjects(incident).keys() == {"age", "city"}
    watched = Watched(after(news(0, "age", "city"), *(news(1 + day, "city") for day in range(CALM_WINDOWS)))[0])
    steps = watched.see(news(9, "age", strong=frozenset({"age"})))
    assert [step.action for step in steps] == [None, "open"]


def test_a_window_that_is_checked_again_adds_subjects_but_no_calm():
    incident, _ = after(news(0, "age"), news(1))
    again, actions = after(*[news(1)] * 5, incident=incident)
    assert again == incident
    assert set(actions) == {None}
    joined, actions = after(news(1, "city"), incident=incident)
    assert actions == ["join"]
    assert set(joined.subjects) == {"age", "city"}
    assert active_subjects(joined) == {"age": {"watch": "drift", "calm": 1}, "city": {"watch": "drift", "calm": 0}}
    assert joined.evidence["last_window"] == incident.evidence["last_window"]
    assert joined.seen_at == START + 2 * DAY
    # What was added has to be calm as well before it is over.
    _, actions = after(news(2), news(3), news(4), incident=joined)
    assert actions == [None, None, "resolve"]


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


def test_contributions_end_when_the_subjects_have_left():
    incident, _ = after(news(0, "returns", watch="weekly", days=7), news(7, "age", watch="daily"))
    assert contributes(incident, "weekly")
    assert contributes(incident, "daily")
    assert not contributes(incident, "hourly")
    incident, _ = after(*(news(8 + day, watch="daily") for day in range(CALM_WINDOWS)), incident=incident)
    assert contributes(incident, "weekly")
    assert not contributes(incident, "daily")


def test_versions_that_deviate_meanwhile_are_added():
    second = replace(news(1, "age"), versions=("m@2", "m@1"))
    incident, _ = after(news(0, "age"), second)
    assert incident.versions == ("m@1", "m@2")


def test_monitoring_closes_with_a_reason():
    incident, _ = after(news(0, "age"))
    closed = close(incident, START + 2 * DAY, "m@1 no longer answers.")
    assert (closed.state, closed.resolved_at) == ("resolved", START + 2 * DAY)
    assert closed.history[-1] == IncidentChange(at=START + 2 * DAY, action="resolve", text="m@1 no longer answers.")


# --- several incidents ---------------------------------------------------------------------------------------


def strong(day, *reasons, **fields):
    return news(day, *reasons, strong=frozenset(reasons), **fields)


def subjects(watched):
    return [set(one.subjects) for one in watched.ongoing]


def test_a_strong_change_opens_an_incident_beside_an_ongoing_one():
    watched = Watched()
    watched.see(news(0, "age"))
    steps = watched.see(strong(1, "city"))
    assert [step.action for step in steps] == [None, "open"]
    assert subjects(watched) == [{"age"}, {"city"}]
    first, second = watched.incidents
    assert second.title == "'city' has risen."
    assert second.began_at == START + DAY
    assert active_subjects(first) == {"age": {"watch": "drift", "calm": 1}}


def test_a_strong_change_of_a_subject_that_is_known_opens_nothing():
    watched = Watched()
    watched.see(news(0, "age"))
    assert [step.action for step in watched.see(strong(1, "age"))] == [None]
    assert subjects(watched) == [{"age"}]


def test_an_incident_that_opens_beside_another_takes_all_that_is_new_in_its_window():
    watched = Watched()
    watched.see(news(0, "age"))
    watched.see(news(1, "age", "city", "wind", strong=frozenset({"age", "city"})))
    assert subjects(watched) == [{"age"}, {"city", "wind"}]
    assert set(watched.incidents[1].evidence["sentences"]) == {"city", "wind"}


def test_what_is_not_strong_joins_the_newest():
    watched = Watched()
    for window in (news(0, "age"), strong(1, "age", "city"), news(2, "wind", restless=["age", "city"])):
        watched.see(window)
    assert subjects(watched) == [{"age"}, {"city", "wind"}]
    # When the newest is over, it is the one before.
    for day in range(3, 3 + CALM_WINDOWS):
        watched.see(news(day, restless=["age"]))
    watched.see(news(9, "wind"))
    assert subjects(watched) == [{"age", "wind"}]


def test_no_more_than_three_are_ongoing():
    watched = Watched()
    names = "abcdef"
    for day, name in enumerate(names):
        watched.see(strong(day, name, restless=names[:day]))
    assert MOST_ONGOING == 3
    assert subjects(watched) == [{"a"}, {"b"}, {"c", "d", "e", "f"}]
    # As soon as one is over, there is room again.
    for day in range(6, 6 + CALM_WINDOWS):
        watched.see(news(day, restless=names[1:]))
    watched.see(strong(9, "g"))
    assert subjects(watched) == [{"b"}, {"c", "d", "e", "f"}, {"g"}]


def test_incidents_end_separately():
    watched = Watched()
    watched.see(news(0, "age"))
    watched.see(strong(1, "city", restless=["age"]))
    actions = [[step.action for step in watched.see(news(day, restless=["city"]))] for day in range(2, 5)]
    assert actions == [[None, None], [None, None], ["resolve", None]]
    assert [one.state for one in watched.incidents] == ["resolved", "open"]


def test_what_a_person_has_decided_about_one_says_nothing_about_the_next():
    watched = Watched()
    watched.see(news(0, "age"))
    watched.incidents = [replace(watched.incidents[0], state="muted")]
    watched.see(strong(1, "city"))
    assert [one.state for one in watched.incidents] == ["muted", "open"]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.3, 6.0), st.floats(0.5, 12.0))
def test_the_rule_for_simulated_streams_opens_the_same_incidents(seed, directions, limit, size):
    """Each direction of a stream is a subject. The limit is found with one rule, and the other opens incidents."""
    generator = np.random.default_rng(seed)
    # Changes come and go, large and small ones.
    changed = np.cumsum(generator.random((60, directions)) < 0.25, axis=0) % 2
    alone = changed * generator.exponential(size, changed.shape)
    strongest = np.maximum(alone, generator.exponential(size, alone.shape) * (generator.random(alone.shape) < 0.3))
    rule = IncidentRule(1, directions)
    watched = Watched()
    for day in range(60):
        beyond, far = strongest[day] > limit, strongest[day] > limit + STRONG
        restless = beyond | (alone[day] > CALM_SURPRISE)
        window = news(
            day, *map(str, np.flatnonzero(beyond)), restless=map(str, np.flatnonzero(restless)),
            strong=frozenset(map(str, np.flatnonzero(far))),
        )  # fmt: skip
        steps = watched.see(window)
        opening = rule.advance(strongest[day][None], alone[day][None], limit)
        assert opening.tolist() == [any(step.action == "open" for step in steps)]
        assert rule.ongoing.tolist() == [bool(watched.ongoing)]
        members = {name for one in watched.ongoing for name in active_subjects(one)}
        assert members == {str(index) for index in np.flatnonzero(rule._incident[0])}
        assert len(set(rule._incident[0]) - {0}) == len(watched.ongoing) <= MOST_ONGOING


# --- any sequence --------------------------------------------------------------------------------------------

SUBJECTS = st.sets(st.sampled_from(["age", "city", "wind", "rain", "prediction"]), max_size=3)
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


class Expected:
    """The rule in a few lines, counted beside the code: the subjects of each ongoing incident that are not calm."""

    def __init__(self):
        self.active: dict[str, dict[str, tuple[str, int]]] = {}
        self.seen: dict[tuple[str, str], datetime] = {}

    def see(self, window):
        """Apply a window; return whether an incident opens, its subjects, and which incidents are over."""
        every = {name for active in self.active.values() for name in active}
        new = set(window.reasons) - every
        opens = bool(new & window.strong if self.active else new) and len(self.active) < MOST_ONGOING
        over = []
        for number, active in list(self.active.items()):
            newest = number == list(self.active)[-1]
            reasons = (set(window.reasons) & set(active)) | (new if newest and not opens else set())
            if window.until <= self.seen.get((number, window.watch), START):
                self.active[number] = dict.fromkeys(reasons, (window.watch, 0)) | active
                continue
            own = {name for name, (watch, _) in active.items() if watch == window.watch}
            if not own and not reasons:
                continue
            self.seen[number, window.watch] = window.until
            for name in own - reasons:
                active[name] = (window.watch, 0 if name in window.restless else active[name][1] + 1)
            active |= dict.fromkeys(reasons, (window.watch, 0))
            self.active[number] = {name: state for name, state in active.items() if state[1] < CALM_WINDOWS}
            if not self.active[number]:
                over.append(number)
        return opens, new, over


@pytest.mark.slow
@given(STEPS)
def test_any_sequence_follows_the_rule_and_leaves_a_consistent_history(steps):
    watched, expected = Watched(), Expected()
    ends = {"daily": START, "weekly": START}
    now = START
    for step in steps:
        before = {one.id: one for one in watched.ongoing}
        assert list(before) == list(expected.active)
        assert len(before) <= MOST_ONGOING
        if isinstance(step, str):
            if before:
                current = next(iter(before.values()))
                closed = close(current, now, "m@1 no longer answers.")
                decided = replace(current, state=step, resolved_at=now if step in CLOSED else None)
                after_it = closed if step == "replaced" else decided
                watched.incidents[watched.incidents.index(current)] = after_it
                if after_it.state not in ONGOING:
                    del expected.active[current.id]
            continue
        watch, reasons, restless, far, severity, again = step
        span = {"daily": DAY, "weekly": 7 * DAY}[watch]
        if not again or ends[watch] == START:
            ends[watch] += span
        until, now = ends[watch], max(now, ends[watch])
        window = WindowNews(
            kind="drift", since=until - span, until=until, watch=watch, versions=("m@1",),
            reasons={name: f"'{name}' has risen." for name in sorted(reasons)}, restless=frozenset(reasons | restless),
            strong=frozenset(far & reasons), severity=severity, weights=dict.fromkeys(reasons, 0.5),
            findings=tuple(f"{name}-{now}" for name in reasons),
        )  # fmt: skip
        result = {result.incident.id: result for result in watched.see(window, now)}
        opens, new, over = expected.see(window)
        opened = [number for number, result in result.items() if result.action == "open"]
        assert len(opened) == opens
        assert [number for number, result in result.items() if result.action == "resolve"] == over
        for number in over:
            del expected.active[number]
        for number in opened:
            expected.active[number] = dict.fromkeys(new, (watch, 0))
            expected.seen[number, watch] = until
            assert set(result[number].incident.subjects) == new
        for one in watched.ongoing:
            states = {name: (state["watch"], state["calm"]) for name, state in active_subjects(one).items()}
            assert states == expected.active[one.id]
            assert set(states) <= set(one.subjects)
        active = [name for states in expected.active.values() for name in states]
        assert len(active) == len(set(active)), "no subject is active in two incidents"
        assert reasons <= set(active)
        for number, current in before.items():
            if number not in result:
                continue
            later, action = result[number].incident, result[number].action
            assert set(current.subjects) <= set(later.subjects)
            assert later.history[: len(current.history)] == current.history
            assert len(later.history) - len(current.history) == (action is not None)
            assert (later.severity == "alarm") >= (current.severity == "alarm")
            assert later.state == ("resolved" if action == "resolve" else current.state)
    for one in watched.incidents:
        assert [change.action for change in one.history].count("open") == 1
        assert one.history[0].action == "open"
        assert [change.at for change in one.history] == sorted(change.at for change in one.history)
        assert sum(change.action == "escalate" for change in one.history) <= 1
        assert one.began_at < one.seen_at
        assert len(set(one.subjects)) == len(one.subjects)
        assert (one.resolved_at is None) == (one.state in ONGOING)
        assert msgspec.json.decode(msgspec.json.encode(one), type=Incident) == one
