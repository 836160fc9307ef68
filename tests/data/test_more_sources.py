"""Incremental sources, services through dlt, and databases through their drivers."""

from __future__ import annotations

import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from everloop import plugins
from everloop.data import ReadProgress, read, watch_progress
from everloop.errors import MissingExtraError, SourceError, UsageError
from everloop.stores import Store, collect_observations
from everloop.tracking import start_run

START = datetime(2026, 1, 1, tzinfo=UTC)


class Service:
    """A fake API; `source` is a module with the function that calls it."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.asked: list[Any] = []
        self.fails = False

    def orders(self, since: Any) -> Any:
        self.asked.append(since)
        for row in self.rows:
            if isinstance(row, dict) and since is not None and row.get("id", since) < since:
                continue  # like most APIs: from the cursor on, and with it
            yield row
        if self.fails:
            raise ConnectionError("the service is away")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made, module = Service(), ModuleType("shop")

    def orders(since: Any) -> Any:
        return made.orders(since)

    orders.__module__, orders.__qualname__ = "shop", "orders"
    module.orders = orders  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", module)
    return made


def read_orders(store: Store, cursor: str = "id") -> pl.DataFrame:
    import shop  # type: ignore[import-not-found]

    with start_run("turn", store=store):
        return read(shop.orders, cursor=cursor).collect()


def order(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "price": number / 2, **more}


def test_only_new_rows_are_requested(store: Store, service: Service) -> None:
    service.rows = [order(1), order(2)]
    assert read_orders(store).rows() == [(1, 0.5), (2, 1.0)]
    service.rows += [[order(4), order(3)], order(2, price=9.0), pl.DataFrame({"id": [5], "price": [2.5]})]
    assert read_orders(store)["id"].to_list() == [1, 2, 2, 3, 4, 5]
    assert read_orders(store).height == 6
    assert service.asked == [None, 2, 5]


def test_a_call_that_fails_half_way_keeps_nothing(store: Store, service: Service) -> None:
    service.rows, service.fails = [order(1), order(9)], True
    with pytest.raises(ConnectionError):
        read_orders(store)
    service.rows, service.fails = [order(1), order(5), order(9)], False
    assert read_orders(store)["id"].to_list() == [1, 5, 9]
    assert service.asked == [None, None]


def test_new_rows_are_seen_without_being_kept(store: Store, service: Service) -> None:
    service.rows = [order(1)]
    import shop

    look, told = (plugins.load(kind, "cursor") for kind in ("observation", "observation_change"))
    with start_run("turn", store=store):
        with collect_observations() as seen:
            read(shop.orders, cursor="id")
        (one,) = seen
        assert one["spec"] == {"module": "shop", "function": "orders", "cursor": "id"}
        assert look(one["spec"], since=one["state"]) == one["state"]
        service.rows.append(order(2))
        later = look(one["spec"], since=one["state"])
        assert later != one["state"]
        assert told(one["state"], later) == "new rows after 1"
        assert told(one["state"], one["state"]) == ""
        assert look(one["spec"], since=one["state"]) == later


def test_cursors_may_be_times_and_texts(store: Store, service: Service) -> None:
    service.rows = [{"at": START + timedelta(days=day), "n": day} for day in range(3)]
    assert read_orders(store, cursor="at")["n"].to_list() == [0, 1, 2]
    assert read_orders(store, cursor="at").height == 3
    assert service.asked[-1] == START + timedelta(days=2)
    service.rows = [{"name": "b"}, {"name": "a"}]
    assert read_orders(store, cursor="name")["name"].to_list() == ["a", "b"]


def test_bad_rows_of_a_source_are_named(store: Store, service: Service) -> None:
    for rows, said in (
        ([], "has not returned any rows yet"),
        ([order(1), {"price": 1.0}], "Row 2 of orders has no value in the cursor column 'id'"),
        ([{"idd": 1}], "have no column 'id'. Did you mean 'idd'"),
        ([order(1), "text"], "returned 'text', which is not a row"),
        ([{"id": 1}, {"id": "x"}], "orders: Column 'id' is int64, but row 2 contains 'x'"),
        ([order(1, event_at=1)], "returns a column 'event_at'"),
    ):
        service.rows = rows
        with pytest.raises(SourceError, match=said):
            read_orders(store)
    with pytest.raises(UsageError, match="cannot be imported by its name"):
        read(lambda since: [], cursor="id")
    with pytest.raises(UsageError, match="cursor= needs a function"):
        read("a.csv", cursor="id")


def test_progress_is_reported(store: Store, service: Service) -> None:
    service.rows = [order(number) for number in range(2500)]
    heard: list[ReadProgress] = []
    with watch_progress(heard.append):
        read_orders(store)
    assert [(news.done, news.unit, news.name) for news in heard] == [(1000, "rows", "orders"), (2000, "rows", "orders")]


@pytest.mark.slow
def test_a_source_of_dlt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    dlt = pytest.importorskip("dlt")

    @dlt.resource
    def orders() -> Any:
        yield [order(1), order(2)]
        yield order(3, items=[{"sku": "x"}])

    @dlt.resource
    def broken() -> Any:
        yield order(1)
        raise ConnectionError("the service is away")

    @dlt.source
    def shop() -> Any:
        return orders, broken

    assert read(orders).collect()["id"].to_list() == [1, 2, 3]
    assert read(shop(), resource="orders").collect().height == 3
    with pytest.raises(UsageError, match="has 2 resources"):
        read(shop())
    with pytest.raises(UsageError, match="Did you mean 'orders'"):
        read(shop(), resource="order")
    with pytest.raises(SourceError, match="The resource 'broken' failed: the service is away"):
        read(broken)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EVERLOOP_PROJECT", str(tmp_path))
    with sqlite3.connect(tmp_path / "flights.db") as connection:
        connection.execute("CREATE TABLE flights (id INTEGER, name TEXT)")
        connection.executemany("INSERT INTO flights VALUES (?, ?)", [(1, "a:b"), (2, None)])
    connection.close()
    return "flights.db"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sqlalchemy", "adbc", "connectorx"])
def test_each_engine_gives_the_same_rows(database: str, engine: str) -> None:
    pytest.importorskip({"adbc": "adbc_driver_sqlite"}.get(engine, engine))
    query = "SELECT id, name FROM flights WHERE name IS NULL OR name = 'a:b' ORDER BY id"
    with collect_observations() as seen:
        found = read(f"sqlite:///{database}", query=query, engine=engine).collect()
    assert found.rows() == [(1, "a:b"), (2, None)]
    (one,) = seen
    assert one["spec"]["engine"] == engine
    assert plugins.load("observation", "sql")(one["spec"], since=one["state"]) == one["state"]
    with pytest.raises(SourceError, match=r"The query failed on 'sqlite:///flights\.db'"):
        read(f"sqlite:///{database}", query="SELECT * FROM nothing", engine=engine)


def test_every_database_of_sqlalchemy(database: str, postgres_url: str) -> None:
    pytest.importorskip("sqlalchemy")
    assert read(f"sqlite+pysqlite:///{database}", query="SELECT count(*) AS n FROM flights").collect().rows() == [(2,)]
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    assert read(url, query="SELECT 1 AS a, ':x' AS b").collect().rows() == [(1, ":x")]
    pytest.importorskip("pymysql")
    with pytest.raises(SourceError, match=r"mysql\+pymysql://me@127.0.0.1:1/x"):
        read("mysql+pymysql://me:secret@127.0.0.1:1/x", query="SELECT 1")
    with pytest.raises(MissingExtraError, match=r"read 'mysql\+nothing_of_this_name://me@127\.0\.0\.1/x'.*pip install"):
        read("mysql+nothing_of_this_name://me:secret@127.0.0.1/x", query="SELECT 1")
    with pytest.raises(UsageError, match="no engine 'odbc'"):
        read(f"sqlite:///{database}", query="SELECT 1", engine="odbc")
