"""Logs predictions and labels: sinks, folding into tables, reading and retention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.prediction_log.labels import add_labels as add_labels, fold_labels as fold_labels
    from everloop.prediction_log.log_reading import (
        find_prediction as find_prediction,
        read_inputs as read_inputs,
        read_labelled as read_labelled,
        read_labels as read_labels,
        read_predictions as read_predictions,
    )
    from everloop.prediction_log.prediction_log import fold_predictions as fold_predictions

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "labels": ["add_labels", "fold_labels"],
        "log_reading": ["find_prediction", "read_inputs", "read_labelled", "read_labels", "read_predictions"],
        "prediction_log": ["fold_predictions"],
    },
)
