"""The conformance suites for record stores and byte stores, and a clock that tests can move."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    ReadOnlyError,
    UsageError,
)
from everloop.records import (
    Alias,
    Decision,
    EndpointRecord,
    GateResult,
    Json,
    ModelVersion,
    Point,
    Record,
    Release,
    Route,
    Run,
    Snapshot,
    Source,
)
from everloop.stores import ByteStore, Clock, RecordStore, new_id
from everloop.stores.clock import micros

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START = datetime(2024, 3, 1, 12, 0, 0, 250, tzinfo=UTC)


class ManualClock:
    """A clock for tests, which stands still until it is moved."""

    simulated = True

    def __init__(self, moment: datetime = START) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def advance(self, seconds: float = 1.0) -> datetime:
        """Move forward and return the new time."""
        self.moment += timedelta(seconds=seconds)
        return self.moment


class OpenRecords(Protocol):
    """Opens the store of a test. Every call opens the same store, which is empty at the first call."""

    def __call__(self, clock: Clock, project: str = "flights", actor: str = "user:ann@desk") -> RecordStore: ...


def _full_records() -> list[Record]:
    """Records with all kinds of fields: nested classes, tuples, ordered names, empty and filled fields."""
    common: dict[str, Any] = {"project": "flights", "created_at": START}
    return [
        Run(
            id=new_id(START),
            **common,
            name="ünïcode \U0001f680",
            started_at=START,
            ended_at=START.replace(microsecond=0),
            seconds=1.5,
            params={
                "z": 1,
                "a": [1, "x", None, {"b": True}],
                "m.n": -(2**63),
                "big": 2**63 - 1,
                "bigger": 2**70,
                "small": -(2**80),
            },
            tags={"": "", "a b": "\n"},
            metrics={"loss": 1.0, "int": 3},
            source=Source(launch=("python", "x.py"), git_dirty=False, packages={"polars": "2.1"}),
            error='Traceback: "x"\\',
        ),
        Snapshot(
            id=new_id(START),
            **common,
            dataset="flights",
            version=1,
            digest=f"sha256:{1:064x}",
            rows=0,
            size_bytes=0,
            columns={"z": "int64", "a": "float64", "m": "string"},
            sources=({"path": "a.csv"},),
        ),
        Release(
            id=new_id(START),
            **common,
            endpoint="delays",
            candidate="delays@2",
            steps=(10.0, 100.0),
            decisions=(Decision(at=START, action="start", percent=10.0, reason="new", evidence={"p": 0.5}),),
            gates=("g1", "g2"),
        ),
        EndpointRecord(id=new_id(START), **common, name="e", model="m", routes=(Route(version="m@1", percent=100.0),)),
        GateResult(id=new_id(START), **common, gate="g", outcome="undecided", candidate="m@1", message=""),
        Alias(id=new_id(START), **common, model="m", name="champion", version="m@1"),
    ]


class RecordStoreSuite:
    """Derive from this class and define a fixture `open_records` that returns an `OpenRecords`."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def store(self, open_records: OpenRecords, clock: ManualClock) -> RecordStore:
        return open_records(clock)

    # put and get

    def test_a_record_is_found_by_id_and_by_key(self, store: RecordStore) -> None:
        version = _version(3)
        store.put(version)
        assert store.get(ModelVersion, version.id) == version
        assert store.get(ModelVersion, "delays@3") == version

    @pytest.mark.parametrize("record", [pytest.param(case, id=type(case).__name__) for case in _full_records()])
    def test_every_value_is_returned_unchanged(self, store: RecordStore, record: Record) -> None:
        store.put(record)
        assert store.get(type(record), record.id) == record

    def test_numbers_that_json_cannot_represent_are_returned_unchanged(self, store: RecordStore) -> None:
        run = _run("odd", metrics={"a": math.inf, "b": -math.inf, "c": math.nan, "d": 0.1 + 0.2, "e": 1e-320})
        store.put(run)
        back = store.get(Run, run.id).metrics
        assert math.isnan(back.pop("c"))
        assert back == {"a": math.inf, "b": -math.inf, "d": 0.1 + 0.2, "e": 1e-320}

    def test_times_of_other_zones_are_the_same_instants(self, store: RecordStore) -> None:
        from zoneinfo import ZoneInfo

        local = START.astimezone(ZoneInfo("America/New_York"))
        run = replace(_run("r"), created_at=local, started_at=local)
        store.put(run)
        assert store.get(Run, run.id) == run
        assert store.find(Run, ("started_at", "=", START), ("created_at", "=", START)) == [run]

    @pytest.mark.parametrize(
        ("params", "word"),
        [
            ({"a": object()}, "object"),
            ({"a": {"$float": "nan"}}, "reserved"),
            ({"a": "\x00"}, "NUL"),
            ({"a": "\ud800"}, "surrogates"),
            ({"$float": 1, "b": math.nan}, "reserved"),
        ],
    )
    def test_a_value_that_cannot_be_stored_is_refused(
        self, store: RecordStore, params: dict[str, Json], word: str
    ) -> None:
        with pytest.raises(UsageError, match=word):
            store.put(_run("bad", params=params))
        assert store.find(Run) == []

    def test_a_time_without_a_zone_is_refused(self, store: RecordStore) -> None:
        with pytest.raises(UsageError, match="timezone"):
            store.put(replace(_run("r"), ended_at=datetime(2024, 1, 1)))

    def test_a_text_with_a_spelled_out_nul_escape_is_stored(self, store: RecordStore) -> None:
        run = _run("r", params={"pattern": "\\u0000", "path": "C:\\u0000\\"})
        store.put(run)
        assert store.get(Run, run.id) == run

    def test_ids_and_keys_are_unique(self, store: RecordStore) -> None:
        first = _version(1)
        store.put(first)
        with pytest.raises(AlreadyExistsError, match="delays@1"):
            store.put(first)
        with pytest.raises(AlreadyExistsError, match="delays@1"):
            store.put(_version(1))
        assert store.find(ModelVersion) == [first]

    def test_a_put_of_several_is_all_or_nothing(self, store: RecordStore) -> None:
        store.put(_version(2))
        before = store.last_event()
        with pytest.raises(AlreadyExistsError):
            store.put(_version(1), _version(2), _version(3))
        assert [version.version for version in store.find(ModelVersion)] == [2]
        assert store.last_event() == before

    def test_one_key_in_two_kinds_and_two_projects(self, store: RecordStore) -> None:
        endpoint = EndpointRecord(
            id=new_id(START), project="flights", created_at=START, name="delays@1", model="delays"
        )
        store.put(_version(1), endpoint)
        other = store.for_project("trains")
        other.put(replace(_version(1), project="trains"))
        assert store.get(EndpointRecord, "delays@1") == endpoint
        assert [version.project for version in other.find(ModelVersion)] == ["trains"]

    def test_a_project_does_not_see_another(self, store: RecordStore) -> None:
        run = _run("r")
        store.put(run)
        other = store.for_project("trains")
        assert other.find(Run) == []
        assert other.last_event() == 0
        assert other.events_since(0) == []
        with pytest.raises(NotFoundError):
            other.get(Run, run.id)
        with pytest.raises(NotFoundError):
            other.update(replace(run, project="trains"))
        with pytest.raises(NotFoundError):
            other.delete(Run, run.id)
        with pytest.raises(UsageError, match="for_project"):
            other.put(_run("s"))

    def test_the_error_for_a_missing_record_lists_similar_keys(self, store: RecordStore) -> None:
        store.put(_version(1), _version(12))
        with pytest.raises(NotFoundError) as caught:
            store.get(ModelVersion, "delays@13")
        assert "No model version 'delays@13'" in caught.value.message
        assert "Similar: delays@1, delays@12." in caught.value.message
        with pytest.raises(NotFoundError, match="The newest are: delays@"):
            store.get(ModelVersion, "zzz")
        assert caught.value.help == "See: everloop models ls"

    @pytest.mark.parametrize("ref", ["", "\0", "a\0b", "\ud800", "%", "?", "' OR 1=1", "x" * 100_000])
    def test_strange_names_cause_only_errors(self, store: RecordStore, ref: str) -> None:
        store.put(_version(1))
        with pytest.raises((NotFoundError, UsageError)):
            store.get(ModelVersion, ref)
        with pytest.raises((NotFoundError, UsageError)):
            store.history(ModelVersion, ref)
        with suppress(UsageError):
            assert store.find(ModelVersion, ("model", "=", ref), ("key", "=", ref)) == []
        with suppress(UsageError):
            assert store.events_since(0, subject=ref, kinds=[ref]) == []
        with suppress(UsageError):
            store.append_points(ref, [_point(ref, 1.0)])
            assert store.read_points(ref) == [_point(ref, 1.0)]
        assert store.get(ModelVersion, "delays@1").version == 1

    def test_numbers_that_are_too_large_cause_only_errors(self, store: RecordStore) -> None:
        with pytest.raises(UsageError):
            store.append_points("s", [_point("loss", 1.0, 2**63)])
        assert store.read_points("s") == []
        with suppress(UsageError):
            assert store.events_since(2**70) == []
        assert store.find(Run, ("revision", "<", 2**70), ("params.x", "=", 2**70)) == []

    def test_a_second_opening_sees_what_the_first_wrote(self, open_records: OpenRecords, clock: ManualClock) -> None:
        first, second = open_records(clock), open_records(clock)
        run = _run("r")
        first.put(run)
        assert second.get(Run, run.id) == run
        second.update(replace(run, state="finished"))
        assert first.get(Run, run.id).state == "finished"

    # find

    def test_find_by_every_operation(self, store: RecordStore) -> None:
        runs = [
            _run("a1", state="running", metrics={"auc": 0.5}, params={"lr": 1, "deep": {"x": "p"}, "on": True}),
            _run("a2", state="finished", metrics={"auc": 0.75}, params={"lr": "1", "deep": {"x": "q"}, "on": False}),
            _run("b1", state="finished", metrics={"auc": 0.9}, params={"lr": 2.5, "none": None}, trigger="drift"),
            _run("b2", state="failed", metrics={}, params={"lr": True}),
        ]
        store.put(*runs)
        for where, names in (
            ([], "a1 a2 b1 b2"),
            ([("state", "=", "finished")], "a2 b1"),
            ([("state", "!=", "finished")], "a1 b2"),
            ([("state", "in", ["failed", "running"])], "a1 b2"),
            ([("state", "in", [])], ""),
            ([("state", "in", [*map(str, range(5000)), None, "failed"])], "b2"),
            ([("name", "prefix", "b")], "b1 b2"),
            ([("name", "prefix", "")], "a1 a2 b1 b2"),
            ([("name", ">", "a2")], "b1 b2"),
            ([("metrics.auc", ">=", 0.75)], "a2 b1"),
            ([("metrics.auc", "<", 0.75)], "a1"),
            ([("metrics.auc", "!=", 0.75)], "a1 b1 b2"),
            ([("metrics.auc", "is", None)], "b2"),
            ([("metrics.auc", "!=", None)], "a1 a2 b1"),
            ([("trigger", "is", None)], "a1 a2 b2"),
            ([("trigger", "=", None)], "a1 a2 b2"),
            ([("params.lr", "=", 1)], "a1"),
            ([("params.lr", "=", "1")], "a2"),
            ([("params.lr", "=", True)], "b2"),
            ([("params.lr", "in", [1, "1", True])], "a1 a2 b2"),
            ([("params.lr", ">", 0)], "a1 b1"),
            ([("params.on", "=", True)], "a1"),
            ([("params.on", "!=", True)], "a2 b1 b2"),
            ([("params.none", "is", None)], "a1 a2 b1 b2"),
            ([("params.deep.x", "=", "q")], "a2"),
            ([("params.deep", "is", None)], "b1 b2"),
            ([("params.deep", "=", "q")], ""),
            ([("state", "=", "finished"), ("metrics.auc", ">", 0.8)], "b1"),
            ([("id", "=", runs[0].id)], "a1"),
            ([("key", "=", runs[1].id)], "a2"),
            ([("key", "=", 3)], ""),
            ([("project", "=", "flights"), ("revision", "=", 0)], "a1 a2 b1 b2"),
            ([("revision", ">", 0)], ""),
            ([("revision", "=", "0")], ""),
            ([("created_at", "is", None)], ""),
        ):
            found = store.find(Run, *where, order="name")
            assert " ".join(run.name for run in found) == names, where

    def test_find_by_names_with_special_characters(self, store: RecordStore) -> None:
        names = ["val/auc.1", 'say "x"', "a\\b", "ü", "a[0]", "", "$", "%", "?", "a.b.c", "tab\there", "'"]
        for number, name in enumerate(names):
            store.put(_run(f"r{number:02}", metrics={name: float(number)}))
        for number, name in enumerate(names):
            path = ("metrics", name)
            assert [run.name for run in store.find(Run, (path, "=", number))] == [f"r{number:02}"], name
            assert [run.name for run in store.find(Run, (path, "!=", None))] == [f"r{number:02}"], name
            assert len(store.find(Run, (path, "is", None))) == len(names) - 1, name

    def test_find_by_texts_with_special_characters(self, store: RecordStore) -> None:
        texts = ["", "a", "A", "%", "_", "a%b", "?", "'", '"', "\\", "ü", "\U0001f600", "\uffff", "z\U0010ffff", "a b"]
        store.put(*(_run(text) for text in texts))
        for text in texts:
            assert [run.name for run in store.find(Run, ("name", "=", text))] == [text]
            expected = sorted(other for other in texts if other.startswith(text))
            assert [run.name for run in store.find(Run, ("name", "prefix", text), order="name")] == expected
            expected = sorted(other for other in texts if other > text)
            assert [run.name for run in store.find(Run, ("name", ">", text), order="name")] == expected

    def test_find_by_time_down_to_the_microsecond(self, store: RecordStore) -> None:
        second = START.replace(microsecond=0)
        moments = [second - timedelta(microseconds=1), second, second + timedelta(microseconds=1)]
        store.put(*(replace(_run(str(number)), started_at=moment) for number, moment in enumerate(moments)))
        assert [run.name for run in store.find(Run, ("started_at", ">=", second))] == ["1", "2"]
        assert [run.name for run in store.find(Run, ("started_at", "<=", second))] == ["0", "1"]
        assert [run.name for run in store.find(Run, ("started_at", "=", second))] == ["1"]
        assert [run.name for run in store.find(Run, order="-started_at")] == ["2", "1", "0"]

    @pytest.mark.parametrize(
        ("condition", "word"),
        [
            (("colour", "=", 1), "no field 'colour'"),
            (("state", "~", 1), "not a comparison operator"),
            (("state", "=", ["x"]), "cannot be compared"),
            (("state", "in", "finished"), "needs a list"),
            (("state", "is", "x"), "can only be used with None"),
            (("state", "<", None), "cannot be compared"),
            (("params.on", "<", True), "cannot compare"),
            (("name", "prefix", 1), "needs a text"),
            (("name", ">", START), "not a time"),
            (("metrics.auc", "=", math.nan), "NaN"),
        ],
    )
    def test_an_invalid_condition_is_refused(self, store: RecordStore, condition: Any, word: str) -> None:
        with pytest.raises(UsageError, match=word):
            store.find(Run, condition)

    def test_orders(self, store: RecordStore) -> None:
        odd = math.nan
        store.put(
            _run("a", metrics={"auc": 0.5}, params={"p": "x"}),
            _run("b", metrics={"auc": 0.9}, params={"p": 3}),
            _run("c", metrics={"auc": 0.5}, params={"p": "X"}),
            _run("d", metrics={}, params={"p": -1}),
            _run("e", metrics={"auc": odd}, params={"p": True}),
        )
        for order, names in (
            ("id", "a b c d e"),
            ("-id", "e d c b a"),
            ("created_at", "a b c d e"),
            ("-created_at", "e d c b a"),
            ("name", "a b c d e"),
            ("metrics.auc", "a c b d e"),
            ("-metrics.auc", "b c a e d"),
            ("params.p", "d b c a e"),
            ("-params.p", "b d a c e"),
            ("ended_at", "a b c d e"),
        ):
            assert " ".join(run.name for run in store.find(Run, order=order)) == names, order
            assert _pages(store, order, 2) == names.split(), order

    def test_pages_neither_skip_nor_repeat_while_others_write(self, store: RecordStore) -> None:
        store.put(*(_run(f"{number:02}") for number in range(10)))
        first = store.find(Run, order="-created_at", limit=4)
        store.put(_run("new"))
        store.delete(Run, store.find(Run, ("name", "=", "00"))[0].id)
        second = store.find(Run, order="-created_at", limit=4, after=first[-1].id)
        assert [run.name for run in first + second] == ["09", "08", "07", "06", "05", "04", "03", "02"]

    def test_limits(self, store: RecordStore) -> None:
        store.put(_run("a"), _run("b"))
        assert len(store.find(Run, limit=1)) == 1
        assert store.find(Run, limit=0) == []
        with pytest.raises(NotFoundError):
            store.find(Run, after="nobody")

    # update

    def test_an_update_increments_the_revision_and_keeps_the_old_one(
        self, store: RecordStore, clock: ManualClock
    ) -> None:
        run = _run("r")
        store.put(run)
        clock.advance()
        (second,) = store.update(replace(run, state="failed", error="x"))
        clock.advance()
        (third,) = store.update(replace(second, state="finished", error=None))
        assert third == replace(run, state="finished", revision=2)
        assert store.get(Run, run.id) == third
        assert store.history(Run, run.id) == [
            (START, run),
            (START + timedelta(seconds=1), second),
            (START + timedelta(seconds=2), third),
        ]
        assert [found.name for found in store.find(Run, ("state", "=", "finished"))] == ["r"]
        assert store.find(Run, ("state", "=", "failed")) == []

    def test_an_update_of_an_old_revision_is_refused(self, store: RecordStore) -> None:
        run = _run("r")
        store.put(run)
        store.update(replace(run, state="finished"))
        with pytest.raises(ConflictError, match="revision 1, not 0"):
            store.update(replace(run, state="failed"))
        assert store.get(Run, run.id).state == "finished"
        assert len(store.history(Run, run.id)) == 2

    def test_an_update_of_several_is_all_or_nothing(self, store: RecordStore) -> None:
        first, second = _run("a"), _run("b")
        store.put(first, second)
        store.update(replace(second, state="failed"))
        with pytest.raises(ConflictError):
            store.update(replace(first, state="finished"), replace(second, state="finished"))
        assert store.get(Run, first.id) == first
        assert len(store.history(Run, first.id)) == 1

    def test_an_update_may_change_the_key_but_not_to_an_existing_one(self, store: RecordStore) -> None:
        first, second = _version(1), _version(2)
        store.put(first, second)
        with pytest.raises(AlreadyExistsError, match="delays@2"):
            store.update(replace(first, version=2))
        (moved,) = store.update(replace(first, version=3))
        assert store.get(ModelVersion, "delays@3") == moved
        with pytest.raises(NotFoundError):
            store.get(ModelVersion, "delays@1")

    def test_an_update_of_a_missing_record_is_refused(self, store: RecordStore) -> None:
        with pytest.raises(NotFoundError):
            store.update(_run("r"))

    def test_of_many_updates_of_one_revision_one_wins(self, open_records: OpenRecords, clock: ManualClock) -> None:
        run = _run("r")
        open_records(clock).put(run)
        barrier = threading.Barrier(8)

        def change(number: int) -> bool:
            store = open_records(clock)
            barrier.wait()
            try:
                store.update(replace(run, name=str(number)))
            except ConflictError:
                return False
            finally:
                store.close()
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(change, range(8))) == 1

    # delete, restore, purge

    def test_delete_hides_and_restore_shows(self, store: RecordStore) -> None:
        version = _version(1)
        store.put(version)
        store.delete(ModelVersion, "delays@1")
        assert store.find(ModelVersion) == []
        with pytest.raises(NotFoundError):
            store.get(ModelVersion, version.id)
        with pytest.raises(NotFoundError):
            store.update(version)
        with pytest.raises(NotFoundError):
            store.delete(ModelVersion, version.id)
        with pytest.raises(AlreadyExistsError, match="deleted"):
            store.put(version)
        assert [record for _, record in store.history(ModelVersion, version.id)] == [version]
        store.restore(ModelVersion, "delays@1")
        assert store.get(ModelVersion, "delays@1") == version
        assert [record for _, record in store.history(ModelVersion, version.id)] == [version]
        with pytest.raises(NotFoundError):
            store.restore(ModelVersion, "delays@1")

    def test_the_key_of_a_deleted_record_can_be_used_again(self, store: RecordStore) -> None:
        first, second = _version(1), _version(1)
        store.put(first)
        store.delete(ModelVersion, first.id)
        store.put(second)
        with pytest.raises(AlreadyExistsError, match="delays@1"):
            store.restore(ModelVersion, first.id)
        store.delete(ModelVersion, second.id)
        store.restore(ModelVersion, first.id)
        assert store.get(ModelVersion, "delays@1") == first

    def test_restore_by_key_takes_the_last_deleted(self, store: RecordStore, clock: ManualClock) -> None:
        versions = [_version(1) for _ in range(3)]
        for version in versions:
            store.put(version)
            clock.advance()
            store.delete(ModelVersion, version.id)
        store.restore(ModelVersion, "delays@1")
        assert store.get(ModelVersion, "delays@1") == versions[-1]

    def test_purge_removes_records_that_were_deleted_by_then(self, store: RecordStore, clock: ManualClock) -> None:
        early, late, live = _run("early"), _run("late"), _run("live")
        store.put(early, late, live)
        (early,) = store.update(replace(early, state="failed"))
        store.append_points(early.id, [_point("loss", 1.0)])
        store.append_points(live.id, [_point("loss", 2.0)])
        store.delete(Run, early.id)
        then = clock.now()
        clock.advance()
        store.delete(Run, late.id)
        assert store.purge(then) == 1
        with pytest.raises(NotFoundError):
            store.history(Run, early.id)
        assert store.read_points(early.id) == []
        assert len(store.read_points(live.id)) == 1
        store.restore(Run, late.id)
        assert [run.name for run in store.find(Run)] == ["late", "live"]
        store.put(early)

    # points

    def test_the_greatest_step_of_each_metric(self, store: RecordStore) -> None:
        assert store.greatest_steps("s") == {}
        store.append_points("s", [_point("loss", 3.0, 7), _point("auc", 0.5, -2), _point("loss", math.nan, 5)])
        store.append_points("other", [_point("loss", 1.0, 99)])
        assert store.greatest_steps("s") == {"loss": 7, "auc": -2}
        assert store.for_project("elsewhere").greatest_steps("s") == {}

    def test_an_overview_of_points(self, store: RecordStore) -> None:
        assert store.sample_points(["s"], ["loss"], 5) == {}
        store.append_points("s", [_point("loss", float(step), step) for step in range(1_000, -1, -1)])
        store.append_points("s", [_point("loss", -1.0, 500), _point("flat", 7.0, 3), _point("other", 0.0, 0)])
        store.append_points("t", [_point("loss", math.nan if step else 1.0, step) for step in (0, 10_000)])
        found = store.sample_points(["s", "t", "u"], ["loss", "flat"], 5)
        assert found["s", "loss"] == [(step, float(step)) for step in (0, 250, 500, 750, 1_000)]
        assert found["s", "flat"] == [(3, 7.0)]
        assert [step for step, _ in found["t", "loss"]] == [0, 10_000]
        assert math.isnan(found["t", "loss"][1][1])
        assert set(found) == {("s", "loss"), ("s", "flat"), ("t", "loss")}
        assert store.for_project("elsewhere").sample_points(["s"], ["loss"], 5) == {}

    def test_points_are_ordered_by_key_step_and_arrival(self, store: RecordStore) -> None:
        store.append_points("s", [_point("loss", 3.0, 2), _point("auc", 0.5, 0), _point("loss", 1.0, 1)])
        store.append_points("s", [_point("loss", 4.0, 1), _point("loss", math.inf, 3), _point("loss", math.nan, 4)])
        store.append_points("t", [_point("loss", 9.0)])
        store.append_points("s", [])
        points = store.read_points("s")
        assert [(point.key, point.step) for point in points] == [
            ("auc", 0),
            ("loss", 1),
            ("loss", 1),
            ("loss", 2),
            ("loss", 3),
            ("loss", 4),
        ]
        assert [point.value for point in points[1:5]] == [1.0, 4.0, 3.0, math.inf]
        assert math.isnan(points[5].value)
        assert points[0] == _point("auc", 0.5, 0)
        assert [point.step for point in store.read_points("s", "loss", since_step=2, limit=2)] == [2, 3]
        assert store.read_points("s", "none") == []
        assert store.for_project("trains").read_points("s") == []

    def test_rows_are_points(self, store: RecordStore) -> None:
        point = _point("loss", 0.5, 3)
        store.append_points("s", [point])
        store.append_rows("s", [("loss", 4, micros(point.at), 1.5), ("auc", -1, 0, math.nan)])
        auc, *loss = store.read_points("s")
        assert loss == [point, replace(point, step=4, value=1.5)]
        assert (auc.step, auc.at, math.isnan(auc.value)) == (-1, datetime(1970, 1, 1, tzinfo=UTC), True)
        with pytest.raises(UsageError):
            store.append_rows("s", [("loss", 1, 0, 1.0), ("loss", 2**63, 0, 1.0)])
        assert len(store.read_points("s", "loss")) == 2

    # events

    def test_every_write_is_an_event(self, store: RecordStore, clock: ManualClock) -> None:
        version = _version(1)
        store.put(version, data={"why": "first"})
        clock.advance()
        bob = store.as_actor("user:bob@desk")
        bob.update(replace(version, state="released"), verb="released")
        bob.delete(ModelVersion, version.id)
        bob.restore(ModelVersion, version.id)
        appended = store.append_event("alarm", "endpoint", "e1", "delays", {"value": math.inf, "at": [1, None]})
        events = store.events_since(0)
        assert [event.verb for event in events] == ["created", "released", "deleted", "restored", "alarm"]
        assert [event.actor for event in events] == ["user:ann@desk", *["user:bob@desk"] * 3, "user:ann@desk"]
        assert {(event.kind, event.subject, event.key) for event in events[:4]} == {
            ("model_version", version.id, "delays@1")
        }
        assert events[0].data == {"why": "first"}
        assert (events[0].at, events[1].at) == (START, START + timedelta(seconds=1))
        assert events[-1] == appended
        assert appended.data == {"value": math.inf, "at": [1, None]}
        assert store.last_event() == appended.seq

    def test_an_event_is_waited_for(self, store: RecordStore) -> None:
        assert store.wait_for_event(0, 0.05) == 0
        first = store.append_event("tick", "clock", "s")
        assert store.wait_for_event(0, 60) == first.seq
        assert store.wait_for_event(first.seq, 0.05) == first.seq
        assert store.as_of(START).wait_for_event(first.seq, 60) == first.seq
        timer = threading.Timer(0.1, lambda: store.append_event("tock", "clock", "s"))
        timer.start()
        assert store.wait_for_event(first.seq, 60) > first.seq
        timer.join()

    def test_a_block_sees_its_own_events(self, store: RecordStore) -> None:
        with store.transaction("part"):
            seen = [store.append_event("tick", "clock", str(number)) for number in range(3)]
            assert store.events_since(0) == seen
            assert store.last_event() == seen[-1].seq
        assert store.events_since(0) == seen

    def test_events_are_numbered_without_reuse_and_read_in_portions(self, store: RecordStore) -> None:
        for number in range(5):
            store.append_event("tick" if number % 2 else "tock", "clock" if number < 3 else "bell", f"s{number % 2}")
        numbers = [event.seq for event in store.events_since(0)]
        assert numbers == sorted(set(numbers))
        assert [event.seq for event in store.events_since(numbers[1], limit=2)] == numbers[2:4]
        assert [event.seq for event in store.events_since(0, kinds=["bell", "none"])] == numbers[3:]
        assert [event.seq for event in store.events_since(0, subject="s1")] == [numbers[1], numbers[3]]
        assert store.events_since(store.last_event()) == []

    def test_a_follower_of_events_misses_none(self, open_records: OpenRecords, clock: ManualClock) -> None:
        writers, each = 4, 25

        def write(number: int) -> None:
            store = open_records(clock)
            for _ in range(each):
                store.append_event("tick", "clock", str(number))
            store.close()

        follower = open_records(clock)
        seen: list[int] = []
        with ThreadPoolExecutor(writers) as pool:
            tasks = [pool.submit(write, number) for number in range(writers)]
            while not all(task.done() for task in tasks):
                seen += [event.seq for event in follower.events_since(seen[-1] if seen else 0)]
            for task in tasks:
                task.result()
        seen += [event.seq for event in follower.events_since(seen[-1] if seen else 0)]
        assert len(seen) == writers * each

    # transactions

    def test_a_transaction_is_one_write(
        self, store: RecordStore, open_records: OpenRecords, clock: ManualClock
    ) -> None:
        other = open_records(clock)
        with store.transaction():
            store.put(_run("a"))
            store.append_points("s", [_point("loss", 1.0)])
            assert len(store.find(Run)) == 1
            assert _elsewhere(lambda: (other.find(Run), other.last_event())) == ([], 0)
        assert len(other.find(Run)) == 1

        def fail() -> None:
            with store.transaction():
                store.put(_run("b"))
                store.append_event("x", "y", "z")
                store.append_points("s", [_point("loss", 2.0)])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert [run.name for run in other.find(Run)] == ["a"]
        assert len(other.read_points("s")) == 1
        assert len(other.events_since(0)) == 1

    def test_an_inner_transaction_that_fails_is_undone_alone(self, store: RecordStore) -> None:
        store.put(_version(1))

        def fail() -> None:
            with store.transaction():
                store.put(_run("c"))
                raise ZeroDivisionError

        with store.transaction():
            store.put(_run("a"))
            with pytest.raises(AlreadyExistsError):
                store.put(_run("b"), _version(1))
            with pytest.raises(ZeroDivisionError):
                fail()
            store.put(_run("d"))
        assert [run.name for run in store.find(Run)] == ["a", "d"]

    def test_writers_exclude_each_other(self, open_records: OpenRecords, clock: ManualClock) -> None:
        stores = [open_records(clock) for _ in range(2)]
        inside = 0
        most = 0

        def write(store: RecordStore) -> None:
            nonlocal inside, most
            for _ in range(20):
                with store.transaction():
                    inside += 1
                    most = max(most, inside)
                    store.append_event("x", "y", "z")
                    inside -= 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, stores * 2))
        assert most == 1
        assert len(stores[0].events_since(0)) == 80

    # the past

    def test_the_past_shows_what_had_been_written(self, store: RecordStore, clock: ManualClock) -> None:
        first, second = _version(1), _version(2)
        moments = [clock.now()]

        def step() -> None:
            moments.append(clock.advance())

        store.put(first)
        step()
        (released,) = store.update(replace(first, state="released"))
        store.append_points("s", [_point("loss", 1.0)])
        step()
        store.put(second)
        store.delete(ModelVersion, first.id)
        step()
        store.restore(ModelVersion, first.id)
        step()
        (archived,) = store.update(replace(released, state="archived"))

        def shown(moment: datetime) -> list[tuple[int, str]]:
            found = store.as_of(moment).find(ModelVersion, order="version")
            return [(version.version, version.state) for version in found]

        assert shown(moments[0] - timedelta(microseconds=1)) == []
        assert shown(moments[0]) == [(1, "registered")]
        assert shown(moments[1]) == [(1, "released")]
        assert shown(moments[1] + timedelta(microseconds=999_999)) == [(1, "released")]
        assert shown(moments[2]) == [(2, "registered")]
        assert shown(moments[3]) == [(1, "released"), (2, "registered")]
        assert shown(moments[4]) == [(1, "archived"), (2, "registered")]
        past = store.as_of(moments[1])
        assert past.get(ModelVersion, "delays@1") == released
        assert past.find(ModelVersion, ("state", "=", "released"), order="-created_at", limit=5) == [released]
        assert [record.state for _, record in past.history(ModelVersion, first.id)] == ["registered", "released"]
        assert len(past.read_points("s")) == 1
        assert store.as_of(moments[0]).read_points("s") == []
        assert [event.verb for event in past.events_since(0)] == ["created", "updated"]
        assert past.last_event() == past.events_since(0)[-1].seq
        with pytest.raises(NotFoundError):
            past.get(ModelVersion, "delays@2")
        assert archived.revision == 2

    def test_the_past_of_a_clock_that_stands_still(self, store: RecordStore, clock: ManualClock) -> None:
        run = _run("r")
        store.put(run)
        (second,) = store.update(replace(run, state="finished"))
        assert store.as_of(clock.now()).get(Run, run.id) == second

    def test_views_of_the_past_are_read_only(self, store: RecordStore, clock: ManualClock) -> None:
        run = _run("r")
        store.put(run)
        past = store.as_of(clock.now())
        for write in (
            lambda: past.put(_run("s")),
            lambda: past.update(run),
            lambda: past.delete(Run, run.id),
            lambda: past.restore(Run, run.id),
            lambda: past.append_points("s", []),
            lambda: past.append_rows("s", []),
            lambda: past.append_event("x", "y", "z"),
            lambda: past.purge(clock.now()),
            lambda: past.as_of(clock.now() + timedelta(days=1)).put(_run("t")),
        ):
            with pytest.raises(ReadOnlyError):
                write()
        assert past.as_of(clock.now() - timedelta(days=1)).find(Run) == []

    # for checks and garbage collection

    def test_stored_returns_all_revisions(self, store: RecordStore) -> None:
        live, deleted = _version(1), _version(2)
        store.put(live, deleted)
        store.update(replace(live, description="x"))
        store.update(replace(deleted, description="x"))
        store.delete(ModelVersion, deleted.id)
        store.for_project("trains").put(replace(_run("r"), project="trains"))
        current = sorted(((one.project, one.kind, one.deleted_at) for one in store.stored() if one.current), key=str)
        assert current == [
            ("flights", "model_version", None),
            ("flights", "model_version", START),
            ("trains", "run", None),
        ]
        assert sorted(one.deleted_at is None for one in store.stored() if not one.current) == [False, True]
        assert {one.id for one in store.stored()} >= {live.id, deleted.id}
        assert store.problems() == []

    def test_a_closed_store_cannot_be_used(self, store: RecordStore) -> None:
        store.close()
        store.close()
        with pytest.raises(UsageError, match="closed"):
            store.find(Run)


