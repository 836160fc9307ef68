"""Control plane: the HTTP API over the records, the status page, and the processes that keep a loop turning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.server.app import make_app
    from everloop.server.control import ControlPlane
    from everloop.server.options import ServerOptions
    from everloop.server.supervisor import Supervisor

_HOME = {"ControlPlane": "control", "ServerOptions": "options", "Supervisor": "supervisor", "make_app": "app"}

__all__ = ["ControlPlane", "ServerOptions", "Supervisor", "make_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
