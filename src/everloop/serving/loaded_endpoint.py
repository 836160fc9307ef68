"""The versions that an endpoint has in use at one moment: loaded, warmed and immutable.

A change of the endpoint's record makes a new `Live` beside the old one; requests that began on the old one end on
it. That is all there is to a hot swap.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from everloop.errors import RequestError, UnavailableError
from everloop.packages.predictor import Predictor, load_package
from everloop.packages.row_scoring import row_function
from everloop.prediction_log.prediction_log import label_text
from everloop.prediction_log.redaction import check_hidden, redaction_for
from everloop.records import Route
from everloop.registry.model_versions import get_version
from everloop.serving.endpoint_settings import settings_of
from everloop.serving.routing import RoutingTable
from everloop.serving.schema_routing import encoded_inputs, other_inputs
from everloop.serving.throughput import measure_pace, pace_of
from everloop.serving.unseen_values import checks_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from everloop.records import Endpoint, Json
    from everloop.serving.endpoint_settings import Settings
    from everloop.stores import Store

T = TypeVar("T")


class Scorer:
    """One route with its loaded model, and how its answers are written down."""

    def __init__(
        self, route: Route, predictor: Predictor, settings: Settings | None = None, *, role: str | None = None
    ) -> None:
        """Prepare.

        Args:
            role: what the log calls it, where that is not the route's role.
        """
        self.route = route
        self.version = route.version
        self.number = int(route.version.rpartition("@")[2])
        self.role = role or route.role
        self.predictor = predictor
        self.package = predictor.digest
        self.signature = predictor.signature
        self.names = predictor.input_names
        kept: dict[str, str] = {item.name: item.type for item in predictor.signature.inputs}
        self.redaction = None if settings is None else redaction_for(self.signature, settings)
        if self.redaction is not None:
            kept = self.redaction.inputs
        self.kept = kept
        self.logged_inputs = msgspec.Raw(msgspec.msgpack.encode(kept))
        self.others: tuple[tuple[int, int, str, str], ...] = ()
        """The other versions' inputs that the log keeps beside its own; see `understanding`."""
        self.mixed_inputs = self.logged_inputs
        self.task = predictor.task
        self._labels = predictor.classes
        self._texts = tuple(label_text(value) for value in predictor.classes)
        self._row = row_function(predictor, range(len(predictor.classes))) if predictor.cheap else None
        self.pace = pace_of(predictor)

    def score(self, rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Json] | None, list[str] | None]:
        """Scores, labels and the labels' texts of rows whose values stand in the order of the signature.

        Raises:
            RequestError: the model cannot score them, or a score is not a finite number.
        """
        if len(rows) == 1 and self._row is not None:
            return self._score_one(rows[0])
        names = self.names
        answer, found = self.predictor.answer_rows([dict(zip(names, row, strict=True)) for row in rows])
        scores: list[Any] = answer.tolist()
        if not (all(map(math.isfinite, scores)) if answer.ndim == 1 else math.isfinite(answer.sum())):
            raise self._not_finite()
        if found is None:
            return scores, None, None
        places = found.tolist()
        return scores, [self._labels[place] for place in places], [self._texts[place] for place in places]

    def _not_finite(self) -> RequestError:
        return RequestError(f"The model {self.version} gives no finite score for these inputs.")

    def _score_one(self, row: tuple[Any, ...]) -> tuple[list[Any], list[Json] | None, list[str] | None]:
        """A row alone, through the model's own function for it: no frame, no array."""
        assert self._row is not None  # noqa: S101 - the caller has looked
        found = self._row(row)
        if self.task == "binary":
            place, score = found
            if score - score != 0.0:
                # An infinity or no number at all.
                raise self._not_finite()
            return [score], [self._labels[place]], [self._texts[place]]
        numbers = found if self.task == "regression" else found[1:]
        if not all(map(math.isfinite, numbers)):
            raise self._not_finite()
        if self.task == "regression":
            return [found[0]], None, None
        scores = list(numbers)
        place = found[0]
        return [scores], [self._labels[place]], [self._texts[place]]


