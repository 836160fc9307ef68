"""The conformance suite for watches: declared, called once for each window, and safe to repeat."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import EmptySampleError
from everloop.loop.releases.promotion import promote
from everloop.loop.watches.watch_protocol import WatchContext, check_watch, watch_name
from everloop.loop.watches.window_checks import check_windows, due_windows, window_start
from everloop.records import Finding, ModelVersion
from everloop.stores import SharedClock, open_store
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from everloop.loop.watches.watch_protocol import Watch
    from everloop.stores import Store

ENDPOINT = "watched"
MODEL = "watched"
OPENED = datetime(2024, 1, 1, tzinfo=UTC)


class WatchSuite:
    """Derive from this class and define a fixture `part` that returns the watch.

    The suite logs answers of a model with the inputs `distance` (numbers) and `carrier` (text), labels them, and stores
    a baseline of the model's version. Change `windows` if the watch needs more of them.
    """

    windows = 4

    @pytest.fixture
    def watched(self, tmp_path: Path, part: Watch) -> Iterator[Store]:
        """A store with an endpoint that has answered during `windows` windows, all closed and labelled."""
        with open_store(tmp_path / "home", project="watched") as store:
            store.simulate(OPENED)
            store.records.put(
                store.new(ModelVersion, model=MODEL, version=1, package="sha256:" + "0" * 64, signature=_SIGNATURE)
            )
            promote(store, ENDPOINT, store.records.get(ModelVersion, f"{MODEL}@1"), "first")
            span = parse_duration(part.window)
            rows = sample_answers(window_start(OPENED, span), span, self.windows)
            _log_answers(store, rows)
            _keep_baseline(store, rows)
            end = window_start(OPENED, span) + self.windows * span
            self._set(store, end + span + _delay(part))
            yield store

    def test_it_is_a_watch(self, part: Watch) -> None:
        assert check_watch(part, "The watch") is part
        assert watch_name(part)
        assert parse_duration(part.window) > timedelta(0)

    def test_it_can_be_printed(self, part: Watch) -> None:
        assert type(part).__name__ in repr(part)

    def test_a_check_returns_findings_about_its_window(self, part: Watch, watched: Store) -> None:
        since, until = due_windows(watched, ENDPOINT, part, parse_duration(part.window), _delay(part))[0]
        found = part.check(self._context(part, watched), since, until)
        assert all(isinstance(item, Finding) for item in found)
        assert {(item.window_from, item.window_to) for item in found} <= {(since, until)}
        assert {item.endpoint for item in found} <= {ENDPOINT}
        assert all(item.subject and item.message for item in found)

    def test_each_window_is_checked_once(self, part: Watch, watched: Store) -> None:
        _, _, errors = check_windows(part, MODEL, ENDPOINT, watched)
        assert errors == []
        stored = watched.records.find(Finding)
        assert len({(item.window_from, item.window_to) for item in stored}) >= self.windows
        assert check_windows(part, MODEL, ENDPOINT, watched) == ([], [], [])
        assert watched.records.find(Finding) == stored

    def test_a_repeated_check_reports_the_same_subjects(self, part: Watch, watched: Store) -> None:
        """A process may be killed during a check. The next one repeats it."""
        since, until = due_windows(watched, ENDPOINT, part, parse_duration(part.window), _delay(part))[0]
        context = self._context(part, watched)
        first, again = (part.check(context, since, until) for _ in range(2))
        assert [(item.subject, item.severity) for item in first] == [(item.subject, item.severity) for item in again]

    def test_a_window_without_predictions_is_not_a_failure(self, part: Watch, watched: Store) -> None:
        span = parse_duration(part.window)
        since = window_start(OPENED, span) - 10 * span
        try:
            found = part.check(self._context(part, watched), since, since + span)
        except EmptySampleError:
            return
        assert all(isinstance(item, Finding) for item in found)

    @staticmethod
    def _context(part: Watch, store: Store) -> WatchContext:
        return WatchContext(store, ENDPOINT, MODEL, f"{MODEL}@1", watch_name(part))

    @staticmethod
    def _set(store: Store, moment: datetime) -> None:
        assert isinstance(store.clock, SharedClock)
        store.clock.set(moment)


def sample_answers(start: datetime, span: timedelta, windows: int, rows: int = 200) -> pl.DataFrame:
    """Synthetic answers, `rows` in each window, whose score knows something about the label `actual`."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    total = rows * windows
    distance = rng.normal(1000, 300, total)
    score = 1 / (1 + np.exp(-(distance - 1000) / 300))
    return pl.DataFrame(
        {
            "id": [f"answer-{number}" for number in range(total)],
            "event_at": [start + span * number / rows for number in range(total)],
            "distance": distance,
            "carrier": rng.choice(["AA", "DL", "UA"], total),
            "score": score,
            "actual": (rng.uniform(size=total) < score).astype(float),
        }
    )


def _delay(part: Watch) -> timedelta:
    return parse_duration(getattr(part, "labels_after", "0s"))


def _log_answers(store: Store, rows: pl.DataFrame) -> None:
    import polars as pl

    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    store.tables.append(
        table_name(store, PREDICTIONS, ENDPOINT),
        rows.select(
            "id",
            pl.col("id").alias("request"),
            "event_at",
            pl.col("event_at").alias("arrived_at"),
            pl.lit(f"{MODEL}@1").alias("version"),
            pl.lit("champion").alias("role"),
            pl.col("id").alias("entity"),
            "score",
            pl.lit(0.002).alias("seconds"),
            pl.col("distance").alias("input_distance"),
            pl.col("carrier").alias("input_carrier"),
        ),
    )
    store.tables.append(
        table_name(store, LABELS, ENDPOINT),
        rows.select(
            pl.col("id").alias("entity"),
            pl.col("actual").alias("value"),
            pl.col("actual").cast(pl.Int64).cast(pl.String).alias("text"),
            "event_at",
            pl.col("event_at").alias("arrived_at"),
        ),
    )


def _keep_baseline(store: Store, rows: pl.DataFrame) -> None:
    from everloop.monitoring import build_baseline, keep_baseline

    scored = rows.select("score", "actual")
    keep_baseline(store, f"{MODEL}@1", build_baseline(rows, ("distance", "carrier"), scored=scored, metric="roc_auc"))


_SIGNATURE: dict[str, Any] = {
    "task": "binary",
    "classes": [0, 1],
    "inputs": [{"name": "distance", "type": "float"}, {"name": "carrier", "type": "string"}],
}
