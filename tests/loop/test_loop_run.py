"""One turn: what runs, what does not, and what is left behind."""

from __future__ import annotations

import polars as pl
import pytest

from everloop.errors import DataError, GraphError, ProjectError, StepError
from everloop.loop import explain_run, load_project, run_loop
from everloop.pipeline import Listener
from everloop.records import GateResult, ModelVersion, Release, Run, Snapshot

STAGES = ["orders", "prepare", "snapshot", "split", "train", "evaluate", "package", "register", "judge", "release"]


def statuses(turn):
    return {step.name: step.status for step in turn.steps}


class Heard(Listener):
    def __init__(self):
        self.news = []

    def on_progress(self, name, progress):
        self.news.append((name, progress.note))


def test_first_turn_makes_a_champion(shop, load):
    heard = Heard()
    with shop.open() as store:
        turn = run_loop(load(), store, trigger="manual", listener=heard)
        assert ("package", "edge rows") in heard.news
        assert ("package", "training rows") in heard.news
        assert [step.name for step in turn.steps] == STAGES
        assert set(statuses(turn).values()) == {"ran"}
        assert turn.version.key == "returns@1"
        assert turn.release.state == "completed"
        assert [gate.outcome for gate in turn.gates] == ["pass", "pass", "pass"]
        assert store.records.get(ModelVersion, "returns@1").state == "released"
        snapshot = store.records.get(Snapshot, "shop@1")
        assert snapshot.rows == 1500
        assert turn.version.snapshot == snapshot.key
        run = store.records.get(Run, turn.run.id)
        assert run.state == "finished"
        assert run.metrics["roc_auc"] == pytest.approx(turn.version.metrics["roc_auc"])
        assert (shop.folder / "contracts" / "shop.toml").is_file()


def test_editing_a_comment_executes_nothing(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change("loop.py", "# what the model may see", "# what the model is allowed to see,\n    # and no more")
        shop.change("rules.py", "What the preparation reaches", "All that the preparation reaches")
        again = run_loop(load(), store)
        assert set(statuses(again).values()) == {"cached"}
        assert again.version.key == "returns@1"
        assert store.records.find(Release) == [again.release]


def test_constant_behind_two_modules_reruns_prepare_and_what_follows(shop, load):
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


def test_edit_that_changes_no_row_stops_at_the_first_equal_result(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        shop.change("limits.py", "1.0", "1.5")  # no order costs less than 2
        again = run_loop(load(), store)
        assert statuses(again) == {name: "ran" if name == "prepare" else "cached" for name in STAGES}


def test_new_file_is_a_new_snapshot_and_a_new_candidate(shop, load):
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


def test_failed_gate_rejects_and_leaves_the_champion(shop, load):
    shop.change("loop.py", '"roc_auc", 0.60', '"roc_auc", 0.999')
    with shop.open() as store:
        turn = run_loop(load(), store)
        assert turn.release.state == "rejected"
        assert store.records.get(ModelVersion, "returns@1").state == "rejected"
        assert "0.999" in turn.release.decisions[0].reason
        assert store.records.find(GateResult, ("outcome", "=", "fail"))


def test_params_can_be_set_and_target_stops_early(shop, load):
    with shop.open() as store:
        turn = run_loop(load(), store, target="split", params={"split.holdout": 0.1})
        assert [step.name for step in turn.steps] == STAGES[:4]
        assert turn.version is None
        assert store.records.find(ModelVersion) == []


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ('target="returned"', 'target="refunded"', DataError, "refunded"),
        ('time="at"', 'time="when"', DataError, "when"),
        ('el.Slices("shop"', 'el.Slices("country"', Exception, "country"),
        ("return keep(orders)", "return keep(orders).head(0)", DataError, "no rows"),
        ("return keep(orders)", "return keep(orders).filter(pl.col('returned'))", DataError, "one class"),
        ("return keep(orders)", "return 7", StepError, "prepare"),
        ("return keep(orders)", "return keep(orders)['nothing']", StepError, "nothing"),
        ("def prepare(orders:", "def prepare(prders:", GraphError, "prders"),
    ],
)
def test_what_is_wrong_is_named(shop, load, old, new, error, says):
    shop.change("loop.py", old, new)
    with shop.open() as store:
        with pytest.raises(error, match=says):
            run_loop(load(), store)
        assert store.records.find(ModelVersion, ("state", "=", "released")) == []


def test_cycle_is_named(shop, load):
    shop.change("loop.py", "def orders() ->", "def orders(prepare: pl.DataFrame) ->")
    with shop.open() as store, pytest.raises(GraphError, match=r"orders → prepare|prepare → orders"):
        run_loop(load(), store)


def test_rows_that_break_the_contract_are_kept_aside(shop, load):
    with shop.open() as store:
        run_loop(load(), store)
        wrong = shop.orders(1500, 100, shop.opens, seed=2).with_columns(pl.lit(-99999.0).alias("weight"))
        shop.land("1", pl.concat([wrong, shop.orders(1600, 300, shop.opens, seed=3)]))
        again = run_loop(load(), store)
        assert store.records.get(Snapshot, again.version.snapshot).rows == 1800
        aside = store.records.find(Snapshot, ("dataset", "=", "quarantine/shop"))
        assert [snapshot.rows for snapshot in aside] == [100]
        told = store.records.events_since(0, kinds=("contract",))[-1]
        assert told.verb == "contract_broken"
        assert told.data["violations"][0]["column"] == "weight"


def test_missing_column_is_refused_with_the_file_to_edit(shop, load):
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
def test_broken_loop_file_is_named_with_its_line(shop, text, says):
    shop.write("loop.py", text)
    with pytest.raises(ProjectError, match=says):
        load_project(shop.folder)


def test_folder_without_loop_says_how_to_make_one(tmp_path):
    with pytest.raises(ProjectError, match="everloop init"):
        load_project(tmp_path)
