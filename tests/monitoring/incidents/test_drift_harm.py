import pytest
from hypothesis import given, strategies as st

from everloop.monitoring.incidents.drift_harm import DriftHarm, ExpectedMetric


def expected(name: str, before: float, loss: float, certain: float, **fields: object) -> ExpectedMetric:
    greater = name not in ("rmse", "log_loss", "brier")
    now = before - loss if greater else before + loss
    values = {"low": now - 0.01, "high": now + 0.01, "rows": 100, "doubt": "", **fields}
    return ExpectedMetric(
        name=name, before=before, now=now, loss=loss, certain_loss=certain, greater_is_better=greater, **values
    )


@pytest.mark.parametrize(
    ("metric", "fallen"),
    [
        (expected("roc_auc", 0.8, 0.02, 0.01), True),
        (expected("roc_auc", 0.8, 0.015, 0.01), False),
        (expected("roc_auc", 0.2, 0.009, 0.008), False),
        (expected("roc_auc", 0.8, 0.1, -0.01), False),
        (expected("brier", 0.1, 0.017, 0.001), False),
        (expected("brier", 0.1, 0.019, 0.001), True),
        (expected("rmse", 200.0, 9.0, 5.0), False),
        (expected("rmse", 200.0, 11.0, 5.0), True),
        (expected("rmse", 200.0, 11.0, 5.0, doubt="Labels contradicted it."), False),
        (expected("roc_auc", 0.7, -0.1, -0.2), False),
    ],
)
def test_a_metric_has_fallen_if_its_loss_is_certain_and_matters(metric: ExpectedMetric, fallen: bool) -> None:
    assert metric.fallen is fallen
    # The scores have not moved, so the metric alone decides.
    assert DriftHarm(score=(0.3, 0.3), expected=metric).severity == ("alarm" if fallen else "notice")


def test_moved_scores_are_loud_whatever_is_expected() -> None:
    quiet = expected("roc_auc", 0.8, 0.0, -0.02)
    assert DriftHarm(score=(0.3, 0.5), movement=0.4, expected=quiet).severity == "alarm"


def test_sentences_name_what_is_expected_and_what_is_doubted() -> None:
    metric = expected("roc_auc", 0.81, 0.1, 0.05, high=1.2, doubt="Labels contradicted it.")
    texts = DriftHarm(score=(0.3, 0.301), expected=metric).sentences()
    assert texts[1:] == [
        "roc_auc is expected to be 0.71 (0.7 to 1); in the reference it was 0.81.",
        "Labels contradicted it.",
    ]


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_shift_keeps_the_loss(before: float, by: float) -> None:
    metric = expected("rmse", before, 0.1, 0.05)
    moved = metric.shifted(by)
    assert moved.now - moved.before == pytest.approx(metric.now - metric.before)
    assert (moved.loss, moved.certain_loss) == (metric.loss, metric.certain_loss)
