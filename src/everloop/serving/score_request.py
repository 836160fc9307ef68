"""The rows of one request and their scores, as protocols and scoring pass them to each other."""

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
    """The rows of one request.

    Either `values` is set (tuples in the order of the champion's signature, if all routes share it) or `rows` is (plain
    dicts). `keys` and `event_at` have one item per row, or are None.
    """

    values: Sequence[Values] | None
    rows: Sequence[Mapping[str, Any]] | None
    keys: Sequence[str | float | None] | None = None
    event_at: Sequence[datetime | None] | None = None
    began: float = 0.0
    """`perf_counter()` when the request had arrived."""
    explain: bool = False
    flags: Sequence[dict[str, Json]] = ()
    """What was coerced to fit the signature; see `coercion`."""


@dataclass(slots=True)
class VersionScores:
    """The rows that one version answered."""

    scorer: RouteScorer
    positions: list[int] | None
    """Their positions in the request; None: all rows, in order."""
    scores: list[Any]
    labels: list[Json] | None
    fallbacks: int = 0
    explanations: list[dict[str, Json]] | None = None


@dataclass(slots=True)
class ScoreResult:
    """The scores of a request, and the shadows' work that is left once they are sent."""

    request_id: str
    rows: int
    parts: list[VersionScores]
    shadow: Callable[[], ShadowOutcome] | None
    seconds: float
    flags: list[dict[str, Json]] | None = None
    """Values that training has not seen, and values that were coerced; None: not checked."""
    logged: bool = True
    """False: the disk was full, and the endpoint is set to answer all the same."""
    unasked: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """The versions that could not score some rows: the number of rows, and the reason for the first."""

    def explanations(self) -> list[dict[str, Json]] | None:
        """One explanation per row, in the order of the request; None: not requested."""
        if self.parts[0].explanations is None:
            return None
        explanations: list[dict[str, Json]] = [{}] * self.rows
        for part in self.parts:
            for position, one in zip(part.positions or range(self.rows), part.explanations or (), strict=True):
                explanations[position] = one
        return explanations

    def version(self) -> str:
        """The key of the version that answered; if several did, comma-separated in the order of the rows."""
        if len(self.parts) == 1:
            return self.parts[0].scorer.version
        first = sorted(self.parts, key=lambda part: (part.positions or [0])[0])
        return ", ".join(dict.fromkeys(part.scorer.version for part in first))


@dataclass(slots=True)
class ShadowOutcome:
    """What the shadows scored, as (version, rows), and the versions that failed."""

    scored: list[tuple[str, int]]
    failed: list[str] = field(default_factory=list)
    unlogged: int = 0
    """Shadows whose scores could not be logged."""
    unasked: int = 0
    """Rows that a shadow cannot score because its inputs differ."""
