"""Send messages about incidents: one for each channel and tick, however many incidents there are.

Alarms are sent at once: when they open, when a notice becomes an alarm, and when they are over. Notices are sent
together, once in each period of the channel's digest. A muted incident sends nothing until the mute ends. An incident
that opens and closes between two messages is not mentioned.

For each channel, the store keeps which ongoing incidents it has received (`records.NotificationChannel`). A message is
the difference between that and the incidents as they are now, so nothing is lost or repeated after a restart. If the
process is killed after sending and before storing, that one message is sent again with the same number. A failed
message is tried again after 1, 5 and 30 minutes, then every two hours, with whatever has happened meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from everloop.errors import AlreadyExistsError, ConflictError, EverloopError, MissingExtraError, UnavailableError
from everloop.monitoring.incidents.incident_actions import ONGOING, is_muted, list_incidents
from everloop.records import Incident, IncidentSeverity, NotificationChannel
from everloop.stores.durations import parse_duration
from everloop.stores.printable import printable

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.monitoring.incidents.notification_channels import Notify
    from everloop.stores import Store

MOST_LISTED = 10
"""At most this many incidents of a kind are described in a message; the others are counted."""
RETRY_AFTER = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2))

_LONGEST_TEXT = 1000


@dataclass(frozen=True, slots=True)
class IncidentMessage:
    """One message for one channel. `id` is the same if the message is sent twice."""

    channel: str
    id: str
    title: str
    body: str


Sender = Callable[["Notify", IncidentMessage], None]
"""Sends a message to a channel, or raises EverloopError."""


def send_notifications(
    store: Store, channels: Sequence[Notify], *, sender: Sender | None = None
) -> tuple[list[IncidentMessage], list[EverloopError]]:
    """Send each channel a message if there is news for it. Called at every tick; without news it reads two records.

    Nothing is sent if the store's clock is simulated, as in a replay.

    Args:
        sender: sends a message. Default: apprise.

    Returns:
        The messages that were sent, and the errors of the channels that could not be reached.
    """
    sent: list[IncidentMessage] = []
    errors: list[EverloopError] = []
    if not channels or store.clock.simulated:
        return sent, errors
    with store.lock("notifications", block=False) as held:
        if not held:
            return sent, errors
        ongoing = list_incidents(store)
        for channel in channels:
            try:
                message = _send_news(store, channel, ongoing, sender or send_by_apprise)
            except EverloopError as error:
                errors.append(error)
            else:
                sent += [message] if message is not None else []
    return sent, errors


def send_by_apprise(channel: Notify, message: IncidentMessage) -> None:
    """Send a message with apprise.

    Raises:
        MissingExtraError: apprise is not installed.
        UnavailableError: apprise does not know the URL, or the service refused the message. The URL is not shown.
    """
    try:
        import apprise
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(f"The notification channel '{channel.name}'", "apprise", "notify") from error
    service = apprise.Apprise()
    scheme = channel.url.partition("://")[0]
    if not service.add(channel.url):
        raise UnavailableError(
            f"The URL of the notification channel '{channel.name}' ({scheme}://…) is not valid for apprise.",
            help=f"Its form: https://appriseit.com/services/{scheme}/",
        )
    if not service.notify(title=message.title, body=message.body, body_format=apprise.NotifyFormat.TEXT):
        raise UnavailableError(
            f"The notification channel '{channel.name}' ({scheme}://…) did not accept a message.",
            help="Check its URL and that the service can be reached. The message is sent again later.",
        )


@dataclass(frozen=True, slots=True)
class IncidentNews:
    """What a channel does not know yet. The lists are ordered, newest incident first."""

    alarms: Sequence[Incident] = ()
    over: Sequence[Incident] = ()
    notices: Sequence[Incident] = ()
    notices_over: Sequence[Incident] = ()

    def __bool__(self) -> bool:
        return bool(self.alarms or self.over or self.notices or self.notices_over)


def find_news(
    channel: Notify, known: NotificationChannel, ongoing: Sequence[Incident], closed: Sequence[Incident], now: datetime
) -> IncidentNews:
    """Return what a channel has to receive now.

    Args:
        ongoing: all ongoing incidents.
        closed: the incidents in `known.announced` that are closed.
    """
    audible = [one for one in ongoing if not is_muted(one, now)]
    alarms = [one for one in audible if one.severity == "alarm" and known.announced.get(one.id) != "alarm"]
    over = [one for one in closed if known.announced.get(one.id) == "alarm"]
    if channel.at_least == "alarm":
        return IncidentNews(alarms, over)
    period = parse_duration(channel.digest)

    def due(moment: datetime) -> bool:
        # Whether a period has ended since. So digests keep their time of day.
        return (now - known.digest_from) // period > (moment - known.digest_from) // period

    notices = [
        one for one in audible if one.severity == "notice" and one.id not in known.announced and due(one.created_at)
    ]
    notices_over = [
        one for one in closed if known.announced.get(one.id) == "notice" and due(one.resolved_at or one.seen_at)
    ]
    return IncidentNews(alarms, over, notices, notices_over)


def write_message(channel: Notify, id: str, news: IncidentNews) -> IncidentMessage:
    """Write the message for a channel. Control characters in it are escaped."""
    counts = [
        _counted(len(news.alarms), "alarm"),
        f"{_counted(len(news.over), 'alarm')} over" if news.over else "",
        _counted(len(news.notices), "notice"),
        f"{_counted(len(news.notices_over), 'notice')} over" if news.notices_over else "",
    ]
    every = [*news.alarms, *news.over, *news.notices, *news.notices_over]
    title = ", ".join(filter(None, counts))
    endpoints = list(dict.fromkeys(one.endpoint for one in every))
    title += f" on {', '.join(endpoints[:3])}" + (f" and {len(endpoints) - 3} more" if len(endpoints) > 3 else "")
    if len(every) == 1:
        kind = "Alarm" if news.alarms or news.over else "Notice"
        title = f"{kind}{' over' if news.over or news.notices_over else ''} on {every[0].endpoint}: {every[0].title}"
    lines = [
        *_section("Alarm", news.alarms, full=True),
        *_section("Over", news.over),
        *_section("Notice", news.notices),
        *_section("Notice over", news.notices_over),
    ]
    lines.append(f"Message {id}. All incidents: everloop monitor ls")
    return IncidentMessage(channel.name, id, _shortened(title, 200), printable("\n".join(lines)))


def _send_news(store: Store, channel: Notify, ongoing: Sequence[Incident], sender: Sender) -> IncidentMessage | None:
    now = store.now()
    known = _known_channel(store, channel.name)
    if known.retry_at is not None and now < known.retry_at:
        return None
    going = {one.id for one in ongoing}
    ended = [each for each in known.announced if each not in going]
    closed = [one for one in store.records.get_many(Incident, ended) if one.state not in ONGOING]
    news = find_news(channel, known, ongoing, closed, now)
    if not news:
        return None
    message = write_message(channel, f"{store.project}-{channel.name}-{known.messages + 1}", news)
    try:
        sender(channel, message)
    except EverloopError as error:
        wait = RETRY_AFTER[min(known.failures, len(RETRY_AFTER) - 1)]
        failed = replace(known, failures=known.failures + 1, retry_at=now + wait, error=error.message)
        store.records.update(failed, verb="failed", data={"error": error.message})
        raise
    announced: dict[str, IncidentSeverity] = {one.id: one.severity for one in (*news.alarms, *news.notices)}
    gone = {one.id for one in (*news.over, *news.notices_over)}
    # Closed incidents wait here for the next digest. Deleted ones are forgotten.
    waiting = {one.id for one in closed} if channel.at_least == "notice" else set()
    kept = {each: how for each, how in known.announced.items() if each in (going | waiting) - gone}
    delivered = replace(
        known,
        announced={**kept, **announced},
        messages=known.messages + 1,
        sent_at=now,
        failures=0,
        retry_at=None,
        error=None,
    )
    store.records.update(delivered, verb="delivered", data={"message": message.id, "title": message.title})
    return message


def _known_channel(store: Store, name: str) -> NotificationChannel:
    found = store.records.find(NotificationChannel, ("key", "=", name), limit=1)
    if found:
        return found[0]
    made = store.new(NotificationChannel, name=name, digest_from=store.now())
    try:
        store.records.put(made)
    except (AlreadyExistsError, ConflictError):
        # Another host has added it at the same moment.
        return store.records.get(NotificationChannel, name)
    return made


def _section(heading: str, incidents: Sequence[Incident], *, full: bool = False) -> list[str]:
    lines = []
    for one in incidents[:MOST_LISTED]:
        lines.append(f"{heading} on {one.endpoint}, since {one.began_at:%Y-%m-%d %H:%M} UTC")
        lines.append(f"  {_shortened(one.title)}")
        if full and one.message:
            lines.append(f"  {_shortened(one.message)}")
        lines += [f"  everloop monitor show {one.id}", ""]
    if len(incidents) > MOST_LISTED:
        lines += [f"{heading}: {len(incidents) - MOST_LISTED} more", ""]
    return lines


def _shortened(text: str, most: int = _LONGEST_TEXT) -> str:
    text = printable(" ".join(text.split()), breaks=False)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}" if number else ""
