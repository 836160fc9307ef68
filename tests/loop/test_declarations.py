"""Declarations: a mistake in `loop.py` is an error that names the value and says what to write instead."""

from __future__ import annotations

import math
import pickle
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, strategies as st

import everloop as el
from everloop.errors import UsageError
from everloop.loop.declaration_checks import check_duration, check_number
from everloop.stores.durations import format_duration, parse_duration
from everloop.training.metric_tasks import METRIC_TASKS


@el.step
def rows() -> list[int]:
    return []


DATA = el.Dataset(rows, target="sold")
AUTO = el.AutoTrain()
SERVE = el.Endpoint("sales")


def loop(name="sales", **parts):
    return el.Loop(name, **{"data": DATA, "train": AUTO, **parts})


def refused(declare):
    with pytest.raises(UsageError) as raised:
        declare()
    assert raised.value.help, "an error says what to do"
    return raised.value


# --- single parts ------------------------------------------------------------------------------------------


NOT_NUMBERS = ["0.6", None, True, [1], math.nan, math.inf]


@pytest.mark.parametrize("value", NOT_NUMBERS)
@pytest.mark.parametrize(
    ("argument", "declare"),
    [
        ("AtLeast(value=)", lambda value: el.AtLeast("rmse", value)),
        ("NotWorseThan(margin=)", lambda value: el.NotWorseThan(margin=value)),
        ("Slices(worst_gap=)", lambda value: el.Slices("city", worst_gap=value)),
        ("Slices(least_rows=)", lambda value: el.Slices("city", 0.1, least_rows=value)),
        ("Latency(p99_ms=)", lambda value: el.Latency(value)),
        ("Latency(rows=)", lambda value: el.Latency(5, rows=value)),
        ("A step of Canary(steps=)", lambda value: el.Canary(steps=[value, 100])),
        ("Canary(margin=)", lambda value: el.Canary(margin=value)),
        ("Canary(least_labels=)", lambda value: el.Canary(least_labels=value)),
        ("Drift(alarms_per_month=)", lambda value: el.Drift(alarms_per_month=value)),
        ("Performance(alarms_per_month=)", lambda value: el.Performance(alarms_per_month=value)),
    ],
)
def test_a_number_must_be_a_finite_number(argument, declare, value):
    error = refused(lambda: declare(value))
    assert error.message.startswith(f"{argument} is {value!r}, but must be a")
    assert ("without quotes" in error.help) == isinstance(value, str)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: el.Slices("city", worst_gap=-0.1), "is -0.1, but must be a number of 0 or more"),
        (lambda: el.Slices("city", 0.1, least_rows=0), "is 0, but must be a whole number of 1 or more"),
        (lambda: el.Slices("city", 0.1, least_rows=99.5), "is 99.5, but must be a whole number"),
        (lambda: el.Latency(0), "is 0, but must be a number above 0"),
        (lambda: el.Latency(5, rows=0), "is 0, but must be a whole number of 1 or more"),
        (lambda: el.Canary(least_labels=0), "is 0, but must be a whole number of 1 or more"),
        (lambda: el.Drift(alarms_per_month=0), "is 0, but must be a number above 0"),
        (lambda: el.Performance(alarms_per_month=-1), "is -1, but must be a number above 0"),
    ],
)
def test_a_number_outside_its_range_is_an_error(declare, says):
    assert says in refused(declare).message


@pytest.mark.parametrize(
    ("declare", "argument"),
    [
        (lambda value: el.Canary(patience=value), "Canary(patience=)"),
        (lambda value: el.Drift(window=value), "Drift(window=)"),
        (lambda value: el.Performance(window=value), "Performance(window=)"),
        (lambda value: el.Performance(labels_after=value), "Performance(labels_after=)"),
        (lambda value: el.OnDrift(cooldown=value), "OnDrift(cooldown=)"),
        (lambda value: el.OnPerformance(cooldown=value), "OnPerformance(cooldown=)"),
        (lambda value: el.OnNewData(cooldown=value), "OnNewData(cooldown=)"),
        (lambda value: el.Every(value), "Every(interval=)"),
    ],
)
@pytest.mark.parametrize("value", [7, None, timedelta(days=1), "soon", "", "-1d", "1 month"])
def test_a_duration_must_be_a_string_with_units(declare, argument, value):
    error = refused(lambda: declare(value))
    assert error.message.startswith(argument)
    assert str(value) in error.message or repr(value) in error.message
    assert "'1w'" in error.help


