"""A run of a loop: which steps run, which are cached, what is stored, and how problems are reported."""

from __future__ import annotations

import polars as pl
import pytest

from everloop.errors import DataError, GraphError, ProjectError, StepError
from everloop.loop import explain_run, load_project, run_loop
from everloop.pipeline import Listener
from everloop.records import GateResult, ModelVersion, Release, Run, Snapshot

STAGES = ["orders", "prepare", "snapshot", "split", "train", "evaluate", "package", "register", "judge", "release"]


def statuses(loop_run):
    return {step.name: step.status for step in loop_run.steps}


class ProgressNotes(Listener):
    def __init__(self):
        self.notes = []

    def on_progress(self, name, progress):
        self.notes.append((name, progress.note))


@pytest.mark.slow
def test_the_first_run_makes_a_champion(shop, load):
    progress = ProgressNotes()
    with shop.open() as store:
        loop_run = run_loop(load(), store, trigger="manual", listener=progress)
        assert ("package", "edge rows") in progress.notes
        assert ("package", "training rows") in progress.notes
        assert [step.name for step in loop_run.steps] == STAGES
        assert set(statuses(loop_run).values()) == {"ran"}
        assert loop_run.version.key == "returns@1"
        assert loop_run.release.state == "completed"
        assert [gate.outcome for gate in loop_run.gates] == ["pass", "pass", "pass"]
        assert store.records.get(ModelVersion, "returns@1").state == "released"
        snapshot = store.records.get(Snapshot, "shop@1")
        assert snapshot.rows == 1500
        assert loop_run.version.snapshot == snapshot.key
        run = store.records.get(Run, loop_run.run.id)
        assert run.state == "finished"
        assert run.metrics["roc_auc"] == pytest.approx(loop_run.version.metrics["roc_auc"])
        assert (shop.folder / "contracts" / "shop.toml").is_file()


@pytest.mark.slow
def test_editing_a_comment_runs_no_step(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change(
            "loop.py", "# the rows that the model may learn from", "# the rows to learn from,\n    # and no more"
        )
        shop.change("rules.py", "A helper of the preparation", "The only helper of the preparation")
        again = run_loop(load(), store)
        assert set(statuses(again).values()) == {"cached"}
        assert again.version.key == "returns@1"
        assert store.records.find(Release) == [again.release]


@pytest.mark.slow
def test_changing_a_constant_two_modules_away_runs_prepare_and_the_steps_after_it(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change("limits.py", "1.0", "20.0")
        loop = load()
        planned = {step.name: step for step in explain_run(loop, store)}
        assert planned["orders"].status == "cached"
        assert planned["prepare"].status == "would run"
        assert "LEAST_PRICE" in planned["prepare"].reason
        again = run_loop(loop, store)
        assert statuses(again) == {name: "cached" if name == "orders" else "ran" for name in STAGES}
        assert "LEAST_PRICE" in next(step.reason for step in again.steps if step.name == "prepare")
        assert again.version.key == "returns@2"


def test_an_edit_that_changes_no_row_runs_only_the_edited_step(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change("limits.py", "1.0", "1.5")  # no order costs less than 2
        again = run_loop(load(), store)
        assert statuses(again) == {name: "ran" if name == "prepare" else "cached" for name in STAGES}


@pytest.mark.slow
def test_a_new_file_makes_a_new_snapshot_and_a_new_candidate(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.land("1", shop.orders(1500, 800, shop.opens, seed=1))
        loop = load()
        planned = {step.name: step.reason for step in explain_run(loop, store)}
        assert planned["orders"].startswith("source changed")
        again = run_loop(loop, store, trigger="OnNewData")
        assert again.version.key == "returns@2"
        assert again.release.state == "rolling_out"
        assert again.release.percent == 20
        assert store.records.get(Snapshot, "shop@2").rows == 2300


def test_a_failed_gate_rejects_the_candidate(shop, load):
    shop.change("loop.py", '"roc_auc", 0.60', '"roc_auc", 0.999')
    with shop.open() as store:
        loop_run = run_loop(load(), store)
        assert loop_run.release.state == "rejected"
        assert store.records.get(ModelVersion, "returns@1").state == "rejected"
        assert "0.999" in loop_run.release.decisions[0].reason
        assert store.records.find(GateResult, ("outcome", "=", "fail"))


def test_params_can_be_set_and_target_stops_early(shop, load):
    with shop.open() as store:
        loop_run = run_loop(load(), store, target="split", params={"split.holdout": 0.1})
        assert [step.name for step in loop_run.steps] == STAGES[:4]
        assert loop_run.version is None
        assert store.records.find(ModelVersion) == []


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ('target="returned"', 'target="refunded"', DataError, "refunded"),
        ('time="at"', 'time="when"', DataError, "when"),
        ('el.Slices("shop"', 'el.Slices("country"', Exception, "country"),
        ("return keep(orders)", "return keep(orders).head(0)", DataError, "no rows"),
        ("return keep(orders)", "return keep(orders).filter(pl.col('returned'))", DataError, "a single class"),
        ("return keep(orders)", "return 7", StepError, "prepare"),
        ("return keep(orders)", "return keep(orders)['nothing']", StepError, "nothing"),
        ("def prepare(orders:", "def prepare(prders:", GraphError, "prders"),
    ],
)
def test_errors_name_their_cause(shop, load, old, new, error, says):
    shop.change("loop.py", old, new)
    with shop.open() as store:
        with pytest.raises(error, match=says):
            run_loop(load(), store)
        assert store.records.find(ModelVersion, ("state", "=", "released")) == []


def test_a_cycle_of_steps_is_named(shop, load):
    shop.change("loop.py", "def orders() ->", "def orders(prepare: pl.DataFrame) ->")
    with shop.open() as store, pytest.raises(GraphError, match=r"orders → prepare|prepare → orders"):
        run_loop(load(), store)


@pytest.mark.slow
def test_rows_that_violate_the_contract_are_quarantined(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        wrong = shop.orders(1500, 100, shop.opens, seed=2).with_columns(pl.lit(-99999.0).alias("weight"))
        shop.land("1", pl.concat([wrong, shop.orders(1600, 300, shop.opens, seed=3)]))
        again = run_loop(load(), store)
        assert store.records.get(Snapshot, again.version.snapshot).rows == 1800
        quarantine = store.records.find(Snapshot, ("dataset", "=", "quarantine/shop"))
        assert [snapshot.rows for snapshot in quarantine] == [100]
        event = store.records.events_since(0, kinds=("contract",))[-1]
        assert event.verb == "contract_broken"
        assert event.data["violations"][0]["column"] == "weight"


def test_a_missing_column_is_an_error_that_names_the_contract_file(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change("loop.py", "return keep(orders)", "return keep(orders).drop('weight')")
        with pytest.raises(DataError, match=r"weight.*contracts/shop\.toml"):
            run_loop(load(), store)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loop = (", "Syntax error.*loop.py, line 1"),
        ("import nonexistent_module_x", "nonexistent_module_x"),
        ("x = 1", "declares no loop"),
        ("y = 1 / 0", "ZeroDivisionError.*line 1"),
    ],
)
def test_an_error_in_loop_py_is_reported_with_its_line(shop, text, says):
    shop.write("loop.py", text)
    with pytest.raises(ProjectError, match=says):
        load_project(shop.folder)


def test_a_folder_without_loop_py_suggests_everloop_init(tmp_path):
    with pytest.raises(ProjectError, match="everloop init"):
        load_project(tmp_path)
