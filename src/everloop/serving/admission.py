"""Who may ask an endpoint now: tokens, how often a token may be used, and who may choose a version."""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import TYPE_CHECKING

from everloop.serving.tokens import OPEN_PATHS, admitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.serving.settings import Settings

BURST_S = 1.0
"""How long somebody may have been silent to ask for as much at once."""


class Admission:
    """The door of one worker. Safe to use from several threads.

    Args:
        digests: the tokens' names and digests; None: it asks for none.
        testers: the names of the tokens whose holders may choose a version.
        workers: the processes that share the traffic, and so the rate.
    """

    def __init__(
        self,
        settings: Settings,
        digests: Mapping[str, str] | None = None,
        testers: frozenset[str] = frozenset(),
        workers: int = 1,
    ) -> None:
        self._digests = digests
        self._testers = testers
        self._anyone = settings.override == "anyone"
        self._rate = settings.rate_limit / workers
        self._burst = max(1.0, self._rate * BURST_S)
        self._left: dict[str | None, tuple[float, float]] = {}
        self._guard = threading.Lock()
        self.open = digests is None and not self._rate
        """Whether everybody is let in, so that nothing needs to be looked at."""

    def look(self, path: str, authorization: bytes | None) -> tuple[int, str | None]:
        """200, 401 (no such token) or 429 (too often), and the name of the token."""
        if path in OPEN_PATHS:
            return 200, None
        client = None
        if self._digests is not None:
            client = admitted(self._digests, authorization)
            if client is None:
                return 401, None
        return (200 if not self._rate or self._take(client) else 429), client

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
            good = left >= 1.0
            self._left[client] = (left - 1.0 if good else left, now)
        return good


__all__ = ["Admission"]
