"""Hourly aggregates of the prediction log: written once where it is folded, read instead of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.prediction_log.aggregates.aggregate_folding import fold_aggregates as fold_aggregates
    from everloop.prediction_log.aggregates.aggregate_reading import (
        WindowSketch as WindowSketch,
        read_aggregates as read_aggregates,
    )

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {"aggregate_folding": ["fold_aggregates"], "aggregate_reading": ["WindowSketch", "read_aggregates"]},
)
