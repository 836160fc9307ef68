"""Channels that receive messages about incidents: Slack, mail, Teams, Telegram and whatever else apprise knows.

They are set by the operator, never by clients, in `everloop.toml`:

    [[notify]]
    name = "team"
    url = "slack://${SLACK_TOKEN}/#models"     # a URL of apprise; ${NAME} is read from the environment
    at_least = "notice"                        # or "alarm", for a channel without digests
    digest = "1d"                              # how often notices are sent

The environment variable `EVERLOOP_NOTIFY` adds one more channel by its URL, with the defaults.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from everloop.errors import ProjectError, UsageError
from everloop.stores.durations import parse_duration
from everloop.stores.home import nearest_config

VARIABLE = "EVERLOOP_NOTIFY"
_FIELDS = ("name", "url", "at_least", "digest")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FROM_ENVIRONMENT = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Notify:
    """A channel for messages about incidents. Alarms are sent at once, notices together in a digest.

    Args:
        url: a URL of apprise, such as `slack://…` or `mailto://…`. It often has a secret, so it is never shown.
        name: name of the channel. Default: the scheme of the URL.
        at_least: `notice` sends alarms and digests of notices, `alarm` only alarms.
        digest: how often notices are sent, such as `1d`.

    Raises:
        UsageError: an argument is not valid.

    Example:
        `Notify("slack://token/#models", at_least="alarm")`
    """

    url: str = field(repr=False)
    name: str = ""
    at_least: Literal["notice", "alarm"] = "notice"
    digest: str = "1d"

    def __post_init__(self) -> None:
        scheme = _SCHEME.match(self.url) if isinstance(self.url, str) else None
        if scheme is None:
            # The value may be a secret without its scheme, so it is not shown.
            raise UsageError(
                "The URL of a notification channel must begin with a scheme, such as slack:// or mailto://.",
                help="Services and their URLs: https://github.com/caronc/apprise",
            )
        name = self.name or scheme[1]
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' is not a valid name for a notification channel.",
                help="Use at most 64 letters, digits and . _ -.",
            )
        if self.at_least not in ("notice", "alarm"):
            raise UsageError(
                f"at_least of the channel '{name}' is {self.at_least!r}.", help="Choose 'notice' or 'alarm'."
            )
        if not isinstance(self.digest, str) or parse_duration(self.digest).total_seconds() <= 0:
            raise UsageError(
                f"digest of the channel '{name}' is {self.digest!r}, which is not a duration above 0.",
                help="For example: digest = '1d'",
            )
        object.__setattr__(self, "name", name)


def read_channels(start: Path | None = None) -> list[Notify]:
    """Read the channels from the nearest `everloop.toml`, searching upwards from this folder, and the environment.

    Raises:
        ProjectError: a channel has an unknown setting or an invalid value, two have the same name, or a variable of
            the environment is missing.
    """
    config = nearest_config(start or Path.cwd())
    channels = [_channel(entry, number, config) for number, entry in enumerate(_entries(config), start=1)]
    if os.environ.get(VARIABLE):
        try:
            channels.append(Notify(os.environ[VARIABLE], name=VARIABLE))
        except UsageError as error:
            raise ProjectError(f"{VARIABLE}: {error.message}", help=error.help) from error
    names = [channel.name for channel in channels]
    for name in names:
        if names.count(name) > 1:
            raise ProjectError(
                f"Two notification channels in '{config}' are called '{name}'.", help="Give each one its own name = …"
            )
    return channels


def _entries(config: Path | None) -> list[Any]:
    if config is None:
        return []
    try:
        entries = tomllib.loads(config.read_text(encoding="utf-8")).get("notify", [])
    except (OSError, ValueError) as error:
        raise ProjectError(f"'{config}' cannot be read: {error}.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ProjectError(
            f"'notify' in '{config}' is not a list of channels.",
            help='Write [[notify]], in double brackets, then url = "…".',
        )
    return entries


def _channel(entry: dict[str, Any], number: int, config: Path | None) -> Notify:
    label = f"[[notify]] number {number} in '{config}'"
    unknown = sorted(set(entry) - set(_FIELDS))
    if unknown:
        raise ProjectError(
            f"{label} has an unknown setting '{unknown[0]}'.", help=f"Known settings: {', '.join(_FIELDS)}"
        )
    if not isinstance(entry.get("url"), str):
        raise ProjectError(f"{label} has no url.", help='For example: url = "slack://${SLACK_TOKEN}/#models"')
    try:
        return Notify(**{**entry, "url": _expanded(entry["url"], label)})
    except UsageError as error:
        raise ProjectError(f"{label}: {error.message}", help=error.help) from error


def _expanded(url: str, label: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ProjectError(
                f"{label} needs the environment variable {found[1]}, which is not set.",
                help=f"Set it before you start everloop: export {found[1]}=…",
            )
        return os.environ[found[1]]

    return _FROM_ENVIRONMENT.sub(value, url)
