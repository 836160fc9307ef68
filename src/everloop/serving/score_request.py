"""The rows of one request, and their scores: what protocols and scoring hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from everloop.records import Json
    from everloop.serving.route_scorer import RouteScorer

Values = tuple[Any, ...]


@dataclass(slots=True)
class ScoreRequest:
    """The rows of one request. `values`: in the order of the champion's signature, where all routes share it;
    else `rows`: plain dicts. `keys` and `event_at` have one item per row, or are None."""

    values: Sequence[Values] | None
    rows: Sequence[Mapping[str, Any]] | None
    keys: Sequence[str | float | None] | None = None
    event_at: Sequence[datetime | None] | None = None
    began: float = 0.0
    """`perf_counter()` when the request was whole."""
    explain: bool = False
    flags: Sequence[dict[str, Json]] = ()
    """What was mended before the rows fitted; see `mending`."""


@dataclass(slots=True)
class VersionScores:
    """The rows that one version answered."""

    scorer: RouteScorer
    positions: list[int] | None
    """Where they stand in the request; None: they are the request."""
    scores: list[Any]
    labels: list[Json] | None
    fallbacks: int = 0
    explanations: list[dict[str, Json]] | None = None


@dataclass(slots=True)
class ScoreResult:
    """What is sent, and what is left to do once it is on its way."""

    request_id: str
    rows: int
    parts: list[VersionScores]
    shadow: Callable[[], ShadowOutcome] | None
    seconds: float
    flags: list[dict[str, Json]] | None = None
    """What the rows hold that the champion did not see in training, and what was mended; None: nobody asked."""
    logged: bool = True
    """Whether it is in the log, or was not to be; False: there was no space, and the endpoint answers all the same."""
    unasked: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """The versions that did not understand some of the rows: how many, and why the first."""

    def explanations(self) -> list[dict[str, Json]] | None:
        """Why, for each row in the order of the request; None: nobody asked."""
        if self.parts[0].explanations is None:
            return None
        explanations: list[dict[str, Json]] = [{}] * self.rows
        for part in self.parts:
            for position, one in zip(part.positions or range(self.rows), part.explanations or (), strict=True):
                explanations[position] = one
        return explanations

    def version(self) -> str:
        """The key of the version that answered; of several, with commas between, in the order of the rows."""
        if len(self.parts) == 1:
            return self.parts[0].scorer.version
        first = sorted(self.parts, key=lambda part: (part.positions or [0])[0])
        return ", ".join(dict.fromkeys(part.scorer.version for part in first))


@dataclass(slots=True)
class ShadowOutcome:
    """What the shadows scored: (version, rows) each, and how many of them failed."""

    scored: list[tuple[str, int]]
    failures: int = 0
    unasked: int = 0
    """Rows that a shadow does not understand, because its inputs are others."""
