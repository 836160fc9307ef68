"""Measure how often confidence intervals of metrics contain the value of the population.

Run: python benchmarks/intervals.py [--samples 1000] [--only METRIC]

For each metric, sample size, share of positives and strength of the model, samples are drawn with fixed seeds from a
population whose metric is known: from a formula, or from two million rows. A 95 % interval should contain it in 93 to
97 of 100 samples. Wider intervals contain it more often, which is honest but less useful.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from everloop.training.intervals import interval, paired_bootstrap
from everloop.training.metrics import score

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], tuple[Array, Array]]

POPULATION = 2_000_000
REPLICATES = 500


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    metric: str
    rows: int
    share: float
    strength: float
    draw: Draw


def classes(share: float, auc: float, spread: float = 1.0) -> Draw:
    """Two classes whose scores are calibrated if `spread` is 1: normal log odds that are apart for the given AUC."""
    apart = NormalDist().inv_cdf(auc) * np.sqrt(1 + spread**2)

    def draw(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        positives = min(max(round(share * rows), 2), rows - 2)
        y = np.concatenate([np.ones(positives), np.zeros(rows - positives)])
        x = np.concatenate([rng.normal(apart, spread, positives), rng.normal(0, 1, rows - positives)])
        odds = apart * x - apart**2 / 2 + np.log(share / (1 - share))
        return y, 1 / (1 + np.exp(-np.clip(odds, -500, 500)))

    return draw


def rates(rate: float) -> Draw:
    """Predicted classes that are correct at a rate."""

    def draw(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        y = (rng.uniform(size=rows) < 0.5).astype(float)
        right = rng.uniform(size=rows) < rate
        return y, np.where(right, y, 1 - y)

    return draw


def amounts(tails: float) -> Draw:
    """Amounts whose errors are Student's with this many degrees of freedom."""

    def draw(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        predicted = rng.normal(0, 2, rows)
        return predicted + rng.standard_t(tails, rows), predicted

    return draw


def cases() -> Iterator[Case]:
    for spread in (1.0, 2.0):
        for rows in (36, 100, 400):
            for share in (0.5, 0.1):
                for auc in (0.5, 0.8, 0.95, 0.99):
                    yield Case(f"roc_auc (spread {spread:g})", rows, share, auc, classes(share, auc, spread))
    for rows in (20, 100, 1000):
        for rate in (0.5, 0.9, 0.99):
            yield Case("accuracy", rows, 0.5, rate, rates(rate))
    for metric in ("log_loss", "brier", "average_precision", "f1"):
        for rows in (36, 200):
            for share in (0.5, 0.1):
                yield Case(metric, rows, share, 0.8, classes(share, 0.8))
    for metric in ("rmse", "mae", "median_ae", "r2"):
        for rows in (20, 100, 500):
            for tails in (3.0, 30.0):
                yield Case(metric, rows, 1.0, tails, amounts(tails))


def population_value(case: Case) -> float:
    metric = case.metric.split(" ")[0]
    if metric == "roc_auc":
        return case.strength
    if metric == "accuracy":
        return case.strength
    return score(metric, *case.draw(np.random.default_rng(999), POPULATION))


def coverage(case: Case, samples: int) -> tuple[float, float]:
    """Return the share of samples whose interval contains the population's value, and the mean width."""
    value, metric = population_value(case), case.metric.split(" ")[0]
    hits, widths = 0, []
    for seed in range(samples):
        y, scores = case.draw(np.random.default_rng(seed), case.rows)
        found = interval(y, scores, metric, n=REPLICATES, seed=seed)
        hits += found.low <= value <= found.high
        widths.append(found.high - found.low)
    return hits / samples, float(np.nanmean(widths))


def paired_classes(auc: float) -> Draw:
    """Half of the rows positive, and the scores of two correlated models of equal quality, shape (n, 2)."""
    apart = NormalDist().inv_cdf(auc) * np.sqrt(2)

    def draw(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        y = (np.arange(rows) < rows // 2).astype(float)
        shared = rng.normal(0, np.sqrt(0.7), rows)
        models = [apart * y + shared + rng.normal(0, np.sqrt(0.3), rows) for _ in range(2)]
        return y, np.column_stack([1 / (1 + np.exp(-(apart * x - apart**2 / 2))) for x in models])

    return draw


def paired_amounts(tails: float) -> Draw:
    """Amounts with Student's errors, and the predictions of two models whose own errors are equally large."""

    def draw(rng: np.random.Generator, rows: int) -> tuple[Array, Array]:
        known = rng.normal(0, 2, rows)
        return known + rng.standard_t(tails, rows), known[:, None] + rng.normal(0, 0.7, (rows, 2))

    return draw


def paired_coverage(metric: str, draw: Draw, rows: int, samples: int) -> tuple[float, float]:
    """The same for the difference of two correlated models of equal quality, which is 0 in the population."""
    hits, widths = 0, []
    for seed in range(samples):
        y, pair = draw(np.random.default_rng(seed), rows)
        found = paired_bootstrap(y, pair[:, 0], pair[:, 1], metric, n=REPLICATES, seed=seed)
        hits += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    return hits / samples, float(np.nanmean(widths))


def paired_cases() -> Iterator[tuple[str, float, Draw]]:
    for metric in ("roc_auc", "log_loss", "accuracy", "brier", "f1", "average_precision"):
        for auc in (0.8, 0.97):
            yield metric, auc, paired_classes(auc)
    for metric in ("rmse", "mae"):
        for tails in (3.0, 30.0):
            yield metric, tails, paired_amounts(tails)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="only metrics that begin with this")
    options = parser.parse_args()
    print(f"{'metric':<22}{'rows':>6}{'positives':>11}{'strength':>10}{'coverage':>10}{'width':>8}")
    for case in cases():
        if case.metric.startswith(options.only):
            share, width = coverage(case, options.samples)
            print(f"{case.metric:<22}{case.rows:>6}{case.share:>11.0%}{case.strength:>10g}{share:>10.1%}{width:>8.3f}")
    for metric, strength, draw in paired_cases():
        for rows in (36, 200):
            if f"paired {metric}".startswith(options.only):
                share, width = paired_coverage(metric, draw, rows, options.samples)
                print(
                    f"{'paired ' + metric:<22}{rows:>6}{'':>11}{strength:>10g}{share:>10.1%}{width:>8.3f}", flush=True
                )


if __name__ == "__main__":
    main()
