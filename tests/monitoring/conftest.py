from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from everloop.records import EndpointRecord, ModelVersion
from everloop.stores import SharedClock, Store, open_store

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)

SIGNATURE = {
    "task": "binary",
    "classes": [False, True],
    "inputs": [
        {"name": "distance", "type": "float"},
        {"name": "carrier", "type": "string"},
        {"name": "wind", "type": "float"},
    ],
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home", project="default", actor="user:test") as opened:
        opened.simulate(START)
        opened.records.put(
            opened.new(EndpointRecord, name="delays", model="delays"),
            *(
                opened.new(ModelVersion, model="delays", version=number, package=f"none-{number}", signature=SIGNATURE)
                for number in (1, 2)
            ),
        )
        yield opened


@pytest.fixture
def at(store: Store) -> Callable[[datetime], None]:
    """Move the store's clock."""

    def move(moment: datetime) -> None:
        assert isinstance(store.clock, SharedClock)
        store.clock.set(moment)

    return move


class Airport:
    """Flights with features, a score that knows something, and the truth; and their way into the store."""

    start = START
    features = ("distance", "carrier", "wind")

    def flights(
        self, rows: int, seed: int, *, start: datetime = START, span: timedelta = DAY, **shift: float
    ) -> pl.DataFrame:
        """Features of flights, evenly over a span, with `late` and a score that knows something about it.

        Shifts: `distance` (in standard deviations), `wind_missing` (share), `new_carrier` (share), `fog` (how much of
        the score is noise).
        """
        generator = np.random.default_rng(seed)
        distance = generator.normal(1000 + 300 * shift.get("distance", 0.0), 300, rows)
        wind = generator.gamma(2.0, 5.0, rows)
        carrier = generator.choice(["AA", "DL", "UA", "B6"], rows, p=[0.4, 0.3, 0.2, 0.1])
        unseen = generator.uniform(size=rows) < shift.get("new_carrier", 0.0)
        calm = generator.uniform(size=rows) < shift.get("wind_missing", 0.0)
        truth = (wind - 10) / 5 + (distance - 1000) / 600
        late = generator.uniform(size=rows) < 1 / (1 + np.exp(-truth))
        known = truth * (1 - shift.get("fog", 0.0)) + generator.normal(size=rows) * (0.3 + shift.get("fog", 0.0))
        return pl.DataFrame(
            {
                "id": [f"{seed}-{place}" for place in range(rows)],
                "event_at": [start + span * place / rows for place in range(rows)],
                "distance": distance,
                "carrier": np.where(unseen, "ZZ", carrier),
                "wind": pl.Series(wind).set(pl.Series(calm), None),
                "score": 1 / (1 + np.exp(-known)),
                "late": late,
            }
        )

    def log(self, store: Store, frame: pl.DataFrame, *, version: str = "delays@1", role: str = "champion") -> None:
        """Put flights into the prediction log, as serving does."""
        store.tables.append(
            "predictions/delays",
            frame.select(
                pl.col("id") + f"-{version}",
                "event_at",
                pl.col("event_at").alias("arrived_at"),
                pl.lit(version).alias("version"),
                pl.lit(role).alias("role"),
                pl.col("id").alias("entity"),
                "score",
                pl.lit(0.01).alias("seconds"),
                *(pl.col(name).alias(f"input_{name}") for name in self.features),
            ),
        )

    def label(self, store: Store, frame: pl.DataFrame, *, after: timedelta, **columns: Any) -> None:
        """Deliver the truth about flights, `after` each of them."""
        store.tables.append(
            "labels/delays",
            frame.select(
                pl.col("id").alias("entity"),
                pl.col("late").cast(pl.Float64).alias("value"),
                pl.col("late").cast(pl.String).alias("text"),
                "event_at",
                (pl.col("event_at") + after).alias("arrived_at"),
            ).with_columns(**columns),
        )


@pytest.fixture
def airport() -> Airport:
    return Airport()
