"""One control plane: where it listens, whether it asks for a login, and its life from first to last request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.server.server_options import ServerOptions

if TYPE_CHECKING:
    from everloop.stores import Store

LOOPBACK = "127.0.0.1"


class ControlPlane:
    """Binds its address when it is made, so that mistakes show at once; `serve` blocks until a signal or `stop`.

    A login is asked for where the operator says so, where the address can be reached from other machines, and where
    the home has users. Without a login nothing but loopback is served.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str = LOOPBACK,
        port: int = 8100,
        options: ServerOptions | None = None,
        auth: bool | None = None,
    ) -> None:
        """Bind.

        Args:
            auth: None decides by address and users; False is refused where others could reach the server.

        Raises:
            UsageError: the address cannot be used, or a login is needed and there is no admin yet.
        """
        from everloop.http.listening import bind, is_loopback, url_of

        self.store = store
        self._socket = bind(host, port)
        try:
            wanted = _login(store, auth, public=not is_loopback(self._socket), host=host)
        except UsageError:
            self._socket.close()
            raise
        self.options = replace(options or ServerOptions(), auth=wanted)
        self.url = url_of(self._socket)
        self._server: object | None = None

    def serve(self, ready: Callable[[], None] | None = None) -> None:
        """Answer until SIGINT, SIGTERM or `stop`. `ready` is called once requests are taken."""
        from everloop.http.listening import ControlServer
        from everloop.server.control_app import make_app
        from everloop.server.webhooks.webhook_delivery import WebhookDelivery

        server = ControlServer(make_app(self.store, self.options), ready=ready)
        self._server = server
        notifier = WebhookDelivery(self.store, self.options)
        notifier.start()
        try:
            server.run(sockets=[self._socket])
        finally:
            notifier.stop()
            self.close()

    def stop(self) -> None:
        """Make `serve` return soon. From any thread."""
        if self._server is not None:
            self._server.should_exit = True  # type: ignore[attr-defined]

    def close(self) -> None:
        """Give the address back."""
        self._socket.close()


def _login(store: Store, asked: bool | None, *, public: bool, host: str) -> bool:
    from everloop.server.access import UserStore

    book = UserStore(store)
    if public and asked is False:
        raise UsageError(
            f"Without a login nothing but loopback is served, and {host} is not.",
            help="Leave --no-auth out, or bind to 127.0.0.1.",
        )
    wanted = asked if asked is not None else (public or book.has_users())
    if wanted and not book.has_admin():
        raise UsageError(
            f"{'Other machines can reach ' + host if public else 'A login is asked for'}, and there is no admin.",
            help="Make one first: everloop users add NAME --role admin",
        )
    return wanted
