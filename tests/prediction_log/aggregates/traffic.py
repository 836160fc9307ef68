"""An endpoint with logged predictions and labels, and what its aggregates must be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from everloop.monitoring.baseline import build_baseline, keep_baseline
from everloop.prediction_log.aggregates import read_aggregates
from everloop.prediction_log.aggregates.hourly_cells import add_cells, cells_of
from everloop.prediction_log.aggregates.label_cells import sketch_labelled
from everloop.prediction_log.aggregates.version_bins import find_version_bins
from everloop.prediction_log.label_matching import ANSWERED
from everloop.prediction_log.log_reading import read_labelled, read_predictions
from everloop.records import EndpointRecord, ModelVersion

if TYPE_CHECKING:
    from everloop.stores import SharedClock, Store

START = datetime(2024, 3, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
SIGNATURE = {
    "task": "binary",
    "classes": [False, True],
    "inputs": [{"name": "wind", "type": "float"}, {"name": "carrier", "type": "string"}],
}


class Traffic:
    """An endpoint, its predictions and labels, and the aggregates as they follow from all rows."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock: SharedClock = store.simulate(START)
        self._next = 0
        store.records.put(store.new(EndpointRecord, name="delays", model="delays"))
        for number in (1, 2):
            self.register(number, SIGNATURE)

    def register(self, number: int, signature: dict[str, Any]) -> None:
        self.store.records.put(
            self.store.new(ModelVersion, model="delays", version=number, package=f"none-{number}", signature=signature)
        )

    def baseline(self, version: str = "delays@1", seed: int = 0) -> None:
        rows = inputs(400, seed)
        frame = pl.DataFrame(rows).with_columns(score=pl.Series(np.random.default_rng(seed).uniform(size=400)))
        built = build_baseline(frame.drop("score"), scored=frame.select("score"))
        keep_baseline(self.store, version, built)

    def predict(
        self,
        rows: int = 20,
        seed: int = 0,
        *,
        version: str = "delays@1",
        role: str = "champion",
        start: datetime = START,
        span: timedelta = 5 * HOUR,
        arrived: datetime | None = None,
        keys: list[str] | None = None,
    ) -> pl.DataFrame:
        """Log predictions at random times within `span`; the keys are few, so that some come several times."""
        rng = np.random.default_rng(seed)
        known = inputs(rows, seed)
        events = [start + float(share) * span for share in rng.uniform(size=rows)]
        frame = pl.DataFrame(
            {
                "id": [f"r{self._next + index}-0" for index in range(rows)],
                "event_at": events,
                "arrived_at": [arrived or event for event in events],
                "version": version,
                "role": role,
                "entity": keys or [f"k{key}" for key in rng.integers(0, 12, rows)],
                "score": rng.uniform(size=rows).round(3),
                "label": ["true" if one else "false" for one in rng.uniform(size=rows) > 0.4],
                "seconds": rng.uniform(0.001, 0.1, rows),
                **{f"input_{name}": values for name, values in known.items()},
            },
            schema_overrides={"event_at": pl.Datetime("us", "UTC"), "arrived_at": pl.Datetime("us", "UTC")},
        )
        self._next += rows
        self.store.tables.append("predictions/delays", frame)
        return frame

    def label(self, *labels: tuple[str, object, datetime], arrived: datetime | None = None) -> None:
        frame = pl.DataFrame(
            {
                "entity": [key for key, _, _ in labels],
                "value": [None if isinstance(value, str) else float(value) for _, value, _ in labels],  # type: ignore[arg-type]
                "text": [str(value) for _, value, _ in labels],
                "event_at": [at for _, _, at in labels],
                "arrived_at": [arrived or at for _, _, at in labels],
            },
            schema_overrides={"value": pl.Float64},
        )
        self.store.tables.append("labels/delays", frame)

    def now(self, moment: datetime) -> None:
        self.clock.set(moment)


def inputs(rows: int, seed: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(seed)
    wind: list[float | None] = rng.normal(10, 3, rows).tolist()
    carrier: list[str | None] = rng.choice(["AA", "BB", "CC"], rows).tolist()
    if rows > 10:
        wind[3], carrier[4] = None, None
    return {"wind": wind, "carrier": carrier}


def from_rows(store: Store, since: datetime, until: datetime, version: str | None = None) -> dict[str, tuple[Any, Any]]:
    """Counts and labels by version, from all rows that are known at the store's time."""
    view = store.as_of(store.now())
    roles = ANSWERED if version is None else None
    found: dict[str, tuple[Any, Any]] = {}
    rows = read_predictions(view, "delays", since, until, version, roles=roles).collect()
    for (name,), part in rows.group_by("version"):
        key = str(name)
        bins = find_version_bins(store, "delays", key)
        labelled = read_labelled(view, "delays", since, until, key, roles=roles)
        labels = [sketch for sketch, _ in sketch_labelled(labelled, {key: bins}).values()]
        total = None
        for one in labels:
            total = one if total is None else total + one  # type: ignore[operator]
        cells = cells_of(part, key, bins)
        found[key] = (add_cells([cell for cell, _, _ in cells.values()]), total)
    return found


def agree(store: Store, since: datetime, until: datetime, version: str | None = None) -> None:
    """Assert that the aggregates of a window are those of its rows."""
    read = {one.version: one for one in read_aggregates(store, "delays", since, until, version)}
    expected = from_rows(store, since, until, version)
    assert sorted(read) == sorted(expected)
    for key, (cell, labels) in expected.items():
        found = read[key]
        assert found.rows == cell.rows
        assert found.seconds.counts == cell.seconds.counts
        assert {name: sketch.counts for name, sketch in found.inputs.items()} == {
            name: sketch.counts for name, sketch in cell.inputs.items()
        }
        assert (found.score and found.score.counts) == (cell.score and cell.score.counts)
        for name, sketch in cell.inputs.items():
            same_moments(found.inputs[name].moments, sketch.moments)
        if labels is None:
            assert found.labels is None
        else:
            assert found.labels is not None
            same_plain(found.labels.to_plain(), labels.to_plain())


def same_moments(one: Any, other: Any) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        assert (one.count, one.low, one.high) == (other.count, other.low, other.high)
        least = 1e-9 * max(abs(one.low), abs(one.high))
        assert (one.mean, one.m2) == pytest.approx((other.mean, other.m2), rel=1e-6, abs=least)


def same_plain(one: Any, other: Any) -> None:
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_plain(a, b)
    elif other is None or isinstance(other, bytes):
        assert one == other
    else:
        assert one == pytest.approx(other, nan_ok=True, rel=1e-9, abs=1e-9)
