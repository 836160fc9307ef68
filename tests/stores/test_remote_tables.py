"""Tables in a bucket: few requests, and nothing is lost or doubled while the bucket fails."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta

import polars as pl
import pytest
from tests.fixtures.s3_proxy import S3Proxy

from everloop.errors import EverloopError
from everloop.stores import Tables
from everloop.testing.stores import START, ManualClock


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    with S3Proxy(s3).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def root(s3: str) -> str:
    boto3 = pytest.importorskip("boto3")
    bucket = f"tables-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/tables"


def frame(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"event_at": [START + timedelta(seconds=value) for value in values], "value": list(values)})


def values(tables: Tables, name: str) -> list[int]:
    return sorted(tables.scan(name).collect()["value"].to_list())


@pytest.mark.slow
def test_an_open_table_is_not_opened_again(proxy: S3Proxy, root: str, clock: ManualClock) -> None:
    tables = Tables(root, clock)
    for number in range(8):
        tables.append("predictions/delays", frame(number))
    assert values(tables, "predictions/delays") == list(range(8))
    with proxy.counted() as again:
        assert tables.find("predictions/delays") is not None
    assert len(again) <= 3, again
    # Another process appends: the next read sees it.
    Tables(root, clock).append("predictions/delays", frame(8), batch=("w", 3))
    with proxy.counted() as updated:
        assert tables.find("predictions/delays") is not None
    assert len(updated) <= 6, updated
    assert tables.last_batch("predictions/delays", "w") == 3
    assert values(tables, "predictions/delays") == list(range(9))


@pytest.mark.slow
def test_a_table_that_was_created_again_is_noticed(root: str, clock: ManualClock) -> None:
    tables, others = Tables(root, clock), Tables(root, clock)
    for number in range(3):
        tables.append("t", frame(number))
    assert values(tables, "t") == [0, 1, 2]
    others.drop("t")
    assert tables.find("t") is None
    others.append("t", frame(7))
    assert values(tables, "t") == [7]


@pytest.mark.slow
def test_names_are_found_without_listing_every_object(proxy: S3Proxy, root: str, clock: ManualClock) -> None:
    tables = Tables(root, clock)
    for name in ("predictions/a", "predictions/b", "labels/a", "plain"):
        for number in range(6):
            tables.append(name, frame(number))
    with proxy.counted() as listed:
        assert tables.names() == ["labels/a", "plain", "predictions/a", "predictions/b"]
    assert tables.names("predictions/") == ["predictions/a", "predictions/b"]
    assert all("delimiter" in request for request in listed), listed
    # One request for each folder, however many files there are.
    assert len(listed) <= 7


@pytest.mark.slow
@pytest.mark.parametrize("way", ["503", "reset"])
def test_a_bucket_that_fails_for_a_while_loses_and_doubles_nothing(
    proxy: S3Proxy, root: str, clock: ManualClock, way: str
) -> None:
    tables = Tables(root, clock)
    tables.append("t", frame(0), batch=("w", 0))
    for number in range(1, 5):
        proxy.failing = way
        timer = threading.Timer(0.3 * number, setattr, (proxy, "failing", ""))
        timer.start()
        while True:
            try:
                tables.append("t", frame(number), batch=("w", number))
            except EverloopError:
                continue
            break
        timer.join()
    assert values(tables, "t") == [0, 1, 2, 3, 4]
    assert tables.last_batch("t", "w") == 4
