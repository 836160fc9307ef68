"""On-demand features, which are computed at request time from the request and from other features.

The same function works on a whole table for training and on a single row for serving, so the two cannot diverge.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.table_inputs import nearest
from everloop.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True)
class OnDemand:
    """A declaration of on-demand features. Creating one does not compute anything.

        def headwind(rows: pl.DataFrame) -> list[pl.Expr]:
            return [(pl.col("wind") * pl.col("bearing").radians().cos()).alias("headwind")]

        el.OnDemand("headwind", headwind, inputs={"bearing": pl.Float64, "wind": pl.Float64})

    Args:
        name: the name of this group of features.
        function: takes a table with the inputs, and returns Polars expressions over them, or a table with the same
            number of rows. It must compute each row by itself: a mean over the rows would differ in serving, where the
            table has a single row.
        inputs: the columns it needs and their types: columns of the request, or features of the views before it.

    Raises:
        UsageError: there are no inputs.
    """

    name: str
    function: Callable[[pl.DataFrame], Any]
    _: KW_ONLY
    inputs: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UsageError(f"The features '{self.name}' have no inputs.", help="Name them: inputs={'x': pl.Float64}.")
        object.__setattr__(self, "inputs", dict(self.inputs))

    def __hash__(self) -> int:
        return hash((self.name, self.function, tuple(self.inputs)))

    def compute(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The features alone, row by row.

        Raises:
            DataError: an input is missing or has the wrong type, or the function returns another number of rows.
        """
        for name in self.inputs:
            if name not in rows.columns:
                raise DataError(
                    f"'{self.name}' needs the column '{name}', which is missing.", help=nearest(name, rows.columns)
                )
        try:
            inputs = rows.select(pl.col(name).cast(dtype) for name, dtype in self.inputs.items())
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"The inputs of '{self.name}' cannot be cast to their types: {str(error).splitlines()[0]}."
            ) from error
        result = self.function(inputs)
        if isinstance(result, pl.Expr):
            result = [result]
        features = result if isinstance(result, pl.DataFrame) else inputs.select(result)
        if features.height != rows.height:
            raise DataError(
                f"'{self.name}' returned {features.height} row{'' if features.height == 1 else 's'} for {rows.height}.",
                help="Compute each row by itself.",
            )
        return features

    def compute_row(self, row: Mapping[str, Any], types: Mapping[str, pl.DataType | None]) -> pl.DataFrame:
        """The features of one row, as a table with one row.

        Args:
            types: the types of features that were looked up. They are cast from these types, as in the join.
        """
        missing = [name for name in self.inputs if name not in row]
        if missing:
            raise UsageError(
                f"'{self.name}' needs '{missing[0]}' in the request, which is missing.", help=nearest(missing[0], row)
            )
        input_types = {name: types.get(name) or dtype for name, dtype in self.inputs.items()}
        try:
            table = pl.DataFrame([pl.Series(name, [row[name]], dtype=dtype) for name, dtype in input_types.items()])
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise UsageError(
                f"A value of the request does not fit the inputs of '{self.name}': {str(error).splitlines()[0]}."
            ) from error
        return self.compute(table)


def split_views(views: Sequence[Any]) -> tuple[list[Any], list[OnDemand]]:
    """Separate the views that are looked up from the `OnDemand` features, which are computed afterwards."""
    return [view for view in views if not isinstance(view, OnDemand)], [
        view for view in views if isinstance(view, OnDemand)
    ]
