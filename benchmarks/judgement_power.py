"""The power table of `judgement.py`: who sees which drift, how soon, if everyone raises as many false incidents.

One run takes a world and a seed. It watches the world without a drift, and then with each drift. Random numbers are the
same in all of them except in the columns that drift, so differences between methods are compared seed by seed, and the
peers, which look at each column alone, only measure the changed columns again.

The threshold of a peer is set on the runs without a drift, to the value at which it opens as many incidents as
everloop. It applies to the largest score of a window, or to the mean of all its scores, which is a method of its own.
"""

from __future__ import annotations

import math
import re
import statistics
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from judgement_peers import METHODS, WINDOW, Peer, Scores, chart_scores
from judgement_streams import TIME, Drift, Made, Stream, make
from judgement_subject import Opened, everloop_incidents, runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

MONTH = timedelta(days=365.25 / 12)
WITHIN = 14.0
"""Days within which a drift should be seen."""
EVERLOOP = "everloop"
JOINED = "or joined"
"""Counts also an incident that was open before, if it changes after the drift has begun and names a drifted column."""
CHANCE = "by chance"


@dataclass(frozen=True)
class Series:
    """What one method saw in one run. `top`: the column with the largest score, by window."""

    largest: Array
    mean: Array
    top: list[str]


@dataclass(frozen=True)
class PowerRun:
    """One world with one seed. Keys of the dictionaries: name of the drift, or `""` without one; then the method."""

    stream: str
    seed: int
    opened: dict[str, list[Opened]]
    series: dict[str, dict[str, Series]]
    ends: list[datetime]
    drift_from: dict[str, datetime]


@lru_cache(maxsize=4)
def _peer(name: str) -> Peer:
    return Peer(name)


