"""How fast somebody may guess: by account and client address, and never by locking anyone out.

Tokens are too long to be guessed and cheap to check, so a valid one always works; wrong ones are only answered 429
instead of 401 once there were many. Passwords are different: after `failures` wrong ones for an account from one
address, each further attempt for that account from that address waits for its turn before it is checked. A right
password is then slow, but it works, and other accounts and other addresses notice nothing.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from time import monotonic

FAILURES = 10
WINDOW_S = 60.0
LONGEST_PAUSE_S = 5.0
"""Between two attempts that are checked, once there were too many failures."""
PATIENCE_S = 10.0
"""How long an attempt may wait for its turn. One that would wait longer is answered 429."""
MOST_KEPT = 10_000
"""Pairs of account and address that are remembered; the ones that failed longest ago are forgotten first."""
_LONGEST_ACCOUNT = 64


@dataclass(slots=True)
class _Record:
    failed: deque[float]
    beyond: int = 0
    """Failures since there were too many."""
    next_at: float = field(default=0.0)
    """When the next attempt may be checked."""


class FailureLimit:
    """Counts failures by account and client address over a sliding window. Belongs to one event loop."""

    def __init__(self, failures: int = FAILURES, window_s: float = WINDOW_S, most: int = MOST_KEPT) -> None:
        self.failures = failures
        self.window_s = window_s
        self.most = most
        self._kept: OrderedDict[tuple[str, str], _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def wait_s(self, address: str, account: str = "") -> float:
        """Seconds until there are few enough failures again; 0 if there are now."""
        record = self._find(address, account)
        if record is None or len(record.failed) < self.failures:
            return 0.0
        return self.window_s - (monotonic() - record.failed[0])

    def turn_s(self, address: str, account: str) -> float | None:
        """Take the next turn: seconds until this attempt may be checked; None if that is longer than it may wait."""
        record = self._find(address, account)
        if record is None or len(record.failed) < self.failures:
            return 0.0
        now = monotonic()
        at = max(now, record.next_at)
        if at - now > PATIENCE_S:
            return None
        record.next_at = at + min(2.0 ** min(record.beyond, 10), LONGEST_PAUSE_S)
        return at - now

    def failed(self, address: str, account: str = "") -> None:
        key = _key(address, account)
        record = self._find(address, account)
        if record is None:
            record = self._kept[key] = _Record(deque(maxlen=self.failures))
        if len(record.failed) == self.failures:
            record.beyond += 1
        record.failed.append(monotonic())
        self._kept.move_to_end(key)
        self._forget()

    def _find(self, address: str, account: str) -> _Record | None:
        record = self._kept.get(_key(address, account))
        if record is None:
            return None
        now = monotonic()
        while record.failed and now - record.failed[0] > self.window_s:
            record.failed.popleft()
        if not record.failed:
            del self._kept[_key(address, account)]
            return None
        return record

    def _forget(self) -> None:
        """Drop what has not failed within the window, and the oldest where there is too much. Entries are in order."""
        now = monotonic()
        while self._kept:
            record = next(iter(self._kept.values()))
            if len(self._kept) <= self.most and now - record.failed[-1] <= self.window_s:
                return
            self._kept.popitem(last=False)


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the /64, of which anyone who has one address has 2^64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:_LONGEST_ACCOUNT]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _key(address: str, account: str) -> tuple[str, str]:
    return network_of(address), account[:_LONGEST_ACCOUNT]
