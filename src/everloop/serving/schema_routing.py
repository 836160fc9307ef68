"""Versions with different inputs behind one endpoint: which of them understands which row, and which answers it.

While a release changes the inputs, clients send rows of the old schema, of the new one, or of both. Each row is held
against the signature of every version. It is answered by the version that its key leads to if that understands it,
else by the champion, else by any other that does; only a row that no version understands is refused. The versions that
could not be asked are named in the answer and in the log, where each row also keeps the inputs of the others, so that
the evidence of a release compares two versions on rows that both understand, and on no others.
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
    places: list[int] | None
    """Where they stand in the request; None: they are the request."""
    values: Sequence[Values]
    fallbacks: int = 0
    """Rows whose key leads to another version, which does not understand them."""
    others: list[Values] | None = None
    """A row each: the inputs of the other versions, in the order of `SchemaMatch.others`."""
    unasked: list[str] | None = None
    """A row each: the versions that could not be asked, with commas between."""


@dataclass(slots=True)
class SchemaMatch:
    """What the versions of a `LoadedEndpoint` make of the rows of one request."""

    live: LoadedEndpoint
    size: int
    fits: list[list[Values | None]]
    """For each answering version, and each row: its values, or None where the version does not understand it."""
    why: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Versions, the answering and the shadows, that could not be asked: for how many rows, and why the first."""
    flags: list[dict[str, Json]] = field(default_factory=list)
    """What was mended."""

    def share(self, picked: Mapping[int, list[int]]) -> list[VersionRows]:
        """The rows by the version that answers them.

        Args:
            picked: for each answering version, the rows whose keys lead to it.
        """
        scorers, champion = self.live.scorers, self.live.table.champion
        order = [champion, *(number for number in range(len(scorers)) if number != champion)]
        shares: dict[int, VersionRows] = {}
        for wanted, places in picked.items():
            for place in places:
                chosen = next(one for one in (wanted, *order) if self.fits[one][place] is not None)
                share = shares.setdefault(chosen, VersionRows(scorers[chosen], [], [], 0, [], []))
                values = self.fits[chosen][place]
                assert share.places is not None and share.others is not None and share.unasked is not None  # noqa: S101, PT018
                share.places.append(place)
                share.values.append(values)  # type: ignore[attr-defined]
                share.others.append(self._others(chosen, place))
                share.unasked.append(self._unasked(place))
                share.fallbacks += chosen != wanted
        return list(shares.values())

    def champions_rows(self) -> list[tuple[int, Values]]:
        """The rows that the champion understands, each with its place."""
        return [(place, row) for place, row in enumerate(self.fits[self.live.table.champion]) if row is not None]

    def _unasked(self, place: int) -> str:
        pairs = zip(self.live.scorers, self.fits, strict=True)
        return ",".join(scorer.version for scorer, fits in pairs if fits[place] is None)

    def _others(self, chosen: int, place: int) -> Values:
        found = []
        for version, at, _, _ in self.live.scorers[chosen].others:
            row = self.fits[version][place]
            found.append(None if row is None else row[at])
        return tuple(found)


def match_schemas(live: LoadedEndpoint, rows: Sequence[Mapping[str, Any]]) -> SchemaMatch:
    """Hold rows against every version.

    Raises:
        RequestError: no version that answers understands a row; the message says what each wants.
    """
    for number, row in enumerate(rows):
        for name in row:
            if name not in live.known_names:
                if live.settings.unfit == "flag":
                    continue
                raise live.signature.explain(
                    ValueError(f"Object contains unknown field `{name}` - at `$.rows[{number}]`")
                )
    errors: list[dict[int, RequestError]] = []
    fits = []
    for scorer in live.scorers:
        values, refused = _fitting(scorer.signature, rows)
        fits.append(values)
        errors.append(refused)
    found = SchemaMatch(live, len(rows), fits)
    _mend(found, rows)
    for place in range(len(rows)):
        if all(values[place] is None for values in fits):
            raise _nobody(live, place, [refused[place] for refused in errors])
    for scorer, refused, values in zip(live.scorers, errors, fits, strict=True):
        # What was mended since is understood after all.
        _note(found, scorer, {place: error for place, error in refused.items() if values[place] is None})
    for shadow in live.shadows:
        if shadow.signature.shape != live.signature.shape:
            _note(found, shadow, _fitting(shadow.signature, rows)[1])
    return found


def fitting_rows(scorer: RouteScorer, rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[Values]]:
    """The rows that a version understands: their places and values."""
    values, _ = _fitting(scorer.signature, rows)
    places = [place for place, row in enumerate(values) if row is not None]
    return places, [row for row in values if row is not None]


def _fitting(
    signature: Signature, rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Values | None], dict[int, RequestError]]:
    own = [{name: row[name] for name in signature.names if name in row} for row in rows]
    try:
        return list(signature.rows_of(own)), {}
    except RequestError:
        # At least one does not fit; which ones is found row by row.
        pass
    values: list[Values | None] = []
    refused: dict[int, RequestError] = {}
    for place, row in enumerate(own):
        try:
            values.append(signature.rows_of([row])[0])
        except RequestError as error:
            values.append(None)
            refused[place] = RequestError(error.message.replace("rows[0]", f"rows[{place}]", 1), help=error.help)
    return values, refused


def _mend(found: SchemaMatch, rows: Sequence[Mapping[str, Any]]) -> None:
    """Mend for the champion what no version understands, where the endpoint's settings say so."""
    live = found.live
    if live.settings.unfit != "flag":
        return
    champion = found.fits[live.table.champion]
    for place, row in enumerate(rows):
        if any(values[place] is not None for values in found.fits):
            extra = [name for name in row if name not in live.known_names]
            found.flags += [{"row": place, "input": str(name)[:200], "flag": "extra"} for name in extra]
            continue
        mended, flags = coerce_rows([row], live.signature)
        values, _ = _fitting(live.signature, mended)
        if values[0] is not None:
            champion[place] = values[0]
            found.flags += [{**flag, "row": place} for flag in flags]


def _nobody(live: LoadedEndpoint, place: int, refused: Sequence[RequestError]) -> RequestError:
    """Why no version takes a row: the champion's complaint, those of the others, and what each wants."""
    own = refused[live.table.champion]
    told = [own.message]
    wants = [f"{live.champion.version} takes {', '.join(live.champion.names[:30])}"]
    for number, (scorer, error) in enumerate(zip(live.scorers, refused, strict=True)):
        if number == live.table.champion:
            continue
        if error.message != own.message:
            told.append(f"{scorer.version} does not take the row either: {error.message}")
        if scorer.names != live.champion.names:
            wants.append(f"{scorer.version} takes {', '.join(scorer.names[:30])}")
    return RequestError(" ".join(told), help=f"{'; '.join(wants)}." if len(wants) > 1 else own.help)


def _note(found: SchemaMatch, scorer: RouteScorer, refused: Mapping[int, RequestError]) -> None:
    if refused:
        first = refused[min(refused)]
        found.why[scorer.version] = (len(refused), first.message)


__all__ = ["SchemaMatch", "VersionRows", "fitting_rows", "match_schemas"]
