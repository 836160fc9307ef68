"""Monitoring of plain tables: what it finds, how loud it is, and what it says about bad input."""

from __future__ import annotations

import json
import math
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import accuracy_score, roc_auc_score, root_mean_squared_error

from everloop.errors import DataError, EmptySampleError, SourceError, UsageError
from everloop.monitoring.reports.report_html import monitoring_page
from everloop.monitoring.reports.table_monitoring import monitor_tables
from everloop.monitoring.stream_monitoring import watch_table

START = datetime(2026, 1, 1, tzinfo=UTC)


def table(rows, seed, *, shift=0.0, since=0, days=0, noise=0.5):
    """A table in which `late` depends on `age`; `score` is its true probability as long as nothing is shifted."""
    random = np.random.default_rng(seed)
    age = random.normal(40, 10, rows)
    truth = 1 / (1 + np.exp(-(age - 40) / 10 / noise))
    frame = pl.DataFrame(
        {
            "age": age + shift,
            "city": random.choice(["oslo", "rome"], rows),
            "score": truth,
            "late": (random.random(rows) < truth).astype(int),
        }
    )
    if days:
        seconds = np.sort(random.integers(days * 86_400, size=rows))
        frame = frame.with_columns(at=pl.Series([START + timedelta(days=since, seconds=int(one)) for one in seconds]))
    return frame


def column(report, name):
    return next(one for one in report.columns if one.name == name)


# --- one comparison ------------------------------------------------------------------------------------------


def test_the_same_distribution_is_quiet():
    report = monitor_tables(table(2000, 1), table(1000, 2), target="late", prediction="score")
    assert report.incidents == ()
    assert report.headline == "Nothing to worry about: 4 columns behave as in the reference."
    assert {one.verdict for one in report.columns} == {"quiet"}
    assert report.performance.points[0].rows == 1000


def test_a_shift_without_a_model_is_an_alarm_in_a_sentence():
    before, now = table(2000, 1), table(1000, 2, shift=15)
    report = monitor_tables(before, now, columns=["age", "city"])
    (incident,) = report.incidents
    assert (incident.severity, incident.state, incident.subjects) == ("alarm", "open", ("age",))
    assert incident.title == "'age' has risen from 39.87 to 54.78 on average."
    assert "not known whether a model suffers" in incident.message
    assert report.headline.startswith("1 alarm needs attention. 'age' has risen")
    assert report.open_alarms == report.incidents
    moved = column(report, "age")
    # The bins hold a twentieth of the reference each, so the binned statistic is close to the exact one.
    assert moved.statistics["ks"] == pytest.approx(ks_2samp(before["age"], now["age"]).statistic, abs=0.05)


def test_a_shift_that_harms_nothing_is_a_notice():
    report = monitor_tables(table(2000, 1), table(1000, 2, shift=15), target="late", prediction="score")
    (incident,) = report.incidents
    assert (incident.severity, incident.kind) == ("notice", "drift")
    assert "roc_auc has not become worse" in incident.message
    unlabelled = monitor_tables(
        table(2000, 1), table(1000, 2, shift=15).drop("late"), target="late", prediction="score"
    )
    assert unlabelled.incidents[0].severity == "notice"
    assert "The predictions have not moved" in unlabelled.incidents[0].message
    assert unlabelled.performance is None
    assert any("no labels in 'late'" in remark for remark in unlabelled.remarks)


def test_worse_predictions_are_an_alarm_although_no_column_moves():
    before, now = table(2000, 1), table(1000, 2)
    now = now.with_columns(late=now["late"].shuffle(seed=3))
    report = monitor_tables(before, now, target="late", prediction="score")
    (incident,) = report.incidents
    assert (incident.severity, incident.kind, incident.subjects) == ("alarm", "performance", ("roc_auc",))
    assert "the relation between inputs and target has probably changed" in incident.message


