"""Judge windows: how surprising they are under the noise model of a baseline, and whether that opens an incident.

Learning the noise and its limit takes a second for many features, so both are kept for the next window.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.pair_correlations import pairs_of
from everloop.errors import UsageError
from everloop.monitoring.baseline import PREDICTION, Baseline
from everloop.monitoring.noise.declared_seasons import DeclaredSeason, parse_seasons
from everloop.monitoring.noise.incident_rate import RULE, STRONG, find_limit
from everloop.monitoring.noise.noise_model import CALM_SURPRISE, SCALES, NoiseModel, ReferenceCounts
from everloop.monitoring.noise.reference_seasons import seconds_of
from everloop.monitoring.window_counts import WindowCounts, subject_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = npt.NDArray[np.float64]

MONTH = timedelta(days=365.25 / 12)
MEMORY = max(SCALES) - 1
"""How many windows before the one that is judged are needed."""

_MOST_JUDGES = 16
_judges: OrderedDict[tuple[str, timedelta, float, float, tuple[DeclaredSeason, ...]], DriftJudge] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class SubjectJudgement:
    """What a window says about one subject.

    Attributes:
        direction: the most surprising direction, such as `location`, `scale`, `missing`, `new` or `rest`.
        value: the deviation in that direction: standard deviations for a location, otherwise see `directions`.
        surprise: −ln of its p-value, the strongest over one, three and seven windows.
        alone: the same for this window alone.
        p_value: probability of such a surprise in any direction of the subject if nothing has changed.
    """

    subject: str
    direction: str
    value: float
    surprise: float
    alone: float
    p_value: float


@dataclass(frozen=True, slots=True)
class WindowJudgement:
    """What a window says about all directions; see `NoiseModel.strongest`."""

    strongest: Array
    alone: Array
    values: Array
    limit: float
    model: NoiseModel

    def strong(self, found: SubjectJudgement) -> bool:
        """Whether a subject is surprising enough to open an incident beside an ongoing one."""
        return found.surprise > self.limit + STRONG

    def calm(self, subject: str) -> bool:
        """Whether nothing about a subject is surprising in this window alone."""
        own = [index for index, (name, _) in enumerate(self.model.names) if name == subject]
        return all(self.alone[index] <= CALM_SURPRISE for index in own)

    def subjects(self) -> dict[str, SubjectJudgement]:
        """Return the judgement on each subject, the most surprising one first."""
        best: dict[str, int] = {}
        directions: dict[str, int] = {}
        for index, (subject, _) in enumerate(self.model.names):
            directions[subject] = directions.get(subject, 0) + 1
            if subject not in best or self.strongest[index] > self.strongest[best[subject]]:
                best[subject] = index
        found = {}
        for subject, index in sorted(best.items(), key=lambda item: -self.strongest[item[1]]):
            surprise = float(self.strongest[index] + self.model.handicap[index])
            trials = directions[subject] * len(SCALES)
            found[subject] = SubjectJudgement(
                subject=subject,
                direction=self.model.names[index][1],
                value=float(self.values[index]),
                surprise=float(self.strongest[index]),
                alone=float(self.alone[index]),
                p_value=min(1.0, trials * math.exp(-max(0.0, surprise))),
            )
        return found


@dataclass(frozen=True, slots=True)
class DriftJudge:
    """Judges windows of one length against one baseline.

    `limit`: surprise above which an incident opens.
    """

    model: NoiseModel
    limit: float

    @property
    def memory(self) -> int:
        """How many windows before the one that is judged are needed."""
        return max(MEMORY, self.model.course.memory if self.model.course is not None else 0)

    def judge(self, windows: WindowCounts) -> list[WindowJudgement]:
        """Judge each window, together with those before it. The first ones have fewer before them."""
        seconds = windows.seconds()
        values, variances = self.model.deviations(windows.counts, seconds, windows.correlations, windows.rows)
        values, unsure = self.model.follow_seasons(values, variances, seconds)
        strongest, alone = self.model.strongest(values, variances, unsure=unsure)
        return [
            WindowJudgement(strongest[index], alone[index], values[index], self.limit, self.model)
            for index in range(len(windows.starts))
        ]


def judge_for(
    baseline: Baseline,
    window: timedelta,
    rows: float,
    incidents_per_window: float,
    *,
    limits: Mapping[str, float] | None = None,
    seasons: Sequence[str] = (),
) -> DriftJudge:
    """Return the judge of a baseline, learned once for windows of about as many rows.

    Args:
        window: length of a window.
        rows: rows of a typical window.
        incidents_per_window: how many incidents may open per window if nothing changes; see `incidents_per_window`.
        limits: limits that were found for this baseline before, by their `limit_key`. Finding one takes far longer
            than everything else.
        seasons: names of declared seasons, as `parse_seasons` reads them.
    """
    _check_settings(window, incidents_per_window)
    declared = parse_seasons(seasons, window)
    size = typical_size(rows)
    # What has been accepted moves the centre only, so the noise need not be learned again.
    reference = replace(baseline, accepted={}, accepted_pairs={}) if _is_rebased(baseline) else baseline
    key = (reference.digest(), window, size, incidents_per_window, declared)
    with _lock:
        found = _judges.get(key)
        if found is not None:
            _judges.move_to_end(key)
            return _recentred(found, baseline)
    model = NoiseModel.learn(reference_counts(baseline), window, size, declared)
    known = (limits or {}).get(limit_key(window, rows, incidents_per_window, seasons))
    judge = DriftJudge(model, known if known is not None else find_limit(model, min(0.5, incidents_per_window)))
    with _lock:
        _judges[key] = judge
        while len(_judges) > _MOST_JUDGES:
            _judges.popitem(last=False)
    return _recentred(judge, baseline)


def judge_alone(
    baseline: Baseline, windows: WindowCounts, incidents_per_month: float, *, rows: float, seasons: bool
) -> WindowJudgement:
    """Judge one window without those before it.

    Args:
        windows: the window.
        rows: how many rows it has; those of `windows` are the rows from which correlations were measured.
        seasons: False if it is not known when the window was, so that the seasons cannot be taken into account.
    """
    judge = judge_for(baseline, windows.span, rows, incidents_per_window(incidents_per_month, windows.span))
    if not seasons:
        judge = replace(judge, model=replace(judge.model, seasons=[]))
    return judge.judge(windows)[-1]


def _is_rebased(baseline: Baseline) -> bool:
    return bool(baseline.accepted or baseline.accepted_pairs)


def _recentred(judge: DriftJudge, baseline: Baseline) -> DriftJudge:
    if not _is_rebased(baseline):
        return judge
    accepted = {
        subject: (one.sketch, seconds_of(one.since), seconds_of(one.until))
        for subject, one in baseline.accepted.items()
    }
    pairs = {
        subject: (one.value, one.rows, seconds_of(one.since), seconds_of(one.until))
        for subject, one in baseline.accepted_pairs.items()
    }
    return replace(judge, model=judge.model.recentred(accepted, pairs))


def limit_key(window: timedelta, rows: float, incidents_per_window: float, seasons: Sequence[str] = ()) -> str:
    """Return what the limit depends on besides the baseline."""
    return " ".join([f"{RULE} {window.total_seconds():g} {typical_size(rows):g} {incidents_per_window!r}", *seasons])


def typical_size(rows: float) -> float:
    """Return the power of 4 nearest to a number of rows.

    Windows of similar size share a judge, because chance is part of each window's own variance.
    """
    return 4.0 ** round(math.log(max(rows, 1.0), 4))


def reference_counts(baseline: Baseline) -> ReferenceCounts:
    """Return what the noise model learns from a baseline."""
    features = baseline.features
    sketches = {subject_of(name, baseline): sketch for name, sketch in features.sketches.items()}
    blocks: dict[str, Array] = {}
    starts = np.zeros(0)
    span = timedelta(0)
    if features.blocks is not None:
        blocks = {subject_of(name, baseline): features.blocks.counts_of(name) for name in features.sketches}
        first = seconds_of(features.blocks.start)
        span = features.blocks.span
        starts = np.asarray(first + span.total_seconds() * np.arange(features.blocks.number), dtype=np.float64)
    score = None
    if baseline.score is not None:
        score = PREDICTION
        sketches[PREDICTION] = baseline.score.sketches[PREDICTION]
        if features.blocks is not None:
            own = baseline.score.blocks
            cells = sketches[PREDICTION].bins.cells
            blocks[PREDICTION] = own.counts_of(PREDICTION) if own is not None else np.zeros((len(starts), cells))
    pairs = baseline.pairs
    if pairs is None:
        return ReferenceCounts(sketches, blocks, starts, span, score)
    named = [(subject_of(one, baseline), subject_of(other, baseline)) for one, other in pairs_of(pairs.names)]
    # Every feature counts all rows of a block.
    rows = next(iter(blocks.values())).sum(axis=1) if blocks else np.zeros(0)
    moments = pairs.block_moments(rows)
    return ReferenceCounts(sketches, blocks, starts, span, score, tuple(named), moments, np.asarray(pairs.values))


def incidents_per_window(incidents_per_month: float, window: timedelta, versions: int = 1) -> float:
    """Return the budget of one window, shared by the versions that answered in it.

    Raises:
        UsageError: the window has no length, or the budget is not above 0.
    """
    _check_settings(window, incidents_per_month)
    return incidents_per_month * (window / MONTH) / max(1, versions)


def _check_settings(window: timedelta, incidents: float) -> None:
    if window <= timedelta(0):
        raise UsageError(
            f"A window must end after it starts, but this one lasts {window}.", help="Pass a later end of the window."
        )
    if not (incidents > 0 and math.isfinite(incidents)):
        raise UsageError(
            f"The budget of incidents must be a number above 0, not {incidents}.",
            help="Pass the number of incidents a month that you tolerate without need, such as 1.",
        )
