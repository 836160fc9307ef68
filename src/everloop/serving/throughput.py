"""How many rows a model scores in an instant, learned from measured times.

Between two scorings, the event loop answers health checks, metrics and every other request. So its own thread scores
only what takes a few milliseconds at most; a worker thread scores the rest.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.packages.predictor import Predictor

INSTANT_S = 0.003
"""How long scoring may take in the event loop's thread. Handing it to another costs about a tenth of a millisecond."""
MOST_ROWS = 1 << 20
_TRIES = 3
_PROVE = 8
_MOST_PROOF = 1024


class TakesLong(Exception):  # noqa: N818 - not an error: a worker thread must do the work
    """Raised before anything was scored or logged."""


class Throughput:
    """The speed of one loaded model. `learn` may be called from any thread; a lost update is learned the next time.

    Attributes:
        rows: requests of up to this many rows are expected to take an instant.
    """

    def __init__(self, *, steady: bool = True) -> None:
        """Begin without a measurement.

        Args:
            steady: whether the same number of rows always takes about the same time. The user's own code may wait for
                anything, so it never runs in the event loop.
        """
        self.rows = 0
        self._steady = steady
        self._proof = _PROVE
        self._instants = 0

    def measured(self, rows: int, seconds: float) -> None:
        """Start from a first measurement, assuming that more rows take at most proportionally longer."""
        if self._steady:
            self.rows = min(MOST_ROWS, int(rows * INSTANT_S / max(seconds, 1e-9)))

    def learn(self, rows: int, seconds: float) -> None:
        """Learn from a scoring that took more than an instant, or that had more rows than `rows`."""
        if not self._steady:
            return
        if seconds > INSTANT_S:
            if rows <= self.rows:
                # It was slower than expected: the machine may be busy, or this model may be slow at times. Each time
                # that happens, more proof is needed before `rows` grows again.
                self._proof = min(_MOST_PROOF, 2 * self._proof)
                self.rows = rows - 1
            self._instants = 0
        elif rows > self.rows:
            self._instants += 1
            if self._instants >= self._proof:
                self.rows, self._instants = rows, 0


_known: WeakKeyDictionary[Predictor, Throughput] = WeakKeyDictionary()


def throughput_of(predictor: Predictor) -> Throughput:
    """The throughput of a loaded model, shared by all routes to it."""
    found = _known.get(predictor)
    if found is None:
        # A lookup in a store waits for the store.
        steady = not predictor.manifest.code_bearing and not predictor.manifest.lookups
        found = _known[predictor] = Throughput(steady=steady)
    return found


def measure_throughput(predictor: Predictor) -> None:
    """Time a warm model on its package's example row. Does nothing if the package has none."""
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
            # `warm` reports a model that cannot score its own example. The first requests are the measurement then.
            return
        fastest = min(fastest, perf_counter() - began)
        if fastest > 10 * INSTANT_S:
            break
    throughput.measured(1, fastest)


__all__ = ["INSTANT_S", "TakesLong", "Throughput", "measure_throughput", "throughput_of"]