def numbered(stream: Stream, frame: pl.DataFrame, since: datetime) -> pl.DataFrame:
    """Return the frame with the number of the window since a moment instead of the time."""
    micros = int(stream.window.total_seconds() * 1e6)
    number = ((pl.col(TIME) - since).dt.total_microseconds() // micros).cast(pl.Int32)
    return frame.select(number.alias(WINDOW), pl.exclude(TIME))


def peer_scores(
    stream: Stream, made: Made, peers: Sequence[str], columns: list[str] | None = None
) -> dict[str, Scores]:
    """Return the scores of all methods of the peers. `columns`: only these, except for multivariate methods."""
    reference = numbered(stream, made.reference, made.live_from - timedelta(days=stream.reference_days))
    current = numbered(stream, made.current, made.live_from)
    windows = stream.live_days * stream.per_day
    everything = [name for name in reference.columns if name != WINDOW]
    found: dict[str, Scores] = {}
    with tempfile.TemporaryDirectory(prefix="everloop-judgement-") as folder:
        files = Path(folder, "reference.parquet"), Path(folder, "current.parquet")
        if {"evidently", "nannyml"} & set(peers):
            reference.write_parquet(files[0], compression="uncompressed")
            current.write_parquet(files[1], compression="uncompressed")
        for peer in peers:
            if peer in ("ks", "ewma"):
                found[peer] = chart_scores(peer, reference, current, windows, columns or everything)
            else:
                found |= _peer(peer).ask(*files, columns)
    return found


def run_power(job: tuple[Stream, Sequence[Drift], int, Sequence[str]]) -> PowerRun:
    stream, drifts, seed, peers = job
    made = make(stream, seed)
    ends = [made.live_from + stream.window * (1 + window) for window in range(stream.live_days * stream.per_day)]
    clean = peer_scores(stream, made, peers)
    opened = {"": everloop_incidents(made.reference, made.current, TIME, stream.every, stream.budget, stream.seasons)}
    series = {"": {method: _series(scores) for method, scores in clean.items()}}
    starts: dict[str, datetime] = {}
    for drift in drifts:
        made = make(stream, seed, drift)
        assert made.drift_from is not None
        starts[drift.name] = made.drift_from
        opened[drift.name] = everloop_incidents(
            made.reference, made.current, TIME, stream.every, stream.budget, stream.seasons
        )
        changed = peer_scores(stream, made, peers, sorted(drift.touched()))
        series[drift.name] = {method: _series(_merged(clean[method], scores)) for method, scores in changed.items()}
    return PowerRun(stream.name, seed, opened, series, ends, starts)


def _merged(clean: Scores, changed: Scores) -> Scores:
    """Return the scores of all columns, where some have been measured again."""
    scores = np.array(clean["scores"])
    for index, name in enumerate(changed["columns"]):
        scores[:, clean["columns"].index(name)] = np.array(changed["scores"])[:, index]
    return {"columns": clean["columns"], "scores": scores}


def _series(scores: Scores) -> Series:
    values = np.nan_to_num(np.array(scores["scores"], dtype=float))
    top = [scores["columns"][index] for index in values.argmax(axis=1)]
    return Series(values.max(axis=1), values.mean(axis=1), top)


# The table


def methods_of(peers: Sequence[str]) -> list[str]:
    """Return the methods of the table: largest score and mean score, where a method has several columns."""
    names = [method for peer in peers for method in METHODS[peer]]
    means = {"evidently": "evidently mean", "nannyml": "nannyml mean"}
    return [part for name in names for part in ([name, means[name]] if name in means else [name])]


def _values(run: PowerRun, drift: str, method: str) -> tuple[Array, list[str]]:
    series = run.series[drift][method.removesuffix(" mean")]
    return (series.mean if method.endswith(" mean") else series.largest), series.top


def _peer_opened(run: PowerRun, drift: str, method: str, threshold: float) -> list[Opened]:
    values, top = _values(run, drift, method)
    return runs(run.ends, [[name] if value > threshold else [] for value, name in zip(values, top, strict=True)])


def calibrated(found: Sequence[PowerRun], method: str, incidents: int) -> tuple[float, int]:
    """Return the highest threshold at which a method opens at least so many incidents without a drift, and how many.

    If there is none, because incidents run into each other before, it is that with the most incidents.
    """
    values = np.unique(np.concatenate([_values(run, "", method)[0] for run in found]))
    best = float(values[-1]), 0
    for value in values[-2::-1]:
        count = sum(len(_peer_opened(run, "", method, float(value))) for run in found)
        if count > best[1]:
            best = float(value), count
        if count >= incidents or count < best[1] / 2:
            break
    return (best[0], best[1]) if incidents else (float(values[-1]), 0)


def delay_of(opened: Sequence[Opened], start: datetime, touched: set[str] | None = None) -> float:
    """Return the days until an incident opens after the start of a drift; infinite if none does.

    `touched`: count only incidents that name one of these columns.
    """
    days = [
        (item.opened_at - start) / timedelta(days=1)
        for item in opened
        if item.opened_at > start
        and (touched is None or touched & {part for name in item.subjects for part in re.split(r"[^\w]+", name)})
    ]
    return min(days, default=math.inf)


def joinings(opened: Sequence[Opened], touched: set[str]) -> list[Opened]:
    """Return the later changes of incidents that name one of these columns, as if each had opened an incident."""
    return [
        Opened(at, None, item.subjects, item.severity)
        for item in opened
        for at in item.changed
        if touched & set(item.subjects)
    ]


def power_rows(
    stream: Stream, drifts: Sequence[Drift], found: Sequence[PowerRun], peers: Sequence[str]
) -> list[dict[str, object]]:
    """Return one row for each drift: by method, probabilities, median delay, and how everloop compares."""
    months = len(found) * timedelta(days=stream.live_days) / MONTH
    false_incidents = sum(len(run.opened[""]) for run in found)
    thresholds = {method: calibrated(found, method, false_incidents) for method in methods_of(peers)}
    rows: list[dict[str, object]] = []
    for drift in drifts:
        start_of = {run.seed: run.drift_from[drift.name] for run in found}
        delays: dict[str, list[float]] = {}
        named: dict[str, list[float]] = {}
        for method in (EVERLOOP, JOINED, CHANCE, *thresholds):
            delays[method], named[method] = [], []
            for run in found:
                if method in (EVERLOOP, JOINED):
                    opened = run.opened[drift.name]
                    if method == JOINED:
                        opened = [*opened, *joinings(opened, drift.touched())]
                elif method == CHANCE:
                    opened = run.opened[""]
                else:
                    opened = _peer_opened(run, drift.name, method, thresholds[method][0])
                delays[method].append(delay_of(opened, start_of[run.seed]))
                named[method].append(delay_of(opened, start_of[run.seed], drift.touched()))
        rows.append(
            {
                "stream": stream.name,
                "drift": drift.name,
                "seeds": len(found),
                "false_incidents_a_month": {
                    EVERLOOP: false_incidents / months,
                    **{method: count / months for method, (_, count) in thresholds.items()},
                },
                "within": {method: _share(values) for method, values in delays.items()},
                "named_within": {method: _share(values) for method, values in named.items()},
                "median_delay_days": {method: _finite(statistics.median_low(v)) for method, v in delays.items()},
                "behind": behind(delays),
            }
        )
    return rows


def _share(delays: Sequence[float]) -> float:
    return sum(delay <= WITHIN for delay in delays) / len(delays)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def behind(delays: dict[str, list[float]]) -> list[str]:
    """Return the methods that are better than everloop: more often in time by two standard errors, or sooner.

    Differences are taken seed by seed. A median delay counts if the method sees most of the drifts in time.
    """
    better = []
    ours = [delay <= WITHIN for delay in delays[EVERLOOP]]
    own_median = statistics.median_low(delays[EVERLOOP])
    for method, values in delays.items():
        if method in (EVERLOOP, JOINED, CHANCE):
            continue
        theirs = [delay <= WITHIN for delay in values]
        only_they = sum(they and not we for they, we in zip(theirs, ours, strict=True))
        only_we = sum(we and not they for they, we in zip(theirs, ours, strict=True))
        median = statistics.median_low(values)
        # The statistic of Q. McNemar (1947), two standard errors from an equal number.
        if only_they - only_we > 2 * math.sqrt(only_they + only_we):
            better.append(f"{method} (sees {(only_they - only_we) / len(ours):.2f} more)")
        elif median <= WITHIN and median < own_median:
            better.append(f"{method} ({_sooner(own_median - median)})")
    return better


def _sooner(days: float) -> str:
    return f"{days:.3g} days sooner" if math.isfinite(days) else "in time"


def print_power(rows: Sequence[dict[str, object]]) -> None:
    first = rows[0]
    rates: dict[str, float] = first["false_incidents_a_month"]  # type: ignore[assignment]
    print(
        f"\nPower: {first['stream']}, {first['seeds']} seeds. Probability of an incident within 14 days / median delay"
    )
    methods = [EVERLOOP, JOINED, CHANCE, *[name for name in rates if name != EVERLOOP]]
    widths = {method: max(9, len(method)) for method in methods}
    print(f"{'':30}" + " ".join(f"{method:>{widths[method]}}" for method in methods) + "  verdict")
    for row in rows:
        within: dict[str, float] = row["within"]  # type: ignore[assignment]
        delay: dict[str, float | None] = row["median_delay_days"]  # type: ignore[assignment]
        cells = []
        for method in methods:
            days = delay[method]
            cells.append(f"{within[method]:.2f}/{'-' if days is None else f'{days:.0f}'}".rjust(widths[method]))
        late: list[str] = row["behind"]  # type: ignore[assignment]
        print(f"{row['drift']:30}" + " ".join(cells) + ("  NOT ok, behind " + ", ".join(late) if late else "  ok"))
    print(f"{'named a drifted column':30}")
    for row in rows:
        named: dict[str, float] = row["named_within"]  # type: ignore[assignment]
        cells = [("" if "pca" in name else f"{named[name]:.2f}").rjust(widths[name]) for name in methods]
        print(f"{row['drift']:30}" + " ".join(cells))
    cells = [("" if method in (JOINED, CHANCE) else f"{rates[method]:.2f}").rjust(widths[method]) for method in methods]
    print(f"{'false incidents a month':30}" + " ".join(cells))
