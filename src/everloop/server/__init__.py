"""Control plane: the HTTP API over the records, the web page, and the supervisor of a loop's processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.server.control_app import make_app as make_app
    from everloop.server.control_plane import ControlPlane as ControlPlane
    from everloop.server.server_options import ServerOptions as ServerOptions
    from everloop.server.supervisor import Supervisor as Supervisor

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "control_app": ["make_app"],
        "control_plane": ["ControlPlane"],
        "server_options": ["ServerOptions"],
        "supervisor": ["Supervisor"],
    },
)
