"""Features that are computed when they are asked for, from the request itself and from other features.

The same function works on a whole table for training and on one row for serving, so the two cannot differ.
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
    """A declaration; nothing is computed when it is made.

        def headwind(rows: pl.DataFrame) -> list[pl.Expr]:
            return [(pl.col("wind") * pl.col("bearing").radians().cos()).alias("headwind")]

        el.OnDemand("headwind", headwind, inputs={"bearing": pl.Float64, "wind": pl.Float64})

    Args:
        name: of the group of features.
        function: from a table with the inputs to Polars expressions over them, or to a table of as many rows. It must
            treat each row by itself: a mean over the rows would be another one when a single row is asked.
        inputs: columns of the request, or features of the views before it, and their types.

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
            DataError: an input is missing or of another type, or the function gives other rows than it got.
        """
        for name in self.inputs:
            if name not in rows.columns:
                raise DataError(f"'{self.name}' needs the column '{name}'.", help=nearest(name, rows.columns))
        try:
            given = rows.select(pl.col(name).cast(dtype) for name, dtype in self.inputs.items())
        except pl.exceptions.PolarsError as error:
            raise DataError(f"'{self.name}' cannot take its inputs: {str(error).splitlines()[0]}.") from error
        made = self.function(given)
        if isinstance(made, pl.Expr):
            made = [made]
        found = made if isinstance(made, pl.DataFrame) else given.select(made)
        if found.height != rows.height:
            raise DataError(
                f"'{self.name}' gave {found.height} rows for {rows.height}.", help="Compute each row by itself."
            )
        return found

    def compute_row(self, row: Mapping[str, Any], types: Mapping[str, pl.DataType | None]) -> pl.DataFrame:
        """The features of one row, as a table of this row.

        Args:
            types: of what was looked up: it is cast to the inputs from there, as the join casts its columns.
        """
        missing = [name for name in self.inputs if name not in row]
        if missing:
            raise UsageError(f"'{self.name}' needs '{missing[0]}' in the request.", help=nearest(missing[0], row))
        given = {name: types.get(name) or dtype for name, dtype in self.inputs.items()}
        try:
            table = pl.DataFrame([pl.Series(name, [row[name]], dtype=dtype) for name, dtype in given.items()])
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise UsageError(f"'{self.name}' cannot take the request: {str(error).splitlines()[0]}.") from error
        return self.compute(table)


def split_views(views: Sequence[Any]) -> tuple[list[Any], list[OnDemand]]:
    """What is looked up, and what is computed afterwards."""
    return [view for view in views if not isinstance(view, OnDemand)], [
        view for view in views if isinstance(view, OnDemand)
    ]
