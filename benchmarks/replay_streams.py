"""Synthetic streams for replays: each has the columns `at` and `y`, features, a task, and a known kind of change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2021, 1, 4, tzinfo=UTC)
WEEKS = 80


@dataclass(frozen=True)
class Stream:
    """A stream by name, and what a good recommendation looks like."""

    name: str
    make: Callable[[int], pl.DataFrame]
    retraining_helps: bool


def _times(rows: int, weeks: int = WEEKS) -> tuple[pl.Series, np.ndarray]:
    """Equally spaced times, and the same in weeks."""
    step = weeks * 7 * 86_400_000_000 // rows
    begin = int((START - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    at = pl.Series("at", begin + np.arange(rows) * step).cast(pl.Datetime("us", "UTC"))
    return at, np.arange(rows) * step / (7 * 86_400e6)


def bikes(seed: int) -> pl.DataFrame:
    """Hourly demand with daily and yearly seasons, weather, growth, and a change of commuting habits in week 50."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 168)
    hour, day = (week * 168).astype(int) % 24, (week * 7).astype(int) % 7
    work = day < 5
    warm = 12 - 11 * np.cos(2 * np.pi * week / 52.18) + random.normal(0, 3, len(week))
    humid = random.uniform(30, 95, len(week))
    commute = np.exp(-((hour - 8) ** 2) / 3) + np.exp(-((hour - 18) ** 2) / 4)
    leisure = np.exp(-((hour - 14) ** 2) / 18)
    habit = np.where(week < 50, 1.0, 0.55)
    level = 60 + 260 * np.where(work, habit * commute, 0.15 * commute) + 130 * np.where(work, 0.5, 1.3) * leisure
    demand = level * (0.35 + 0.04 * warm.clip(0, 26)) * (1 - 0.003 * humid) * (1 + 0.6 * week / 52)
    count = random.poisson(demand * random.gamma(25, 1 / 25, len(week)))
    return pl.DataFrame(
        {"at": at, "hour": hour, "weekday": day, "month": at.dt.month(), "temp": warm, "hum": humid, "y": count}
    )


def electricity(seed: int) -> pl.DataFrame:
    """Will the price rise? Half-hourly demand of two states, whose influence drifts and jumps."""
    random = np.random.default_rng(seed)
    rows = WEEKS * 168
    at, week = _times(rows)
    hour = (week * 168).astype(int) % 24
    own, other = (_autoregressive(random, rows, 0.95) for _ in range(2))
    transfer = _autoregressive(random, rows, 0.9)
    angle = 0.015 * week + np.where(week > 30, 0.9, 0.0) + np.where(week > 58, -0.7, 0.0)
    signal = np.cos(angle) * own + np.sin(angle) * other + 0.5 * transfer + 0.6 * np.sin(2 * np.pi * hour / 24)
    up = signal + random.logistic(0, 0.6, rows) > 0
    return pl.DataFrame({"at": at, "hour": hour, "own": own, "other": other, "transfer": transfer, "y": up})


def stationary(seed: int) -> pl.DataFrame:
    """Nothing changes."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 4))
    y = 5 * x[:, 0] + 3 * np.abs(x[:, 1]) + 2 * x[:, 2] * x[:, 0] + random.normal(0, 3, len(week))
    return _frame(at, x, y)


def sudden(seed: int) -> pl.DataFrame:
    """The target's relation to two features changes in week 38, and again in week 64."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 4))
    turn = np.select([week < 38, week < 64], [1.0, -0.6], 0.3)
    y = 6 * turn * x[:, 0] + 4 * x[:, 1] + 2 * np.maximum(x[:, 2], 0) + random.normal(0, 3, len(week))
    return _frame(at, x, y)


def slow(seed: int) -> pl.DataFrame:
    """A class whose relation to the features turns steadily."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 4))
    angle = 0.03 * week
    up = 2 * (np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1]) + x[:, 2] + random.logistic(0, 1, len(week)) > 0
    return _frame(at, x, up)


def recurring(seed: int) -> pl.DataFrame:
    """Two regimes take turns every twelve weeks; no feature says which one holds."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 4))
    summer = (week // 12).astype(int) % 2 == 0
    y = np.where(summer, 5, 1) * x[:, 0] + np.where(summer, 0, 4) * x[:, 1] + random.normal(0, 3, len(week))
    return _frame(at, x, y)


def daily_bikes(seed: int) -> pl.DataFrame:
    """Daily demand with a yearly season, weather and growth: seven rows a week."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 7)
    work = (np.arange(len(week)) % 7) < 5
    warm = 12 - 11 * np.cos(2 * np.pi * week / 52.18) + random.normal(0, 4, len(week))
    demand = (2000 + 120 * warm + 400 * work) * (1 + 0.6 * week / 52) * random.gamma(30, 1 / 30, len(week))
    noise = random.normal(size=len(week))
    return pl.DataFrame({"at": at, "warm": warm, "work": work.astype(float), "noise": noise, "y": demand})


def growth(seed: int) -> pl.DataFrame:
    """A level that rises steadily, which no feature knows."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 3))
    return _frame(at, x, 100 + 2 * week + 5 * x[:, 0] + random.normal(0, 3, len(week)))


def rare(seed: int) -> pl.DataFrame:
    """A class of about one row in forty, whose relation to the features changes in week 45."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 400)
    x = random.normal(size=(len(week), 3))
    angle = np.where(week > 45, 1.2, 0.0)
    odds = -4 + 1.2 * (np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1])
    return _frame(at, x, random.random(len(week)) < 1 / (1 + np.exp(-odds)))


def weak(seed: int) -> pl.DataFrame:
    """A class that can hardly be predicted, and never changes."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 200)
    x = random.normal(size=(len(week), 3))
    return _frame(at, x, random.random(len(week)) < 1 / (1 + np.exp(-0.15 * x[:, 0])))


def late(seed: int) -> pl.DataFrame:
    """The target turns around eight weeks before the end."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 3))
    return _frame(at, x, np.where(week < 72, 5, -5) * x[:, 0] + random.normal(0, 3, len(week)))


def outage(seed: int) -> pl.DataFrame:
    """For six weeks the target turns around, and then back."""
    random = np.random.default_rng(seed)
    at, week = _times(WEEKS * 150)
    x = random.normal(size=(len(week), 3))
    sign = np.where((week > 40) & (week < 46), -5, 5)
    return _frame(at, x, sign * x[:, 0] + random.normal(0, 3, len(week)))


def _frame(at: pl.Series, x: np.ndarray, y: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"at": at, **{f"x{index}": x[:, index] for index in range(x.shape[1])}, "y": y})


def _autoregressive(random: np.random.Generator, rows: int, rho: float) -> np.ndarray:
    from scipy.signal import lfilter

    noise = random.normal(0, np.sqrt(1 - rho**2), rows)
    return np.asarray(lfilter([1.0], [1.0, -rho], noise))


STREAMS = (
    Stream("bikes", bikes, retraining_helps=True),
    Stream("electricity", electricity, retraining_helps=True),
    Stream("stationary", stationary, retraining_helps=False),
    Stream("sudden", sudden, retraining_helps=True),
    Stream("slow", slow, retraining_helps=True),
    Stream("recurring", recurring, retraining_helps=True),
    Stream("daily_bikes", daily_bikes, retraining_helps=True),
    Stream("growth", growth, retraining_helps=True),
    Stream("rare", rare, retraining_helps=True),
    Stream("weak", weak, retraining_helps=False),
    Stream("late", late, retraining_helps=True),
    Stream("outage", outage, retraining_helps=False),
)
