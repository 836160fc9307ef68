"""The labelled rows that a release keeps are those of a reading of the whole log, whatever arrives and who reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from polars.testing import assert_frame_equal

from everloop.loop.releases import evidence_rows as room
from everloop.loop.releases.evidence_rows import EVIDENCE, evidence_rows, forget_evidence
from everloop.loop.releases.live_evidence import read_evidence
from everloop.loop.releases.spending_boundaries import boundaries
from everloop.packages import build_package
from everloop.prediction_log import read_inputs, read_labelled
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, input_column, table_name
from everloop.records import Decision, EndpointRecord, Release
from everloop.registry import load_model, register
from everloop.serving.endpoint_state import set_options
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = ("distance", "wind")
VERSIONS = ("m@1", "m@2")
numbers = count()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "store") as opened:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        for seed in (0, 5):
            model = train_sample(features=FEATURES, seed=seed)
            register(opened, "m", build_package(model, store=opened, sample=sample_table(50)))
        yield opened


@pytest.fixture
def release(store):
    return new_release(store)


@pytest.fixture
def readings(monkeypatch):
    """How many keys each reading of the log was about."""
    found = []

    def counted(*arguments, keys, **options):
        found.append(len(keys))
        return read_labelled(*arguments, keys=keys, **options)

    monkeypatch.setattr("everloop.prediction_log.read_labelled", counted)
    return found


def new_release(store):
    """A release to an endpoint without predictions."""
    name = f"e{next(numbers)}"
    store.records.put(store.new(EndpointRecord, name=name, model="m"))
    started = Decision(at=BEGAN, action="start", percent=10.0, reason="")
    made = store.new(Release, endpoint=name, candidate="m@2", previous="m@1", steps=(10.0, 100.0))
    return replace(made, created_at=BEGAN, decisions=(started,))


def predict(store, release, keys, hours, *, role="champion", late_by=0):
    """Log predictions of these keys, `hours` after the release began."""
    rows = sample_table(len(keys), seed=next(numbers))
    version = VERSIONS[role == "canary"]
    at = pl.lit(BEGAN) + pl.duration(hours=pl.Series(hours))
    scores = load_model(store, version).predict(rows)
    inputs = rows.select(pl.col(name).cast(pl.Float64).alias(input_column(name)) for name in FEATURES)
    frame = inputs.with_columns(
        id=pl.Series([f"{next(numbers):036}-0" for _ in keys]), request=pl.lit("r"), event_at=at,
        arrived_at=at + pl.duration(hours=late_by), version=pl.lit(version), role=pl.lit(role),
        entity=pl.Series(keys, dtype=pl.String), score=pl.Series(scores),
        label=pl.Series(["true" if score >= 0.5 else "false" for score in scores]), seconds=pl.lit(0.001),
        package=pl.lit("p"), instance=pl.lit("h"),
    )  # fmt: skip
    store.tables.append(table_name(store, PREDICTIONS, release.endpoint), frame)


def label(store, release, keys, hours, values, *, arrived=0):
    """Add labels. The later of two that arrived in the same hour arrived a little later."""
    texts = pl.Series(values, dtype=pl.String)
    moment = BEGAN + timedelta(hours=arrived, microseconds=next(numbers))
    frame = pl.DataFrame({"entity": pl.Series(keys, dtype=pl.String), "text": texts}).with_columns(
        value=texts.replace_strict({"true": 1.0, "false": 0.0}, default=None, return_dtype=pl.Float64),
        event_at=pl.lit(BEGAN) + pl.duration(hours=pl.Series(hours)),
        arrived_at=pl.lit(moment) + pl.duration(microseconds=pl.int_range(len(keys))),
    )
    store.tables.append(table_name(store, LABELS, release.endpoint), frame)


def fill(store, release, size=60):
    keys = [f"k{number}" for number in range(size)]
    predict(store, release, keys, [number % 48 for number in range(size)])
    label(store, release, keys, [number % 48 + 1 for number in range(size)], ["true", "false"] * (size // 2))


def restart():
    """What this process knows is gone."""
    room._known.clear()


def check(store, release):
    """Compare the rows with those of the whole log, and return them."""
    found = evidence_rows(store, release, "m@1")
    whole = read_labelled(store, release.endpoint, since=release.created_at).collect()
    level = next(n for n in range(33) if room._in_sample(room._hashed(whole), n).height <= room.MOST_ROWS)
    wanted = room._in_sample(room._hashed(whole), level)
    columns = ["id", "entity", "event_at", "version", "score", "predicted", "actual", "actual_text", "label_arrived_at"]
    assert found.level == level
    assert_frame_equal(found.rows.select(columns), wanted.select(columns))
    for name, version in (("#champion", "m@1"), ("#candidate", "m@2")):
        model = load_model(store, version)
        if wanted.height:
            assert found.rows[name].to_list() == list(model.predict(read_inputs(wanted, model.signature)))
    return found


KEYS = st.lists(st.sampled_from([f"k{number}" for number in range(12)]), min_size=1, max_size=8)
HOURS = st.integers(-6, 30)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("predict"), KEYS, HOURS, st.sampled_from(["champion", "canary", "tester"])),
        st.tuples(st.just("label"), KEYS, HOURS, st.sampled_from(["true", "false", "unknown"]), st.integers(0, 40)),
        st.tuples(st.sampled_from(["restart", "compact", "retain"])),
    ),
    min_size=3,
    max_size=9,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, most=st.sampled_from([3, 8, 1000]), seed=st.integers(0, 1000))
def test_grown_rows_are_those_of_the_whole_log(store, monkeypatch, changes, most, seed):
    """Predictions and labels that are late, repeated, contradicting or corrected, in any order, also after restarts."""
    monkeypatch.setattr(room, "MOST_ROWS", most)
    restart()
    release = new_release(store)
    rng = np.random.default_rng(seed)
    predict(store, release, ["k0", "k1"], [0, 1])
    label(store, release, ["k0"], [2], ["true"])
    for change in changes:
        if change[0] == "restart":
            restart()
        elif change[0] == "compact":
            store.tables.compact(table_name(store, LABELS, release.endpoint))
            store.tables.compact(table_name(store, PREDICTIONS, release.endpoint))
        elif change[0] == "retain":
            store.tables.forget(table_name(store, PREDICTIONS, release.endpoint), BEGAN + timedelta(hours=1))
        else:
            kind, keys, hour, *rest = change
            hours = list(hour + rng.integers(0, 6, len(keys)))
            if kind == "predict":
                predict(store, release, keys, hours, role=rest[0])
            else:
                label(store, release, keys, hours, [rest[0]] * len(keys), arrived=rest[1])
        if rng.uniform() < 0.7:
            check(store, release)
    check(store, release)


def test_evidence_is_that_of_the_whole_log_to_the_last_digit(store, release):
    fill(store, release, 200)
    evidence_rows(store, release, "m@1")
    label(store, release, ["k3", "k4", "k9"], [40, 41, 42], ["false"] * 3, arrived=50)
    predict(store, release, ["k3", "new"], [2, 3], role="canary")
    label(store, release, ["new"], [5], ["true"])
    restart()
    for metric in ("roc_auc", "log_loss", "f1"):
        grown = read_evidence(store, release, "m@1", 100, metric, True)
        whole = read_evidence(store, release, "m@1", 100, metric)
        assert grown.measured == whole.measured
        assert grown.found == whole.found
        assert list(grown.events) == list(whole.events)


@pytest.mark.slow
def test_only_the_keys_of_what_is_new_are_read(store, release, readings):
    fill(store, release)
    check(store, release)
    check(store, release)
    assert readings == [60], "nothing was new"
    # A new prediction of a key without labels changes nothing, one of a key with a label may take it.
    predict(store, release, ["k1", "x", "y"], [1, 1, 1])
    restart()
    check(store, release)
    assert readings == [60, 1]
    label(store, release, ["x", "k7", "never"], [2, 50, 2], ["true", "true", "true"], arrived=60)
    check(store, release)
    assert readings == [60, 1, 3]


@pytest.mark.slow
def test_a_faster_process_is_not_overwritten(store, release):
    fill(store, release)
    slow = check(store, release)
    label(store, release, ["k1"], [49], ["true"], arrived=60)
    restart()
    check(store, release)
    (place,) = room._known
    room._known[place] = slow
    label(store, release, ["k2"], [49], ["true"], arrived=61)
    check(store, release)
    assert not room._known, "the next decision reads what the other process has kept"
    label(store, release, ["k3"], [49], ["true"], arrived=62)
    assert check(store, release).kept["commit"] == 3
    restart()
    check(store, release)


def test_rows_are_read_again_if_what_they_depend_on_has_changed(store, release, readings):
    fill(store, release)
    check(store, release)
    set_options(store, release.endpoint, {"label_horizon_days": "0.01"})
    assert check(store, release).rows.is_empty(), "each label is of an hour later"
    assert readings == [60, 60]
    assert len(store.tables.names(f"{EVIDENCE}/{release.endpoint}/")) == 1, "the other rows are of no use any more"


@pytest.mark.slow
def test_retention_matters_only_for_predictions_of_the_release(store, release, readings):
    predict(store, release, ["old"], [-50])
    fill(store, release)
    check(store, release)
    table = table_name(store, PREDICTIONS, release.endpoint)
    assert store.tables.forget(table, BEGAN - timedelta(hours=1)) == 1
    check(store, release)
    assert readings == [60]
    assert store.tables.forget(table, BEGAN + timedelta(hours=1)) > 0
    assert check(store, release).rows.height < 60
    assert readings == [60, 60]


def test_damaged_rows_are_read_from_the_log_again(store, release, readings, caplog):
    fill(store, release)
    check(store, release)
    (name,) = store.tables.names(f"{EVIDENCE}/{release.endpoint}/")
    for path in store.tables.snapshot(name).files:
        store.tables.files(name).remove(path)
    restart()
    check(store, release)
    assert readings == [60, 60]
    assert "cannot be read" in caplog.text


@pytest.mark.slow
def test_the_rows_of_a_release_that_has_ended_are_removed(store, release):
    fill(store, release)
    check(store, release)
    folder = f"{EVIDENCE}/{release.endpoint}/"
    assert store.tables.names(folder)
    forget_evidence(store, release.endpoint)
    assert store.tables.names(folder) == []
    check(store, release)


@pytest.mark.slow
def test_a_sample_is_chosen_by_key_and_gets_smaller_only(store, release, monkeypatch):
    monkeypatch.setattr(room, "MOST_ROWS", 40)
    fill(store, release, 60)
    first = check(store, release)
    assert (first.level, first.rows.height <= 40) == (1, True)
    keys = [f"m{number}" for number in range(300)]
    predict(store, release, keys, [3] * 300)
    label(store, release, keys, [4] * 300, ["true"] * 300)
    second = check(store, release)
    assert second.level >= 3
    old = second.rows.filter(pl.col("entity").str.starts_with("k"))
    assert set(old["entity"]) <= set(first.rows["entity"])
    measured = read_evidence(store, release, "m@1", 10, "log_loss", True).measured
    assert measured.sampled == 2**second.level
    assert measured.information == second.rows.height * 4**second.level


@pytest.mark.slow
def test_samples_do_not_make_the_error_of_the_test_larger():
    """20,000 candidates at the limit, with looks at all rows, then at samples of 1 in 2, 4, 8, 16 … keys."""
    rng = np.random.default_rng(1)
    rows, most, paths = 2048, 128, 20_000
    gains = rng.standard_normal((paths, rows), dtype=np.float32)
    chosen_by = rng.uniform(size=rows)
    level, looks, statistics, totals = 0, [], [], []
    for seen in sorted({int(8 * 1.12**step) for step in range(49)} | {rows}):
        sample = np.flatnonzero(chosen_by[:seen] < 0.5**level)
        while len(sample) > most:
            level += 1
            sample = np.flatnonzero(chosen_by[:seen] < 0.5**level)
        looks.append(len(sample) * 4**level)
        totals.append(seen)
        statistics.append(gains[:, sample].sum(axis=1) / np.sqrt(len(sample)))
    assert level >= 4

    def promoted(information):
        limits = np.array(boundaries([one / 64 for one in information], 0.05, "late"))
        return float((np.array(statistics) > limits[:, None]).any(axis=0).mean())

    # Three standard errors of the simulation.
    assert promoted(looks) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / paths)
    assert promoted(totals) > 0.055, "without the correction, the error would be larger"


@pytest.mark.slow
def test_a_fork_keeps_its_own_rows(store, release):
    fill(store, release)
    check(store, release)
    with store.fork(store.now()) as fork:
        assert check(fork, release).rows.height == 60
        label(fork, release, ["k1", "k2"], [49, 49], ["true", "false"], arrived=60)
        predict(fork, release, ["k1", "x"], [48, 3])
        label(fork, release, ["x"], [4], ["true"])
        assert check(fork, release).rows.height == 62
        restart()
        check(fork, release)
    assert check(store, release).rows.height == 60