@pytest.mark.parametrize(
    "declare",
    [lambda: el.Drift(window="0s"), lambda: el.Performance(window="0d"), lambda: el.Every("0h")],
)
def test_a_window_and_an_interval_last_longer_than_nothing(declare):
    assert "must be longer than 0" in refused(declare).message


@pytest.mark.parametrize(
    ("seasons", "says"),
    [
        (["winter"], "'winter' is not a season"),
        ("1y", "The seasons are '1y', but must be a list"),
        (None, "The seasons are None, but must be a list"),
        (["1w"], "The season '1w' is not longer than a window, which lasts 1w"),
        (["1y", "1y"], "The season '1y' is declared twice"),
    ],
)
def test_a_declared_season_is_a_length_a_month_or_a_year(seasons, says):
    error = refused(lambda: el.Drift(window="1w", seasons=seasons))
    assert error.message.startswith(f"Drift(seasons=): {says}")
    assert error.help


def test_declared_seasons_are_kept_as_names():
    assert el.Drift(seasons=["1Y ", "month"]).seasons == ("1y", "month")
    assert el.Drift(seasons=[]) == el.Drift()


def test_without_a_wait_labels_and_cooldowns_take_no_time():
    assert el.Performance(labels_after="0s").labels_after == "0s"
    assert el.OnDrift(cooldown="0s").cooldown == "0s"


@pytest.mark.parametrize(
    ("metric", "value", "way_out"),
    [
        ("roc_auc", 75, "Write a share, such as 0.75."),
        ("accuracy", 99.5, "Write a share, such as 0.995."),
        ("f1", -0.1, "between 0 and 1"),
        ("brier", 1000, "between 0 and 1"),
        ("rmse", -3, "positive"),
        ("log_loss", -0.5, "positive"),
        ("r2", 90, "at most 1"),
    ],
)
def test_a_limit_that_the_metric_cannot_have_is_an_error(metric, value, way_out):
    error = refused(lambda: el.AtLeast(metric, value))
    assert f"is {value!r}, but {metric}" in error.message
    assert way_out in error.help


@pytest.mark.parametrize(
    ("metric", "value"), [("r2", -2.0), ("rmse", 1e6), ("roc_auc", 1), ("roc_auc", 0), ("mape", 3)]
)
def test_a_limit_that_the_metric_can_have_is_kept_as_it_was_written(metric, value):
    assert el.AtLeast(metric, value).value == value


@given(st.sampled_from(sorted(METRIC_TASKS)), st.floats(0, 1))
def test_every_metric_may_have_a_limit_between_0_and_1(metric, value):
    assert el.AtLeast(metric, value).name.startswith(f"at least {metric} ")


@pytest.mark.parametrize("metric", [5, None, "", "ROC_AUC", "roc auc"])
def test_a_metric_is_one_of_the_known_names(metric):
    error = refused(lambda: el.AtLeast(metric, 0.5))
    assert f"'{metric}'" in error.message
    assert "roc_auc" in error.help


@pytest.mark.parametrize("value", [3, "", None])
def test_an_alias_and_a_column_are_names(value):
    assert repr(value) in refused(lambda: el.NotWorseThan(value)).message
    assert repr(value) in refused(lambda: el.Slices(value, worst_gap=0.1)).message


@pytest.mark.parametrize("steps", ["10", 50, None, {10, 100}, (step for step in (10, 100))])
def test_steps_of_a_canary_are_a_list(steps):
    error = refused(lambda: el.Canary(steps=steps))
    assert repr(steps) in error.message
    assert "Canary(steps=[10, 50, 100])" in error.help


@pytest.mark.parametrize("steps", [[], [50], [10, 10, 100], [50, 10, 100], [10, 101], [10, 100, 100], [0.5, 99.9]])
def test_percentages_of_a_canary_rise_to_100(steps):
    assert str(steps) in refused(lambda: el.Canary(steps=steps)).message


