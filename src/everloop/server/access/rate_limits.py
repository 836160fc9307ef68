"""Limits of failed logins, by account and client address, which slow attackers down but lock no user out.

Tokens are too long to guess and cheap to check, so a valid token always works; after many failures, invalid ones get
429 instead of 401. Passwords are different: after `failures` wrong ones for an account from one address, each further
attempt for that account from that address is delayed before it is checked. A correct password is then slow, but works.
Other accounts and other addresses are not affected.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from time import monotonic

FAILURES = 10
WINDOW_S = 60.0
LONGEST_PAUSE_S = 5.0
"""Longest pause between two checked attempts after too many failures."""
PATIENCE_S = 10.0
"""How long an attempt may be delayed. One that would wait longer gets 429."""
MOST_KEPT = 10_000
"""Pairs of account and address that are remembered; those with the oldest failures are dropped first."""
_LONGEST_ACCOUNT = 64


@dataclass(slots=True)
class _Record:
    failed: deque[float]
    beyond: int = 0
    """Failures since the limit was reached."""
    next_at: float = field(default=0.0)
    """When the next attempt may be checked."""


class FailureLimit:
    """Counts failures by account and client address over a sliding window. Belongs to one event loop."""

    def __init__(self, failures: int = FAILURES, window_s: float = WINDOW_S, most: int = MOST_KEPT) -> None:
        self.failures = failures
        self.window_s = window_s
        self.most = most
        self._records: OrderedDict[tuple[str, str], _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def wait_s(self, address: str, account: str = "") -> float:
        """Seconds until the failures are below the limit again; 0 if they are below it now."""
        record = self._find(address, account)
        if record is None or len(record.failed) < self.failures:
            return 0.0
        return self.window_s - (monotonic() - record.failed[0])

    def next_delay_s(self, address: str, account: str) -> float | None:
        """Reserve the next attempt: seconds until it may be checked; None if that is longer than `PATIENCE_S`."""
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
            record = self._records[key] = _Record(deque(maxlen=self.failures))
        if len(record.failed) == self.failures:
            record.beyond += 1
        record.failed.append(monotonic())
        self._records.move_to_end(key)
        self._drop_old()

    def _find(self, address: str, account: str) -> _Record | None:
        record = self._records.get(_key(address, account))
        if record is None:
            return None
        now = monotonic()
        while record.failed and now - record.failed[0] > self.window_s:
            record.failed.popleft()
        if not record.failed:
            del self._records[_key(address, account)]
            return None
        return record

    def _drop_old(self) -> None:
        """Drop entries without a failure in the window, and the oldest if there are too many. Entries are in order."""
        now = monotonic()
        while self._records:
            record = next(iter(self._records.values()))
            if len(self._records) <= self.most and now - record.failed[-1] <= self.window_s:
                return
            self._records.popitem(last=False)


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 /64, as one client usually has a whole /64."""
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