def test_moved_predictions_make_a_drift_an_alarm():
    now = table(1000, 2, shift=15)
    now = now.with_columns(score=(now["score"] * 0.5)).drop("late")
    report = monitor_tables(table(2000, 1), now, prediction="score", columns=["age"])
    (incident,) = report.incidents
    assert incident.severity == "alarm"
    assert "The predictions have moved as well: 'score' has fallen" in incident.message


# --- windows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windowed():
    """A month of which twelve days are shifted, compared by days with a quiet reference."""
    before = table(4000, 1, days=60).select("age", "city", "at")
    quiet, moved, after = (
        table(700, 2, since=60, days=12),
        table(700, 3, since=72, days=12, shift=8),
        table(900, 4, since=84, days=15),
    )
    now = pl.concat([quiet, moved, after]).select("age", "city", "at")
    # Incidents by chance are not what is tested here.
    return monitor_tables(before, now, time="at", every="1d", incidents_per_month=0.1)


def test_an_incident_opens_is_joined_and_ends(windowed):
    (incident,) = windowed.incidents
    assert (incident.state, incident.severity, incident.subjects) == ("resolved", "alarm", ("age",))
    assert START + timedelta(days=72) <= incident.began_at <= START + timedelta(days=73)
    # A day is judged together with the six days before it.
    assert START + timedelta(days=83) <= incident.seen_at <= START + timedelta(days=91)
    assert incident.resolved_at == incident.seen_at + timedelta(days=3)
    # The sentence describes the days of the incident, not the whole table.
    assert "to 48" in incident.title or "to 47" in incident.title
    assert windowed.open_alarms == ()
    assert windowed.headline == "Nothing to worry about now. 1 earlier incident is over."


