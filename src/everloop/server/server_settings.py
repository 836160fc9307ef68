"""Settings of a server, read from the section `[server]` of `everloop.toml`.

`everloop server` and `everloop up` both start with them.

[server]
host = "0.0.0.0"
allowed_hosts = ["ml.example.com"]
default_artifact_root = "s3://bucket/team"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from everloop.errors import ProjectError
from everloop.server.server_options import ServerOptions
from everloop.stores.home import nearest_config

_LISTENING = ("host", "port", "auth")
"""Settings of `ServerSettings` itself; all others are options."""
_NAMES = (*_LISTENING, *(one.name for one in fields(ServerOptions) if one.name not in ("auth", "project_folder")))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The address and options that a server starts with."""

    host: str = "127.0.0.1"
    port: int = 8100
    auth: bool | None = None
    """Whether a login is required. None: if other machines can reach the server, or if there are users."""
    options: ServerOptions = field(default_factory=ServerOptions)

    def changed(self, **given: Any) -> ServerSettings:
        """Return the settings with the values given on the command line. None and an empty tuple change nothing."""
        given = {name: value for name, value in given.items() if value is not None and value != ()}
        listening = {name: given.pop(name) for name in _LISTENING if name in given}
        return replace(self, **listening, options=replace(self.options, **given))


def read_settings(start: Path | None = None) -> ServerSettings:
    """Read the settings from the nearest `everloop.toml`, searching upwards from this folder.

    Without such a file the defaults apply.

    Raises:
        ProjectError: the section has an unknown name or an invalid value.
    """
    config = nearest_config(start or Path.cwd())
    if config is None:
        return ServerSettings()
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8")).get("server", {})
    except (OSError, ValueError) as error:
        raise ProjectError(f"'{config}' cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise ProjectError(
            f"'server' in '{config}' is not a section.",
            help="Write [server], then a line NAME = VALUE for each setting.",
        )
    unknown = sorted(set(values) - set(_NAMES))
    if unknown:
        raise ProjectError(
            f"[server] in '{config}' has an unknown setting '{unknown[0]}'.",
            help=f"Known settings: {', '.join(_NAMES)}.",
        )
    listening = {name: values.pop(name) for name in _LISTENING if name in values}
    try:
        return msgspec.convert({**listening, "options": values}, ServerSettings)
    except msgspec.ValidationError as error:
        problem = str(error).replace("$.options.", "").replace("$.", "")
        raise ProjectError(f"[server] in '{config}': {problem}.", help="See docs/server.md.") from error