@given(st.sets(st.floats(0.01, 99.99), max_size=8))
def test_any_rising_percentages_that_end_at_100_are_accepted(shares):
    steps = [*sorted(shares), 100]
    canary = el.Canary(steps=steps)
    assert list(canary.percents) == steps
    assert hash(canary) == hash(el.Canary(steps=tuple(steps))), "a list and a tuple declare the same"


@pytest.mark.parametrize("rollout", [[10, 100], 10, el.Drift(), el.Canary])
def test_the_rollout_of_an_endpoint_is_a_canary(rollout):
    error = refused(lambda: el.Endpoint("sales", rollout=rollout))
    assert repr(rollout) in error.message
    assert "Canary(" in error.help


@pytest.mark.parametrize("name", ["", "a b", "größe", "-a", "_", "a/b", "a\n", "a.b", 5, None])
def test_names_of_loops_and_endpoints_fit_into_a_url(name):
    for declare in (lambda: el.Endpoint(name), lambda: loop(name)):
        error = refused(declare)
        assert str(name) in error.message
        assert "letters, digits" in error.help


@pytest.mark.parametrize("expression", ["61 6 * * mon", "* * * * funday", "0 0 30 2 *", "0 0 * * * 5", "a b c d e"])
def test_a_cron_expression_has_five_fields_and_a_time_that_comes(expression):
    error = refused(lambda: el.Every(expression))
    assert expression in error.message
    assert "0 6 * * mon" in error.help


@pytest.mark.parametrize("expression", ["0 6 * * mon", "*/15 * * * *", "0 0 29 2 *", "0 0 1 jan,jul *"])
def test_a_cron_expression_is_accepted(expression):
    assert el.Every(expression).is_cron


@pytest.mark.parametrize(
    "part",
    [
        el.AtLeast("roc_auc", 0.6), el.NotWorseThan(margin=-0.01), el.Slices("city", 0.1), el.Latency(5),
        el.Canary(steps=[5, 100]), el.Endpoint("sales", rollout=el.Canary()), el.Drift(), el.Performance("rmse"),
        el.OnDrift(), el.OnPerformance(), el.Every("0 6 * * mon"), el.OnNewData(),
    ],
)  # fmt: skip
def test_a_part_can_be_hashed_compared_and_sent_to_another_process(part):
    again = pickle.loads(pickle.dumps(part))  # noqa: S301 - pickled on the line itself
    assert again == part
    assert hash(again) == hash(part)
    assert repr(part).startswith(type(part).__name__)


def test_numbers_of_numpy_are_numbers():
    assert el.AtLeast("roc_auc", np.float64(0.5)).value == 0.5
    assert el.Slices("city", np.float32(0.25), least_rows=np.int64(3)).least_rows == 3


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(-1e6, 1e6))
def test_a_range_is_decided_by_comparison(number, limit):
    def accepted(**bounds):
        try:
            check_number("x", number, **bounds)
        except UsageError:
            return False
        return True

    assert accepted(least=limit) == (number >= limit)
    assert accepted(above=limit) == (number > limit)


@given(st.integers(1, 10**9))
def test_a_written_duration_is_read_back(seconds):
    span = timedelta(seconds=seconds)
    assert check_duration("x", format_duration(span), positive=True) == span == parse_duration(format_duration(span))


# --- the loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, rows, "data.parquet", el.Dataset])
def test_data_is_a_dataset(data):
    error = refused(lambda: loop(data=data))
    assert f"data= does not accept {data!r}" in error.message
    assert "el.Dataset(" in error.help


@pytest.mark.parametrize("train", [None, "linear", len, el.AutoTrain])
def test_train_is_a_search_or_a_step(train):
    error = refused(lambda: loop(train=train))
    assert f"cannot train with {train!r}" in error.message
    assert "el.AutoTrain(" in error.help
    assert loop(train=rows).train is rows


@pytest.mark.parametrize("serve", ["sales", el.Canary(), True])
def test_serve_is_an_endpoint(serve):
    error = refused(lambda: loop(serve=serve))
    assert f"serve= does not accept {serve!r}" in error.message
    assert "el.Endpoint(" in error.help


@pytest.mark.parametrize("model", ["a@b", "a b", ".a", "x" * 129, 5])
def test_the_name_of_the_model_is_checked_before_anything_runs(model):
    assert str(model) in refused(lambda: loop(model=model)).message


