"""Picks the version that answers a row: splits the traffic by a stable hash of the entity's key.

Every key has a fixed position between 0 and 100 on its endpoint. The canaries take the range from 0 upwards, each as
much as its percentage, and the champion takes the rest. So the same key always gets the same version, and a canary that
grows from 10 to 50 percent keeps the keys that it has. A row without a key is placed by its prediction's id.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import Route

_SPAN = 2.0**64


def position_of(endpoint: str, key: str) -> float:
    """The position of a key on an endpoint, in [0, 100). Salted with the endpoint, so each splits differently."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=endpoint.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / _SPAN * 100.0


class RoutingTable:
    """The routes of an endpoint, ready to pick from. Immutable.

    Attributes:
        answering: the routes that answer, canaries first and the champion last.
        shadows: the routes that score rows without answering; each its share of the keys, if it has one.
    """

    def __init__(self, endpoint: str, routes: Sequence[Route]) -> None:
        """Order the routes.

        Raises:
            UsageError: no champion or several, a share below 0 or above 100, or shares that do not add up to 100.
        """
        self.endpoint = endpoint
        self.shadows = tuple(route for route in routes if route.role == "shadow")
        champions = [route for route in routes if route.role == "champion"]
        canaries = [route for route in routes if route.role == "canary"]
        self.answering = (*canaries, *champions)
        if len(champions) != 1:
            found = ", ".join(route.version for route in champions) or "none"
            raise UsageError(f"The endpoint '{endpoint}' needs exactly one champion; it has: {found}.")
        for route in routes:
            if not 0 <= route.percent <= 100:
                raise UsageError(f"The route to {route.version} cannot take {route.percent:g} percent.")
        total = sum(route.percent for route in self.answering)
        if abs(total - 100.0) > 0.01:
            raise UsageError(
                f"The routes of '{endpoint}' add up to {total:g} percent, not 100.",
                help="Give the champion what the canaries leave over.",
            )
        edges: list[float] = []
        for route in canaries:
            edges.append((edges[-1] if edges else 0.0) + route.percent)
        self._edges = edges
        self.champion = len(canaries)
        self.single = not any(edges)
        """Whether the champion answers everything, so keys need not be hashed."""

    def pick(self, key: str) -> int:
        """The index in `answering` of the route for a key."""
        if self.single:
            return self.champion
        # The edges ascend. A route without a share has an empty range and is never picked.
        return min(bisect_right(self._edges, position_of(self.endpoint, key)), self.champion)
