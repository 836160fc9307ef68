"""Compare features that were sent with requests with their feature view, as it was known when the request arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.monitoring.measures.window_tests import binomial_tail
from everloop.monitoring.quality.quality_result import QualityResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.stores import Store

TOLERATED = 0.01
"""Share of the rows that may differ, because a view is published a little later than its rows arrive."""

_TIME = "__arrived_at"


def check_features(store: Store, log: pl.DataFrame, inputs: pl.DataFrame, views: Sequence[str]) -> list[QualityResult]:
    """Return a result for each feature of the views that is an input.

    Args:
        log: rows of the prediction log, with `arrived_at` and `entity`.
        inputs: the inputs of these rows, by the names that the model knows.
        views: names of feature views, such as `weather` or `weather@2`. The entity is one of the inputs, or the key
            that clients send with their requests.

    Raises:
        NotFoundError: a view does not exist.
        UsageError: no input is a feature of the view, or the rows do not name its entity.
    """
    from everloop.data.features.lookup import check_skew
    from everloop.data.features.materializing import find_version, view_features

    results = []
    for name in views:
        record = find_version(store, name)
        features = [feature for feature in view_features(record) if feature in inputs.columns]
        if not features:
            raise UsageError(
                f"None of the inputs is a feature of '{record.key}'.",
                help=f"Remove the view, or choose one with these features: {', '.join(inputs.columns)}",
            )
        table = inputs.with_columns(log["arrived_at"].alias(_TIME))
        absent = [column for column in record.entity if column not in inputs.columns]
        if absent and len(record.entity) > 1:
            raise UsageError(
                f"The inputs lack '{absent[0]}', an entity column of '{record.key}'.",
                help="Send it as an input, or remove the view.",
            )
        if absent:
            table = table.with_columns(log["entity"].alias(absent[0]))
        table = table.filter(table[record.entity[0]].is_not_null())
        if table.height == 0:
            continue
        skew = check_skew(store, record.key, table, time=_TIME, features=features)
        for feature, count in skew.different.items():
            samples = [
                {part: str(value) for part, value in sample.items()}
                for sample in skew.samples
                if sample["feature"] == feature
            ]
            results.append(
                QualityResult(
                    "quality",
                    feature,
                    "skew",
                    f"{count} of {table.height} values of '{feature}' differ from '{record.key}'",
                    count / table.height,
                    TOLERATED,
                    binomial_tail(count, table.height, TOLERATED),
                    "windows",
                    (count, table.height),
                    {"view": record.key, "samples": samples},
                )
            )
    return results
