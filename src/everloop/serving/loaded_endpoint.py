"""The versions that an endpoint uses at one moment: loaded, warmed and immutable.

When the endpoint's record changes, a new `LoadedEndpoint` is loaded beside the old one. Requests that began with the
old one finish with it. That is all there is to a hot swap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from everloop.errors import UnavailableError
from everloop.packages.predictor import Predictor, load_package
from everloop.prediction_log.redaction import check_hidden
from everloop.records import Route
from everloop.registry.model_versions import get_version
from everloop.serving.endpoint_settings import settings_of
from everloop.serving.route_scorer import RouteScorer, encoded_inputs, other_inputs
from everloop.serving.routing import RoutingTable
from everloop.serving.throughput import measure_throughput
from everloop.serving.unseen_values import checks_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from everloop.records import EndpointRecord
    from everloop.stores import Store

T = TypeVar("T")


class LoadedEndpoint:
    """Everything that is needed to answer requests, for one revision of the endpoint's record.

    Attributes:
        uniform: whether all routes have the same inputs, so one decoder serves them all.
        fields: the inputs of all routes by name, the champion's first.
        scorers: one per answering route, in the order of `table.answering`.
    """

    def __init__(self, endpoint: EndpointRecord, scorers: Mapping[str, RouteScorer]) -> None:
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
        self._cached: dict[str, Any] = {}

    def takes_long(self, rows: int) -> bool:
        """Whether scoring this number of rows may take longer than the event loop can wait."""
        return any(rows > scorer.throughput.rows for scorer in self.scorers)

    def cached(self, key: str, make: Callable[[LoadedEndpoint], T]) -> T:
        """A value that a protocol makes once per `LoadedEndpoint`, such as its decoder."""
        try:
            return self._cached[key]  # type: ignore[no-any-return]
        except KeyError:
            return self._cached.setdefault(key, make(self))  # type: ignore[no-any-return]


def pinned(loaded: LoadedEndpoint, wanted: str, role: str = "champion") -> LoadedEndpoint | None:
    """The same endpoint with one of its versions (also a shadow) answering everything; None if it has no such version.

    Args:
        wanted: a version's number or its key.
        role: its role in the log.
    """
    chosen = next((one for one in (*loaded.scorers, *loaded.shadows) if wanted in (str(one.number), one.version)), None)
    if chosen is None:
        return None

    def make(full: LoadedEndpoint) -> LoadedEndpoint:
        route = Route(version=chosen.version, percent=100.0)
        scorer = RouteScorer(route, chosen.predictor, full.settings, role=role)
        return LoadedEndpoint(replace(full.endpoint, routes=(route,)), {_route_key(route): scorer})

    return loaded.cached(f"pinned {role} {chosen.version}", make)


def load_versions(
    store: Store,
    endpoint: EndpointRecord,
    old: LoadedEndpoint | None = None,
    predictors: Mapping[str, Predictor] | None = None,
) -> LoadedEndpoint:
    """Load and warm the versions that the endpoint's routes name. Those that `old` already has are reused.

    Args:
        predictors: by version, of earlier routes, so going back to one loads nothing.

    Raises:
        UnavailableError: the endpoint has no routes yet.
        UsageError: its routes are invalid.
        NotFoundError: a version or package is missing.
        CorruptionError, TrustError: a package is damaged or not trusted.
    """
    if not endpoint.routes:
        raise UnavailableError(
            f"The endpoint '{endpoint.name}' has no version to answer with.", help="Release one: everloop release"
        )
    RoutingTable(endpoint.name, endpoint.routes)
    settings = settings_of(endpoint.options)
    known = dict(predictors or {})
    if old is not None:
        known |= {scorer.version: scorer.predictor for scorer in (*old.scorers, *old.shadows)}
    scorers: dict[str, RouteScorer] = {}
    for route in endpoint.routes:
        predictor = known.get(route.version)
        if predictor is None:
            version = get_version(store, route.version)
            predictor = load_package(store, version.package, version=version.key)
            predictor.warm()
            measure_throughput(predictor)
            known[route.version] = predictor
        scorers[_route_key(route)] = RouteScorer(route, predictor, settings)
    return LoadedEndpoint(endpoint, scorers)


def _names(scorer: RouteScorer) -> tuple[str, ...]:
    return (*scorer.names, *scorer.signature.ignored)


def _route_key(route: Route) -> str:
    return f"{route.role} {route.version}"
