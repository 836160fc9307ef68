"""The pages about runs: the table, one run with its steps and artifacts, curves, and comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.pipeline.step_output import LOG
from everloop.records import Artifact, Json, ModelVersion, Run, StepRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.stores import Store

MOST_ROWS = 1000
MOST_COLUMNS = 60
MOST_KEYS = 50
MOST_POINTS = 5000
MOST_COMPARED = 200
DEFAULT_METRICS = 3
MOST_WITH_PEAKS = 20
"""More curves at once are drawn without their peaks."""
OVERVIEW_POINTS = 32_000
"""Points of many curves together, so that a comparison of 200 runs costs no more than one of 20."""
LEAST_POINTS = 32
"""Points of each curve, however many there are."""
_ALWAYS = ("id", "name", "state", "loop", "trigger", "started_at", "seconds")


@dataclass(frozen=True, slots=True)
class RunTable:
    """One page of the table of runs: each row has the values of `columns`."""

    columns: list[str]
    rows: list[dict[str, Json]]
    next: str | None
    """Cursor of the next page; None on the last one."""
    total: int | None
    """How many runs match; only with the first page."""


@dataclass(frozen=True, slots=True)
class RunColumns:
    """The names of columns that the table of runs can show."""

    params: list[str]
    metrics: list[str]
    tags: list[str]


@dataclass(frozen=True, slots=True)
class StepBar:
    """A step of a run, with the time between the run's start and the step's, in seconds."""

    name: str
    status: str
    reason: str
    starts: float
    seconds: float
    depends_on: tuple[str, ...]
    attempts: int
    error: str | None
    code: str
    outputs: dict[str, str]
    log: str | None
    """Id of the artifact with what the step printed; None if it printed nothing, or did not run."""


@dataclass(frozen=True, slots=True)
class RunDetail:
    """A run with its steps, artifacts and the version that it made."""

    run: Run
    steps: list[StepBar]
    artifacts: list[Artifact]
    versions: list[ModelVersion]
    metric_keys: list[str]
    """Metrics that have a curve, with at least two points."""
    children: int
    reproduce: str
    """The command that repeats the run."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one metric of one run."""

    run: str
    key: str
    steps: list[int]
    values: list[float | None]
    """None where the value was not finite."""
    total: int | None
    """How many points there are, of which every peak is here. None in a comparison of many runs: then the points stand
    at equal distances, and peaks between them are missing."""


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """What differs between runs: for each group, the name of a value and its value in each run."""

    runs: list[Run]
    groups: dict[str, dict[str, list[Json]]] = field(default_factory=dict)
    same: dict[str, int] = field(default_factory=dict)


def read_run_table(
    store: Store, where: str, order: Sequence[str], columns: Sequence[str] | None, limit: int, after: str | None
) -> RunTable:
    """Return one page of runs.

    Args:
        columns: besides those that every row has. None: some metrics, first those that decide about models.

    Raises:
        UsageError: the filter, an order, a column or the cursor is not valid, or there are too many columns.
    """
    from everloop.tracking.search.run_search import count_runs, search_runs

    if columns is None:
        from everloop.training.metric_tasks import METRIC_TASKS

        known = read_run_columns(store).metrics
        names = list(dict.fromkeys([*(name for name in METRIC_TASKS if name in known), *known]))
        columns = [_column("metrics", name) for name in names[:DEFAULT_METRICS]]
    wanted = list(dict.fromkeys([*_ALWAYS, *columns]))
    if len(wanted) > MOST_COLUMNS:
        raise UsageError(f"{len(wanted)} columns are too many for one table.", help=f"Choose at most {MOST_COLUMNS}.")
    page = search_runs(store, where or None, order_by=list(order), limit=limit, after=after, columns=wanted)
    total = count_runs(store, where or None) if after is None else None
    rows: list[Any] = list(page.rows)
    return RunTable(wanted, rows, page.next, total)


def _column(group: str, name: str) -> str:
    """Return a column as filters write it: a name with other characters is quoted."""
    import json

    return f"{group}.{name if name.isascii() and name.isidentifier() else json.dumps(name, ensure_ascii=False)}"


def read_run_columns(store: Store) -> RunColumns:
    """Return the names that runs of the project have had."""
    names = {name: sorted(store.records.search_names(Run, name)) for name in ("params", "metrics", "tags")}
    return RunColumns(**names)


