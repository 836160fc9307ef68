"""Counts of streams in which nothing happens, drawn directly by cell. No rows are made, so years take milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
from scipy import stats

from everloop.data.sketches.bins import Bins, CategoryBins, NumericBins
from everloop.data.sketches.column_sketches import Sketch
from everloop.monitoring.noise.incident_rate import IncidentRule, find_limit
from everloop.monitoring.noise.noise_model import NoiseModel, ReferenceCounts

Array = npt.NDArray[np.float64]

DAY = timedelta(days=1)
MONTH = 365.25 / 12
"""In days."""
EDGES = stats.norm.ppf(np.arange(1, 20) / 20)
CATEGORIES = ("a", "b", "c", "d")
SHARES = np.array([0.4, 0.3, 0.2, 0.1])


def normal_counts(generator: np.random.Generator, rows: int, level: Array, missing: float = 0.0) -> Array:
    """Windows of a normal feature whose mean is the level; twenty bins, shape (windows, 23)."""
    below = stats.norm.cdf(EDGES - level[:, None])
    inside = np.diff(below, axis=1, prepend=0.0, append=1.0) * (1 - missing)
    none = np.zeros((len(level), 1))
    shares = np.concatenate([none + missing, none, inside, none], axis=1)
    return generator.multinomial(rows, shares).astype(np.float64)


def category_counts(generator: np.random.Generator, rows: int, level: Array) -> Array:
    """Windows of a feature with four categories, whose odds of `a` against `b` follow the level."""
    shares = SHARES * np.exp(np.outer(level, [1, -1, 0, 0]))
    inside = generator.multinomial(rows, shares / shares.sum(axis=1, keepdims=True))
    none = np.zeros((len(level), 1))
    return np.concatenate([none, inside, none], axis=1).astype(np.float64)


def sketch_of(counts: Array) -> Sketch:
    cells = counts.shape[-1]
    numeric = cells != len(CATEGORIES) + 2
    bins: Bins = NumericBins(tuple(map(float, range(cells - 2)))) if numeric else CategoryBins(CATEGORIES)
    return Sketch(bins, tuple(counts.reshape(-1, cells).sum(axis=0).astype(int).tolist()))


def wandering(generator: np.random.Generator, windows: int, rho: float, deviation: float) -> Array:
    """A first-order autoregression."""
    level = generator.normal(size=windows)
    for index in range(1, windows):
        level[index] = rho * level[index - 1] + np.sqrt(1 - rho**2) * level[index]
    return deviation * level


@dataclass
class Simulation:
    """A reference of `days` days, and what follows."""

    reference: ReferenceCounts
    live: dict[str, Array]
    starts: Array
    rows: int

    def learn(self) -> NoiseModel:
        return NoiseModel.learn(self.reference, DAY, self.rows)


def incidents_a_month(simulations: list[Simulation], budget: float) -> float:
    """The mean of streams of the same shape, each with the limit of its own reference, counted side by side."""
    models = [one.learn() for one in simulations]
    found = [
        model.strongest(*model.deviations(one.live, one.starts)) for model, one in zip(models, simulations, strict=True)
    ]
    strongest, alone = (np.stack(surprises, axis=1) for surprises in zip(*found, strict=True))
    limits = np.array([[find_limit(model, budget / MONTH)] for model in models])
    rule = IncidentRule(len(models), strongest.shape[2])
    opened = sum(int(rule.advance(highest, own, limits).sum()) for highest, own in zip(strongest, alone, strict=True))
    return opened / (strongest.shape[0] * len(models) / MONTH)


def simulate(
    seed: int,
    *,
    days: int = 60,
    live_days: int = 1200,
    rows: int = 1000,
    rho: float = 0.0,
    deviation: float = 0.0,
    features: int = 5,
    times: bool = True,
) -> Simulation:
    """Daily windows of `features` features, every fifth one a category, whose levels wander independently."""
    generator = np.random.default_rng(seed)
    blocks: dict[str, Array] = {}
    live: dict[str, Array] = {}
    for index in range(features):
        draw = category_counts if index % 5 == 4 else normal_counts
        counts = draw(generator, rows, wandering(generator, days + live_days, rho, deviation))
        blocks[f"f{index}"], live[f"f{index}"] = counts[:days], counts[days:]
    starts = np.arange(days + live_days) * DAY.total_seconds()
    sketches = {name: sketch_of(counts) for name, counts in blocks.items()}
    reference = ReferenceCounts(sketches, blocks if times else {}, starts[:days] if times else starts[:0], DAY)
    return Simulation(reference, live, starts[days:], rows)
