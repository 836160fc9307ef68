"""A feature view: what is known of an entity over time, and for how long it counts."""

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
        length: such as `7d`; a row counts from when it is known until `length` after its event.
        aggregates: name of the feature to `(column, aggregation)`. `count` counts rows that are not null, `std` is that
            of a sample (n - 1). NaN is a missing value here. Each is computed from the rows of its window alone, in
            float64.
    """

    length: str
    aggregates: Mapping[str, tuple[str, Aggregation]]

    def __init__(self, length: str, **aggregates: tuple[str, Aggregation]) -> None:
        if parse_duration(length).total_seconds() <= 0:
            raise UsageError(f"A window of '{length}' holds nothing.")
        if not aggregates:
            raise UsageError(f"The window of '{length}' has no features.", help="Write Window('7d', n=('x', 'count')).")
        for name, pair in aggregates.items():
            if not isinstance(pair, tuple) or len(pair) != 2 or pair[1] not in _AGGREGATIONS:
                raise UsageError(
                    f"The feature '{name}' of a window is {pair!r}.",
                    help=f"Write (column, aggregation), with one of {', '.join(_AGGREGATIONS)}.",
                )
        object.__setattr__(self, "length", length)
        object.__setattr__(self, "aggregates", dict(aggregates))


@dataclass(frozen=True)
class FeatureView:
    """A declaration; nothing is read when it is made.

    Args:
        name: letters, digits, `_` and `-`; names its table and its commands.
        source: the step, function or frame that gives the rows: one per entity and event.
        entity: the columns that name what the row is about.
        time: the column that says when the row's event happened.
        arrival: the column that says when the row became known; without it, a row is known when it happens.
        ttl: a row older than this no longer counts; without it, the latest counts for ever.
        features: the columns that are features; without them all but entity, time and arrival.
        windows: aggregates over the last days or hours instead of the latest row. Rows of one entity and event that
            arrive together all count; those that arrive later take their place.
        entity_as_text: the entity is compared as text: 7 and "7" are one. Otherwise a request or a row with text where
            the view has numbers is refused; the width of a whole number never matters.

    Raises:
        UsageError: the parts do not fit together.
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
                raise UsageError(f"features='{self.features}' is one text.", help=f"Write ['{self.features}'].")
            object.__setattr__(self, "features", tuple(self.features))
        if not self.entity:
            raise UsageError(f"The feature view '{self.name}' has no entity.", help="Name its columns with entity=.")
        if self.ttl is not None and parse_duration(self.ttl).total_seconds() <= 0:
            raise UsageError(f"ttl='{self.ttl}' lets nothing count.")
        if self.windows and self.features is not None:
            raise UsageError(
                f"The feature view '{self.name}' has both features= and windows=.",
                help="Declare two views: one of the latest row, one of windows.",
            )
        names = [*self.entity, self.time, *([self.arrival] if self.arrival else []), *(self.features or ())]
        names += [name for window in self.windows for name in window.aggregates]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise UsageError(f"The column '{doubled}' has two roles in the feature view '{self.name}'.")
        refuse_reserved(self.name, self._named())

    @property
    def keys(self) -> tuple[str, ...]:
        """The entity's columns."""
        return tuple(self.entity)

    def feature_names(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The features, given the columns of the source.

        Raises:
            UsageError: the source lacks a declared column.
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
        """The entity's columns, and the features that are declared by name."""
        made = (name for window in self.windows for name in window.aggregates)
        return (*self.keys, *(self.features or ()), *made)

    def window_columns(self) -> tuple[str, ...]:
        """The columns of the source that the windows read."""
        return tuple(dict.fromkeys(column for window in self.windows for column, _ in window.aggregates.values()))

    def rows(self) -> object:
        """What the source gives, called where it can be."""
        source = self.source
        function = getattr(source, "function", source)
        return function() if callable(function) else source


__all__ = ["Aggregation", "FeatureView", "Window"]