def read_run(store: Store, ref: str) -> RunDetail:
    """Return a run by its id.

    Raises:
        NotFoundError: there is no such run.
    """
    from everloop.tracking import recover_journals
    from everloop.tracking.journal.last_points import series_of

    recover_journals(store)
    records = store.records
    run = records.get(Run, ref)
    steps = records.find(StepRun, ("run", "=", run.id), order="id")
    artifacts = records.find(Artifact, ("run", "=", run.id), order="id", limit=MOST_ROWS)
    logs = {one.step: one.id for one in artifacts if one.step is not None and one.name == f"{one.step}.{LOG}"}
    return RunDetail(
        run=run,
        steps=_bars(run, steps, logs),
        artifacts=artifacts,
        versions=records.find(ModelVersion, ("run", "=", run.id), order="id", limit=100),
        metric_keys=sorted(key for key, step in records.greatest_steps(series_of(run.id)).items() if step > 0),
        children=len(records.find(Run, ("parent", "=", run.id), limit=MOST_ROWS)),
        reproduce=f"everloop reproduce {run.id}",
    )


def read_curves(store: Store, runs: Sequence[str], keys: Sequence[str], most_points: int) -> list[Curve]:
    """Return the curves of metrics of runs. A run without a metric is left out.

    Up to `MOST_WITH_PEAKS` curves show every peak. More of them are an overview, which is quick however long they are.

    Raises:
        UsageError: too many runs, metrics or points.
        NotFoundError: a run does not exist.
    """
    from everloop.tracking.metric_history import read_history

    for what, count, most in (("runs", len(runs), MOST_COMPARED), ("metrics", len(keys), MOST_KEYS)):
        if count > most:
            raise UsageError(f"{count} {what} are too many for one plot.", help=f"Choose at most {most}.")
    if not 6 <= most_points <= MOST_POINTS:
        raise UsageError(f"points={most_points} is out of range.", help=f"Use 6 to {MOST_POINTS}.")
    if len(runs) * len(keys) > MOST_WITH_PEAKS:
        share = OVERVIEW_POINTS // (len(runs) * len(keys))
        return _overview(store, runs, keys, min(most_points, max(share, LEAST_POINTS)))
    found = []
    for identity in runs:
        run = store.records.get(Run, identity)
        for key in keys:
            history = read_history(store, run.id, key, most_points)
            if len(history):
                values = [value if abs(value) < float("inf") else None for value in history.values.tolist()]
                found.append(Curve(run.id, key, history.steps.tolist(), values, history.total))
    return found


def _overview(store: Store, runs: Sequence[str], keys: Sequence[str], points: int) -> list[Curve]:
    from everloop.tracking import recover_journals
    from everloop.tracking.journal.last_points import series_of
    from everloop.tracking.journal.run_folding import fold_run

    if not store.read_only:
        for run in store.records.find(Run, ("id", "in", list(runs)), ("state", "=", "running"), limit=len(runs)):
            fold_run(store, run.id)
    recover_journals(store)
    names = {series_of(identity): identity for identity in runs}
    found = store.records.sample_points(list(names), keys, points)
    curves = []
    for name, identity in names.items():
        logged = [(key, found[name, key]) for key in keys if (name, key) in found]
        if not logged:
            store.records.get(Run, identity)
        for key, chosen in logged:
            values = [value if isfinite(value) else None for _, value in chosen]
            curves.append(Curve(identity, key, [step for step, _ in chosen], values, None))
    return curves


def compare(store: Store, runs: Sequence[str]) -> ComparedRuns:
    """Return what differs between runs.

    Raises:
        UsageError: fewer than two runs, or too many.
        NotFoundError: a run does not exist.
    """
    from everloop.tracking.search.run_comparison import compare_runs

    found = compare_runs(store, list(dict.fromkeys(runs)))
    groups = {
        group: {name: list(values) for name, values in getattr(found, group).items()}
        for group in ("about", "params", "metrics", "tags", "source")
    }
    return ComparedRuns(list(found.runs), groups, dict(found.same))


def _bars(run: Run, steps: Sequence[StepRun], logs: dict[str, str]) -> list[StepBar]:
    starts = _starts(run, steps)
    return [
        StepBar(
            name=step.name,
            status=step.status,
            reason=step.reason,
            starts=starts[step.name],
            seconds=step.seconds,
            depends_on=step.depends_on,
            attempts=step.attempts,
            error=step.error,
            code=step.code,
            outputs=step.outputs,
            log=logs.get(step.name),
        )
        for step in steps
    ]


def _starts(run: Run, steps: Sequence[StepRun]) -> dict[str, float]:
    """Return when each step began, in seconds after the run. A step's record is written when it ends."""
    ended = {step.name: (step.created_at - run.started_at).total_seconds() for step in steps}
    if all(ended[step.name] >= 0.9 * step.seconds for step in steps):
        return {step.name: max(0.0, ended[step.name] - step.seconds) for step in steps}
    # The clock stood still meanwhile, as in a simulation: each step begins when those before it have ended.
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    for step in steps:
        starts[step.name] = max((ends.get(need, 0.0) for need in step.depends_on), default=0.0)
        ends[step.name] = starts[step.name] + step.seconds
    return starts
