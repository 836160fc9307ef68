"""Who may ask an endpoint now: tokens, how often a token may be used, and who may choose a version.

Tokens hold for `access_stale_s` after they were last known to be the store's; then nobody is let in who needs one.
"""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import TYPE_CHECKING

from everloop.serving.access.endpoint_tokens import OPEN_PATHS, admitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.serving.endpoint_settings import EndpointSettings

BURST_S = 1.0
"""How long somebody may have been silent to ask for as much at once."""


class Authorization:
    """What one worker asks of each request. Safe to use from several threads.

    Args:
        digests: the tokens' names and digests; None: it asks for none.
        testers: the names of the tokens whose holders may choose a version.
        workers: the processes that share the traffic, and so the rate.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        digests: Mapping[str, str] | None = None,
        testers: frozenset[str] = frozenset(),
        workers: int = 1,
    ) -> None:
        self._digests = digests
        self._testers = testers
        self._stale_s = settings.access_stale_s
        self.confirmed = math.inf
        """When the tokens were last known to be the store's; infinite where nobody looks again."""
        self._anyone = settings.override == "anyone"
        self._rate = settings.rate_limit / workers
        self._burst = max(1.0, self._rate * BURST_S)
        self._left: dict[str | None, tuple[float, float]] = {}
        self._guard = threading.Lock()
        self.open = digests is None and not self._rate
        """Whether everybody is let in, so that nothing needs to be looked at."""

    def check(self, path: str, authorization: bytes | None) -> tuple[int, str | None]:
        """200, 401 (no such token), 429 (too often) or 503 (tokens unknown), and the name of the token."""
        if path in OPEN_PATHS:
            return 200, None
        client = None
        if self._digests is not None:
            if self.stale:
                return 503, None
            client = admitted(self._digests, authorization)
            if client is None:
                return 401, None
        return (200 if not self._rate or self._take(client) else 429), client

    @property
    def asks_token(self) -> bool:
        return self._digests is not None

    @property
    def stale(self) -> bool:
        """Whether the tokens were the store's too long ago."""
        return self._digests is not None and monotonic() - self.confirmed > self._stale_s

    def confirm(self) -> None:
        """Note that tokens and testers equal the store's at this moment. From now on they grow stale."""
        self.confirmed = monotonic()

    @property
    def grows_stale(self) -> bool:
        """Whether `confirm` was ever called."""
        return self.confirmed != math.inf

    def knows(self, path: str, authorization: bytes | None) -> bool:
        """Whether a request may be read at all, before its body is there. It is not counted."""
        if self._digests is None or path in OPEN_PATHS:
            return True
        return not self.stale and admitted(self._digests, authorization) is not None

    def may_choose(self, client: str | None) -> bool:
        """Whether this client may say which version answers it."""
        return self._anyone or client in self._testers

    def wait_s(self) -> int:
        """How long to wait until there is room for one more request, in whole seconds."""
        return max(1, math.ceil(1.0 / self._rate)) if self._rate else 1

    def _take(self, client: str | None) -> bool:
        now = monotonic()
        with self._guard:
            left, since = self._left.get(client, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            granted = left >= 1.0
            self._left[client] = (left - 1.0 if granted else left, now)
        return granted


__all__ = ["Authorization"]
