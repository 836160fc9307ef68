"""Gates on known predictions: what passes, what fails, and what the rows cannot decide."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, strategies as st

import everloop as el
from everloop.errors import CorruptionError, EmptySampleError, UsageError
from everloop.loop.comparison.champions import ComparedVersion, Pairs
from everloop.loop.gates.gate_checks import judge
from everloop.loop.gates.gate_protocol import check_gate, gate_name, gate_severity
from everloop.loop.gates.probability_gates import _distance
from everloop.plugins import names
from everloop.training.class_decisions import ClassScores

ROWS = 4000


def context(rows: int = ROWS, *, noise: float = 0.0, **changes) -> el.GateContext:
    """A candidate whose probabilities are those that drew the labels, plus noise."""
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.02, 0.98, rows)
    labels = (rng.uniform(size=rows) < chances).astype(float)
    table = pl.DataFrame(
        {
            "x": chances,
            "city": np.resize(["A", "B", None, "C"], rows) if rows else pl.Series([], dtype=pl.String),
            "age": rng.uniform(18, 90, rows),
            "label": labels.astype(int),
        }
    )
    return el.GateContext(
        **{
            "rows": table,
            "labels": labels,
            "scores": np.clip(chances + noise, 0, 1),
            "metric": "roc_auc",
            "task": "binary",
            "predict": lambda given: np.zeros(len(given)),
            "features": ("x", "city", "age"),
            "classes": (0, 1),
            "target": "label",
            "version": "m@2",
            "model": "m",
            **changes,
        }
    )


def compared(own: el.GateContext, scores) -> ComparedVersion:
    places = (scores >= 0.5).astype(int)
    mine = (own.scores >= 0.5).astype(int)
    return ComparedVersion("m@1", Pairs(own.labels, ClassScores(own.scores, mine), ClassScores(scores, places)))


# --- the protocol ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Enough:
    rows: int
    severity: str = "error"

    def check(self, context):
        found = context.rows.height
        return el.GateOutcome("pass" if found >= self.rows else "fail", f"{found} rows", {"rows": np.int64(found)})


def test_any_object_with_a_check_is_a_gate():
    gate = check_gate(Enough(10), "gates=")
    outcome = judge(gate, context(20))
    assert (outcome.outcome, outcome.message, outcome.evidence) == ("pass", "20 rows", {"rows": 20})
    assert type(outcome.evidence["rows"]) is int
    assert (gate_name(gate), gate_severity(gate)) == ("Enough", "error")
    assert gate_severity(Enough(1, "warning")) == "warning"


@pytest.mark.parametrize("wrong", [None, 3, "check", Enough, object(), el.Drift(), SimpleNamespace(check=1)])
def test_other_objects_are_not_gates(wrong):
    with pytest.raises(UsageError, match="gates= does not accept") as raised:
        check_gate(wrong, "gates=")
    assert "check(context)" in raised.value.help


def test_a_severity_must_exist():
    with pytest.raises(UsageError, match="is 'fatal', but must be 'error' or 'warning'"):
        check_gate(Enough(1, "fatal"), "gates=")
    with pytest.raises(UsageError, match="'fatal'"):
        check_gate(el.Size(1, severity="fatal"), "gates=")


def test_every_builtin_gate_can_be_loaded_by_name():
    options = {
        "at_least": {"metric": "roc_auc", "value": 0.5}, "slices": {"column": "city", "worst_gap": 0.1},
        "latency": {"p99_ms": 5}, "fair": {"column": "city"}, "size": {"mb": 1}, "check": {"function": len},
    }  # fmt: skip
    for name in names("gate"):
        gate = el.load_gate(name, **options.get(name, {}))
        assert gate_name(gate)
        assert gate_severity(el.load_gate(name, **options.get(name, {}), severity="warning")) == "warning"
    with pytest.raises(UsageError, match="'size' cannot be created"):
        el.load_gate("size", gb=3)


def test_an_exception_is_a_failure_but_not_that_of_a_store():
    def raising(error):
        def check(_):
            raise error

        return judge(SimpleNamespace(check=check), context(10))

    found = raising(ZeroDivisionError("division by zero"))
    assert (found.outcome, found.message) == ("fail", "ZeroDivisionError: division by zero")
    assert raising(EmptySampleError("no rows")).outcome == "undecided"
    for error in (CorruptionError("damaged"), UsageError("no such column")):
        with pytest.raises(type(error)):
            raising(error)


@pytest.mark.parametrize("returned", [None, True, "pass", ("pass", "", {})])
def test_a_gate_that_returns_something_else_has_failed(returned):
    found = judge(SimpleNamespace(check=lambda _: returned), context(10))
    assert found.outcome == "fail"
    assert "not a GateOutcome" in found.message


# --- functions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "limits", "outcome"),
    [
        (True, {}, "pass"), (False, {}, "fail"), (np.True_, {}, "pass"), (None, {}, "fail"), ("yes", {}, "fail"),
        (0.3, {}, "fail"), (0.3, {"at_least": 0.3}, "pass"), (0.3, {"at_most": 0.2}, "fail"),
        (np.float32(0.5), {"at_least": 0, "at_most": 1}, "pass"), (math.nan, {"at_least": 0}, "fail"),
        (math.inf, {"at_least": 0}, "fail"), (el.GateOutcome("undecided", "?"), {}, "undecided"),
    ],
)  # fmt: skip
def test_what_a_function_returns_decides(returned, limits, outcome):
    assert judge(el.Check(lambda _: returned, name="mine", **limits), context(10)).outcome == outcome


def test_a_function_that_raises_is_a_failed_gate():
    def scores_are_high(context):
        assert context.scores.min() > 0.9, "some scores are low"

    gate = check_gate(scores_are_high, "gates=")
    assert isinstance(gate, el.Check)
    assert gate_name(gate) == "scores_are_high"
    found = judge(gate, context(10))
    assert found.outcome == "fail"
    assert "some scores are low" in found.message


def test_a_check_is_declared_with_a_function_and_possible_limits():
    with pytest.raises(UsageError, match="must be a function"):
        el.Check("mean")
    with pytest.raises(UsageError, match="no number passes"):
        el.Check(len, at_least=2, at_most=1)


# --- metrics -----------------------------------------------------------------------------------------------


def test_a_metric_that_is_undefined_decides_nothing():
    one_class = context(50, labels=np.ones(50))
    found = judge(el.AtLeast("roc_auc", 0.6), one_class)
    assert found.outcome == "undecided"
    assert "1 class" in found.message
    assert judge(el.AtLeast("roc_auc", 0.6), context(0)).outcome == "undecided"


def test_predictions_that_are_not_numbers_fail():
    broken = context(50)
    broken.scores[3] = math.nan
    found = judge(el.AtLeast("roc_auc", 0.6), broken)
    assert found.outcome == "fail"
    assert "1 of 50 scores are not numbers" in found.message


def test_better_than_needs_a_gain_and_not_worse_than_does_not():
    own = context()
    rng = np.random.default_rng(1)
    worse = np.clip(own.scores + rng.normal(0, 0.4, ROWS), 0, 1)
    own.champions["champion"] = compared(own, worse)
    assert judge(el.BetterThan("champion", margin=0.01), own).outcome == "pass"
    assert judge(el.BetterThan("champion", margin=0.4), own).outcome == "fail"
    own.champions["champion"] = compared(own, own.scores.copy())
    assert judge(el.BetterThan("champion"), own).outcome == "undecided"
    assert judge(el.NotWorseThan("champion", margin=0.01), own).outcome == "pass"
    # A model that is worse is surely not better.
    reverse = replace(own, scores=worse, champions={})
    reverse.champions["champion"] = compared(reverse, own.scores)
    assert judge(el.BetterThan("champion"), reverse).outcome == "fail"


def test_without_a_holder_of_the_alias_there_is_nothing_to_beat():
    own = context(100)
    own.champions["champion"] = None
    for gate in (el.BetterThan("champion"), el.NotWorseThan("champion")):
        assert judge(gate, own).outcome == "pass"
        assert judge(gate, own).message == "no champion yet"


def test_a_broken_champion_does_not_speak_against_the_candidate():
    own = context(200)
    own.champions["champion"] = compared(own, np.full(200, math.nan))
    found = judge(el.NotWorseThan("champion"), own)
    assert found.outcome == "undecided"
    assert "200 predictions of m@1" in found.message


def test_slices_group_nulls_and_ranges_of_numbers():
    groups = judge(el.Slices("city", 0.2), context()).evidence["slices"]
    assert set(groups) == {"A", "B", "C", "null"}
    ranges = judge(el.Slices("age", 0.2), context()).evidence["slices"]
    assert len(ranges) == 4
    assert sum(one["rows"] for one in ranges.values()) == ROWS


def test_slices_of_thousands_of_values_are_not_thousands_of_intervals():
    own = context()
    many = own.rows.with_columns(user=pl.Series([f"u{number % 2500}" for number in range(ROWS)]))
    found = judge(el.Slices("user", 0.2, least_rows=50), replace(own, rows=many))
    assert list(found.evidence["slices"]) == ["other values"]


def test_a_missing_column_is_named_with_those_that_exist():
    for gate in (el.Slices("town", 0.1), el.Fair("town")):
        with pytest.raises(UsageError, match="town") as raised:
            judge(gate, context(100))
        assert "city" in raised.value.help


# --- probabilities -----------------------------------------------------------------------------------------


def test_calibrated_probabilities_pass_and_shifted_ones_fail():
    assert judge(el.Calibrated(0.05, slope=(0.8, 1.25)), context()).outcome == "pass"
    shifted = judge(el.Calibrated(0.05), context(noise=0.2))
    assert shifted.outcome == "fail"
    assert "allowed 0.05" in shifted.message
    assert judge(el.Calibrated(0.01), context(300)).outcome == "undecided"


def test_too_extreme_probabilities_have_a_small_slope():
    own = context()
    odds = np.log(own.scores / (1 - own.scores))
    extreme = replace(own, scores=1 / (1 + np.exp(-2 * odds)))
    found = judge(el.Calibrated(0.9, slope=(0.8, 1.25)), extreme)
    assert found.outcome == "fail"
    assert found.evidence["slope"][0] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("slope", [1, (1,), (2, 1), ("a", 1)])
def test_a_range_of_slopes_has_two_numbers_in_order(slope):
    with pytest.raises(UsageError, match=r"Calibrated\(slope=\)"):
        el.Calibrated(slope=slope)


def fairness(shift: float, rows: int = 3000) -> el.GateContext:
    """Two groups; the second is selected more often by `shift`, and otherwise alike."""
    rng = np.random.default_rng(3)
    group = np.arange(rows) % 2
    labels = (rng.uniform(size=rows) < 0.5).astype(float)
    chosen = (rng.uniform(size=rows) < np.where(labels == 1, 0.6, 0.3) + shift * group).astype(int)
    table = pl.DataFrame({"group": np.where(group == 1, "new", "old"), "label": labels})
    return replace(context(10), rows=table, labels=labels, scores=chosen.astype(float), places=chosen)


@pytest.mark.parametrize("measure", ["demographic_parity", "equal_opportunity", "equalized_odds"])
def test_equal_groups_are_fair_and_others_are_not(measure):
    assert judge(el.Fair("group", 0.1, measure), fairness(0.0)).outcome == "pass"
    unfair = judge(el.Fair("group", 0.1, measure), fairness(0.3))
    assert unfair.outcome == "fail"
    assert "old" in unfair.message
    assert "new" in unfair.message
    assert judge(el.Fair("group", 0.1, measure), fairness(0.1)).outcome == "undecided"


def test_fairness_of_one_group_is_undecided():
    own = fairness(0.0)
    alone = replace(own, rows=own.rows.with_columns(group=pl.lit("all")))
    assert judge(el.Fair("group"), alone).outcome == "undecided"


def test_many_equal_groups_rarely_fail_by_chance():
    failed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, 2, 2000)
        table = pl.DataFrame({"group": [f"g{one}" for one in rng.integers(0, 20, 2000)], "label": chosen})
        own = replace(context(10), rows=table, labels=chosen.astype(float), scores=chosen * 1.0, places=chosen)
        failed += judge(el.Fair("group", 0.0), own).outcome == "fail"
    # Nominal: at most 5 % of the tables, that is 2 of 40.
    assert failed <= 5


@given(st.floats(-1, 1), st.floats(0, 1))
def test_the_interval_of_a_distance_holds_every_absolute_difference(low, width):
    high = low + width
    least, most = _distance(low, high)
    for share in (0, 0.25, 0.5, 1):
        value = abs(low + share * (high - low))
        assert least - 1e-12 <= value <= most + 1e-12


# --- data and package --------------------------------------------------------------------------------------


def test_a_column_that_is_the_target_leaks():
    own = context()
    leaking = own.rows.with_columns(copy=pl.col("label") * 3.0)
    found = judge(el.NoLeakage(), replace(own, rows=leaking, features=("x", "copy"), training_rows=leaking.head(0)))
    assert found.outcome == "fail"
    assert "'copy' alone predicts 100%" in found.message
    assert judge(el.NoLeakage(), replace(own, training_rows=own.rows.head(0))).outcome == "pass"


def test_held_out_rows_that_were_trained_on_leak():
    own = context()
    keyed = own.rows.with_row_index("id")
    other = context().rows.with_columns(x=pl.col("x") + 1, age=pl.col("age") + 1).with_row_index("id", offset=ROWS)
    clean = replace(own, rows=keyed, key="id", training_rows=other)
    assert judge(el.NoLeakage(), clean).outcome == "pass"
    same_features = judge(el.NoLeakage(), replace(clean, training_rows=pl.concat([other, keyed.head(400)]).with_columns(
        id=pl.int_range(ROWS, 2 * ROWS + 400, dtype=pl.UInt32))))  # fmt: skip
    assert same_features.outcome == "fail"
    assert "400 held-out rows (10%) have the features of a training row" in same_features.message
    same_key = judge(el.NoLeakage(), replace(clean, training_rows=other.with_columns(id=pl.col("id") - ROWS // 2)))
    assert "'id' of a training row" in same_key.message


def test_features_that_repeat_by_nature_do_not_leak():
    own = context()
    training = own.rows.select("city", "label")
    coarse = replace(own, rows=training, features=("city",), training_rows=training)
    assert judge(el.NoLeakage(), coarse).outcome == "pass"


def test_a_time_after_the_row_itself_leaks():
    own = context()
    times = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 6, 1), "1h", eager=True).head(ROWS - 500)
    rows = own.rows.head(len(times)).with_columns(at=times, paid=times + pl.duration(days=3), before=times)
    late = replace(own, rows=rows, features=("x", "paid", "before"), time="at", training_rows=rows.head(0))
    found = judge(el.NoLeakage(), late)
    assert found.outcome == "fail"
    assert "'paid' is later than 'at' in 100% of the rows" in found.message
    assert "before" not in found.message


def test_latency_without_rows_is_undecided():
    assert judge(el.Latency(5), context(0)).outcome == "undecided"
    assert judge(el.Latency(500), context(20)).outcome == "pass"


@pytest.mark.parametrize(
    "declare",
    [
        lambda: el.Robust(nulls=1.5), lambda: el.Robust(noise=-1), lambda: el.Robust(worst_loss="1"),
        lambda: el.Robust(nulls=None, noise=None, unseen=None, permuted=False), lambda: el.Robust(metric="auc"),
        lambda: el.Size(mb=0), lambda: el.Fair("a", measure="luck"), lambda: el.Fair("", 0.1),
        lambda: el.NoLeakage(too_good=2), lambda: el.MeetsContract(worst_share=-1), lambda: el.PackageParity(rows=0),
        lambda: el.Calibrated(worst_ece=0), lambda: el.BetterThan(margin=-0.1), lambda: el.BetterThan(metric="auc"),
    ],
)  # fmt: skip
def test_impossible_limits_are_refused_where_they_are_declared(declare):
    with pytest.raises(UsageError) as raised:
        declare()
    assert raised.value.help
