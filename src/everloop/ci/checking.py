"""Check a change: find what it touches, run the changed loop in a fork, compare with the champion, and decide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.ci.candidate_comparison import (
    altered_inputs,
    compare_costs,
    compare_importances,
    compare_metrics,
    compare_slices,
    count_seen,
)
from everloop.ci.candidate_run import forked_store, run_candidate
from everloop.ci.change_report import ChangeReport, decide
from everloop.ci.git_changes import find_change
from everloop.ci.recent_replay import replay_recent
from everloop.ci.schema_changes import compare_contracts, compare_data, compare_signatures
from everloop.ci.step_changes import find_touched
from everloop.errors import ContractError, EverloopError, StoreError, UnavailableError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.ci.candidate_run import CandidateRun
    from everloop.loop import Loop
    from everloop.pipeline import Listener

DEFAULT_SAMPLE = 20_000


def check_change(
    loop: Loop,
    folder: Path,
    *,
    base: str = "origin/main",
    sample: int | None = DEFAULT_SAMPLE,
    replay: str | None = None,
    home: Path | None = None,
    executor: str = "inline",
    listener: Listener | None = None,
) -> ChangeReport:
    """Check what the present branch does to a loop. The store is only read.

    If the branch touches no step, nothing runs. Otherwise the changed loop runs in a fork of the store up to its gates.

    Args:
        loop: the loop as the branch declares it.
        folder: the project's folder, in a git repository.
        base: the branch that the change is made for, or a commit.
        sample: number of rows to run on; None for all.
        replay: how much of the history is replayed with the changed loop, such as `4w`. None: nothing.
        home: folder of the store. Default: as for every command.
        executor: where steps run.
        listener: receives the progress of the steps.

    Raises:
        ProjectError: the folder is not in a git repository.
        NotFoundError: the base does not exist.
        UsageError: `sample` is too small, or `replay` is not a duration.
        StoreError: the store cannot be read.
    """
    from everloop.ci.sampling import LEAST_ROWS
    from everloop.stores.durations import parse_duration

    if sample is not None and sample < LEAST_ROWS:
        raise UsageError(f"A sample of {sample} rows is too small.", help=f"Take at least {LEAST_ROWS}: --sample 20000")
    if replay is not None and parse_duration(replay).total_seconds() <= 0:
        raise UsageError(f"A replay of '{replay}' is empty.", help="For example: --replay 4w")
    folder = folder.resolve()
    change = find_change(folder, base)
    steps = find_touched(loop, folder, change)
    report = ChangeReport(
        loop=loop.name,
        base=change.base,
        head=change.head,
        changed_files=change.files,
        dirty=change.dirty,
        steps=steps,
        sample=sample,
    )
    if not steps.touched and not steps.removed:
        return replace(report, reasons=("the change touches no step of the loop, so nothing was run",))
    with forked_store(folder, home) as (store, exists):
        try:
            run = run_candidate(loop, store, folder, sample=sample, executor=executor, listener=listener)
        except (StoreError, UnavailableError):
            raise
        except ContractError as error:
            text = f"the data of the change break the contract: {error.message}"
            accept = (
                f"If that is intended, change the contract, too: everloop data contract {loop.data.name or loop.name}"
            )
            return replace(report, verdict="fail", reasons=(text, accept), error=str(error))
        except EverloopError as error:
            return replace(
                report, verdict="error", reasons=(f"the loop cannot be run: {error.message}",), error=str(error)
            )
        return _compared(report, loop, run, folder, replay, exists=exists)


def _compared(
    report: ChangeReport, loop: Loop, run: CandidateRun, folder: Path, span: str | None, *, exists: bool
) -> ChangeReport:
    context, champion = run.context, run.champion
    remarks = []
    holder = None
    if not exists:
        remarks.append("The project has no store here, and so no champion to compare with. The gates alone decide.")
    elif champion is None:
        remarks.append(f"'{loop.model}' has no champion yet: the gates alone decide.")
    else:
        try:
            holder = context.compared_with("champion")
        except EverloopError as error:
            remarks.append(f"The champion cannot be compared: {error.message}")
    if holder is not None and holder.pairs is None:
        remarks.append(f"Not on the same rows: {holder.why}.")
    elif holder is not None and holder.pairs is not None and holder.pairs.remark:
        remarks.append(f"Compared rows: {holder.pairs.remark}.")
    if report.steps.remark:
        remarks.append(report.steps.remark)
    same = champion is not None and champion.package == run.version.package
    if same:
        remarks.append("The candidate is the champion's own package: the change does not change the model.")
    outcomes, why = replay_recent(loop, run, span, folder)
    found = replace(
        report,
        candidate=run.version.package,
        champion=champion.key if champion is not None else None,
        metric=context.metric,
        rows=context.rows.height,
        seen_by_champion=count_seen(run, loop),
        same_package=same,
        metrics=compare_metrics(context, holder),
        slices=compare_slices(context, holder, _slice_columns(loop)),
        importances=compare_importances(run),
        schema=compare_signatures(run),
        data=compare_data(run, sampled=report.sample is not None),
        contract=compare_contracts(run),
        costs=compare_costs(run),
        gates=tuple(run.gates),
        replay=outcomes,
        replay_remark=why,
        remarks=tuple(remarks),
    )
    bad_rows = sum(int(_number(one.get("bad_rows"))) for one in run.violations)
    verdict, reasons = decide(found, bad_rows, altered=altered_inputs(context, holder))
    return replace(found, verdict=verdict, reasons=reasons)


def _slice_columns(loop: Loop) -> list[str]:
    """Return the columns that gates look at."""
    columns = (getattr(gate, "column", None) for gate in loop.gates)
    return list(dict.fromkeys(column for column in columns if isinstance(column, str)))


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0
