"""The evidence of a release is read again only if that can change a decision, and equals a fresh reading then."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.loop import Canary
from everloop.loop.releases import live_evidence as room
from everloop.loop.releases.live_evidence import live_evidence, read_evidence
from everloop.packages import build_package
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, input_column, table_name
from everloop.records import Decision, EndpointRecord, Release
from everloop.registry import load_model, register
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = ("distance", "wind")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    room._remembered.clear()
    with open_store(tmp_path / "store") as opened:
        for seed in (0, 5):
            model = train_sample(features=FEATURES, seed=seed)
            register(opened, "m", build_package(model, store=opened, sample=sample_table(50)))
        opened.records.put(opened.new(EndpointRecord, name="e", model="m"))
        yield opened


@pytest.fixture
def release(store):
    started = Decision(at=BEGAN, action="start", percent=10.0, reason="")
    made = store.new(Release, endpoint="e", candidate="m@2", previous="m@1", steps=(10.0, 100.0))
    return replace(made, created_at=BEGAN, decisions=(started,))


def log(store, first, count, *, labels=True, day=1):
    """Predictions of the champion numbered from `first`, and their labels."""
    rows = sample_table(count, seed=first)
    texts = pl.Series([f"k{number}" for number in range(first, first + count)])
    at = pl.lit(BEGAN + timedelta(days=day))
    frame = rows.select(pl.col(name).alias(input_column(name)) for name in FEATURES).with_columns(
        id=texts + "-0", request=texts, event_at=at, arrived_at=at, version=pl.lit("m@1"), role=pl.lit("champion"),
        entity=texts, score=pl.Series(load_model(store, "m@1").predict(rows)), label=pl.lit("true"),
        seconds=pl.lit(0.001), package=pl.lit("p"), instance=pl.lit("h"),
    )  # fmt: skip
    store.tables.append(table_name(store, PREDICTIONS, "e"), frame)
    if labels:
        label(store, texts, rows["late"], day=day)


def label(store, keys, late, *, day=1, arrived=0):
    at = pl.lit(BEGAN + timedelta(days=day, hours=1))
    values = pl.DataFrame({"entity": keys, "value": late.cast(pl.Float64), "text": late.cast(pl.String)})
    store.tables.append(
        table_name(store, LABELS, "e"), values.with_columns(event_at=at, arrived_at=at + timedelta(minutes=arrived))
    )


@pytest.fixture
def reads(monkeypatch):
    """How often the log was read."""
    found = []

    def counted(*arguments):
        found.append(arguments)
        return read_evidence(*arguments)

    monkeypatch.setattr(room, "read_evidence", counted)
    return found


def look_at(store, release):
    return live_evidence(store, release, "m@1", Canary(least_labels=100), "roc_auc")


@pytest.mark.slow
def test_the_log_is_read_again_only_if_something_is_new(store, release, reads):
    log(store, 0, 300)
    first, second = look_at(store, release), look_at(store, release)
    assert (len(reads), first) == (1, second)
    log(store, 300, 50)
    third = look_at(store, release)
    assert (len(reads), third.evidence["rows"]) == (2, 350)
    # A correction of a label adds no labelled row, and changes the evidence.
    label(store, pl.Series(["k0"]), pl.Series([not bool(sample_table(300, seed=0)["late"][0])]), arrived=1)
    assert look_at(store, release).evidence["gain"] != third.evidence["gain"]
    assert len(reads) == 3


def test_another_step_or_another_rule_does_not_read_the_log_again(store, release, reads):
    log(store, 0, 300)
    log(store, 300, 100, day=3)
    assert look_at(store, release).evidence["since_step"] == 400
    moved = Decision(at=BEGAN + timedelta(days=2), action="advance", percent=50.0, reason="")
    later = replace(release, decisions=(*release.decisions, moved), looks=(400,))
    assert look_at(store, later).evidence["since_step"] == 100
    assert len(reads) == 1
    assert look_at(store, replace(release, id="another")).evidence["rows"] == 400
    assert len(reads) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("large", "more"), [(500, 1), (1500, 29_000)], ids=["many labels", "many predictions"])
def test_much_evidence_waits_for_enough_new_labels(store, release, reads, monkeypatch, large, more):
    monkeypatch.setattr(room, "_LARGE", large)
    log(store, 0, 1000)
    log(store, 10_000, more, labels=False)
    looked = replace(release, looks=tuple(look_at(store, release).evidence["looks"]))
    assert looked.looks == (1000,)
    log(store, 1000, 19)
    assert look_at(store, looked).evidence["rows"] == 1000, "too few for a look"
    assert len(reads) == 1
    log(store, 2000, 1)
    assert look_at(store, looked).evidence["looks"] == [1000, 1020]
    assert len(reads) == 2
    # A step needs rows of its own, and does not wait for a look.
    moved = Decision(at=BEGAN + timedelta(days=2), action="advance", percent=50.0, reason="")
    stepped = replace(looked, decisions=(*release.decisions, moved), looks=(1020,))
    log(store, 3000, 10, day=3)
    assert look_at(store, stepped).evidence["since_step"] == 0
    few = live_evidence(store, stepped, "m@1", Canary(least_labels=5), "roc_auc")
    assert few.evidence["since_step"] == 10


@pytest.mark.slow
def test_remembered_evidence_is_that_of_a_fresh_reading(store, release):
    """Whatever arrives, and in whatever order: predictions, labels, labels before their predictions, corrections."""
    rng = np.random.default_rng(3)
    for step in range(12):
        first, count = int(rng.integers(0, 3000)), int(rng.integers(20, 120))
        if step % 3 == 0:
            label(
                store,
                pl.Series([f"k{n}" for n in range(first, first + count)]),
                pl.Series(rng.uniform(size=count) < 0.4),
            )
        else:
            log(store, first, count, labels=bool(step % 2), day=int(rng.integers(1, 9)))
        found = look_at(store, release)
        fresh = read_evidence(store, release, "m@1", 100, "roc_auc")
        assert (found is None) == (fresh.measured is None)
        if found is not None and fresh.measured is not None:
            assert found.evidence["gain"] == fresh.measured.gain
            assert found.evidence["rows"] == fresh.measured.rows
