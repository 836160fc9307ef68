"""A running control plane: its address, whether it needs a login, and how it starts and stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.server.server_options import ServerOptions

if TYPE_CHECKING:
    from everloop.stores import Store


class ControlPlane:
    """Binds its address when it is created, so that mistakes show at once. `serve` blocks until a signal or `stop`.

    A login is required if the operator sets it, if other machines can reach the address, or if the home has users.
    Without a login the server listens on loopback only.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str = "127.0.0.1",
        port: int = 8100,
        options: ServerOptions | None = None,
        auth: bool | None = None,
    ) -> None:
        """Bind the address.

        Args:
            port: 0 takes a free port.
            auth: whether a login is required. None: decided by address and users. False is refused if other machines
                can reach the server.

        Raises:
            ConflictError: the port is in use.
            UsageError: this machine cannot bind the address, or a login is required and there is no admin yet.
        """
        from everloop.http.listening import bind, is_public, url_of

        self.store = store
        self._socket = bind(host, port)
        try:
            needs_login = _needs_login(store, auth, public=is_public(self._socket), host=host)
        except UsageError:
            self._socket.close()
            raise
        self.options = replace(options or ServerOptions(), auth=needs_login)
        self.url = url_of(self._socket)
        self._server: object | None = None

    def serve(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`. `ready` is called once the server accepts requests."""
        from everloop.server.control_app import make_app
        from everloop.server.control_server import ControlServer
        from everloop.server.webhooks.webhook_delivery import WebhookDelivery

        server = ControlServer(make_app(self.store, self.options), ready=ready)
        self._server = server
        delivery = WebhookDelivery(self.store, self.options)
        delivery.start()
        try:
            server.run(sockets=[self._socket])
        finally:
            delivery.stop()
            self.close()

    def stop(self) -> None:
        """Make `serve` return soon. May be called from any thread."""
        if self._server is not None:
            self._server.should_exit = True  # type: ignore[attr-defined]

    def close(self) -> None:
        """Release the address."""
        self._socket.close()


def _needs_login(store: Store, auth: bool | None, *, public: bool, host: str) -> bool:
    from everloop.server.access import UserStore

    users = UserStore(store)
    if public and auth is False:
        raise UsageError(
            f"Other machines can reach {host}, so the server cannot run there without a login.",
            help="Leave --no-auth out, or listen on 127.0.0.1.",
        )
    needed = auth if auth is not None else (public or users.has_users())
    if needed and not users.has_admin():
        reason = f"Other machines can reach {host}, so a login" if public else "A login"
        raise UsageError(
            f"{reason} is required, but there is no admin.",
            help="Add one first: everloop users add NAME --role admin",
        )
    return needed
