"""Routes rows between versions with different inputs behind one endpoint.

While a release changes the inputs, clients send rows of the old schema, of the new one, or of both. Each row is checked
against the signature of every version. The version that its key is routed to answers if the row fits it, else the
champion, else any other version that it fits; a row that fits no version is refused. The response and the log name the
versions that a row does not fit. The log also keeps the inputs of the other versions, so a release compares two
versions only on rows that fit both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import RequestError
from everloop.serving.coercion import coerce_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.packages.signature import Signature
    from everloop.records import Json
    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.route_scorer import RouteScorer

Values = tuple[Any, ...]


@dataclass(slots=True)
class VersionRows:
    """The rows that one version answers."""

    scorer: RouteScorer
    positions: list[int] | None
    """Their positions in the request; None: all rows, in order."""
    values: Sequence[Values]
    fallbacks: int = 0
    """Rows whose key is routed to another version, which they do not fit."""
    others: list[Values] | None = None
    """For each row: the inputs of the other versions, in the order of `RouteScorer.others`."""
    unasked: list[str] | None = None
    """For each row: the versions that it does not fit, comma-separated."""


@dataclass(slots=True)
class SchemaMatch:
    """Which versions of a `LoadedEndpoint` the rows of one request fit."""

    loaded: LoadedEndpoint
    size: int
    fits: list[list[Values | None]]
    """For each answering version and each row: the values, or None if the row does not fit the version."""
    why: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Versions, shadows included, that some rows do not fit: the number of rows, and the reason for the first."""
    flags: list[dict[str, Json]] = field(default_factory=list)
    """Values that were coerced."""

    def assign(self, picked: Mapping[int, list[int]]) -> list[VersionRows]:
        """Group the rows by the version that answers them.

        Args:
            picked: for each answering version, the rows whose keys are routed to it.
        """
        scorers, champion = self.loaded.scorers, self.loaded.table.champion
        order = [champion, *(number for number in range(len(scorers)) if number != champion)]
        by_version: dict[int, VersionRows] = {}
        for wanted, positions in picked.items():
            for position in positions:
                chosen = next(one for one in (wanted, *order) if self.fits[one][position] is not None)
                group = by_version.setdefault(chosen, VersionRows(scorers[chosen], [], [], 0, [], []))
                values = self.fits[chosen][position]
                assert group.positions is not None and group.others is not None and group.unasked is not None  # noqa: S101, PT018
                group.positions.append(position)
                group.values.append(values)  # type: ignore[attr-defined]
                group.others.append(self._others(chosen, position))
                group.unasked.append(self._unasked(position))
                group.fallbacks += chosen != wanted
        return list(by_version.values())

    def champions_rows(self) -> list[tuple[int, Values]]:
        """The rows that fit the champion, each with its position."""
        return [
            (position, row) for position, row in enumerate(self.fits[self.loaded.table.champion]) if row is not None
        ]

    def _unasked(self, position: int) -> str:
        pairs = zip(self.loaded.scorers, self.fits, strict=True)
        return ",".join(scorer.version for scorer, fits in pairs if fits[position] is None)

    def _others(self, chosen: int, position: int) -> Values:
        schema_match = []
        for version, at, _, _ in self.loaded.scorers[chosen].others:
            row = self.fits[version][position]
            schema_match.append(None if row is None else row[at])
        return tuple(schema_match)


