from __future__ import annotations

import json
import multiprocessing
import os
import threading
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import CorruptionError, NotFoundError
from everloop.packages.signature import Signature
from everloop.prediction_log import find_prediction, fold_predictions, prediction_log, read_inputs, read_predictions
from everloop.prediction_log.journal_folding import StreamFold
from everloop.registry import load_model
from everloop.stores import open_store
from everloop.stores.journals import list_journals
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

ROW = sample_rows()[0]


def journals(store: Store) -> list[Path]:
    return [path for path in list_journals(store.journals) if path.name.startswith("predictions")]


def test_every_answer_becomes_one_row(release: Any, route: Any, local: Any, store: Store) -> None:
    version = release(algorithm="lightgbm")
    route(version.key)
    app = local()
    rows = sample_rows(7)
    bodies = [app.post("/predict", {"rows": rows, "keys": [f"F{n}" for n in range(7)]})[1] for _ in range(3)]
    assert fold_predictions(store, "delays") == 21
    assert fold_predictions(store, "delays") == 0
    logged = read_predictions(store, "delays").collect()
    assert sorted(logged["id"]) == sorted(answer["id"] for body in bodies for answer in by_row(body))
    assert logged["entity"].n_unique() == 7
    assert set(logged["role"]) == {"champion"}
    assert set(logged["version"]) == {version.key}
    assert logged["label"].to_list() == ["true" if score >= 0.5 else "false" for score in logged["score"]]
    assert (logged["seconds"] > 0).all()
    assert logged["event_at"].to_list() == logged["arrived_at"].to_list()
    assert logged.schema["input_seats"] == pl.Int64
    assert logged.schema["input_booked_on"] == pl.Date
    assert logged.schema["input_departs_at"] == pl.Datetime("us", "UTC")
    assert "input_currency" not in logged.columns


def test_logged_inputs_score_the_same_again(release: Any, route: Any, local: Any, store: Store) -> None:
    version = release(algorithm="lightgbm")
    route(version.key)
    local().post("/predict", {"rows": sample_rows(50)})
    fold_predictions(store, "delays")
    logged = read_predictions(store, "delays").collect()
    predictor = load_model(store, version.key)
    again = predictor.predict(read_inputs(logged, predictor.signature))
    assert again.tolist() == logged["score"].to_list()


@pytest.mark.slow
def test_window_is_half_open_on_event_time(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(days=day) for day in range(4)]
    local().post("/predict", {"rows": [ROW] * 4, "event_at": [moment.isoformat() for moment in moments]})
    fold_predictions(store, "delays")
    found = read_predictions(store, "delays", moments[1], moments[3]).collect()
    assert sorted(found["event_at"]) == moments[1:3]
    assert read_predictions(store, "delays", version="delays@9").collect().is_empty()
    before = store.as_of(found["arrived_at"][0] - timedelta(seconds=1))
    assert read_predictions(before, "delays").collect().is_empty()


