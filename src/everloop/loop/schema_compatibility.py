"""How often a rollout's versions could be asked at all, where they have different inputs.

The endpoint writes down for each row which versions did not understand it (`serving.understanding`). Such a row is
not an error of that version and no evidence about it, but it is a reason not to give that version all the traffic: the
champion answers those requests now, and once it is gone they would be refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from everloop.records import Json, Release
    from everloop.stores import Store

MOST_UNASKED = 0.01
"""The share of the rows since the last step that a candidate may not understand and still take all the traffic."""


@dataclass(frozen=True, slots=True)
class SchemaCoverage:
    """Rows answered since the rollout began, of those that were held against both versions."""

    candidate: str
    champion: str
    rows: int
    not_candidate: int
    """Rows that the candidate does not understand."""
    not_champion: int
    fresh_rows: int
    """Rows since the last step."""
    fresh_not_candidate: int

    @property
    def would_refuse(self) -> bool:
        """Whether the candidate alone would refuse more than a few of the requests that come now."""
        return self.fresh_not_candidate > MOST_UNASKED * self.fresh_rows

    def text(self) -> str:
        """What people are shown; empty where both versions understand everything."""
        told = [
            f"{version} could not be asked for {missed:,} of {self.rows:,} rows"
            for version, missed in ((self.candidate, self.not_candidate), (self.champion, self.not_champion))
            if missed
        ]
        return "; ".join(told)

    def evidence(self) -> dict[str, Json]:
        return {
            "rows_answered": self.rows,
            "candidate_not_asked": self.not_candidate,
            "champion_not_asked": self.not_champion,
        }


def find_understood(store: Store, release: Release, champion: str) -> SchemaCoverage | None:
    """Count; None where the endpoint has answered no row that it held against both versions, because these have the
    same inputs."""
    import polars as pl

    from everloop.prediction_log import read_predictions
    from everloop.prediction_log.label_matching import ANSWERED

    step = next(decision.at for decision in reversed(release.decisions) if decision.action in ("start", "advance"))
    seen = read_predictions(store, release.endpoint, since=release.created_at, roles=ANSWERED)
    if "unasked" not in seen.collect_schema():
        return None
    fresh = pl.col("event_at") >= step
    no_candidate, no_champion = (does_not_understand(version) for version in (release.candidate, champion))
    counts = (
        seen.filter(pl.col("unasked").is_not_null())
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


def does_not_understand(version: str) -> pl.Expr:
    """Whether the log says of a row that this version did not understand it; false where it does not say."""
    import polars as pl

    return pl.col("unasked").fill_null("").str.split(",").list.contains(version)


__all__ = ["SchemaCoverage", "does_not_understand", "find_understood"]