def test_windows_are_aligned_and_hold_every_row(windowed):
    assert sum(window.rows for window in windowed.windows) == windowed.current_rows == 2300
    for window in windowed.windows:
        assert (window.since - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(days=1) == timedelta(0)
        assert window.until - window.since == timedelta(days=1)
    assert all(len(one.psi_by_window) == len(windowed.windows) == len(one.verdicts) for one in windowed.columns)


def test_the_report_is_json_without_nan(windowed):
    text = json.dumps(windowed.to_json(), allow_nan=False)
    assert json.loads(text)["columns"][0]["name"] == "age"


def test_rows_without_a_time_are_left_out_and_said():
    now = table(300, 2, since=60, days=3)
    now = now.with_columns(at=pl.when(pl.int_range(300) < 5).then(None).otherwise(pl.col("at")))
    report = monitor_tables(table(1000, 1), now, time="at", columns=["age"])
    assert sum(window.rows for window in report.windows) == 295
    assert any("5 rows have no 'at'" in remark for remark in report.remarks)
    assert any("has no column 'at', so its variation" in remark for remark in report.remarks)


# --- performance ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_metrics_are_those_of_scikit_learn():
    now = table(500, 2)
    report = monitor_tables(table(1000, 1), now, target="late", prediction="score")
    assert report.performance.points[0].value == pytest.approx(roc_auc_score(now["late"], now["score"]))
    texts = {0: "no", 1: "yes", 2: "maybe"}
    random = np.random.default_rng(0)

    def classes(rows):
        right = random.integers(0, 3, rows)
        said = np.where(random.random(rows) < 0.7, right, random.integers(0, 3, rows))
        return pl.DataFrame({"x": right * 1.0, "y": [texts[one] for one in right], "p": [texts[one] for one in said]})

    now = classes(400)
    report = monitor_tables(classes(600), now, target="y", prediction="p")
    assert report.performance.metric == "accuracy"
    assert report.performance.points[0].value == pytest.approx(accuracy_score(now["y"], now["p"]))
    now = pl.DataFrame({"y": random.normal(size=300), "p": random.normal(size=300)})
    report = monitor_tables(now, now, target="y", prediction="p")
    assert report.performance.metric == "rmse"
    assert report.performance.points[0].value == pytest.approx(root_mean_squared_error(now["y"], now["p"]))


@pytest.mark.slow
def test_booleans_whole_floats_and_numbers_are_the_same_classes():
    before, now = table(800, 1), table(400, 2)
    plain = monitor_tables(before, now, target="late", prediction="score", columns=["age"])
    for kind in (pl.Boolean, pl.Float64, pl.Int8):
        cast = [frame.with_columns(pl.col("late").cast(kind)) for frame in (before, now)]
        report = monitor_tables(*cast, target="late", prediction="score", columns=["age"])
        assert report.performance == plain.performance
    texts = [frame.with_columns(late=pl.when(pl.col("late") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")))
             for frame in (before, now)]  # fmt: skip
    report = monitor_tables(*texts, target="late", prediction="score", columns=["age"])
    assert report.performance == plain.performance
    assert "'score' is taken as the probability of 'yes'." in report.remarks


def test_labels_of_one_class_are_not_measured():
    before = table(300, 1)
    report = monitor_tables(before, table(200, 2).with_columns(late=pl.lit(1)), target="late", prediction="score")
    assert report.performance.points[0].value is None
    constant = monitor_tables(before.with_columns(late=pl.lit(1)), table(200, 2), target="late", prediction="score")
    assert constant.performance is None
    assert any("cannot be measured" in remark for remark in constant.remarks)


# --- quality and odd columns ---------------------------------------------------------------------------------


def test_odd_columns_are_reported_and_never_crash():
    before = table(300, 1).with_columns(
        constant=pl.lit(3.0), empty=pl.lit(None, dtype=pl.Float64), gone=pl.Series(range(300)), kind=pl.lit("a"),
        huge=pl.Series(np.random.default_rng(1).normal(size=300) * 1e300), varied=pl.Series(range(300)),
        day=pl.lit(START), items=pl.lit([1, 2]),
    )  # fmt: skip
    now = table(200, 2).with_columns(
        constant=pl.lit(3.0), empty=pl.lit(1.0), kind=pl.lit("b"), huge=pl.lit(float("inf")), varied=pl.lit(7),
        age=pl.col("age").cast(pl.String), new=pl.lit(1), day=pl.lit(START), items=pl.lit([1, 2]),
        city=pl.lit(None, dtype=pl.String), score=pl.lit(float("nan")),
    )  # fmt: skip
    report = monitor_tables(before, now)
    notes = {one.column: one.message for one in report.quality}
    assert notes["gone"] == "The column is missing in the current table."
    assert notes["new"] == "The column is new; the reference does not have it."
    assert notes["age"] == "The type was Float64 and is String now."
    assert notes["kind"] == "100.0% of the values are not in the reference: 'b'."
    assert "All values are equal" in notes["varied"]
    assert notes["city"] == "100.0% of the values are missing; in the reference 0.0%."
    assert set(report.skipped) == {"empty", "day", "new"}
    assert column(report, "items.norm").verdict == "quiet"
    assert column(report, "constant").verdict == "quiet"
    assert {column(report, name).verdict for name in ("gone", "kind", "city", "score", "huge")} == {"alarm"}
    json.dumps(report.to_json(), allow_nan=False)


def test_duplicates_are_counted_without_the_time():
    before, now = table(500, 1, days=9), table(200, 2, since=60, days=1)
    doubled = pl.concat([now, now.with_columns(pl.col("at") + timedelta(minutes=1))])
    report = monitor_tables(before, doubled, time="at", columns=["age"])
    assert any("50.0% of the rows repeat an earlier one" in one.message for one in report.quality)


def test_names_of_columns_may_be_anything():
    names = {"age": "prediction", "city": "^.*$", "score": "window", "late": "c0"}
    before, now = table(300, 1).rename(names), table(200, 2, shift=20).rename(names)
    report = monitor_tables(before, now)
    assert report.incidents[0].subjects == ("prediction",)
    assert {one.name for one in report.columns} == set(names.values())


def test_tables_of_one_row_and_of_other_libraries():
    assert monitor_tables(table(1, 1), table(1, 2)).incidents == ()
    pandas = [pd.DataFrame(table(rows, rows).to_dict(as_series=False)) for rows in (300, 200)]
    assert monitor_tables(*pandas).current_rows == 200


def test_files_and_databases(tmp_path):
    before, now = table(300, 1), table(200, 2)
    before.write_parquet(tmp_path / "before.parquet")
    now.write_csv(tmp_path / "now.csv")
    report = monitor_tables(str(tmp_path / "before.parquet"), tmp_path / "now.csv")
    assert report.reference_name.endswith("before.parquet")
    with sqlite3.connect(tmp_path / "log.db") as database:
        database.execute("CREATE TABLE log (age REAL)")
        database.executemany("INSERT INTO log VALUES (?)", [(age,) for age in now["age"]])
    from everloop.data import read

    rows = read(f"sqlite:///{tmp_path / 'log.db'}", query="SELECT age FROM log")
    assert monitor_tables(before, rows, columns=["age"]).current_rows == 200


# --- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"target": "lat"}, DataError, "has no column 'lat' (target). Did you mean 'late'?"),
        ({"prediction": "scor"}, DataError, "has no column 'scor' (prediction). Did you mean 'score'?"),
        ({"columns": ["ag"]}, DataError, "has no column 'ag' (column to monitor). Did you mean 'age'?"),
        ({"time": "when"}, DataError, "no column 'when' to use as the time"),
        ({"time": "city"}, SourceError, "contains 'rome', which is not a time"),
        ({"time": "age"}, SourceError, "time column 'age' has type Float64"),
        ({"every": "often"}, UsageError, "'often' is not a duration"),
        ({"every": "0s"}, UsageError, "cannot last '0s'"),
        ({"incidents_per_month": 0}, UsageError, "must be a number above 0, not 0"),
        ({"target": "late", "prediction": "late"}, UsageError, "cannot be both target and prediction"),
        ({"target": "city", "prediction": "age"}, UsageError, "'age' is a number, but 'city' has 2 classes"),
        ({"target": "late", "prediction": "city"}, UsageError, "which is not a class of 'late'. Classes: 0, 1"),
        ({"target": "age", "prediction": "city"}, UsageError, "'city' is String, but the target 'age' has numbers"),
        ({"reference": "nothing.csv"}, SourceError, "nothing.csv"),
        ({"reference": 3}, UsageError, "of type int cannot be read"),
        ({"current": table(0, 1)}, EmptySampleError, "the current table has no rows"),
        ({"reference": table(0, 1)}, EmptySampleError, "the reference has no rows"),
        ({"current": pl.DataFrame({"z": [1]})}, DataError, "no column in common"),
    ],
)
def test_bad_input_names_the_value_and_the_way_out(change, error, problem):
    arguments = {"reference": table(60, 1), "current": table(40, 2), **change}
    with pytest.raises(error) as raised:
        monitor_tables(arguments.pop("reference"), arguments.pop("current"), **arguments)
    assert problem in str(raised.value)
    assert raised.value.help or "number above 0" in problem


def test_too_many_windows_are_refused():
    now = table(1500, 2, since=60, days=3)
    with pytest.raises(UsageError, match=r"spans 1,\d{3} windows; the limit is 1,000"):
        monitor_tables(table(60, 1, days=9), now, time="at", every="1s")
    nothing = now.with_columns(at=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
    with pytest.raises(EmptySampleError, match="No row of the current table has a time in 'at'"):
        monitor_tables(table(60, 1, days=9), nothing, time="at")


@pytest.mark.slow
def test_without_labels_an_incident_says_what_the_metric_is_expected_to_be() -> None:
    generator = np.random.default_rng(5)

    def table(rows: int, shift: float) -> pl.DataFrame:
        x = generator.normal(size=rows) + shift
        price = 50 + 5 * x + 3 * np.exp(0.3 * x) * generator.normal(size=rows)
        return pl.DataFrame({"x": x, "p": 50 + 5 * x, "price": price})

    report = monitor_tables(table(2000, 0.0), table(1000, 1.0).drop("price"), target="price", prediction="p")
    assert [one.severity for one in report.incidents] == ["alarm"]
    assert "rmse is expected to be" in report.incidents[0].message


def test_free_texts_are_compared_by_their_length() -> None:
    generator = np.random.default_rng(6)

    def table(rows: int, length: int) -> pl.DataFrame:
        words = np.array(["late", "gate", "crew", "storm", "bag", "door", "seat", "fuel"])
        texts = [" ".join(generator.choice(words, length + int(extra))) for extra in generator.integers(0, 6, rows)]
        return pl.DataFrame({"note": texts, "price": generator.normal(size=rows)})

    before = table(800, 8)
    report = monitor_tables(before, table(400, 16))
    verdicts = {column.name: column.verdict for column in report.columns}
    assert verdicts["note.length"] == "alarm"
    assert verdicts["price"] == "quiet"
    assert "note" not in verdicts
    missing = monitor_tables(before, table(400, 8).drop("note"))
    assert [note.column for note in missing.quality if "missing in the current table" in note.message] == ["note"]


def _related(rows: int, seed: int, correlation: float = 0.8, shift: float = 0.0, days: int = 30) -> pl.DataFrame:
    """Two standard normal columns with a correlation, and a third one that may be shifted."""
    rng = np.random.default_rng(seed)
    one, own, other = rng.normal(size=(3, rows))
    moments = np.sort(rng.uniform(0, days, rows)) * 86_400_000_000
    return pl.DataFrame(
        {
            "height": one,
            "weight": correlation * one + math.sqrt(1 - correlation**2) * own,
            "noise": other + shift,
            "at": pl.Series(moments.astype(np.int64)).cast(pl.Datetime("us")),
        }
    )


def test_a_relation_that_changes_is_an_incident_although_no_column_moves() -> None:
    before = _related(6_000, 1)
    for time in (None, "at"):
        report = monitor_tables(
            before.drop("at") if time is None else before,
            _related(4_000, 2, correlation=0.1, days=10).drop([] if time else ["at"]),
            time=time,
            incidents_per_month=0.05,
        )
        assert [column.verdict for column in report.columns] == ["quiet"] * 3
        (incident,) = report.incidents
        assert (incident.subjects, incident.severity) == (("height and weight",), "alarm")
        (pair,) = report.pairs
        assert f"their rank correlation is {pair.now:.2f}, before it was {pair.before:.2f}." in incident.title
        assert (pair.before, pair.now) == pytest.approx((0.78, 0.1), abs=0.08)
        assert report.to_json()["pairs"][0]["columns"] == ["height", "weight"]
        # Cohen's q of these correlations of normal scores.
        assert pair.change == pytest.approx(math.atanh(pair.before) - math.atanh(pair.now))


def test_relations_that_stay_are_quiet() -> None:
    report = monitor_tables(_related(6_000, 1), _related(6_000, 3), time="at", incidents_per_month=0.02)
    assert (report.incidents, report.pairs) == ((), ())


@pytest.mark.slow
def test_windows_of_a_table_open_the_incidents_that_an_endpoint_would() -> None:
    """A weak change joins the ongoing incident, a strong one opens another: as `incident_rules` decides."""
    parts = [_related(2_000, 4, days=10), _related(4_000, 5, shift=0.6, days=20)]
    parts[1] = parts[1].with_columns(
        pl.col("at") + pl.duration(days=10),
        pl.when(pl.col("at").dt.epoch("d") >= 8).then(pl.col("height") + 4).otherwise(pl.col("height")).alias("height"),
    )
    report = monitor_tables(_related(12_000, 6, days=60), pl.concat(parts), time="at")
    drift = [one for one in reversed(report.incidents) if one.kind == "drift"]
    assert [one.subjects[0] for one in drift] == ["noise", "height"]
    assert drift[0].state == "open" == drift[1].state
    watched = watch_table(_related(12_000, 6, days=60), pl.concat(parts), time="at").incidents
    assert [(one.began_at, one.seen_at) for one in watched] == [(one.began_at, one.seen_at) for one in drift]


@pytest.mark.slow
def test_all_columns_together_are_compared_if_asked() -> None:
    before, now = _related(2_000, 1).drop("at"), _related(1_000, 2, correlation=-0.5).drop("at")
    report = monitor_tables(before, now, joint=True)
    assert report.joint is not None
    assert report.joint.classifier.low > 0.6
    assert {*list(report.joint.classifier.contributions)[:2]} == {"height", "weight"}
    assert report.joint.reconstruction is not None
    assert report.joint.reconstruction.p_value < 0.01
    assert "All columns together" in monitoring_page(report)
    assert report.to_json()["joint"]["classifier"]["auc"] == report.joint.classifier.auc
    few = monitor_tables(before, now.head(5), joint=True)
    assert few.joint is None
    assert any("cannot be compared together" in remark for remark in few.remarks)
    assert monitor_tables(before, now).joint is None


@pytest.mark.slow
def test_a_column_that_numbers_the_rows_is_left_out() -> None:
    generator = np.random.default_rng(4)

    def table(first: int, rows: int) -> pl.DataFrame:
        numbers = np.arange(first, first + rows + 5)
        return pl.DataFrame(
            {
                "number": generator.permutation(np.delete(numbers, [3, 4, 5, 6, 7])),
                "income": np.sort(generator.choice(10**6, rows, replace=False)),
                "age": generator.integers(20, 60, rows),
            }
        )

    before, now = table(1, 1000), table(900, 800)
    report = monitor_tables(before, now)
    assert not report.open_alarms
    assert report.skipped == {"number": "it numbers the rows, so it differs in every table"}
    # Who names it has it compared.
    named = monitor_tables(before, now, columns=["number"])
    assert [column.name for column in named.columns] == ["number"]
    assert named.open_alarms
    # Few rows may have different values by chance.
    assert "number" not in monitor_tables(before[:60], now).skipped


_WORDS = ["please", "bring", "it", "to", "the", "door", "at", "back", "before", "noon", "thanks", "again"]


def _as_text(first: int, rows: int, seed: int) -> pl.DataFrame:
    """Orders as another program wrote them: an id, a German date, an amount with thousands, a note and a kind."""
    generator = np.random.default_rng(seed)
    moments = [datetime(2024, 1, 1) + timedelta(hours=3 * (first + row)) for row in range(rows)]
    amounts = [f"{amount:,.2f}" for amount in generator.lognormal(7, 0.5, rows)]
    amounts[5] = "on request"
    return pl.DataFrame(
        {
            "order": [f"O{first + row:06}" for row in range(rows)],
            "when": [f"{moment:%d.%m.%Y %H:%M}" for moment in moments],
            "amount": amounts,
            "note": [" ".join(generator.choice(_WORDS, 8)) for _ in range(rows)],
            "kind": generator.choice(["a", "b"], rows).tolist(),
        }
    )


@pytest.mark.slow
def test_identifiers_dates_and_numbers_that_are_stored_as_text() -> None:
    report = monitor_tables(_as_text(0, 1000, 1), _as_text(1000, 800, 2))
    assert not report.open_alarms
    assert set(report.skipped) == {"order", "when"}
    assert "stands in one row" in report.skipped["order"]
    assert "--time" in report.skipped["when"]
    assert {"amount", "kind", "note.words"} < {column.name for column in report.columns}
    assert "'amount' holds numbers as text; 2 texts are not numbers and count as missing." in report.remarks
    dearer = _as_text(1000, 800, 2).with_columns(
        pl.col("amount").str.replace(",", "").cast(pl.Float64, strict=False).mul(2).round(2).cast(pl.String)
    )
    (alarm,) = monitor_tables(_as_text(0, 1000, 1), dearer).open_alarms
    assert alarm.title.startswith("'amount' has risen")


@pytest.mark.slow
def test_a_time_in_another_format_cuts_the_table_into_windows() -> None:
    report = monitor_tables(_as_text(0, 1000, 1), _as_text(1000, 800, 2), time="when", every="1w")
    assert len(report.windows) >= 14
    assert "when" not in report.skipped
