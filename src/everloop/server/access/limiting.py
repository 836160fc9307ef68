"""How often somebody may fail to log in."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from time import monotonic

FAILURES = 10
WINDOW_S = 60.0
_MOST_ADDRESSES = 10_000


class FailureLimit:
    """Counts failures by client address over a sliding window. Belongs to one event loop.

    Behind a proxy all clients share the proxy's address, and so this limit; who is logged in already is not
    affected by it.
    """

    def __init__(self, failures: int = FAILURES, window_s: float = WINDOW_S) -> None:
        self.failures = failures
        self.window_s = window_s
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until this address may try again; 0 if it may now."""
        times = self._failed.get(_network(address))
        if times is None:
            return 0.0
        now = monotonic()
        while times and now - times[0] > self.window_s:
            times.popleft()
        return 0.0 if len(times) < self.failures else self.window_s - (now - times[0])

    def failed(self, address: str) -> None:
        network = _network(address)
        times = self._failed.setdefault(network, deque(maxlen=self.failures))
        times.append(monotonic())
        self._failed.move_to_end(network)
        if len(self._failed) > _MOST_ADDRESSES:
            self._failed.popitem(last=False)


def _network(address: str) -> str:
    """Who has one IPv6 address has 2^64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
