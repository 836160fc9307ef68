"""Subjects whose change a person has accepted as the new normal, kept with the baseline.

Later windows are compared with the accepted distribution or correlation. How much a subject may vary, by chance, by
wandering levels and by season, is still that of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from everloop.data.sketches.column_sketches import Sketch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.data.sketches.bins import Bins
    from everloop.records import Json


@dataclass(frozen=True, slots=True)
class AcceptedSubject:
    """The new normal of one subject.

    Attributes:
        sketch: its distribution in the accepted windows, with the bins of the reference.
        since: start of the accepted windows.
        until: their end.
        incident: id of the incident that was accepted.
    """

    sketch: Sketch
    since: datetime
    until: datetime
    incident: str

    def to_json(self) -> dict[str, Json]:
        times = {"since": self.since.isoformat(), "until": self.until.isoformat()}
        return {**self.sketch.counted(), **times, "incident": self.incident}

    @classmethod
    def from_json(cls, data: Mapping[str, Json], bins: Bins) -> AcceptedSubject:
        since, until = (datetime.fromisoformat(data[name]) for name in ("since", "until"))
        return cls(Sketch.from_json(data, bins), since, until, str(data["incident"]))


@dataclass(frozen=True, slots=True)
class AcceptedPair:
    """The new normal of the correlation of two features.

    Attributes:
        value: Fisher-transformed correlation in the accepted windows.
        rows: number of rows that it is based on.
        since: start of the accepted windows.
        until: their end.
        incident: id of the incident that was accepted.
    """

    value: float
    rows: int
    since: datetime
    until: datetime
    incident: str

    def to_json(self) -> dict[str, Json]:
        times = {"since": self.since.isoformat(), "until": self.until.isoformat()}
        return {"value": self.value, "rows": self.rows, **times, "incident": self.incident}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> AcceptedPair:
        since, until = (datetime.fromisoformat(data[name]) for name in ("since", "until"))
        return cls(float(data["value"]), int(data["rows"]), since, until, str(data["incident"]))