class ByteStoreSuite:
    """Derive from this class and define a fixture `byte_store` that returns an empty `ByteStore`."""

    @pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
    def test_bytes_and_files_are_returned_unchanged(self, byte_store: ByteStore, tmp_path: Path, size: int) -> None:
        data = bytes(range(256)) * (size // 256 + 1)
        data = data[:size]
        source = tmp_path / "source"
        source.write_bytes(data)
        assert byte_store.put("a/bytes", data) is True
        assert byte_store.put("a/file", source) is True
        assert byte_store.get("a/bytes") == byte_store.get("a/file") == data
        assert byte_store.size("a/bytes") == byte_store.size("a/file") == size
        assert source.read_bytes() == data

    def test_parts(self, byte_store: ByteStore) -> None:
        byte_store.put("k", b"0123456789")
        assert byte_store.get("k", 3) == b"3456789"
        assert byte_store.get("k", 3, 4) == b"3456"
        assert byte_store.get("k", None, 2) == b"01"
        assert byte_store.get("k", 8, 100) == b"89"
        assert byte_store.get("k", 10, 1) == b""
        assert byte_store.get("k", 0, 0) == b""
        assert byte_store.get("k", 100) == b""

    def test_an_existing_key_is_left_alone_or_replaced(self, byte_store: ByteStore) -> None:
        assert byte_store.put("k", b"one") is True
        assert byte_store.put("k", b"two") is False
        assert byte_store.get("k") == b"one"
        assert byte_store.put("k", b"three", if_absent=False) is True
        assert byte_store.get("k") == b"three"
        assert byte_store.put("fresh", b"x", if_absent=False) is True

    def test_of_simultaneous_puts_to_one_key_one_writes(self, byte_store: ByteStore) -> None:
        barrier = threading.Barrier(8)

        def put(number: int) -> bool:
            barrier.wait()
            return byte_store.put("k", bytes([number]) * 1000)

        with ThreadPoolExecutor(8) as pool:
            wrote = list(pool.map(put, range(8)))
        assert sum(wrote) == 1
        assert byte_store.get("k") == bytes([wrote.index(True)]) * 1000

    def test_missing_keys(self, byte_store: ByteStore) -> None:
        assert byte_store.size("none") is None
        assert byte_store.written_at("none") is None
        assert byte_store.delete("none") is False
        assert list(byte_store.list("none")) == []
        assert list(byte_store.list()) == []
        with pytest.raises(NotFoundError, match="none"):
            byte_store.get("none")
        with pytest.raises(NotFoundError, match="none"):
            byte_store.get("none", 0, 1)
        byte_store.put("folder/key", b"x")
        assert byte_store.size("folder") is None
        with pytest.raises(NotFoundError):
            byte_store.get("folder")

    def test_list_is_sorted_and_limited_to_a_folder(self, byte_store: ByteStore) -> None:
        keys = ["a/b/c", "a/b.txt", "a/bc", "ab/c", "z", "a/b-1", "A"]
        for size, key in enumerate(keys):
            byte_store.put(key, b"x" * size)
        assert list(byte_store.list()) == sorted((key, size) for size, key in enumerate(keys))
        assert [key for key, _ in byte_store.list("a")] == ["a/b-1", "a/b.txt", "a/b/c", "a/bc"]
        assert [key for key, _ in byte_store.list("a/b")] == ["a/b/c"]

    def test_delete(self, byte_store: ByteStore) -> None:
        byte_store.put("k", b"x")
        assert byte_store.delete("k") is True
        assert byte_store.delete("k") is False
        assert byte_store.size("k") is None
        assert byte_store.put("k", b"y") is True

    def test_delete_does_not_remove_keys_that_were_put_since(self, byte_store: ByteStore) -> None:
        byte_store.put("k", b"x")
        written = byte_store.written_at("k")
        assert written is not None
        assert byte_store.delete("k", unless_since=written) is False
        assert byte_store.get("k") == b"x"
        assert byte_store.delete("k", unless_since=written + timedelta(seconds=2)) is True
        assert byte_store.size("k") is None
        assert [key for key, _ in byte_store.list()] == []

    @pytest.mark.parametrize(
        "key", ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", ".tmp/x", "a\\b", "a b", "a\0"]
    )
    def test_an_invalid_key_is_refused(self, byte_store: ByteStore, key: str) -> None:
        for use in (
            lambda: byte_store.put(key, b"x"),
            lambda: byte_store.get(key),
            lambda: byte_store.size(key),
            lambda: byte_store.delete(key),
        ):
            with pytest.raises(UsageError):
                use()


def _run(name: str, **fields: Any) -> Run:
    return Run(id=new_id(START), project="flights", created_at=START, name=name, started_at=START, **fields)


def _version(number: int) -> ModelVersion:
    return ModelVersion(
        id=new_id(START),
        project="flights",
        created_at=START,
        model="delays",
        version=number,
        package=f"sha256:{number:064x}",
    )


def _point(key: str, value: float, step: int = 0) -> Point:
    return Point(key=key, value=value, step=step, at=START)


def _pages(store: RecordStore, order: str, size: int) -> list[str]:
    names: list[str] = []
    after: str | None = None
    while page := store.find(Run, order=order, limit=size, after=after):
        names += [run.name for run in page]
        after = page[-1].id
    return names


def _elsewhere(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread, which has its own connection."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
