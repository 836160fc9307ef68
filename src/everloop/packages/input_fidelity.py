"""Check that a packaged model gets its rows exactly as the user passed them.

A packaged model reads rows from a request, converts them to Polars, and builds the estimator's own kind of table again.
This can change the unit of a time, the width of a number, the code of a category or the marker for nulls. Comparing two
predictions that both took this route would not show it, so the model also predicts the example itself.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.errors import ParityError
from everloop.packages.parity import compare

if TYPE_CHECKING:
    import polars as pl

    from everloop.packages.formats.input_tables import TableKind
    from everloop.packages.time_budget import TimeBudget

ROWS = 300
TOLERANCE = 1e-9


def prove_faithful(model: Any, made: Any, example: Any, frame: pl.DataFrame, effort: TimeBudget | None = None) -> int:
    """Compare a model's predictions for rows of the example with those of the packaged model.

    Args:
        model: the user's model.
        made: the packaged model, with a `question` and a `table`.
        example: the user's table. frame: the same as a Polars frame.

    Returns:
        The number of rows compared; 0 if the model does not take the example unchanged (a frame of another library).

    Raises:
        ParityError: the predictions differ.
    """
    import numpy as np

    indices = np.unique(np.linspace(0, frame.height - 1, min(ROWS, frame.height)).astype(int))
    scoring = made.question
    if scoring.choice in ("largest", "rule") and scoring.classes and hasattr(model, "predict_proba"):
        # Compare the labels that the model itself predicts, not those that follow from its probabilities.
        scoring = replace(scoring, choice="predict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = scoring.answer(model, _rows(example, indices, made.table))
        except Exception:  # the model was fitted on another kind of table, and can raise anything
            if effort is not None:
                effort.leave_out("the example unchanged, which the model does not take")
            return 0
        found = made.answer_frame(frame[indices])
    try:
        compare(wanted, found, frame[indices], "the example unchanged", TOLERANCE)
    except ParityError as error:
        kinds = ", ".join(f"{column.name} ({column.pandas or column.type})" for column in made.table.columns[:30])
        raise ParityError(
            f"The model predicts something else for rows of a request than for the example itself: {error.message}",
            help=f"A column changes in conversion: {kinds}. Convert it to a number or a text before fitting.",
        ) from error
    return len(indices)


def _rows(example: Any, indices: Any, table: TableKind) -> Any:
    """Return rows of the example in its own container, with the columns that the model reads."""
    import polars as pl

    if isinstance(example, pl.LazyFrame):
        example = example.collect()
    if isinstance(example, pl.DataFrame):
        return example[indices].select(table.names)
    if isinstance(example, list):
        return [example[index] for index in indices.tolist()]
    if hasattr(example, "iloc"):
        chosen = example.iloc[indices]
        if not hasattr(chosen, "columns"):
            return chosen
        return chosen[[int(column.name) if column.number else column.name for column in table.columns]]
    if hasattr(example, "take") and hasattr(example, "column_names"):
        return example.take(indices).select(list(table.names))
    return example[indices]
