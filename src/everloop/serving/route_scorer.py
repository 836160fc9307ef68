"""One route of an endpoint with its loaded model: turns rows into scores, and knows what of them is logged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import RequestError
from everloop.packages.row_scoring import row_function
from everloop.prediction_log.prediction_log import label_text
from everloop.prediction_log.redaction import redaction_for
from everloop.serving.throughput import throughput_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.packages.predictor import Predictor
    from everloop.records import Json, Route
    from everloop.serving.endpoint_settings import EndpointSettings


class RouteScorer:
    """One route with its loaded model, and how its answers are logged."""

    def __init__(
        self, route: Route, predictor: Predictor, settings: EndpointSettings | None = None, *, role: str | None = None
    ) -> None:
        """Prepare.

        Args:
            role: its role in the log, if that is not the route's role.
        """
        self.route = route
        self.version = route.version
        self.number = int(route.version.rpartition("@")[2])
        self.role = role or route.role
        self.predictor = predictor
        self.package = predictor.digest
        self.signature = predictor.signature
        self.names = predictor.input_names
        logged: dict[str, str] = {item.name: item.type for item in predictor.signature.inputs}
        self.redaction = None if settings is None else redaction_for(self.signature, settings)
        if self.redaction is not None:
            logged = self.redaction.inputs
        self.logged = logged
        self.logged_inputs = msgspec.Raw(msgspec.msgpack.encode(logged))
        self.others: tuple[tuple[int, int, str, str], ...] = ()
        """The other versions' inputs that the log keeps beside its own; see `schema_routing`."""
        self.mixed_inputs = self.logged_inputs
        self.task = predictor.task
        self._labels = predictor.classes
        self._texts = tuple(label_text(value) for value in predictor.classes)
        self._row = row_function(predictor, range(len(predictor.classes))) if predictor.cheap else None
        self.throughput = throughput_of(predictor)

    def score(self, rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[Json] | None, list[str] | None]:
        """Scores, labels and the labels' texts of rows whose values are in the order of the signature.

        Raises:
            RequestError: the model cannot score them, or a score is not finite.
        """
        if len(rows) == 1 and self._row is not None:
            return self._score_one(rows[0])
        names = self.names
        scores_array, found = self.predictor.answer_rows([dict(zip(names, row, strict=True)) for row in rows])
        scores: list[Any] = scores_array.tolist()
        if not (all(map(math.isfinite, scores)) if scores_array.ndim == 1 else math.isfinite(scores_array.sum())):
            raise self._not_finite()
        if found is None:
            return scores, None, None
        class_indices = found.tolist()
        return scores, [self._labels[index] for index in class_indices], [self._texts[index] for index in class_indices]

    def _not_finite(self) -> RequestError:
        return RequestError(f"The model {self.version} returned a score that is not finite for these inputs.")

    def _score_one(self, row: tuple[Any, ...]) -> tuple[list[Any], list[Json] | None, list[str] | None]:
        """Score a single row with the model's own function for that, without a frame or an array."""
        assert self._row is not None  # noqa: S101 - the caller has checked
        found = self._row(row)
        if self.task == "binary":
            position, score = found
            if score - score != 0.0:
                # Infinity or NaN.
                raise self._not_finite()
            return [score], [self._labels[position]], [self._texts[position]]
        numbers = found if self.task == "regression" else found[1:]
        if not all(map(math.isfinite, numbers)):
            raise self._not_finite()
        if self.task == "regression":
            return [found[0]], None, None
        scores = list(numbers)
        position = found[0]
        return [scores], [self._labels[position]], [self._texts[position]]


def other_inputs(
    scorers: Sequence[RouteScorer], answering: int, hidden: frozenset[str]
) -> list[tuple[int, int, str, str]]:
    """The other versions' inputs that the log keeps beside those of the version that answered.

    Args:
        hidden: inputs that the log may not store as they are; they are left out.

    Returns:
        For each: the number of the version, the position in its signature, the name in the log, and the type.
    """
    known = {item.name: item.type for item in scorers[answering].signature.inputs}
    found: dict[str, tuple[int, int, str, str]] = {}
    for number, scorer in enumerate(scorers):
        for position, item in enumerate(scorer.signature.inputs):
            if number == answering or known.get(item.name) == item.type or item.name in hidden:
                continue
            # An input whose type changed gets its own column; see `prediction_log`.
            name = item.name if item.name not in known else f"{item.name}@{item.type}"
            if name in found and found[name][3] != item.type:
                name = f"{item.name}@{item.type}"
            found.setdefault(name, (number, position, name, item.type))
    return list(found.values())


def encoded_inputs(scorer: RouteScorer) -> msgspec.Raw:
    """The logged inputs of a group of mixed rows: those of its version, then those of the others."""
    logged: dict[str, str] = {**scorer.logged, **{name: kind for _, _, name, kind in scorer.others}}
    return msgspec.Raw(msgspec.msgpack.encode(logged))
