"""System metrics during a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from everloop.errors import MissingExtraError, UsageError
from everloop.tracking import read_metrics, start_run

if TYPE_CHECKING:
    from everloop.stores import Store


def test_what_the_machine_does_is_logged_until_the_end(store: Store) -> None:
    pytest.importorskip("psutil")
    with start_run("train", store=store) as run:
        watch = run.watch_system(every_s=0.05)
        assert run.watch_system() is watch
        time.sleep(0.2)
    watch.stop()
    steps = [point.step for point in read_metrics(store, run.id, "system/cpu_percent")]
    assert len(steps) >= 2
    assert steps == list(range(len(steps)))
    metrics = run.record.metrics
    assert 0 <= metrics["system/memory_percent"] <= 100
    assert metrics["system/process_memory_mb"] > 10
    assert metrics["system/disk_percent"] >= 0
    assert not watch._thread.is_alive()


def test_without_psutil_the_way_out_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.tracking.system_metrics.find_spec", lambda name: None)
    with start_run("train", store=store) as run, pytest.raises(MissingExtraError, match=r"everloop\[system\]"):
        run.watch_system()


def test_an_interval_is_positive(store: Store) -> None:
    pytest.importorskip("psutil")
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="is not a positive number of seconds"):
        run.watch_system(every_s=0)
