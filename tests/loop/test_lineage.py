"""Lineage and column reports: what a record was made from, and which columns a version uses."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from everloop.errors import NotFoundError
from everloop.loop.column_report import report_columns
from everloop.loop.lineage import trace_lineage
from everloop.loop.releases.promotion import promote
from everloop.prediction_log.prediction_log import PREDICTIONS, table_name
from everloop.records import Alias, Artifact, EndpointRecord, ModelVersion, Run, Snapshot, Source, StepRun
from everloop.stores import open_store

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)
FILE = {"kind": "file", "spec": "orders.csv", "state": "sha256:1"}
QUERY = {"kind": "sql", "spec": "select 1", "state": "2"}


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOON)
        yield opened


@pytest.fixture
def run(store):
    """A run with two steps that read a file and a query, and a snapshot."""
    made = store.new(Run, name="shop", loop="shop", state="finished", started_at=NOON, source=Source(code="code:run"))
    step = {"run": made.id, "status": "ran", "reason": "first run", "fingerprint": "f"}
    store.records.put(
        made,
        store.new(StepRun, name="orders", code="code:orders", observed=(FILE, QUERY), **step),
        store.new(StepRun, name="prepare", code="code:prepare", observed=(QUERY,), **step),
        store.new(
            Snapshot, dataset="orders", version=1, digest="sha256:2", rows=9, size_bytes=1, run=made.id, target="sold",
            time="at", entity="id", sources=(FILE,),
            columns={"id": "string", "at": "timestamp", "price": "double", "city": "string", "sold": "bool"},
        ),
        store.new(Artifact, run=made.id, step="prepare", name="out", type="json", digest="sha256:3", size_bytes=1),
    )  # fmt: skip
    return made


def version(store, number=1, *, inputs=("price",), **fields):
    kinds = inputs if isinstance(inputs, dict) else dict.fromkeys(inputs, "float")
    signature = {"task": "binary", "inputs": [{"name": name, "type": kind} for name, kind in kinds.items()]}
    digest = f"sha256:{number:064d}"
    store.records.put(store.new(ModelVersion, model="m", version=number, package=digest, signature=signature, **fields))
    return store.records.get(ModelVersion, f"m@{number}")


# --- lineage -----------------------------------------------------------------------------------------------


def test_a_run_leads_to_its_steps_sources_and_snapshot(store, run):
    found = trace_lineage(store, run.id)
    assert (found.thing, found.run.id, found.snapshot.key) == (run.id, run.id, "orders@1")
    assert found.steps == {"orders": "code:orders", "prepare": "code:prepare"}
    assert found.sources == [{"step": "orders", **FILE}, {"step": "orders", **QUERY}, {"step": "prepare", **QUERY}]
    assert found.code == "code:run"
    assert (found.prediction, found.version, found.release) == (None, None, None)


def test_a_version_is_found_by_its_key_its_id_an_alias_or_its_model(store, run):
    made = version(store, run=run.id, snapshot="orders@1", code="code:version")
    release = promote(store, "e", made, "first")
    assert store.records.find(Alias)[0].version == "m@1"
    for thing in ("m@1", made.id, "m@champion", "m"):
        found = trace_lineage(store, thing)
        assert found.thing == thing
        assert (found.version.key, found.release.id, found.run.id) == ("m@1", release.id, run.id)
        assert found.snapshot.key == "orders@1"
        assert found.code == "code:version", "the version's own code, not that of the run"


def test_the_newest_release_of_a_version_is_shown(store, run):
    first, second = version(store, 1, run=run.id), version(store, 2)
    promote(store, "e", first, "first")
    promote(store, "e", second, "better")
    back = promote(store, "e", first, "back again")
    assert trace_lineage(store, "m@1").release.id == back.id


def test_a_snapshot_leads_to_the_run_that_took_it(store, run):
    found = trace_lineage(store, "orders@1")
    assert (found.snapshot.key, found.run.id, found.version) == ("orders@1", run.id, None)
    assert found.steps["prepare"] == "code:prepare"


def test_a_snapshot_without_a_run_has_its_own_sources(store):
    store.records.put(
        store.new(
            Snapshot, dataset="d", version=1, digest="sha256:5", rows=1, size_bytes=1, columns={}, sources=(FILE,)
        )
    )
    found = trace_lineage(store, "d@1")
    assert (found.run, found.sources, found.steps) == (None, [FILE], {})


def test_if_a_model_and_a_dataset_have_the_same_key_the_version_is_meant(store, run):
    made = version(store)
    store.records.put(
        store.new(Snapshot, dataset="m", version=1, digest="sha256:6", rows=1, size_bytes=1, columns={}, run=run.id)
    )
    assert trace_lineage(store, "m@1").version.id == made.id


def test_an_artifact_leads_to_its_run(store, run):
    assert trace_lineage(store, "sha256:3").run.id == run.id


def test_a_prediction_leads_to_the_version_that_answered(store, run):
    version(store, run=run.id, snapshot="orders@1")
    store.records.put(store.new(EndpointRecord, name="e", model="m"))
    prediction = f"{store.new(EndpointRecord, name='x', model='m').id}-0"
    store.tables.append(
        table_name(store, PREDICTIONS, "e"),
        pl.DataFrame({
            "id": [prediction], "event_at": [NOON], "arrived_at": [NOON], "version": ["m@1"], "role": ["champion"],
            "entity": ["o1"], "score": [0.25], "input_price": [3.5],
        }),
    )  # fmt: skip
    found = trace_lineage(store, prediction)
    assert (found.prediction.version, found.prediction.inputs) == ("m@1", {"price": 3.5})
    assert (found.version.key, found.run.id, found.snapshot.key) == ("m@1", run.id, "orders@1")


def test_a_version_that_was_registered_by_hand_has_no_run(store):
    version(store)
    found = trace_lineage(store, "m@1")
    assert (found.version.key, found.run, found.snapshot, found.steps, found.sources) == ("m@1", None, None, {}, [])


def test_the_lineage_of_a_version_outlives_its_snapshot_and_run(store, run):
    version(store, run=run.id, snapshot="orders@1", code="code:version")
    store.records.delete(Snapshot, "orders@1")
    found = trace_lineage(store, "m@1")
    assert (found.version.key, found.run.id, found.snapshot) == ("m@1", run.id, None)
    store.records.delete(Run, run.id)
    found = trace_lineage(store, "m@1")
    assert (found.version.key, found.run, found.code) == ("m@1", None, "code:version")


@pytest.mark.parametrize("thing", ["nothing", "m@7", "sha256:9", "018cc778-5000-7000-8eec-1768b258aca7", ""])
def test_what_the_store_does_not_have_is_named(store, run, thing):
    version(store)
    with pytest.raises(NotFoundError) as raised:
        trace_lineage(store, thing)
    assert (thing or "''") in raised.value.message
    assert raised.value.help


# --- columns -----------------------------------------------------------------------------------------------


def test_every_column_of_the_snapshot_is_in_one_group(store, run):
    left_out = [{"column": "city", "reason": "constant"}]
    report = report_columns(store, version(store, snapshot="orders@1", evaluation={"left_out": left_out}))
    assert report.used == ("price",)
    assert report.left_out == {"city": "constant"}
    assert report.set_apart == {"id": "the key", "at": "the time", "sold": "the target"}
    assert report.against is None
    groups = [*report.used, *report.left_out, *report.set_apart]
    assert sorted(groups) == sorted(store.records.get(Snapshot, "orders@1").columns)


def test_a_column_that_the_declaration_excludes_is_set_apart(store, run):
    report = report_columns(store, version(store, snapshot="orders@1"))
    assert report.set_apart["city"] == "not among the features of loop.py"


def test_a_version_without_a_snapshot_has_only_its_inputs(store):
    for one in (version(store, 1), version(store, 2, snapshot="gone@1")):
        report = report_columns(store, one)
        assert (report.used, report.left_out, report.set_apart) == (("price",), {}, {})


def test_inputs_are_compared_with_those_of_the_champion(store):
    version(store, 1, inputs={"price": "int", "city": "string", "root": "float"})
    candidate = version(store, 2, inputs={"price": "float", "root": "float", "weight": "float"})
    report = report_columns(store, candidate, "m@1")
    assert report.against == "m@1"
    assert (report.added, report.removed) == (("weight",), ("city",))
    assert report.retyped == {"price": "int → float"}


@pytest.mark.parametrize("previous", [None, "m@2", "m@9"], ids=["no champion", "itself", "a deleted champion"])
def test_without_another_version_nothing_is_compared(store, previous):
    version(store, 1)
    report = report_columns(store, version(store, 2, inputs=("price", "root")), previous)
    assert (report.against, report.added, report.removed, report.retyped) == (None, (), (), None)


def test_a_version_without_a_signature_has_no_inputs(store):
    store.records.put(store.new(ModelVersion, model="m", version=1, package="", source="models:/m-1"))
    assert report_columns(store, store.records.get(ModelVersion, "m@1")).used == ()
