"""Is the recommended policy right on the part of a stream that it was not chosen on?

    python benchmarks/replay_advice.py [SEEDS]

Thousands of whole replays would take days, so a ridge regression stands in for the loop here: its training is a sum of
weekly Gram matrices. The streams and the rule that recommends are the real ones. A policy is chosen on the first 60 %
of the periods, and compared with weekly retraining on the rest. It is right if it keeps 98 % of the metric with at most
40 % of the trainings. The rule was written with seeds below 10; seeds from 100 on were used for the check alone.

The last two columns judge a policy that is chosen on the whole stream, as the result of a replay shows it.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import numpy as np
import polars as pl
from replay_streams import START, STREAMS, WEEKS, Stream

from everloop.replay.hindsight import PeriodMetric
from everloop.replay.recommendation import FIRST_PART, Candidate, kept_share, recommend

FIRST = 20
WEEK = timedelta(weeks=1)
MEMORIES = {"": None, "-30d": 4, "-90d": 13, "-half-life-90d": -90 / 7}
"""Training windows in weeks; a negative number is a half-life."""


class Played:
    """The weekly metric of policies on one stream, with a ridge regression as the model."""

    def __init__(self, stream: Stream, seed: int) -> None:
        table = stream.make(seed)
        self.binary = table["y"].dtype == pl.Boolean
        y = table["y"].cast(float).to_numpy()
        columns = [np.ones(len(y))]
        for name in table.columns:
            if name in ("at", "y", "hour", "weekday", "month"):
                continue
            x = table[name].to_numpy()
            columns += [x, np.maximum(x, np.median(x[:1000])), x**2]
        if "hour" in table.columns:
            hour = np.eye(24)[table["hour"].to_numpy()]
            columns += list(hour.T)
            if "weekday" in table.columns:
                columns += list((hour * (table["weekday"].to_numpy() < 5)[:, None]).T)
        design = np.column_stack(columns)
        rows = len(y) // WEEKS
        self.x = design[: rows * WEEKS].reshape(WEEKS, rows, -1)
        self.y = y[: rows * WEEKS].reshape(WEEKS, rows)
        self.gram = np.einsum("wri,wrj->wij", self.x, self.x)
        self.moment = np.einsum("wri,wr->wi", self.x, self.y)
        self.models: dict[tuple[int, float | None], np.ndarray] = {}

    def metric(self, trained: int, memory: float | None, week: int) -> float:
        """Metric of week `week` with a model trained on the weeks before `trained`."""
        if (trained, memory) not in self.models:
            ages = trained - 1 - np.arange(trained)
            weights = np.ones(trained)
            if memory is not None:
                weights = (ages < memory).astype(float) if memory > 0 else 2.0 ** (ages / memory)
            gram = np.tensordot(weights, self.gram[:trained], 1)
            moment = weights @ self.moment[:trained]
            self.models[trained, memory] = np.linalg.solve(gram + np.eye(len(gram)), moment)
        score = self.x[week] @ self.models[trained, memory]
        y = self.y[week]
        if not self.binary:
            return float(np.sqrt(np.mean((score - y) ** 2)))
        order = np.argsort(np.argsort(score)) + 1
        positive = y > 0
        n, m = positive.sum(), (~positive).sum()
        return float((order[positive].sum() - n * (n + 1) / 2) / (n * m))

    def play(self, name: str) -> Candidate:
        base, dash, rest = name.partition("-")
        memory = MEMORIES[dash + rest]
        trained, at, found = FIRST, [], []
        sign = 1 if self.binary else -1
        seen: list[float] = []
        for week in range(FIRST, WEEKS):
            age = week - trained
            if base == "weekly" or (base == "monthly" and age >= 4):
                due = age > 0
            elif base == "performance" and len(seen) >= 4:
                usual = seen[:4]
                due = sign * (np.mean(usual) - np.mean(seen[-2:])) > 3 * max(np.std(usual), 1e-9) and age >= 2
            else:
                due = False
            if due:
                trained, seen = week, []
                at.append(START + week * WEEK)
            value = self.metric(trained, memory, week)
            seen.append(value)
            begin = START + week * WEEK
            found.append(
                PeriodMetric(begin=begin, end=begin + WEEK, rows=150, labelled=150, value=value, low=value, high=value)
            )
        return Candidate(name=name, periods=found, trainings=len(at), seconds=float(len(at)), retrained_at=at)


def cut(one: Candidate, first: bool) -> Candidate:
    count = round(len(one.periods) * FIRST_PART)
    periods = one.periods[:count] if first else one.periods[count:]
    at = [moment for moment in one.retrained_at if periods[0].begin <= moment < periods[-1].end]
    return Candidate(name=one.name, periods=periods, trainings=len(at), seconds=one.seconds, retrained_at=at)


def main(seeds: range) -> None:
    plain = ["never", "weekly", "monthly", "performance"]
    windows = [base + end for base in ("monthly", "performance") for end in MEMORIES if end]
    for title, names in (("all the past", plain), ("with other windows", plain + windows)):
        print(title)
        table(names, seeds)


def table(names: list[str], seeds: range) -> None:
    names_of_columns = f"{'stream':12}{'right':>8}{'kept: mean':>12}{'least':>8}{'trainings':>11}"
    print(f"{names_of_columns}{'whole: right':>14}{'kept':>7}   recommended")
    for stream in STREAMS:
        kept, share, chosen, whole = [], [], [], []
        for seed in seeds:
            played = Played(stream, seed)
            candidates = [played.play(name) for name in names]
            metric, greater = ("roc_auc", True) if played.binary else ("rmse", False)
            advice = recommend([cut(one, True) for one in candidates], metric, greater_is_better=greater)
            rest = {one.name: cut(one, False) for one in candidates}
            means = {name: float(np.mean([period.value for period in one.periods])) for name, one in rest.items()}
            kept.append(kept_share(means[advice.name], means["weekly"], metric, greater_is_better=greater))
            share.append(rest[advice.name].trainings / rest["weekly"].trainings)
            chosen.append(advice.name)
            advice = recommend(candidates, metric, greater_is_better=greater)
            everything = {one.name: one for one in candidates}
            means = {one.name: float(np.mean([period.value for period in one.periods])) for one in candidates}
            held = kept_share(means[advice.name], means["weekly"], metric, greater_is_better=greater)
            cheap = everything[advice.name].trainings <= 0.4 * everything["weekly"].trainings
            whole.append((held, held >= 0.98 and cheap))
        right = np.mean([k >= 0.98 and s <= 0.4 for k, s in zip(kept, share, strict=True)])
        often = {name: chosen.count(name) for name in sorted(set(chosen), key=lambda name: -chosen.count(name))}
        shown = f"{np.mean([right for _, right in whole]):>14.0%}{np.mean([held for held, _ in whole]):>7.3f}"
        rest_of_it = f"{right:>8.0%}{np.mean(kept):>12.3f}{min(kept):>8.3f}{np.mean(share):>11.0%}"
        print(f"{stream.name:12}{rest_of_it}{shown}   {often}")


if __name__ == "__main__":
    main(range(int(sys.argv[1]) if len(sys.argv) > 1 else 10) if len(sys.argv) < 3 else range(*map(int, sys.argv[1:3])))
