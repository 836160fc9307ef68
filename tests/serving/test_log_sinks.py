"""Every log sink: the journal of this host, and segments in a folder, in a bucket and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("everloop.testing.log_sinks")

from everloop.serving.log_segments import open_segments  # noqa: E402
from everloop.stores.home import Places  # noqa: E402
from everloop.testing.log_sinks import LogPlace, LogSinkSuite, write_and_die  # noqa: E402


def places_in(home: Path, **more: Any) -> Places:
    parts: dict[str, Any] = {"records": str(home / "everloop.db"), "objects": str(home / "objects")}
    return Places(home=home, **{**parts, "tables": str(home / "tables"), **more})


def shipped(tmp_path: Path, where: str, **places: Any) -> LogPlace:
    spool = tmp_path / "spool"
    environment = {"EVERLOOP_LOG": where, "EVERLOOP_LOG_FOLDER": str(spool), "EVERLOOP_LOG_SEGMENT_S": "0.05"}
    home = tmp_path / "home"
    return LogPlace(places=places_in(home, **places), writers=tmp_path / "writers", environment=environment)


class TestJournal(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        home = tmp_path / "home"
        return LogPlace(places=places_in(home), writers=home, environment={})

    def test_killed_at_every_step(self, place: LogPlace) -> None:
        killed_at_every_step(place)


class TestFolder(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        place = shipped(tmp_path, str(tmp_path / "home"))
        environment = {**place.environment}
        # What instances leave in the folder itself, also the one who folds it can ship.
        del environment["EVERLOOP_LOG_FOLDER"]
        return LogPlace(places=place.places, writers=place.writers, environment=environment)

    def test_killed_at_every_step(self, place: LogPlace) -> None:
        killed_at_every_step(place)


class TestPostgres(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path, postgres_url: str) -> LogPlace:
        return shipped(tmp_path, postgres_url, records=postgres_url)


class TestBucket(LogSinkSuite):
    kills = 1

    @pytest.fixture
    def place(self, tmp_path: Path, bucket: str) -> LogPlace:
        return shipped(tmp_path, bucket, log=bucket)


class TestWaiting(LogSinkSuite):
    """Answers that wait for the store."""

    kills = 1

    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        place = shipped(tmp_path, str(tmp_path / "home"))
        environment = {**place.environment, "EVERLOOP_LOG_DURABLE": "store"}
        return LogPlace(places=place.places, writers=place.writers, environment=environment)


@pytest.fixture
def bucket(s3: str, tmp_path: Path) -> str:
    import boto3

    name = f"log-{abs(hash(tmp_path)):x}"
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(Bucket=name)
    open_segments.cache_clear()
    return f"s3://{name}/team"


def killed_at_every_step(place: LogPlace) -> None:
    acknowledged: list[str] = []
    for point in range(1, 40):
        acknowledged += write_and_die(place, f"p{point}", point)
    with place.sink():
        pass
    found = place.fold()
    assert set(acknowledged) <= set(found)
    assert len(set(found)) == len(found)
    assert len(acknowledged) > 100
