"""How often releases decide rightly, on streams of labelled predictions whose answer is known.

    python benchmarks/releases.py [--quick] [--streams N]

Each stream is looked at daily for 60 days with the same test that decides releases. Columns: the share of streams in
which the candidate was promoted and rolled back, and the median number of labelled rows until the decision. Seeds are
fixed, so a run can be repeated exactly.

A candidate "at the limit" is worse by exactly the margin under `not_worse`, and equal under `better`. It should be
promoted in at most 5 % of the streams. The interval of a share of 5 % in 400 streams is 3.1 to 7.6 %.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from everloop.loop.releases.metric_influence import measure_gain
from everloop.loop.releases.release_declarations import Canary
from everloop.loop.releases.sequential_test import LEAST_GROWTH, look
from everloop.training.metrics import get_metric

DAYS = 60


@dataclass
class Stream:
    """A kind of stream: how labels, scores and days come about."""

    name: str
    metric: str
    per_day: int
    margin: float
    day_effect: float = 0.0
    """Standard deviation over days of the candidate's own quality, in units of the score's noise."""
    positives: float = 0.3
    heavy: bool = False
    clumps: bool = False
    """Labels arrive once a week."""
    per_key: int = 1
    """Rows of each key, which share their error."""


STREAMS = (
    Stream("independent, AUC", "roc_auc", 84, 0.01),
    Stream("many labels a day, AUC", "roc_auc", 1_000, 0.01),
    Stream("many labels a day, days differ, AUC", "roc_auc", 1_000, 0.01, day_effect=0.5),
    Stream("rare positives (3 %), AUC", "roc_auc", 300, 0.02, positives=0.03),
    Stream("days differ, AUC", "roc_auc", 84, 0.01, day_effect=0.5),
    Stream("labels come weekly, AUC", "roc_auc", 84, 0.01, clumps=True),
    Stream("five rows of each key, log loss", "log_loss", 85, 0.01, per_key=5),
    Stream("independent, Brier", "brier", 84, 0.005),
    Stream("accuracy", "accuracy", 84, 0.01),
    Stream("heavy tails, RMSE", "rmse", 84, 0.02, heavy=True),
    Stream("heavy tails, MAE", "mae", 84, 0.02, heavy=True),
)


def draw(stream, rng, quality, day_count=DAYS):
    """Labels, champion's scores, candidate's scores, days and keys of one stream; `quality` above 0 is better."""
    rows = day_count * stream.per_day
    days = np.repeat(np.arange(day_count), stream.per_day)
    keys = np.arange(rows) // stream.per_key

    def noise(scale=1.0):
        return scale * np.repeat(rng.normal(size=keys[-1] + 1), stream.per_key)[:rows]

    daily = stream.day_effect * rng.normal(size=day_count)[days]
    shared = noise()
    if stream.metric in ("rmse", "mae"):
        spread = rng.standard_t(5, size=rows) if stream.heavy else rng.normal(size=rows)
        truth = shared
        own = noise(0.6)
        other = noise(0.6)
        labels = truth + spread
        return labels, truth + other, truth + own * math.exp(-quality) + daily * 0.2, days, keys
    # Both models see the same signal, each with noise of its own.
    signal = shared
    cut = -math.log(1 / stream.positives - 1)
    labels = (rng.uniform(size=rows) < 1 / (1 + np.exp(-(cut + 1.5 * signal)))).astype(float)
    other = cut + 1.5 * signal + noise(0.7)
    own = cut + 1.5 * signal + noise(0.7) * np.exp(-quality + daily)
    return labels, 1 / (1 + np.exp(-other)), 1 / (1 + np.exp(-own)), days, keys


def calibrated(stream, gain):
    """The quality at which the candidate's expected gain has a value, found on 600,000 rows of 20,000 days.

    The days are many, because the gain of a stream whose days differ depends on them and not on the rows. What the two
    models gain on rows where they are equal is subtracted, since it is chance.
    """
    if gain == 0 and not stream.day_effect:
        return 0.0
    big = Stream(**{**stream.__dict__, "per_day": 30, "per_key": 1})
    equal = Stream(**{**big.__dict__, "day_effect": 0.0})

    def gain_of(quality, kind=big):
        labels, other, own, _, _ = draw(kind, np.random.default_rng(99), quality, 20_000)
        metric = get_metric(stream.metric)
        sign = 1.0 if metric.greater_is_better else -1.0
        return sign * (metric.prepare(labels, own)(None) - metric.prepare(labels, other)(None))

    wanted = gain + gain_of(0.0, equal)
    low, high = -2.0, 2.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if gain_of(middle) < wanted else (low, middle)
    return (low + high) / 2


def outcome(stream, rng, quality, rule, margin):
    """`success`, `harm` or `open`, and the labelled rows at that time."""
    labels, other, own, days, keys = draw(stream, rng, quality)
    looks = ()
    step = 7 if stream.clumps else 1
    for day in range(step, DAYS + 1, step):
        rows = day * stream.per_day
        if rows < max(200, LEAST_GROWTH * max(looks, default=0)):
            # Such a look would not count.
            continue
        part = slice(0, rows)
        measured = measure_gain(stream.metric, labels[part], own[part], other[part], keys=keys[part], days=days[part])
        seen = look(measured, looks, rule=rule, margin=margin, least_days=Canary().days_of_proof)
        looks = seen.looks
        if seen.verdict != "open":
            return seen.verdict, rows
    return "open", DAYS * stream.per_day


def shares(stream, quality, rule, margin, streams, seed):
    results = [outcome(stream, np.random.default_rng((seed, n)), quality, rule, margin) for n in range(streams)]
    verdicts = [verdict for verdict, _ in results]
    return (
        verdicts.count("success") / streams,
        verdicts.count("harm") / streams,
        float(np.median([rows for _, rows in results])),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 streams of each kind instead of 400")
    parser.add_argument("--streams", type=int)
    parser.add_argument("--only", help="kinds of streams whose name contains this text")
    options = parser.parse_args()
    count = options.streams or (100 if options.quick else 400)
    print(f"{'stream':38}{'candidate':30}{'promoted':>9}{'rolled back':>12}{'median rows':>12}")
    for stream in STREAMS:
        if options.only and options.only not in stream.name:
            continue
        cases = (
            ("at the limit, not_worse", -stream.margin, "not_worse", stream.margin),
            ("equal, not_worse", 0.0, "not_worse", stream.margin),
            ("at the limit, better", 0.0, "better", 0.0),
            ("better by 2 margins, not_worse", 2 * stream.margin, "not_worse", stream.margin),
            ("worse by 5 margins, not_worse", -5 * stream.margin, "not_worse", stream.margin),
        )
        for name, gain, rule, margin in cases:
            quality = calibrated(stream, gain)
            good, bad, rows = shares(stream, quality, rule, margin, count, seed=1)
            print(f"{stream.name:38}{name:30}{good:9.1%}{bad:12.1%}{rows:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
