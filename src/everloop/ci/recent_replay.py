"""Replay the last weeks with a changed loop: how its policy would have done, next to never training again."""

from __future__ import annotations

import importlib
from datetime import datetime
from typing import TYPE_CHECKING, Any

from everloop.ci.change_report import ReplayOutcome
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.ci.candidate_run import CandidateRun
    from everloop.loop import Loop

POLICIES = ("declared", "never")


def replay_recent(
    loop: Loop, run: CandidateRun, span: str | None, folder: Path
) -> tuple[tuple[ReplayOutcome, ...], str]:
    """Replay the last part of the history.

    Args:
        span: how far back, such as `4w`. None: no replay is wanted.
        folder: the project's folder.

    Returns:
        The outcomes, and why there are none, or why a policy has no live metric.

    Raises:
        UsageError: the span is not a duration.
    """
    from everloop.stores.durations import parse_duration

    if span is None:
        return (), "not requested; add --replay 4w"
    length = parse_duration(span)
    if loop.data.time is None:
        return (), "the dataset has no time column: el.Dataset(…, time='column')"
    newest = run.context.rows[loop.data.time].max()
    if not isinstance(newest, datetime):
        return (), f"the column '{loop.data.time}' does not hold times"
    try:
        replay = importlib.import_module("everloop.replay").replay
    except ImportError:
        return (), "this version of everloop has no replay"
    try:
        result: Any = replay(loop, start=newest - length, policies=list(POLICIES), processes=1, project=folder)
    except EverloopError as error:
        return (), f"the replay failed: {error.message}"
    outcomes = tuple(
        ReplayOutcome(name, one.mean, one.retrainings, one.promotions, one.rollbacks)
        for name in POLICIES
        for one in [result.outcome(name)]
    )
    silent = [one.policy for one in outcomes if one.mean is None]
    remark = f"nothing was released with {' and '.join(silent)}, so no predictions could be measured" if silent else ""
    return outcomes, remark
