"""Materialized views store every row once, do not leak the future, and agree online and offline."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from polars.testing.parametric import dtypes, series
from tests.fixtures.suspended_clients import suspended_clients

from everloop.data.features import (
    FeatureView,
    OnlineLookup,
    OnlineStore,
    Window,
    check_freshness,
    check_skew,
    find_version,
    join_features,
    load_view,
    materialize,
    online_store,
    open_online,
)
from everloop.errors import DataError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import OwnPostgres
    from everloop.stores import Store

START = datetime(2013, 1, 1, tzinfo=UTC)


def hours(number: float) -> datetime:
    return START + timedelta(hours=number)


def facts(*rows: tuple[str, float, float, float]) -> pl.DataFrame:
    """(who, event, arrival, x), times in hours."""
    columns = {"who": [row[0] for row in rows], "t": [hours(row[1]) for row in rows]}
    return pl.DataFrame({**columns, "seen": [hours(row[2]) for row in rows], "x": [row[3] for row in rows]})


def view(source: object = None, **changes: Any) -> FeatureView:
    return FeatureView("temperature", source, **{"entity": "who", "time": "t", "arrival": "seen", **changes})


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def online(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    address = {"sqlite": lambda: tmp_path / "online.db"}.get(
        request.param, lambda: request.getfixturevalue(f"{request.param}_url")
    )
    opened = open_online(address())
    opened.drop("v@1")
    yield opened
    opened.close()


def rows(*given: tuple[int, str, float, float, float]) -> pl.DataFrame:
    """(a, b, event, known, x)."""
    names = ("a", "b", "event_at", "known_at", "x")
    made = [(a, b, hours(event), hours(known), x) for a, b, event, known, x in given]
    return pl.DataFrame(made, schema=names, orient="row")


@pytest.mark.slow
def test_an_online_row_gives_way_to_a_later_one_only(online: OnlineStore) -> None:
    def put(*given: tuple[int, str, float, float, float]) -> int:
        return online.put("v@1", rows(*given), ["a", "b"], ["x"])

    assert online.get("v@1", {"a": 1, "b": "x"}) is None
    assert put((1, "x", 5, 6, 0.5), (2, "ü", 5, 5, -1.0)) == 2
    assert put((1, "x", 5, 6, 9.9), (1, "x", 4, 9, 9.9)) == 0
    put((3, "z", 2, 2, 0.2), (3, "z", 1, 1, 0.1))
    later = online.get("v@1", {"a": 3, "b": "z"})
    assert later is not None
    assert later.values == {"x": 0.2}
    assert put((4, "w", 1, 1, 0.1), (4, "w", 3, 1, 0.3), (4, "w", 2, 9, 0.2)) == 1
    later = online.get("v@1", {"a": 4, "b": "w"})
    assert later is not None
    assert later.values == {"x": 0.3}
    found = online.get("v@1", {"b": "x", "a": 1})
    assert found is not None
    assert (found.values, found.event_at, found.known_at) == ({"x": 0.5}, hours(5), hours(6))
    assert put((1, "x", 5, 7, 0.75)) == 1
    assert put((1, "x", -400_000, 7, 0.0)) == 0, "times before 1970 are earlier"
    found = online.get("v@1", {"a": 1, "b": "x"})
    assert found is not None
    assert found.values == {"x": 0.75}
    assert online.get("v@2", {"a": 1, "b": "x"}) is None
    online.drop("v@1")
    assert online.get("v@1", {"a": 2, "b": "ü"}) is None


@pytest.mark.slow
def test_a_suspended_writer_does_not_hold_the_others_up(
    own_postgres: type[OwnPostgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.stores.records.postgres_connections.IDLE_TRANSACTION_S", 1)
    written = rows(*[(who, "y", 0, 0, 0.5) for who in range(20)])
    encoded = list(online_store._encoded(written, ["a", "b"], ["x"]))
    # Polars does not work in a process that was forked from one that has used it.
    monkeypatch.setattr(online_store, "_encoded", lambda *_: encoded)
    with own_postgres.started("-c fsync=off") as server:

        def be_suspended(number: int, begin: Callable[[], None]) -> None:
            own = online_store.PostgresOnline(server.url)
            begin()
            own.put(f"v@{number}", written, ["a", "b"], ["x"])

        with suspended_clients(be_suspended) as numbers, closing(online_store.PostgresOnline(server.url)) as online:
            online._connection.execute("SET lock_timeout = '20s'")
            assert len(numbers) > 3
            for number in numbers:
                assert online.put(f"v@{number}", written, ["a", "b"], ["x"]) in (0, 20)


def test_many_writers_leave_the_latest(online: OnlineStore) -> None:
    def write(offset: int) -> None:
        for step in range(offset, 40, 4):
            online.put("v@1", rows(*[(who, "", step, step, float(step)) for who in range(20)]), ["a", "b"], ["x"])

    threads = [threading.Thread(target=write, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [online.get("v@1", {"a": who, "b": ""}) for who in range(20)]
    assert [row and row.values for row in found] == [{"x": 39.0}] * 20


def test_rows_are_kept_once(store: Store) -> None:
    first = facts(("a", 1, 1, 1.0), ("b", 2, 3, 2.0))
    assert materialize(store, view(first)).added == 2
    assert materialize(store, view(first)).added == 0
    more = pl.concat([first, facts(("a", 0, 9, 5.0), ("a", 1, 8, 6.0))])
    done = materialize(store, view(more))
    assert (done.added, done.view.key) == (2, "temperature@1")
    assert materialize(store, view(more, ttl="6h")).view.key == "temperature@2"
    assert materialize(store, view(more, ttl="6h"), code="edited").view.key == "temperature@3"
    assert find_version(store, "temperature").key == "temperature@3"
    asked = pl.DataFrame({"who": ["a", "a", "b"], "at": [hours(2), hours(9), hours(2)]})
    for name, expected in (("temperature@1", [1.0, 6.0, None]), ("temperature@2", [1.0, None, None])):
        assert join_features(asked, [load_view(store, name)], time="at")["x"].to_list() == expected


def test_a_column_of_another_type_is_another_version(store: Store) -> None:
    assert materialize(store, view(facts(("a", 1, 1, 1.0)))).view.version == 1
    whole = facts(("a", 1, 1, 1.0)).with_columns(pl.col("x").cast(pl.Int64))
    assert materialize(store, view(whole)).view.version == 2


@pytest.mark.slow
def test_serving_gets_what_training_would_have(store: Store, tmp_path: Path) -> None:
    source = facts(("a", 1, 1, 1.0), ("a", 5, 7, 2.0), ("b", 3, 3, 3.0))
    windowed = FeatureView(
        "recent", source, entity="who", time="t", arrival="seen", windows=[Window("4h", mean=("x", "mean"))]
    )
    clock = store.simulate(hours(6))
    online = open_online(tmp_path / "online.db")
    answers = []
    for at in (6, 6.5, 7, 9, 12):
        clock.set(hours(at))
        materialize(store, view(source, ttl="5h"), online=online)
        materialize(store, windowed, online=online)
        lookup = OnlineLookup(store, online, ["temperature", "recent"])
        answers += [{"who": who, "at": hours(at), **lookup.get({"who": who})} for who in ("a", "b", "c")]
    online.close()
    logged = pl.DataFrame(answers)
    assert logged.filter(pl.col("who") == "a")["x"].to_list() == [1.0, None, 2.0, 2.0, None]
    for name in ("temperature", "recent"):
        skew = check_skew(store, name, logged, time="at")
        assert (skew.ok, skew.rows) == (True, 15), skew
    wrong = logged.with_columns(x=pl.when(pl.col("who") == "b").then(99.0).otherwise("x"))
    skew = check_skew(store, "temperature", wrong, time="at")
    assert skew.different == {"x": 5}
    assert skew.samples[0] == {"who": "b", "at": hours(6), "feature": "x", "online": 99.0, "offline": 3.0}


def test_freshness(store: Store) -> None:
    clock = store.simulate(hours(4))
    materialize(store, view(facts(("a", 1, 1, 1.0), ("a", 3, 9, 1.0)), ttl="6h"))
    fresh = check_freshness(store, "temperature")
    assert (fresh.rows, fresh.event_at, fresh.age_s, fresh.stale) == (1, hours(1), 3 * 3600, False)
    clock.set(hours(30))
    assert check_freshness(store, "temperature").stale


def test_errors_name_the_way_out(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No feature view 'wind'"):
        load_view(store, "wind")
    with pytest.raises(UsageError, match="is not an online store"):
        open_online("https://example.org")
    materialize(store, view(facts(("a", 1, 1, 1.0))))
    online = open_online(tmp_path / "online.db")
    with pytest.raises(UsageError, match="needs 'who'"):
        OnlineLookup(store, online, ["temperature"]).get({"name": "a"})
    online.close()
    with pytest.raises(DataError, match="no column 'x'"):
        check_skew(store, "temperature", pl.DataFrame({"who": ["a"], "at": [hours(1)]}), time="at")


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(0, 9)), max_size=12), st.randoms())
def test_pieces_in_any_order_are_the_whole(tmp_path: Path, given_rows: list[tuple[str, int, int]], order: Any) -> None:
    from everloop.stores import open_store

    unique = list(dict.fromkeys(given_rows))
    whole = [(who, event, event + late, float(number)) for number, (who, event, late) in enumerate(unique)]
    shuffled = list(whole)
    order.shuffle(shuffled)
    asked = pl.DataFrame({"who": ["a", "b"] * 10, "at": [hours(number) for number in range(20)]})
    if not whole:
        return
    with open_store(tmp_path / uuid4().hex) as store:
        for start in range(0, len(shuffled), 3):
            materialize(store, view(facts(*shuffled[max(0, start - 1) : start + 3])))
        kept = join_features(asked, [load_view(store, "temperature")], time="at")["x"].to_list()
    assert kept == join_features(asked, [view(facts(*whole))], time="at")["x"].to_list()


def values(store: Store, name: str, *at: float) -> list[Any]:
    asked = pl.DataFrame({"who": ["a"] * len(at), "at": [hours(each) for each in at]})
    return join_features(asked, [load_view(store, name)], time="at").drop("who", "at").rows()


@pytest.mark.slow
def test_a_correction_without_arrival_arrives_when_it_is_seen(store: Store, tmp_path: Path) -> None:
    clock = store.simulate(hours(5))
    online = open_online(tmp_path / "online.db")
    plain = facts(("a", 1, 1, 1.0), ("a", 2, 2, 2.0)).drop("seen")
    window = Window("90m", n=("x", "count"), total=("x", "sum"))
    views = [
        FeatureView("latest", plain, entity="who", time="t"),
        FeatureView("window", plain, entity="who", time="t", windows=[window]),
    ]
    for each in views:
        assert materialize(store, each, online=online).added == 2
        assert materialize(store, each, online=online).added == 0
    clock.set(hours(6))
    corrected = plain.with_columns(x=pl.when(pl.col("t") == hours(2)).then(20.0).otherwise("x"))
    for each in views:
        done = materialize(store, each, rows=corrected, online=online)
        assert (done.added, materialize(store, each, rows=corrected, online=online).added) == (1, 0)
    assert values(store, "latest", 1, 2, 5.9, 6) == [(1.0,), (2.0,), (2.0,), (20.0,)]
    assert OnlineLookup(store, online, ["latest"]).get({"who": "a"}) == {"x": 20.0}
    # Back to the first value at the same moment: this is another correction.
    assert materialize(store, views[0], rows=plain, online=online).added == 1
    assert values(store, "latest", 7) == [(2.0,)]
    online.close()


def test_a_window_takes_a_correction_from_when_it_arrives(store: Store) -> None:
    clock = store.simulate(hours(2.25))
    window = Window("90m", n=("x", "count"), total=("x", "sum"))
    each = FeatureView(
        "v", facts(("a", 1, 1, 1.0), ("a", 2, 2, 2.0)).drop("seen"), entity="who", time="t", windows=[window]
    )
    materialize(store, each)
    clock.set(hours(2.4))
    materialize(store, each, rows=facts(("a", 2, 2, 20.0)).drop("seen"))
    assert values(store, "v", 2.25, 2.4, 2.5, 4) == [(2, 3.0), (2, 21.0), (1, 20.0), (0, 0.0)]


def test_two_rows_that_arrived_at_once_cannot_both_be_right(store: Store) -> None:
    materialize(store, view(facts(("a", 1, 2, 1.0))))
    with pytest.raises(DataError, match=r"1 row of 'temperature' has the same entity.*'a' at 2013-01-01T01"):
        materialize(store, view(facts(("a", 1, 2, 5.0), ("a", 3, 3, 1.0))))
    assert values(store, "temperature", 9) == [(1.0,)]
    assert materialize(store, view(facts(("a", 1, 4, 5.0)))).added == 1
    assert values(store, "temperature", 3, 9) == [(1.0,), (5.0,)]


def test_a_view_without_rows_yet_knows_nothing(store: Store, tmp_path: Path) -> None:
    online = open_online(tmp_path / "online.db")
    windows = [Window("1d", n=("x", "count"))]
    nothing = facts().cast({"who": pl.String, "x": pl.Float64, "t": pl.Datetime("us", "UTC")}).drop("seen")
    for each in (
        FeatureView("latest", nothing, entity="who", time="t"),
        FeatureView("window", nothing, entity="who", time="t", windows=windows),
    ):
        done = materialize(store, each, online=online)
        assert (done.added, done.rows, done.online) == (0, 0, 0)
        assert values(store, each.name, 1) == [(None,)]
    assert OnlineLookup(store, online, ["latest", "window"]).get({"who": "a"}) == {"x": None, "n": None}
    assert materialize(store, view(facts(("a", 1, 1, 1.0)))).added == 1
    online.close()


def test_a_window_keeps_all_rows_of_a_moment(store: Store) -> None:
    bought = facts(("a", 1, 1, 5.0), ("a", 1, 1, 5.0), ("a", 1, 1, 7.0)).drop("seen")
    window = [Window("1d", n=("x", "count"), total=("x", "sum"))]
    each = FeatureView("bought", bought, entity="who", time="t", windows=window)
    assert [materialize(store, each).added for _ in range(3)] == [3, 0, 0]
    asked = pl.DataFrame({"who": ["a"], "at": [hours(2)]})
    for one in (each, load_view(store, "bought")):
        assert join_features(asked, [one], time="at").row(0)[2:] == (3, 17.0)


@pytest.mark.parametrize("column", ["who", "t", "seen"])
def test_a_null_is_refused_before_it_is_kept(store: Store, column: str) -> None:
    rows_ = facts(("a", 1, 1, 1.0), ("b", 1, 1, 1.0))
    hole = rows_.with_columns(pl.when(pl.col("who") == "a").then(column).alias(column))
    with pytest.raises(DataError, match=f"'{column}' is null in 1 rows"):
        materialize(store, view(hole))
    assert materialize(store, view(rows_)).added == 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_offered_again_nothing_is_new(tmp_path: Path, data: st.DataObject) -> None:
    from everloop.data.features.new_rows import fresh_rows

    kind = data.draw(dtypes(excluded_dtypes=[pl.Object, pl.Unknown]))
    size = data.draw(st.integers(1, 5))
    column = data.draw(series(name="x", dtype=kind, min_size=size, max_size=size, allow_null=True))
    at = {"event_at": [START] * size, "arrived_at": [START] * size}
    offered = pl.DataFrame([pl.Series("who", range(size)), column]).with_columns(
        **{k: pl.Series(v) for k, v in at.items()}
    )
    declared = FeatureView("v", None, entity="who", time="t")
    assert fresh_rows(declared, offered, offered.lazy(), now=START, past=False).height == 0