def match_schemas(loaded: LoadedEndpoint, rows: Sequence[Mapping[str, Any]]) -> SchemaMatch:
    """Check rows against the signature of every version.

    Raises:
        RequestError: a row fits no answering version; the message says what each version expects.
    """
    for number, row in enumerate(rows):
        for name in row:
            if name not in loaded.known_names:
                if loaded.settings.unfit == "flag":
                    continue
                raise loaded.signature.explain(
                    ValueError(f"Object contains unknown field `{name}` - at `$.rows[{number}]`")
                )
    errors: list[dict[int, RequestError]] = []
    fits = []
    for scorer in loaded.scorers:
        values, refused = _fitting(scorer.signature, rows)
        fits.append(values)
        errors.append(refused)
    schema_match = SchemaMatch(loaded, len(rows), fits)
    _coerce(schema_match, rows)
    for position in range(len(rows)):
        if all(values[position] is None for values in fits):
            raise _no_version_error(loaded, position, [refused[position] for refused in errors])
    for scorer, refused, values in zip(loaded.scorers, errors, fits, strict=True):
        # A row that was coerced since fits after all.
        _note(
            schema_match, scorer, {position: error for position, error in refused.items() if values[position] is None}
        )
    for shadow in loaded.shadows:
        if shadow.signature.shape != loaded.signature.shape:
            _note(schema_match, shadow, _fitting(shadow.signature, rows)[1])
    return schema_match


def fitting_rows(scorer: RouteScorer, rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[Values]]:
    """The positions and values of the rows that fit a version."""
    values, _ = _fitting(scorer.signature, rows)
    positions = [position for position, row in enumerate(values) if row is not None]
    return positions, [row for row in values if row is not None]


def _fitting(
    signature: Signature, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Values | None], dict[int, RequestError]]:
    champion_error = [{name: row[name] for name in signature.names if name in row} for row in rows]
    try:
        return list(signature.rows_of(champion_error)), {}
    except RequestError:
        # At least one row does not fit. Checking them one by one finds which.
        pass
    values: list[Values | None] = []
    refused: dict[int, RequestError] = {}
    for position, row in enumerate(champion_error):
        try:
            values.append(signature.rows_of([row])[0])
        except RequestError as error:
            values.append(None)
            refused[position] = RequestError(error.message.replace("rows[0]", f"rows[{position}]", 1), help=error.help)
    return values, refused


def _coerce(schema_match: SchemaMatch, rows: Sequence[Mapping[str, Any]]) -> None:
    """Coerce rows that fit no version to the champion's signature, if the endpoint's settings say so."""
    loaded = schema_match.loaded
    if loaded.settings.unfit != "flag":
        return
    champion = schema_match.fits[loaded.table.champion]
    for position, row in enumerate(rows):
        if any(values[position] is not None for values in schema_match.fits):
            extra = [name for name in row if name not in loaded.known_names]
            schema_match.flags += [{"row": position, "input": str(name)[:200], "flag": "extra"} for name in extra]
            continue
        coerced, flags = coerce_rows([row], loaded.signature)
        values, _ = _fitting(loaded.signature, coerced)
        if values[0] is not None:
            champion[position] = values[0]
            schema_match.flags += [{**flag, "row": position} for flag in flags]


def _no_version_error(loaded: LoadedEndpoint, position: int, refused: Sequence[RequestError]) -> RequestError:
    """The error for a row that fits no version: the reason of each, and the inputs that each expects."""
    champion_error = refused[loaded.table.champion]
    messages = [champion_error.message]
    expected = [f"{loaded.champion.version} expects {', '.join(loaded.champion.names[:30])}"]
    for number, (scorer, error) in enumerate(zip(loaded.scorers, refused, strict=True)):
        if number == loaded.table.champion:
            continue
        if error.message != champion_error.message:
            messages.append(f"The row does not fit {scorer.version} either: {error.message}")
        if scorer.names != loaded.champion.names:
            expected.append(f"{scorer.version} expects {', '.join(scorer.names[:30])}")
    return RequestError(
        " ".join(messages), help=f"{'; '.join(expected)}." if len(expected) > 1 else champion_error.help
    )


def _note(schema_match: SchemaMatch, scorer: RouteScorer, refused: Mapping[int, RequestError]) -> None:
    if refused:
        first = refused[min(refused)]
        schema_match.why[scorer.version] = (len(refused), first.message)


__all__ = ["SchemaMatch", "VersionRows", "fitting_rows", "match_schemas"]
