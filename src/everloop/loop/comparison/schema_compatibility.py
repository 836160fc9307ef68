"""Count the rows that each version of a rollout could not score, for versions with different inputs.

The endpoint records for each row which versions do not fit its columns (`serving.schema_routing`). Such a row is
neither an error of that version nor evidence about it. It is a reason not to give that version all the traffic, though:
the champion answers those requests now, and without it they would be refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.loop.releases.rollout import step_started_at

if TYPE_CHECKING:
    import polars as pl

    from everloop.records import Json, Release
    from everloop.stores import Store

MOST_UNASKED = 0.01
"""A candidate may take all the traffic if it cannot score at most this share of the rows since the last step."""


@dataclass(frozen=True, slots=True)
class SchemaCoverage:
    """Rows answered since the rollout began, of those that were checked against the inputs of both versions."""

    candidate: str
    champion: str
    rows: int
    not_candidate: int
    """Rows that the candidate cannot score."""
    not_champion: int
    """Rows that the champion cannot score."""
    fresh_rows: int
    """Rows since the last step."""
    fresh_not_candidate: int
    """Rows since the last step that the candidate cannot score."""

    @property
    def would_refuse(self) -> bool:
        """Whether the candidate alone would refuse more than a few of the current requests."""
        return self.fresh_not_candidate > MOST_UNASKED * self.fresh_rows

    def text(self) -> str:
        """A remark for people; empty if both versions can score every row."""
        return "; ".join(
            f"{version} could not score {missed:,} of {self.rows:,} rows"
            for version, missed in ((self.candidate, self.not_candidate), (self.champion, self.not_champion))
            if missed
        )

    def evidence(self) -> dict[str, Json]:
        return {
            "rows_answered": self.rows,
            "candidate_not_asked": self.not_candidate,
            "champion_not_asked": self.not_champion,
        }


def schema_coverage(store: Store, release: Release, champion: str) -> SchemaCoverage | None:
    """Count the rows that each version could not score.

    Returns:
        None if the endpoint checked no row against both versions, because they have the same inputs.
    """
    import polars as pl

    from everloop.prediction_log import read_predictions
    from everloop.prediction_log.label_matching import ANSWERED

    step = step_started_at(release)
    answered = read_predictions(store, release.endpoint, since=release.created_at, roles=ANSWERED)
    if "unasked" not in answered.collect_schema():
        return None
    fresh = pl.col("event_at") >= step
    no_candidate, no_champion = (cannot_score(version) for version in (release.candidate, champion))
    counts = (
        answered.filter(pl.col("unasked").is_not_null())
        .select(
            rows=pl.len(),
            not_candidate=no_candidate.sum(),
            not_champion=no_champion.sum(),
            fresh_rows=fresh.sum(),
            fresh_not_candidate=(fresh & no_candidate).sum(),
        )
        .collect()
        .row(0, named=True)
    )
    if not counts["rows"]:
        return None
    return SchemaCoverage(release.candidate, champion, **{name: int(count) for name, count in counts.items()})


def cannot_score(version: str) -> pl.Expr:
    """Whether the log marks a row as one that this version cannot score; false if nothing was recorded."""
    import polars as pl

    return pl.col("unasked").fill_null("").str.split(",").list.contains(version)
