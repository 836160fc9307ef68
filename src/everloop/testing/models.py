"""A small table with all types of columns, and real models that are trained on it in a fraction of a second.

Use them to test protocols, backends and integrations with models that behave like a user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import polars as pl

    from everloop.training.trained_model import Task, Trained

TARGETS = {"binary": "late", "multiclass": "delay", "regression": "minutes"}
"""The target column in `sample_table` for each task."""

_PARAMS: dict[str, dict[str, Any]] = {
    "linear": {"l2": 1.0},
    "lightgbm": {"learning_rate": 0.2, "num_leaves": 7, "min_data_in_leaf": 10},
}


def sample_table(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """Synthetic flights: numbers, nulls, categories, booleans, dates, times, a constant column and three targets."""
    from datetime import UTC, datetime, timedelta

    import numpy as np
    import polars as pl

    rng = np.random.default_rng(seed)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    minutes = rng.normal(10, 20, rows)
    distance = rng.gamma(3, 300, rows)
    carrier = rng.choice(["AA", "DL", "UA", "B6"], rows, p=[0.4, 0.3, 0.2, 0.1])
    minutes += np.where(carrier == "UA", 15, 0) + distance / 100
    wind = rng.normal(size=rows)
    minutes += 8 * wind
    return pl.DataFrame(
        {
            "flight_id": [f"F{number:06d}" for number in range(rows)],
            "departs_at": [start + timedelta(minutes=37 * number) for number in range(rows)],
            "distance": distance,
            "carrier": carrier,
            "seats": rng.integers(50, 300, rows),
            "wind": pl.Series(
                [None if hole else float(value) for hole, value in zip(rng.random(rows) < 0.1, wind, strict=True)]
            ),
            "weekend": rng.random(rows) < 0.3,
            "booked_on": [(start + timedelta(days=int(day))).date() for day in rng.integers(0, 300, rows)],
            "currency": ["USD"] * rows,
            "late": minutes > 20,
            "delay": np.where(minutes > 40, "long", np.where(minutes > 20, "short", "none")),
            "minutes": minutes,
        }
    )


FEATURES = ("departs_at", "distance", "carrier", "seats", "wind", "weekend", "booked_on", "currency")


def train_sample(
    algorithm: Literal["linear", "lightgbm"] = "linear",
    task: Task = "binary",
    *,
    rows: int = 400,
    seed: int = 0,
    features: tuple[str, ...] = FEATURES,
) -> Trained:
    """Train a model on `sample_table(rows, seed)`. Training leaves out `currency`, because it is constant."""
    from everloop.training import Recipe, fit_recipe

    rounds = 20 if algorithm == "lightgbm" else None
    recipe = Recipe(algorithm=algorithm, task=task, params=_PARAMS[algorithm], rounds=rounds)
    return fit_recipe(recipe, sample_table(rows, seed), target=TARGETS[task], features=features, threads=1)


def sample_rows(rows: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """The first rows of `sample_table(400, seed)` as a client sends them: JSON-compatible, with all features."""
    table = sample_table(max(rows, 400), seed).head(rows).select(FEATURES)
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in table.to_dicts()
    ]
