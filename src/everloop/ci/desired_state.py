"""The desired state of a store, declared in a file that is kept in git.

    [models.delays]
    aliases = { staging = "delays@4" }             # a version, or the digest of its package
    approvals = { champion = 2 }                   # approvals that are needed before an alias moves; 0 lifts them

    [endpoints.delays]
    model = "delays"
    champion = "sha256:…"                          # a version, or the digest of its package
    rollout = [10, 50, 100]                        # how a new champion gets its traffic; default: all at once

    [webhooks.audit]
    active = true                                  # webhooks are created with: everloop webhooks add

    [notify]
    channels = ["team"]                            # channels that everloop.toml must declare

What the file does not name stays as it is.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import ProjectError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "everloop-state.toml"
_SECTIONS = ("models", "endpoints", "webhooks", "notify")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MOST_APPROVALS = 10


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """Aliases of a model, each with a version or digest, and the approvals that each alias needs."""

    aliases: dict[str, str] = field(default_factory=dict)
    approvals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DesiredEndpoint:
    """The model that an endpoint serves, its champion, and how a new champion gets its traffic."""

    model: str
    champion: str
    rollout: tuple[float, ...] = (100.0,)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything that a file declares, by name."""

    models: dict[str, DesiredModel] = field(default_factory=dict)
    endpoints: dict[str, DesiredEndpoint] = field(default_factory=dict)
    webhooks: dict[str, bool] = field(default_factory=dict)
    """Whether each webhook is active."""
    channels: tuple[str, ...] = ()


def read_state(path: Path) -> DesiredState:
    """Read a file with a desired state.

    Raises:
        ProjectError: the file cannot be read, is not valid TOML, or has an unknown or invalid entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(
            f"Cannot read '{path}': {error}.", help=f"Name the file: everloop plan FILE. Default: {FILE}"
        ) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(f"'{path}' is not valid TOML: {error}.") from error
    return state_from(content, str(path))


def state_from(content: dict[str, Any], where: str) -> DesiredState:
    """Check the content of a file; see `read_state`.

    Args:
        content: the decoded TOML.
        where: name of the file, for messages.

    Raises:
        ProjectError: an entry is unknown or invalid.
    """
    _known(content, _SECTIONS, where)
    tables: dict[str, dict[str, Any]] = {}
    for section in _SECTIONS:
        table = content.get(section, {})
        if not isinstance(table, dict):
            raise ProjectError(f"'{section}' in {where} is not a section.", help=f"Write [{section}.NAME] above it.")
        tables[section] = table
    _known(tables["notify"], ("channels",), f"[notify] of {where}")
    models = {name: _model(name, table, where) for name, table in _named(tables["models"], "models", where)}
    endpoints = {name: _endpoint(name, table, where) for name, table in _named(tables["endpoints"], "endpoints", where)}
    webhooks = {}
    for name, table in _named(tables["webhooks"], "webhooks", where):
        _known(table, ("active",), f"[webhooks.{name}] of {where}")
        active = table.get("active", True)
        if not isinstance(active, bool):
            raise ProjectError(f"'active' in [webhooks.{name}] of {where} is {active!r}.", help="Write true or false.")
        webhooks[name] = active
    _check_conflicts(models, endpoints, where)
    channels = tables["notify"].get("channels", [])
    if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
        raise ProjectError(f"'channels' in [notify] of {where} is not a list of names.", help='For example: ["team"]')
    return DesiredState(models, endpoints, webhooks, tuple(channels))


def _model(name: str, table: dict[str, Any], where: str) -> DesiredModel:
    here = f"[models.{name}] of {where}"
    _known(table, ("aliases", "approvals"), here)
    aliases, approvals = table.get("aliases", {}), table.get("approvals", {})
    for what, values in (("aliases", aliases), ("approvals", approvals)):
        if not isinstance(values, dict):
            raise ProjectError(f"'{what}' in {here} is not a table.", help=f"Write {what} = {{ staging = … }}.")
        for alias in values:
            _check_name(alias, f"an alias in {here}")
    for alias, needed in approvals.items():
        if not isinstance(needed, int) or isinstance(needed, bool) or not 0 <= needed <= _MOST_APPROVALS:
            raise ProjectError(
                f"'approvals.{alias}' in {here} is {needed!r}.", help=f"Give a number from 0 to {_MOST_APPROVALS}."
            )
    return DesiredModel(
        {alias: _version(one, name, f"'{alias}' in {here}") for alias, one in aliases.items()}, approvals
    )


def _endpoint(name: str, table: dict[str, Any], where: str) -> DesiredEndpoint:
    from everloop.ci.deployment_environments import checked_rollout

    here = f"[endpoints.{name}] of {where}"
    _known(table, ("model", "champion", "rollout"), here)
    model = table.get("model", name)
    _check_name(model, f"'model' in {here}")
    if "champion" not in table:
        raise ProjectError(f"{here} has no 'champion'.", help=f'Name a version or digest: champion = "{model}@1"')
    champion = _version(table["champion"], model, f"'champion' in {here}")
    return DesiredEndpoint(model, champion, checked_rollout(table.get("rollout", [100]), here))


def _version(value: object, model: str, what: str) -> str:
    """Return a reference to a version that stays the same: by number or digest, never by an alias."""
    text = value if isinstance(value, str) else ""
    found, at, number = text.partition("@")
    fixed = bool(at) and found == model and number.isascii() and number.isdecimal() and int(number) > 0
    if not fixed and not _DIGEST.fullmatch(text):
        raise ProjectError(
            f"{what} is {value!r}, which is not a version of '{model}'.",
            help=f'Write "{model}@3", or the digest of its package: "sha256:…". See: everloop models ls {model}',
        )
    return f"{model}@{int(number)}" if fixed else text


def _named(tables: dict[str, Any], section: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    for name, table in tables.items():
        _check_name(name, f"[{section}.…] of {where}")
        if not isinstance(table, dict):
            raise ProjectError(
                f"'{name}' in [{section}] of {where} is not a section.", help=f"Write [{section}.{name}]."
            )
    return list(tables.items())


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProjectError(f"{name!r} is not a valid name for {what}.", help="Use letters, digits and . _ -.")


def _check_conflicts(models: dict[str, DesiredModel], endpoints: dict[str, DesiredEndpoint], where: str) -> None:
    served: dict[str, str] = {}
    for name, endpoint in endpoints.items():
        other = served.setdefault(endpoint.model, name)
        if endpoints[other].champion != endpoint.champion:
            raise ProjectError(
                f"{where} wants two champions of '{endpoint.model}': at '{other}' and at '{name}'.",
                help="A model has one champion. Name the same version at both endpoints.",
            )
        model = models.get(endpoint.model)
        if model is not None and "champion" in model.aliases:
            raise ProjectError(
                f"{where} sets the champion of '{endpoint.model}' twice: as an alias and at endpoint '{name}'.",
                help=f"Remove it from aliases of [models.{endpoint.model}].",
            )


def _known(table: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    from difflib import get_close_matches

    unknown = sorted(set(table) - set(names))
    if unknown:
        near = get_close_matches(unknown[0], names, n=1)
        start = f"Did you mean '{near[0]}'? " if near else ""
        raise ProjectError(f"{where} has an unknown entry '{unknown[0]}'.", help=f"{start}Known: {', '.join(names)}")
