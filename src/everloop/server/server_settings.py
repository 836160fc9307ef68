"""What `everloop.toml` says of a server, under `[server]`: so `everloop server` and `everloop up` begin alike.

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

_OWN = ("host", "port", "auth")
_NAMES = (*_OWN, *(one.name for one in fields(ServerOptions) if one.name != "auth"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How one server begins."""

    host: str = "127.0.0.1"
    port: int = 8100
    auth: bool | None = None
    """Whether a login is asked for; None: where others could reach it, or there are users."""
    options: ServerOptions = field(default_factory=ServerOptions)

    def changed(self, **given: Any) -> ServerSettings:
        """With what was given on the command line; None and nothing leave what is there."""
        given = {name: value for name, value in given.items() if value is not None and value != ()}
        own = {name: given.pop(name) for name in _OWN if name in given}
        return replace(self, **own, options=replace(self.options, **given))


def read_settings(start: Path | None = None) -> ServerSettings:
    """What the nearest `everloop.toml` says, from this folder upwards; the defaults where there is none.

    Raises:
        ProjectError: it has a name or a value that no server knows.
    """
    config = nearest_config(start or Path.cwd())
    if config is None:
        return ServerSettings()
    try:
        said = tomllib.loads(config.read_text(encoding="utf-8")).get("server", {})
    except (OSError, ValueError) as error:
        raise ProjectError(f"'{config}' cannot be read: {error}.") from error
    if not isinstance(said, dict):
        raise ProjectError(f"[server] in '{config}' takes names and values.")
    unknown = sorted(set(said) - set(_NAMES))
    if unknown:
        raise ProjectError(f"[server] in '{config}' has no '{unknown[0]}'.", help=f"It takes {', '.join(_NAMES)}.")
    own = {name: said.pop(name) for name in _OWN if name in said}
    try:
        return msgspec.convert({**own, "options": said}, ServerSettings)
    except msgspec.ValidationError as error:
        told = str(error).replace("$.options.", "").replace("$.", "")
        raise ProjectError(f"[server] in '{config}': {told}.", help="See docs/server.md.") from error
