"""What is known of an endpoint beside its traffic: its name, its lock, its state."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Endpoint, EndpointState
from everloop.serving.settings import NAMES, read_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json
    from everloop.stores import Store

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_endpoint_name(name: str) -> None:
    """Raise UsageError unless the name can be part of file, table and lock names."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for an endpoint.", help="Use letters, digits, '.', '_' and '-', at most 64."
        )


def lock_name(store: Store, name: str) -> str:
    """The lock that the process which serves an endpoint holds."""
    return f"endpoint@{store.project}@{name}"


def is_served(store: Store, name: str) -> bool:
    """Whether a living process of this machine serves the endpoint, whatever its record says."""
    return store.locked(lock_name(store, name))


def set_state(store: Store, name: str, state: EndpointState, url: str | None) -> None:
    """Write an endpoint's state and URL, whoever else changes its record meanwhile; nothing if it is gone."""
    while True:
        try:
            endpoint = store.records.get(Endpoint, name)
        except NotFoundError:
            return
        if (endpoint.state, endpoint.url) == (state, url):
            return
        try:
            store.records.update(replace(endpoint, state=state, url=url), verb=state)
        except ConflictError:
            continue
        return


def set_options(store: Store, name: str, changes: Mapping[str, str | None]) -> dict[str, Json]:
    """Change an endpoint's options, given as text; None removes one. Returns what can be set and is; see `Settings`.

    Raises:
        NotFoundError: there is no such endpoint.
        UsageError: no such option, or not a value of its.
    """
    values: dict[str, Json] = {}
    for option, text in changes.items():
        # Looked at first, so that removing a misspelled option does not seem to have worked.
        if option not in NAMES:
            raise UsageError(f"An endpoint has no option '{option}'.", help=f"Options: {', '.join(NAMES)}")
        values[option] = None if text is None else read_setting(option, text)
    while True:
        endpoint = store.records.get(Endpoint, name)
        options = {key: value for key, value in {**endpoint.options, **values}.items() if value is not None}
        try:
            if options != endpoint.options:
                store.records.update(replace(endpoint, options=options), verb="options")
        except ConflictError:
            continue
        return {option: options[option] for option in NAMES if option in options}
