"""Explain predictions: the contribution of each input.

Contributions add up: bias plus contributions of a row give the score before the link function. That is the log-odds
for a boosted or linear classifier, and the prediction itself for a regression (and for a forest, which has no link).
Contributions of trees come from TreeSHAP; those of a linear model are weight times value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from everloop.packages.predictor_view import PredictorView
    from everloop.records import Json

MOST_ROWS = 10_000


def explain(predictor: PredictorView, rows: pl.DataFrame | Sequence[Mapping[str, object]]) -> list[dict[str, Json]]:
    """Return the bias and the contributions of each row.

    Returns:
        For each row `{"bias": b, "contributions": {input: c}}`; for several classes b and c are lists with one number
        for each class, in order.

    Raises:
        UsageError: the model is not a tree ensemble or linear model of everloop, or there are too many rows.
        RequestError: the rows do not match the signature.
    """
    from everloop.packages.parity import frame_of, plain_rows

    signature = predictor.signature
    if isinstance(rows, list | tuple):
        frame = frame_of(predictor.validate(rows), signature)
    else:
        import polars as pl

        frame = frame_of(plain_rows(pl.DataFrame(rows), signature), signature)
    if frame.height > MOST_ROWS:
        raise UsageError(
            f"{frame.height:,} rows are too many to explain.", help=f"Explain at most {MOST_ROWS:,} rows at once."
        )
    if not frame.height:
        return []
    found, sources = _contributions(predictor, frame)
    one = found.shape[1] == 1
    explanations: list[dict[str, Json]] = []
    for row in found:
        added: dict[str, Any] = {name: [0.0] * len(row) for name in predictor.input_names}
        for index, name in enumerate(sources):
            added[name] = [total + float(value) for total, value in zip(added[name], row[:, index], strict=True)]
        bias = [float(value) for value in row[:, -1]]
        explanations.append(
            {
                "bias": bias[0] if one else bias,
                "contributions": {name: values[0] if one else values for name, values in added.items()},
            }
        )
    return explanations


def _contributions(predictor: PredictorView, frame: pl.DataFrame) -> tuple[NDArray[np.float64], list[str]]:
    """Return contributions of shape (n, outputs, columns + 1) with the bias last, and the input of each column."""
    import numpy as np

    from everloop.packages.compilation.compiled_model import CompiledModel, LinearForm, TreeForm

    model: Any = predictor.model
    if isinstance(model, CompiledModel) and isinstance(model.form, TreeForm | LinearForm):
        preparation = model.form.preparation
        matrix = preparation.matrix(frame)
        sources = [segment.name for segment in preparation.segments for _ in range(segment.width)]
        if isinstance(model.form, TreeForm):
            return model.form.contributions(matrix), sources
        added = matrix[:, None, :] * model.form.weights.T[None]
        bias = np.broadcast_to(model.form.bias[None, :, None], (len(matrix), len(model.form.bias), 1))
        return np.concatenate([added, bias], axis=2), sources
    if hasattr(model, "contributions") and hasattr(model, "encoder"):
        return model.contributions(model.encoder.encode(frame)), model.encoder.sources
    raise UsageError(
        f"The model {predictor.display_name} ({predictor.form}) cannot explain its predictions.",
        help="Use a tree ensemble or a linear model that everloop trained or compiled.",
    )
