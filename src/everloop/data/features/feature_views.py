"""Declare feature views: what is known about an entity over time, and how long it is valid."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Literal

from everloop.data.features.internal_columns import refuse_reserved
from everloop.data.table_inputs import nearest
from everloop.errors import UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Aggregation = Literal["count", "sum", "mean", "std"]
_AGGREGATIONS = ("count", "sum", "mean", "std")


@dataclass(frozen=True)
class Window:
    """Aggregates of the rows whose event lies within the last `length`: `Window("7d", delay=("minutes", "mean"))`.

    Args:
        length: a duration such as `7d`. A row counts from when it is known until `length` after its event.
        aggregates: `(column, aggregation)` by the name of the feature. `count` counts values that are not missing, and
            `std` is the sample standard deviation (n - 1). NaN counts as missing. Each aggregate is computed from the
            rows in its window alone, in float64.
    """

    length: str
    aggregates: Mapping[str, tuple[str, Aggregation]]

    def __init__(self, length: str, **aggregates: tuple[str, Aggregation]) -> None:
        if parse_duration(length).total_seconds() <= 0:
            raise UsageError(
                f"A window of '{length}' is too short to contain any rows.", help="Write for example Window('7d', …)."
            )
        if not aggregates:
            raise UsageError(f"The window of '{length}' has no features.", help="Write Window('7d', n=('x', 'count')).")
        for name, pair in aggregates.items():
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] not in _AGGREGATIONS:
                raise UsageError(
                    f"The feature '{name}' of a window is {pair!r}, which is not a column and an aggregation.",
                    help=f"Write (column, aggregation), with one of {', '.join(_AGGREGATIONS)}.",
                )
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "aggregates", dict(aggregates))


@dataclass(frozen=True)
class FeatureView:
    """A declaration of a feature view. Creating one does not read any data.

    Args:
        name: the name of the view, from letters, digits, `_` and `-`. Its table and commands use it.
        source: the step, function or frame that returns the rows: one per entity and event.
        entity: the columns that identify the entity of a row.
        time: the column with the time of each row's event.
        arrival: the column with the time when each row became known; by default the time of its event.
        ttl: a row older than this duration is no longer used; by default the latest row is valid forever.
        features: the columns that are features; by default all except entity, time and arrival.
        windows: aggregates over the last days or hours, instead of the latest row. Rows of one entity and event that
            arrive together all count; rows that arrive later replace them.
        entity_as_text: compare the entity as text, so that 7 and "7" are equal. Otherwise text in a request or a row
            is refused if the view has numbers. The width of integers never matters.

    Raises:
        UsageError: the arguments do not fit together.
    """

    name: str
    source: object
    _: KW_ONLY
    entity: str | Sequence[str]
    time: str
    arrival: str | None = None
    ttl: str | None = None
    features: Sequence[str] | None = None
    windows: Sequence[Window] = field(default=())
    entity_as_text: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum() or not self.name.isascii():
            raise UsageError(f"A feature view cannot be called '{self.name}'.", help="Use letters, digits, _ and -.")
        object.__setattr__(self, "entity", (self.entity,) if isinstance(self.entity, str) else tuple(self.entity))
        object.__setattr__(self, "windows", tuple(self.windows))
        if self.features is not None:
            if isinstance(self.features, str):
                raise UsageError(
                    f"features='{self.features}' is a string, but a list of columns is expected.",
                    help=f"Write features=['{self.features}'].",
                )
            object.__setattr__(self, "features", tuple(self.features))
        if not self.entity:
            raise UsageError(f"The feature view '{self.name}' has no entity.", help="Name its columns with entity=.")
        if self.ttl is not None and parse_duration(self.ttl).total_seconds() <= 0:
            raise UsageError(
                f"ttl='{self.ttl}' is too short: no row would be valid.", help="Write for example ttl='7d'."
            )
        if self.windows and self.features is not None:
            raise UsageError(
                f"The feature view '{self.name}' has both features= and windows=, which cannot be combined.",
                help="Declare two views: one for the latest row, one for windows.",
            )
        names = [*self.entity, self.time, *([self.arrival] if self.arrival else []), *(self.features or ())]
        names += [name for window in self.windows for name in window.aggregates]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(
                f"The column '{repeated}' has two roles in the feature view '{self.name}'.",
                help="Use each column for one of entity, time, arrival and features.",
            )
        refuse_reserved(self.name, self._named())

    @property
    def keys(self) -> tuple[str, ...]:
        """The entity columns."""
        return tuple(self.entity)

    def feature_names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The features, given the columns of the source.

        Raises:
            UsageError: the source does not have a declared column.
        """
        wanted = [*self.keys, self.time, *([self.arrival] if self.arrival else []), *(self.features or ())]
        wanted += self.window_columns()
        for name in wanted:
            if name not in columns:
                raise UsageError(f"The source of '{self.name}' has no column '{name}'.", help=nearest(name, columns))
        if self.windows or self.features is not None:
            refuse_reserved(self.name, (*self._named(), *self.window_columns()))
            return self._named()[len(self.keys) :]
        found = tuple(name for name in columns if name not in (*self.keys, self.time, self.arrival))
        refuse_reserved(self.name, (*self.keys, *found))
        return found

    def _named(self) -> tuple[str, ...]:
        """The entity columns, and the features that are declared by name."""
        aggregates = (name for window in self.windows for name in window.aggregates)
        return (*self.keys, *(self.features or ()), *aggregates)

    def window_columns(self) -> tuple[str, ...]:
        """The columns of the source that the windows read."""
        return tuple(dict.fromkeys(column for window in self.windows for column, _ in window.aggregates.values()))

    def rows(self) -> object:
        """The rows of the source. If it is a step or a function, it is called."""
        source = self.source
        function = getattr(source, "function", source)
        return function() if callable(function) else source


__all__ = ["Aggregation", "FeatureView", "Window"]