class Live:
    """Everything that answering needs, of one revision of the endpoint's record.

    Attributes:
        uniform: whether all routes have the same inputs, so that one decoder serves them all.
        fields: the inputs of all routes by name, the champion's first.
        scorers: one per answering route, in the order of `table.answering`.
    """

    def __init__(self, endpoint: Endpoint, scorers: Mapping[str, Scorer]) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self.revision = endpoint.revision
        self.table = RoutingTable(endpoint.name, endpoint.routes)
        self.scorers = tuple(scorers[_route_key(route)] for route in self.table.answering)
        self.shadows = tuple(scorers[_route_key(route)] for route in self.table.shadows)
        self.champion = self.scorers[self.table.champion]
        self.signature = self.champion.signature
        self.settings = settings_of(endpoint.options)
        self.checks = checks_for(self.signature, self.settings.unseen)
        every = (*self.scorers, *self.shadows)
        self.uniform = all(scorer.signature.shape == self.signature.shape for scorer in every)
        self.known_names = frozenset(name for scorer in every for name in _names(scorer))
        self.fields = {name: kind for one in (*every, self.champion) for name, kind in one.signature.fields.items()}
        if not self.uniform:
            hidden = frozenset((*self.settings.log_drop, *self.settings.log_hash))
            for number, scorer in enumerate(self.scorers):
                scorer.others = tuple(other_inputs(self.scorers, number, hidden))
                scorer.mixed_inputs = encoded_inputs(scorer)
        check_hidden(self.settings, self.known_names)
        self._made: dict[str, Any] = {}

    def takes_long(self, rows: int) -> bool:
        """Whether scoring so many rows may take longer than the event loop can wait."""
        return any(rows > scorer.pace.rows for scorer in self.scorers)

    def made(self, key: str, make: Callable[[Live], T]) -> T:
        """What a protocol makes once per `Live`, such as its decoder."""
        try:
            return self._made[key]  # type: ignore[no-any-return]
        except KeyError:
            return self._made.setdefault(key, make(self))  # type: ignore[no-any-return]


def pinned(live: Live, wanted: str, role: str = "champion") -> Live | None:
    """The same endpoint with one of its versions, shadows too, answering everything; None where it has no such.

    Args:
        wanted: a version's number or its key.
        role: what the log calls it.
    """
    chosen = next((one for one in (*live.scorers, *live.shadows) if wanted in (str(one.number), one.version)), None)
    if chosen is None:
        return None

    def make(whole: Live) -> Live:
        route = Route(version=chosen.version, percent=100.0)
        scorer = Scorer(route, chosen.predictor, whole.settings, role=role)
        return Live(replace(whole.endpoint, routes=(route,)), {_route_key(route): scorer})

    return live.made(f"pinned {role} {chosen.version}", make)


def load_live(
    store: Store, endpoint: Endpoint, old: Live | None = None, kept: Mapping[str, Predictor] | None = None
) -> Live:
    """Load and warm the versions that the endpoint's routes name; those that `old` has already are taken over.

    Args:
        kept: further predictors by version, of routes that were in use before: going back to one loads nothing.

    Raises:
        UnavailableError: the endpoint has no routes yet.
        UsageError: its routes make no table.
        NotFoundError: a version or package is missing.
        CorruptionError, TrustError: a package may not be used.
    """
    if not endpoint.routes:
        raise UnavailableError(
            f"The endpoint '{endpoint.name}' has no version to answer with.", help="Release one: everloop release"
        )
    RoutingTable(endpoint.name, endpoint.routes)
    settings = settings_of(endpoint.options)
    loaded = dict(kept or {})
    if old is not None:
        loaded |= {scorer.version: scorer.predictor for scorer in (*old.scorers, *old.shadows)}
    scorers: dict[str, Scorer] = {}
    for route in endpoint.routes:
        predictor = loaded.get(route.version)
        if predictor is None:
            version = get_version(store, route.version)
            predictor = load_package(store, version.package, version=version.key)
            predictor.warm()
            measure_pace(predictor)
            loaded[route.version] = predictor
        scorers[_route_key(route)] = Scorer(route, predictor, settings)
    return Live(endpoint, scorers)


def _names(scorer: Scorer) -> tuple[str, ...]:
    return (*scorer.names, *scorer.signature.ignored)


def _route_key(route: Route) -> str:
    return f"{route.role} {route.version}"
