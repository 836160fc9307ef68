from datetime import UTC, datetime

import polars as pl
import pytest

from everloop.errors import DataError
from everloop.monitoring import measure_fairness
from everloop.monitoring.performance.group_fairness import newcombe
from everloop.training.intervals import wilson

NOW = datetime(2024, 3, 4, tzinfo=UTC)


def table() -> pl.DataFrame:
    rows = [("a", 1, 1)] * 30 + [("a", 1, 0)] * 10 + [("a", 0, 1)] * 20 + [("a", 0, 0)] * 40
    rows += [("b", 1, 1)] * 5 + [("b", 1, 0)] * 10 + [("b", 0, 1)] * 25 + [("b", 0, 0)] * 40 + [("b", 1, None)] * 20
    return pl.DataFrame(rows, schema=["team", "predicted", "actual"], orient="row").with_columns(event_at=NOW)


def test_the_interval_of_a_difference_is_the_published_one() -> None:
    # Newcombe (1998), table II, contrasts (a) and (c), method 10.
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(6, 7, 2, 7) == pytest.approx((0.0582, 0.8062), abs=5e-5)


def test_rates_and_gaps_of_groups() -> None:
    found = {(row["team"], row["measure"]): row for row in measure_fairness(table(), "team").iter_rows(named=True)}
    assert found["a", "selection_rate"]["value"] == 0.4
    assert found["b", "selection_rate"]["value"] == 0.35
    assert found["a", "true_positive_rate"]["value"] == 0.6
    assert found["a", "false_positive_rate"]["value"] == 0.2
    assert found["b", "precision"]["value"] == pytest.approx(5 / 15)
    recall = found["b", "true_positive_rate"]
    assert (recall["rows"], recall["rest"]) == (30, 0.6)
    assert recall["gap"] == pytest.approx(5 / 30 - 0.6)
    assert (recall["low"], recall["high"]) == pytest.approx(wilson(5, 30))
    assert (recall["gap_low"], recall["gap_high"]) == pytest.approx(newcombe(5, 30, 30, 50))


def test_missing_sides_are_null_and_strange_values_an_error() -> None:
    alone = measure_fairness(table().filter(pl.col("team") == "a"), "team")
    assert alone["gap"].null_count() == alone.height
    unlabelled = measure_fairness(table().with_columns(actual=None), "team")
    assert unlabelled.filter(pl.col("measure") == "precision")["value"].null_count() == 2
    scored = table().drop("predicted").with_columns(score=0.7)
    assert measure_fairness(scored, "team")["value"][0] == 1.0
    assert measure_fairness(table().clear(), "team").is_empty()
    with pytest.raises(DataError, match="has the value 3, not 0 or 1"):
        measure_fairness(table().with_columns(actual=3), "team")
    with pytest.raises(DataError, match="neither 'predicted' nor 'score'"):
        measure_fairness(table().drop("predicted"), "team")
    with pytest.raises(DataError, match="no column 'colour'"):
        measure_fairness(table(), "colour")
