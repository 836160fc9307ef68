"""Messages about incidents: when they are sent, what they say, and that nothing is lost or repeated."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.monitoring.incidents.incident_records import change, put_incident

from everloop.errors import MissingExtraError, ProjectError, UnavailableError, UsageError
from everloop.monitoring.incidents.incident_actions import acknowledge, list_incidents, mute, resolve
from everloop.monitoring.incidents.notification_channels import Notify, read_channels
from everloop.monitoring.incidents.notifications import send_by_apprise, send_notifications
from everloop.records import NotificationChannel
from everloop.stores import open_store
from everloop.stores.clock import FixedClock

TEAM = Notify("json://127.0.0.1:1/secret", name="team")
LOUD = Notify("json://127.0.0.1:1/secret", name="loud", at_least="alarm")


class Outbox:
    """Keeps what is sent; refuses everything while it is down."""

    def __init__(self):
        self.sent = []
        self.down = False

    def __call__(self, channel, message):
        if self.down:
            raise UnavailableError("down")
        self.sent.append(message)


@pytest.fixture
def outbox():
    return Outbox()


@pytest.fixture
def tick(store, outbox):
    """Send what is due to these channels; return the messages of this tick."""

    def call(*channels):
        messages, errors = send_notifications(store, channels or (TEAM,), sender=outbox)
        assert outbox.down or errors == []
        return messages

    return call


def test_an_alarm_is_sent_at_once_and_only_once(store, tick, clock):
    assert tick() == []
    incident = put_incident(store, message="This costs about 3 points of AUC.")
    (message,) = tick()
    assert message.title == "Alarm on delays: 'age' has risen from 40 to 55."
    assert "This costs about 3 points of AUC." in message.body
    assert f"everloop monitor show {incident.id}" in message.body
    change(store, incident, verb="joined", seen_at=clock.moment)
    acknowledge(store, incident.id)
    assert tick() == []
    resolve(store, incident.id)
    (over,) = tick()
    assert over.title.startswith("Alarm over on delays")
    assert tick() == []
    assert store.records.get(NotificationChannel, "team").announced == {}


def test_many_incidents_are_one_message(store, tick, outbox):
    for number in range(25):
        put_incident(store, f"incident {number}", endpoint=f"e{number % 4}")
    (message,) = tick()
    assert message.title == "25 alarms on e0, e3, e2 and 1 more"
    assert message.body.count("everloop monitor show") == 10
    assert "Alarm: 15 more" in message.body
    assert tick() == []
    assert len(outbox.sent) == 1


def test_notices_wait_for_the_digest_and_keep_its_time_of_day(store, tick, clock):
    tick()
    clock.go(hours=20)
    first = put_incident(store, "slow change", severity="notice")
    assert tick() == []
    clock.go(hours=5)
    (message,) = tick()
    assert message.title == "Notice on delays: slow change"
    # The next digest is due 24 hours after the first moment, not after the last message.
    put_incident(store, "another", severity="notice")
    clock.go(hours=22)
    assert tick() == []
    resolve(store, first.id)
    clock.go(hours=2)
    (message,) = tick()
    assert message.title == "1 notice, 1 notice over on delays"
    clock.go(days=30)
    assert tick() == []


def test_a_notice_that_becomes_an_alarm_is_sent_at_once_to_every_channel(store, tick, clock):
    tick(TEAM, LOUD)
    incident = put_incident(store, severity="notice")
    clock.go(days=1)
    assert [one.channel for one in tick(TEAM, LOUD)] == ["team"]
    change(store, incident, severity="alarm", verb="escalated")
    assert [(one.channel, one.title[:5]) for one in tick(TEAM, LOUD)] == [("team", "Alarm"), ("loud", "Alarm")]


def test_muted_incidents_are_silent_until_the_mute_ends(store, tick, clock):
    incident = put_incident(store)
    mute(store, incident.id, clock.moment.replace(hour=12))
    assert tick() == []
    clock.go(hours=3)
    assert len(tick()) == 1
    blip = put_incident(store)
    resolve(store, blip.id)
    assert tick() == []


def test_a_failed_message_is_sent_later_with_what_has_happened_since(store, tick, outbox, clock):
    put_incident(store, "first")
    outbox.down = True
    assert tick() == []
    put_incident(store, "second")
    assert tick() == []
    known = store.records.get(NotificationChannel, "team")
    assert (known.failures, known.error) == (1, "down")
    outbox.down = False
    assert tick() == []
    clock.go(minutes=1)
    (message,) = tick()
    assert message.title == "2 alarms on delays"
    assert message.id == "p-team-1"
    assert store.records.get(NotificationChannel, "team").failures == 0


def test_nothing_is_repeated_after_a_restart_nor_sent_in_a_simulation(store, tick, outbox, clock, tmp_path):
    put_incident(store)
    assert len(tick()) == 1
    with open_store(tmp_path / "home", project="p", clock=clock) as again:
        assert send_notifications(again, [TEAM], sender=outbox) == ([], [])
    put_incident(store)
    with open_store(tmp_path / "home", project="p", clock=FixedClock(clock.moment)) as simulated:
        assert send_notifications(simulated, [TEAM], sender=outbox) == ([], [])
    assert len(tick()) == 1


def test_a_message_that_was_sent_and_not_recorded_is_repeated_with_its_number(store, outbox):
    put_incident(store)

    def killed(channel, message):
        outbox(channel, message)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send_notifications(store, [TEAM], sender=killed)
    send_notifications(store, [TEAM], sender=outbox)
    first, second = outbox.sent
    assert first == second


STEPS = st.sampled_from(["alarm", "notice", "escalate", "resolve", "mute", "tick", "hours", "down", "up"])


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=25))
def test_each_channel_ends_with_what_is_true_and_hears_of_no_alarm_twice(tmp_path_factory, steps):
    from tests.monitoring.incidents.conftest import Hands

    clock, outbox = Hands(), Outbox()
    with open_store(tmp_path_factory.mktemp("home"), project="p", clock=clock) as store:
        for step in steps:
            ongoing = [one for one in list_incidents(store) if one.state == "open"]
            if step in ("alarm", "notice"):
                put_incident(store, severity=step)
            elif step == "escalate" and ongoing:
                change(store, ongoing[0], severity="alarm")
            elif step == "resolve" and ongoing:
                resolve(store, ongoing[0].id)
            elif step == "mute" and ongoing:
                mute(store, ongoing[0].id)
            elif step in ("down", "up"):
                outbox.down = step == "down"
            elif step == "hours":
                clock.go(hours=7)
            else:
                before = len(outbox.sent)
                send_notifications(store, [TEAM], sender=outbox)
                assert len(outbox.sent) - before <= 1
        outbox.down = False
        clock.go(days=2)
        send_notifications(store, [TEAM], sender=outbox)
        known = store.records.get(NotificationChannel, "team")
        loud = {one.id: one.severity for one in list_incidents(store) if one.state == "open"}
        assert loud.items() <= known.announced.items()
        assert send_notifications(store, [TEAM], sender=outbox) == ([], [])
        told = [line for message in outbox.sent for line in message.body.splitlines() if line.startswith("Alarm on")]
        assert len(told) <= sum(step in ("alarm", "escalate") for step in steps)
        assert len({message.id for message in outbox.sent}) == len(outbox.sent)


def test_control_characters_never_reach_a_channel(store, tick):
    put_incident(store, "\x1b[31mred\u202e and\nlines " + "x" * 2000, endpoint="e")
    (message,) = tick()
    assert "\x1b" not in message.body + message.title
    assert "\u202e" not in message.body + message.title
    assert "\n" not in message.title
    assert len(message.title) <= 200


# --- through apprise -----------------------------------------------------------------------------------------


@pytest.fixture
def apprise():
    return pytest.importorskip("apprise", reason="apprise is not installed; pip install 'everloop[notify]'")


@pytest.fixture
def server():
    """A local HTTP server for apprise's JSON service: (address, the bodies it received, its status)."""
    bodies, status = [], [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{running.server_port}", bodies, status
        running.shutdown()
        thread.join()


# It imports a module of the standard library that is deprecated.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_apprise_delivers_one_body_with_title_and_text(store, server, apprise):
    address, bodies, status = server
    for name in ("one", "two"):
        put_incident(store, f"<b>{name}</b> & more")
    channel = Notify(f"json://user:hunter2@{address}/path", name="json")
    messages, errors = send_notifications(store, [channel])
    assert (len(messages), errors) == (1, [])
    (body,) = bodies
    assert body["title"] == "2 alarms on delays"
    assert "<b>one</b> & more" in body["message"]
    put_incident(store)
    status[0] = 500
    messages, (error,) = send_notifications(store, [channel])
    assert messages == []
    assert "'json' (json://…)" in str(error)
    assert "hunter2" not in str(error) + repr(channel) + str(store.records.get(NotificationChannel, "json"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_url_that_apprise_does_not_know_is_not_shown(store, apprise):
    put_incident(store)
    _, (error,) = send_notifications(store, [Notify("nothing://s3cret", name="odd")])
    assert isinstance(error, UnavailableError)
    assert "'odd' (nothing://…)" in error.message
    assert "s3cret" not in str(error)


def test_without_apprise_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    put_incident(store)
    with pytest.raises(MissingExtraError, match=r"everloop\[notify\]"):
        send_by_apprise(TEAM, send_notifications(store, [LOUD], sender=lambda *_: None)[0][0])


# --- settings ------------------------------------------------------------------------------------------------


def test_channels_are_read_from_the_file_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("EVERLOOP_NOTIFY", raising=False)
    assert read_channels(tmp_path) == []
    (tmp_path / "everloop.toml").write_text(
        '[[notify]]\nurl = "slack://${TOKEN}/#ml"\n[[notify]]\nname = "mail"\nurl = "mailto://a:b@c.org"\n'
        'at_least = "alarm"\ndigest = "12h"\n'
    )
    with pytest.raises(ProjectError, match=r"number 1 .*variable TOKEN, which is not set"):
        read_channels(tmp_path)
    monkeypatch.setenv("TOKEN", "t0p")
    monkeypatch.setenv("EVERLOOP_NOTIFY", "json://localhost")
    slack, mail, environment = read_channels(tmp_path / "below")
    assert (slack.name, slack.url, slack.at_least, slack.digest) == ("slack", "slack://t0p/#ml", "notice", "1d")
    assert (mail.name, mail.at_least, mail.digest) == ("mail", "alarm", "12h")
    assert environment.name == "EVERLOOP_NOTIFY"
    assert replace(slack, name="x") != slack


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[[notify]]\nurl = "s3cret"', "must begin with a scheme"),
        ("[[notify]]\nurl = 3", "has no url"),
        ('[[notify]]\nname = "x"', "has no url"),
        ('[[notify]]\nurl = "a://b"\nloud = true', "unknown setting 'loud'"),
        ('[[notify]]\nurl = "a://b"\nat_least = "loud"', "Choose 'notice' or 'alarm'"),
        ('[[notify]]\nurl = "a://b"\nat_least = 3', "Choose 'notice' or 'alarm'"),
        ('[[notify]]\nurl = "a://b"\ndigest = "often"', "'often' is not a duration"),
        ('[[notify]]\nurl = "a://b"\ndigest = "0s"', "not a duration above 0"),
        ('[[notify]]\nurl = "a://b"\ndigest = 3', "not a duration above 0"),
        ('[[notify]]\nurl = "a://b"\nname = "a b"', "'a b' is not a valid name"),
        ('[[notify]]\nurl = "a://b"\n[[notify]]\nurl = "a://c"', "called 'a'"),
        ('notify = "a://b"', "double brackets"),
        ('[notify]\nurl = "a://b"', "double brackets"),
        ("[[notify", "cannot be read"),
    ],
)
def test_wrong_settings_are_named_without_their_url(tmp_path, monkeypatch, content, problem):
    monkeypatch.delenv("EVERLOOP_NOTIFY", raising=False)
    (tmp_path / "everloop.toml").write_text(content)
    with pytest.raises(ProjectError) as error:
        read_channels(tmp_path)
    assert problem in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_wrong_url_in_the_environment_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_NOTIFY", "s3cret")
    with pytest.raises(ProjectError, match=r"^EVERLOOP_NOTIFY: ") as error:
        read_channels(tmp_path)
    assert "s3cret" not in str(error.value)
    with pytest.raises(UsageError):
        Notify("")