def test_the_model_is_named_after_the_endpoint_or_the_loop():
    assert loop().model == "sales"
    assert loop(serve=el.Endpoint("shop")).model == "shop"
    assert loop(serve=el.Endpoint("shop"), model="my.model").model == "my.model"


@pytest.mark.parametrize(
    ("argument", "wrong", "accepts"),
    [
        ("gates", el.Drift(), "el.AtLeast, el.NotWorseThan, el.Slices, el.Latency"),
        ("gates", None, "el.AtLeast"),
        ("gates", el.AtLeast, "el.AtLeast"),
        ("gates", "roc_auc", "el.AtLeast"),
        ("watch", el.AtLeast("roc_auc", 0.5), "el.Drift, el.Performance, el.Quality"),
        ("watch", "drift", "el.Drift"),
        ("retrain", "1w", "el.OnDrift, el.OnPerformance, el.Every, el.OnNewData"),
        ("retrain", el.Drift(), "el.Every"),
    ],
)
def test_a_part_at_the_wrong_argument_is_an_error(argument, wrong, accepts):
    for given_value in (wrong, [wrong]):
        error = refused(lambda value=given_value: loop(serve=SERVE, **{argument: value}))
        assert f"{argument}= does not accept {wrong!r}" in error.message
        assert accepts in error.help


def test_a_single_part_needs_no_list():
    declared = loop(serve=SERVE, gates=el.Latency(5), watch=el.Drift(), retrain=el.Every("1w"))
    assert (declared.gates, declared.watch, declared.retrain) == ((el.Latency(5),), (el.Drift(),), (el.Every("1w"),))
    listed = loop(serve=SERVE, gates=[el.Latency(5)], watch=[el.Drift()], retrain=[el.Every("1w")])
    assert listed == declared
    assert hash(listed) == hash(declared)


def test_a_watch_needs_an_endpoint():
    error = refused(lambda: loop(watch=[el.Drift()]))
    assert "no endpoint" in error.message
    assert "serve=el.Endpoint('name')" in error.help


@pytest.mark.parametrize(
    ("trigger", "watch"), [(el.OnDrift(), el.Performance()), (el.OnPerformance(), el.Drift()), (el.OnDrift(), None)]
)
def test_a_trigger_needs_its_watch(trigger, watch):
    error = refused(lambda: loop(serve=SERVE, watch=[watch] if watch else [], retrain=[trigger]))
    assert f"el.{type(trigger).__name__}" in error.message
    assert "watch=[...]" in error.help


@pytest.mark.parametrize("kind", [el.Drift, el.Performance, el.Quality])
def test_two_watches_of_one_kind_are_an_error(kind):
    """The windows of both would count as checked as soon as one of them was checked."""
    error = refused(lambda: loop(serve=SERVE, watch=[kind(window="1d"), kind(window="1w")]))
    assert f"two el.{kind.__name__} watches" in error.message
    assert f"Keep one el.{kind.__name__}" in error.help


@pytest.mark.parametrize(
    ("parts", "training", "live"),
    [
        ({}, None, None),
        ({"gates": [el.Latency(5), el.AtLeast("f1", 0.5)]}, "f1", "f1"),
        ({"train": el.AutoTrain(metric="roc_auc"), "gates": [el.AtLeast("f1", 0.5)]}, "roc_auc", "roc_auc"),
        ({"gates": [el.AtLeast("f1", 0.5)], "watch": [el.Performance("brier")]}, "f1", "brier"),
        ({"gates": [el.AtLeast("f1", 0.5)], "watch": [el.Performance()]}, "f1", "f1"),
        ({"watch": [el.Drift(), el.Performance("recall")]}, "recall", "recall"),
    ],
)
def test_training_and_monitoring_choose_their_metric(parts, training, live):
    declared = loop(serve=SERVE, **parts)
    assert (declared.training_metric, declared.live_metric) == (training, live)


@pytest.mark.parametrize(
    ("canary", "days"),
    [
        (el.Canary(), 7),
        (el.Canary(least_days=2), 2),
        (el.Canary(patience="3d"), 3),
        (el.Canary(longest="5d12h"), 5),
        (el.Canary(patience="6h"), 1),
    ],
)
def test_success_is_proven_by_a_week_unless_the_release_has_to_end_before(canary, days):
    assert canary.days_of_proof == days
