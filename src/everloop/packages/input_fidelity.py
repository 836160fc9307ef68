"""Proof that a model is given its rows as its user gave them.

What is packaged reads rows from a request, keeps them in Polars, and makes the estimator's own kind of table again. On
the way a unit of time, a width of a number, a code of a category or a mark for nulls may become another, and a
comparison of two answers that both went that way would not see it. So the model is asked here about the example itself.
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
    """Compare what a model says to rows of the example as they are, and as the packaged model hands them on.

    Args:
        model: the user's own.
        made: ours, with a `question` and a `table`.
        example: what the user gave. frame: the same as a Polars frame.

    Returns:
        Rows that were compared; 0 where the model does not take the example as it is, a frame of another library, say.

    Raises:
        ParityError: the answers differ.
    """
    import numpy as np

    places = np.unique(np.linspace(0, frame.height - 1, min(ROWS, frame.height)).astype(int))
    question = made.question
    if question.choice in ("largest", "rule") and question.classes and hasattr(model, "predict_proba"):
        # The labels that the model itself predicts, not those that its probabilities suggest.
        question = replace(question, choice="predict")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = question.answer(model, _rows(example, places, made.table))
        except Exception:  # whatever the model raises: it was fitted on another kind of table
            if effort is not None:
                effort.leave_out("the example as it is, which the model does not take")
            return 0
        found = made.answer_frame(frame[places])
    try:
        compare(wanted, found, frame[places], "the example as it is", TOLERANCE)
    except ParityError as error:
        kinds = ", ".join(f"{column.name} ({column.pandas or column.type})" for column in made.table.columns[:30])
        raise ParityError(
            f"The model does not answer the rows of a request as it answers the example itself: {error.message}",
            help=f"A column loses something on its way: {kinds}. Convert it to a number or a text before fitting.",
        ) from error
    return len(places)


def _rows(example: Any, places: Any, table: TableKind) -> Any:
    """Rows of the example in its own kind, with the columns that the model reads."""
    import polars as pl

    if isinstance(example, pl.LazyFrame):
        example = example.collect()
    if isinstance(example, pl.DataFrame):
        return example[places].select(table.names)
    if isinstance(example, list):
        return [example[place] for place in places.tolist()]
    if hasattr(example, "iloc"):
        chosen = example.iloc[places]
        if not hasattr(chosen, "columns"):
            return chosen
        return chosen[[int(column.name) if column.number else column.name for column in table.columns]]
    if hasattr(example, "take") and hasattr(example, "column_names"):
        return example.take(places).select(list(table.names))
    return example[places]
