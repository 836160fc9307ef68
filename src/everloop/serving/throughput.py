"""How many rows a model scores in an instant, learned from what scoring took.

The event loop answers health checks, metrics and every other request between two scorings, so it scores by itself only
what takes a few milliseconds at most. Anything that may take longer is scored by a thread beside it.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.packages.predictor import Predictor

INSTANT_S = 0.003
"""What scoring may take in the event loop's own thread. Handing it to another costs about a tenth of a millisecond."""
MOST_ROWS = 1 << 20
_TRIES = 3
_PROVE = 8
_MOST_PROOF = 1024


class TakesLong(Exception):  # noqa: N818 - not an error: the work is to be done beside the event loop
    """Raised before anything was scored or logged."""


class Throughput:
    """What one loaded model takes. `learn` may be called from any thread; a lost update is learned the next time.

    Attributes:
        rows: requests of at most this many rows take an instant, as far as is known.
    """

    def __init__(self, *, steady: bool = True) -> None:
        """Know nothing yet.

        Args:
            steady: whether equally many rows take about equally long. Code of the user's may wait for whatever it
                likes, so it is never scored in the event loop.
        """
        self.rows = 0
        self._steady = steady
        self._proof = _PROVE
        self._instants = 0

    def measured(self, rows: int, seconds: float) -> None:
        """Take over a first measurement: more rows take proportionally longer at most."""
        if self._steady:
            self.rows = min(MOST_ROWS, int(rows * INSTANT_S / max(seconds, 1e-9)))

    def learn(self, rows: int, seconds: float) -> None:
        """Take over what scoring took, where it was more than an instant or more rows than were known to be quick."""
        if not self._steady:
            return
        if seconds > INSTANT_S:
            if rows <= self.rows:
                # It was thought to be quick. A busy machine may be the reason, or this model takes long at times: each
                # time that it happens, more proof is asked for before it is believed again.
                self._proof = min(_MOST_PROOF, 2 * self._proof)
                self.rows = rows - 1
            self._instants = 0
        elif rows > self.rows:
            self._instants += 1
            if self._instants >= self._proof:
                self.rows, self._instants = rows, 0


_known: WeakKeyDictionary[Predictor, Throughput] = WeakKeyDictionary()


def throughput_of(predictor: Predictor) -> Throughput:
    """The pace of a loaded model, whichever routes lead to it."""
    found = _known.get(predictor)
    if found is None:
        # What is looked up in a store waits for the store.
        steady = not predictor.manifest.code_bearing and not predictor.manifest.lookups
        found = _known[predictor] = Throughput(steady=steady)
    return found


def measure_throughput(predictor: Predictor) -> None:
    """Let a warm model answer its package's own example a few times. Does nothing where there is no example."""
    throughput = throughput_of(predictor)
    example = predictor.example
    if example is None or not throughput._steady:
        return
    fastest = float("inf")
    for _ in range(_TRIES):
        began = perf_counter()
        try:
            predictor.score_rows([example])
        except EverloopError:
            # A model that does not take its own example is found out by `warm`; its first requests teach the pace.
            return
        fastest = min(fastest, perf_counter() - began)
        if fastest > 10 * INSTANT_S:
            break
    throughput.measured(1, fastest)


__all__ = ["INSTANT_S", "TakesLong", "Throughput", "measure_throughput", "throughput_of"]
