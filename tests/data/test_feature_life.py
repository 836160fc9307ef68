"""Feature views over time: backfills without leaks, materializing in a step, on-demand features, freshness."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

import everloop as el
from everloop.data.features import (
    OnDemand,
    OnlineLookup,
    backfill,
    check_freshness,
    check_skew,
    find_version,
    load_view,
    materialize,
    open_online,
    watch_freshness,
)
from everloop.errors import DataError, UsageError
from everloop.records import Finding

if TYPE_CHECKING:
    from everloop.stores import Store

START = datetime(2013, 1, 1, tzinfo=UTC)


def hours(number: float) -> datetime:
    return START + timedelta(hours=number)


def reports(*rows: tuple[str, float, float]) -> pl.DataFrame:
    """(airport, hour, wind)."""
    return pl.DataFrame(
        {"origin": [row[0] for row in rows], "at": [hours(row[1]) for row in rows], "wind": [row[2] for row in rows]}
    )


def weather(rows: Any = None, **changes: Any) -> el.FeatureView:
    return el.FeatureView("weather", rows, **{"entity": "origin", "time": "at", "ttl": "6h", **changes})


def asked(*moments: float) -> pl.DataFrame:
    return pl.DataFrame({"origin": ["JFK"] * len(moments), "t": [hours(moment) for moment in moments]})


def test_what_is_filled_in_later_was_not_known_before(store: Store) -> None:
    clock = store.simulate(hours(2))
    materialize(store, weather(reports(("JFK", 1, 10.0))))
    clock.set(hours(100))
    past = reports(("JFK", 0, 5.0), ("JFK", 1, 10.0), ("JFK", 2, 20.0), ("JFK", 9, 90.0))
    made = backfill(store, weather(past), end=hours(9))
    assert (made.added, made.rows) == (2, 3)
    assert backfill(store, weather(past), end=hours(9)).added == 0
    joined = el.join_features(asked(1, 2, 3), [load_view(store, "weather")], time="t")
    assert joined["wind"].to_list() == [10.0, 10.0, 10.0]  # not 20: at 2:00 nobody knew it
    # A correction is a separate row that counts from its arrival.
    corrected = reports(("JFK", 1, 11.0))
    assert backfill(store, weather(corrected)).added == 1
    assert backfill(store, weather(corrected)).added == 0
    again = el.join_features(asked(1, 2, 3), [load_view(store, "weather")], time="t")
    assert again["wind"].to_list() == [10.0, 10.0, 10.0]


def test_a_view_that_says_when_rows_arrived_keeps_those_times(store: Store) -> None:
    store.simulate(hours(100))
    rows = reports(("JFK", 1, 10.0), ("JFK", 2, 20.0)).with_columns(seen=pl.col("at") + pl.duration(hours=1))
    made = backfill(store, weather(rows, arrival="seen"), start=hours(2))
    assert made.added == 1
    assert backfill(store, weather(rows, arrival="seen")).added == 1
    joined = el.join_features(asked(2, 3), [load_view(store, "weather")], time="t")
    assert joined["wind"].to_list() == [10.0, 20.0]


@el.step
def source(count: int) -> pl.DataFrame:
    return reports(*[("JFK", hour, hour * 10.0) for hour in range(count)])


VIEW = weather()


@el.step
def kept(source: pl.DataFrame, online: str) -> str:
    return el.materialize(VIEW, rows=source, online=online).state


@el.step
def training(kept: str, seen: str) -> pl.DataFrame:
    with Path(seen).open("a") as file:
        file.write(f"{kept}\n")
    from everloop.pipeline import current_step

    step = current_step()
    assert step is not None
    return el.join_features(asked(1, 5), [load_view(step.store, "weather")], time="t")


def test_materialization_is_a_step_and_adds_what_is_new(store: Store, tmp_path: Path) -> None:
    store.simulate(hours(50))

    def turn(count: int) -> Any:
        given = {"count": count, "online": str(tmp_path / "online.db"), "seen": str(tmp_path / "seen")}
        graph = el.Graph.wire([training], given=given)
        return el.run_graph(graph, store=store)

    first = turn(3)
    assert {step.name: step.status for step in first.steps} == {"source": "ran", "kept": "ran", "training": "ran"}
    assert {step.status for step in turn(3).steps} == {"cached"}
    turn(5)
    assert (tmp_path / "seen").read_text().splitlines() == ["weather@1 with 3 rows", "weather@1 with 5 rows"]
    online = open_online(tmp_path / "online.db")
    row = online.get("weather@1", {"origin": "JFK"})
    assert row is not None
    assert row.values == {"wind": 40.0}
    online.close()


def headwind(rows: pl.DataFrame) -> list[pl.Expr]:
    return [
        (pl.col("wind") * (pl.col("runway") / 180 * 3.141592653589793).cos()).alias("headwind"),
        (pl.col("wind") > 30).fill_null(value=False).alias("stormy"),
    ]


HEADWIND = OnDemand("headwind", headwind, inputs={"wind": pl.Float64, "runway": pl.Float64})


def test_what_is_computed_on_demand_is_the_same_in_training_and_serving(store: Store, tmp_path: Path) -> None:
    store.simulate(hours(3))
    online = open_online(tmp_path / "online.db")
    materialize(store, weather(reports(("JFK", 1, 10.0), ("LGA", 2, 40.0))), online=online)
    rows = pl.DataFrame({"origin": ["JFK", "LGA", "EWR"], "t": [hours(3)] * 3, "runway": [0, 180, 90]})
    joined = el.join_features(rows, [load_view(store, "weather"), HEADWIND], time="t")
    assert joined["headwind"].to_list() == pytest.approx([10.0, -40.0, None], nan_ok=True)
    assert joined["stormy"].to_list() == [False, True, False]
    lookup = OnlineLookup(store, online, ["weather", HEADWIND])
    for row in joined.iter_rows(named=True):
        answer = lookup.get({"origin": row["origin"]}, {"runway": row["runway"]})
        assert answer == {name: row[name] for name in ("wind", "headwind", "stormy")}
    logged = pl.DataFrame({"origin": ["JFK"], "at": [hours(3)], "wind": [10.0]})
    assert check_skew(store, "weather", logged, time="at").ok
    with pytest.raises(UsageError, match="'headwind' needs 'runway' in the request, which is missing"):
        lookup.get({"origin": "JFK"})
    with pytest.raises(UsageError, match="A value of the request does not fit the inputs of 'headwind'"):
        lookup.get({"origin": "JFK"}, {"runway": "north"})
    online.close()


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (
            OnDemand("x", headwind, inputs={"winds": pl.Float64}),
            "needs the column 'winds', which is missing. Did you mean 'wind'",
        ),
        (OnDemand("x", lambda rows: rows.head(1), inputs={"wind": pl.Float64}), "returned 1 row for 2"),
        (
            OnDemand("x", lambda rows: pl.col("wind"), inputs={"wind": pl.Float64}),
            "The rows already have a column 'wind'",
        ),
        (OnDemand("x", headwind, inputs={"origin": pl.Float64}), "The inputs of 'x' cannot be cast to their types"),
    ],
)
def test_what_on_demand_features_do_wrongly_is_named(group: OnDemand, said: str) -> None:
    view = weather(reports(("JFK", 1, 10.0)))
    with pytest.raises(DataError, match=said):
        el.join_features(asked(1, 2), [view, group], time="t")
    with pytest.raises(UsageError, match="have no inputs"):
        OnDemand("x", headwind, inputs={})


def test_a_stale_view_is_found_once(store: Store) -> None:
    clock = store.simulate(hours(2))
    materialize(store, weather(reports(("JFK", 1, 10.0))))
    assert watch_freshness(store) == []
    clock.set(hours(8))
    (found,) = watch_freshness(store)
    assert (found.kind, found.severity, found.subject, found.endpoint) == (
        "freshness", "alarm", "weather@1", "features:weather",
    )  # fmt: skip
    assert (found.value, found.threshold) == (7 * 3600, 6 * 3600)
    assert watch_freshness(store) == []
    assert store.records.find(Finding) == [found]
    materialize(store, weather(reports(("JFK", 8, 10.0))))
    assert not check_freshness(store, "weather").stale
    clock.set(hours(20))
    assert len(watch_freshness(store)) == 1
    assert find_version(store, "weather").version == 1