def test_far_times_and_odd_values_are_kept(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    rows = [
        {**ROW, "carrier": "\x00 'quoted' \U0001f600", "distance": 1e308, "seats": 2**63 - 1},
        {**ROW, "departs_at": "9999-12-31T23:59:59.999999Z", "booked_on": "0001-01-01", "seats": -(2**63)},
        dict.fromkeys(ROW),
    ]
    app = local()
    moments = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", None]
    assert app.post("/predict", {"rows": rows, "event_at": moments, "keys": [None, "", "x" * 10_000]})[0] == 200
    assert fold_predictions(store, "delays") == 3
    logged = read_predictions(store, "delays").sort("id").collect()
    assert logged["input_carrier"].to_list() == [rows[0]["carrier"], ROW["carrier"], None]
    assert logged["input_seats"].to_list() == [2**63 - 1, -(2**63), None]
    assert logged["entity"].to_list() == [None, "", "x" * 10_000]


def test_endpoint_that_nobody_asked_yet(route: Any, store: Store) -> None:
    with pytest.raises(NotFoundError):
        read_predictions(store, "delays")
    route()
    assert read_predictions(store, "delays").collect().is_empty()
    assert fold_predictions(store, "delays") == 0


def test_projects_of_one_home_keep_apart(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    local().post("/predict", {"rows": [ROW]})
    other = store.for_project("other")
    assert fold_predictions(other, "delays") == 0
    assert fold_predictions(store, "delays") == 1
    assert prediction_log.table_name(store, "predictions", "delays") == "predictions/delays"
    assert prediction_log.table_name(other, "predictions", "delays") != "predictions/delays"


def test_versions_of_other_types_share_one_table(store: Store) -> None:
    import msgspec

    log = prediction_log.PredictionLog(store, "delays")

    def group(number: int, kind: str, value: Any, score: Any = 0.5) -> prediction_log.Group:
        return prediction_log.Group(
            request=f"{number:036d}",
            arrived=number,
            seconds=0.001,
            version=f"delays@{number}",
            role="champion",
            inputs=msgspec.Raw(msgspec.msgpack.encode({"x": kind, "a b,c": "float"})),
            positions=None,
            entities=None,
            events=None,
            scores=[score],
            labels=None,
            rows=[(value, 1.5)],
        )

    given = [(1, "int", 3), (2, "float", 2.5), (3, "string", "three"), (4, "int", None), (5, "bool", True)]
    for number, kind, value in given:
        log.append([group(number, kind, value)])
        if number % 2:
            assert fold_predictions(store, "delays") > 0
    log.append([group(6, "float", 7.5, [0.25, 0.75])])
    log.close()
    assert fold_predictions(store, "delays") == 1
    assert journals(store) == []
    logged = store.tables.scan("predictions/delays").sort("version").collect()
    assert logged["input_x"].to_list() == [3, None, None, None, None, None]
    assert logged["input_x@float"].to_list() == [None, 2.5, None, None, None, 7.5]
    assert logged["input_x@string"].to_list() == [None, None, "three", None, None, None]
    assert logged["input_a b,c"].to_list() == [1.5] * 6
    assert logged["scores"].to_list() == [None] * 5 + [[0.25, 0.75]]
    assert logged["score"].to_list() == [0.5] * 5 + [0.75]
    assert logged["input_x@bool"].to_list() == [None, None, None, None, True, None]
    signature = Signature.from_json({"task": "regression", "inputs": [{"name": "x", "type": "float"}]})
    assert read_inputs(logged, signature)["x"].to_list() == [3.0, 2.5, None, None, None, 7.5]


def test_every_type_of_input_comes_back_as_it_was(store: Store) -> None:
    import msgspec

    values = {
        "float": 1.5,
        "int": 7,
        "bool": True,
        "string": "ü",
        "date": date(2024, 2, 29),
        "datetime": datetime(2024, 2, 29, 12, 0, 0, 1, tzinfo=UTC),
        "time": time(23, 59, 59, 999999),
        "duration": timedelta(days=-1, microseconds=1),
    }
    signature = Signature.from_json({"task": "regression", "inputs": [{"name": kind, "type": kind} for kind in values]})
    log = prediction_log.PredictionLog(store, "delays")
    for number, row in enumerate([tuple(values.values()), (None,) * len(values)]):
        group = prediction_log.Group(
            request=f"{number:036d}",
            arrived=number,
            seconds=0.001,
            version="delays@1",
            role="champion",
            inputs=msgspec.Raw(msgspec.msgpack.encode({kind: kind for kind in values})),
            positions=None,
            entities=None,
            events=None,
            scores=[0.5],
            labels=None,
            rows=[row],
        )
        log.append([group])
    log.close()
    assert fold_predictions(store, "delays") == 2
    logged = store.tables.scan("predictions/delays").sort("id").collect()
    assert read_inputs(logged, signature).to_dicts() == [values, dict.fromkeys(values)]


@pytest.mark.slow
def test_journal_of_a_living_writer_stays_and_of_a_dead_one_goes(
    release: Any, route: Any, local: Any, store: Store
) -> None:
    route(release().key)
    app = local()
    app.post("/predict", {"rows": [ROW]})
    fold_predictions(store, "delays")
    assert len(journals(store)) == 1
    app.post("/predict", {"rows": [ROW]})
    app.close()
    fold_predictions(store, "delays")
    assert journals(store) == []
    assert read_predictions(store, "delays").collect().height == 2


@pytest.mark.slow
def test_a_full_journal_is_followed_by_another(
    release: Any, route: Any, local: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.prediction_log.log_sinks.ROTATE_BYTES", 2000)
    route(release().key)
    app = local()
    threads = [
        threading.Thread(target=lambda: [app.post("/predict", {"rows": [ROW]}) for _ in range(20)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journals(store)) > 5
    assert fold_predictions(store, "delays") == 60
    assert len(journals(store)) == 1


def test_small_commits_give_the_same_rows(
    release: Any, route: Any, local: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.prediction_log.journal_folding.CHUNK_BYTES", 1)
    route(release().key)
    app = local()
    for _ in range(4):
        app.post("/predict", {"rows": [ROW] * 2})
    assert fold_predictions(store, "delays") == 8
    assert read_predictions(store, "delays").collect()["id"].n_unique() == 8


@pytest.mark.slow
def test_folding_that_dies_after_any_commit_loses_and_doubles_nothing(
    release: Any, route: Any, local: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.prediction_log.journal_folding.CHUNK_BYTES", 1)
    route(release().key)
    app = local()
    for _ in range(4):
        app.post("/predict", {"rows": [ROW]})
    app.close()
    for dies_after in range(3):
        _die_folding(store, dies_after)
    assert fold_predictions(store, "delays") >= 0
    assert read_predictions(store, "delays").collect()["id"].n_unique() == 4
    assert read_predictions(store, "delays").collect().height == 4
    assert journals(store) == []


def _die_folding(store: Store, after: int) -> None:
    """Fold in a process that is killed right behind its n-th commit."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_fold_and_die, args=(str(store.home), after))
    process.start()
    process.join(60)
    assert process.exitcode is not None


def _fold_and_die(home: str, after: int) -> None:
    from everloop.prediction_log import journal_folding

    journal_folding.CHUNK_BYTES = 1
    store = open_store(home)
    append, commits = store.tables.append, 0

    def dying(*arguments: Any, **options: Any) -> bool:
        nonlocal commits
        done = append(*arguments, **options)
        commits += 1
        if commits > after % 2:
            os.kill(os.getpid(), 9)
        return done

    store.tables.append = dying  # type: ignore[method-assign]
    fold_predictions(store, "delays")


@pytest.mark.slow
def test_two_that_fold_at_once(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    moved: list[int] = []

    def fold() -> None:
        with open_store(store.home) as own:
            moved.append(fold_predictions(own, "delays"))

    for _ in range(3):
        for _ in range(10):
            app.post("/predict", {"rows": [ROW]})
        threads = [threading.Thread(target=fold) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(moved) == 30
    assert read_predictions(store, "delays").collect()["id"].n_unique() == 30


@pytest.mark.slow
def test_torn_tail_is_left_and_damage_is_told(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    first, second, third = local(), local(), local()
    for app in (first, second, third):
        app.post("/predict", {"rows": [ROW]})
        app.post("/predict", {"rows": [ROW]})
        app.close()
    torn, damaged, _ = journals(store)
    torn.write_bytes(torn.read_bytes()[:-3])
    whole = bytearray(damaged.read_bytes())
    whole[40] ^= 1
    damaged.write_bytes(bytes(whole))
    with pytest.raises(CorruptionError, match="damaged"):
        fold_predictions(store, "delays")
    assert read_predictions(store, "delays").collect().height == 3
    assert journals(store) == [damaged]


def test_frame_of_a_newer_format_stops_the_fold(store: Store) -> None:
    import msgspec

    from everloop.stores import Journal

    with Journal.create(store.journals, prediction_log.stream_name(store, "predictions", "delays")) as journal:
        journal.append(msgspec.msgpack.encode((99, [])))
    with pytest.raises(CorruptionError, match="format 99"):
        fold_predictions(store, "delays")
    assert len(journals(store)) == 1


def test_a_prediction_is_found_before_and_after_folding(release: Any, route: Any, local: Any, store: Store) -> None:
    version = release(task="multiclass")
    route(version.key)
    body = local().post(
        "/predict", {"rows": sample_rows(3), "keys": ["a", "b", "c"], "event_at": [None, "2020-01-01T00:00:00Z", None]}
    )[1]
    wanted = by_row(body)[1]
    before = find_prediction(store, wanted["id"])
    fold_predictions(store, "delays")
    after = find_prediction(store, wanted["id"])
    assert before == after
    assert before is not None
    assert before.entity == "b"
    assert before.version == version.key
    assert before.event_at == datetime(2020, 1, 1, tzinfo=UTC)
    assert before.inputs["seats"] == sample_rows(3)[1]["seats"]
    assert before.outputs == {"score": wanted["score"], "label": wanted["label"], "scores": wanted["scores"]}
    for nothing in ("", "x", wanted["id"][:-1] + "7", "0" * 36 + "-0", "z" * 38):
        assert find_prediction(store, nothing) is None


def test_fold_is_generic(store: Store) -> None:
    from everloop.stores import Journal

    def frame(store: Store, table: str, entries: list[Any]) -> pl.DataFrame:
        return pl.DataFrame(entries).with_columns(event_at=pl.lit(store.now()))

    fold: StreamFold[Any] = StreamFold("things", "things/all", json.loads, frame)
    assert fold.run(store) == 0
    with Journal.create(store.journals, "things") as journal:
        journal.append(b'{"a": 1}')
        journal.append(b'{"a": 2}')
        assert fold.run(store) == 2
    assert sorted(store.tables.scan("things/all").collect()["a"]) == [1, 2]
