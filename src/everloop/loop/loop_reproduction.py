"""Reproduce a run of a loop from the same code and data, and compare the results of every step.

The run is repeated in a scratch home that holds what the store held just before the original run began: contracts,
snapshots, versions, aliases and endpoints. It has no cached results, so every step runs. If the data that a step reads
have changed since, the step does not run again: its original result is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from everloop import plugins
from everloop.errors import EverloopError, NotFoundError, ProjectError, UsageError
from everloop.loop.loop_run import run_loop
from everloop.loop.project import load_project
from everloop.loop.project_folder import FILE
from everloop.loop.stages import graph_of
from everloop.pipeline import code_of
from everloop.records import KINDS, Artifact, GateResult, Run, Snapshot, StepRun
from everloop.stores.home import Store, open_store
from everloop.tracking.reproduction.checkout import check_out
from everloop.tracking.reproduction.environments import other_packages
from everloop.tracking.reproduction.execution_plan import (
    ReproductionPlan,
    check_trust,
    given_secrets,
    plan_reproduction,
    unmasked,
)
from everloop.tracking.reproduction.result_comparison import (
    Reproduction,
    ResultDifference,
    compare_artifacts,
    compare_ends,
    compare_metrics,
)
from everloop.tracking.reproduction.run_trust import is_from_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from everloop.loop.loop_definition import Loop
    from everloop.pipeline import Graph, Listener

_NOT_COPIED = ("run", "step", "finding", "gate_result")
"""Kinds of records that the scratch home starts without."""
_JUST_BEFORE = timedelta(microseconds=1)
_BATCH = 500


def reproduce_loop_run(
    store: Store,
    run: Run,
    scratch: Path,
    *,
    folder: Path | None = None,
    tolerance: float = 0.0,
    listener: Listener | None = None,
    trust: bool = False,
    given: Mapping[str, str] | None = None,
    shown: Callable[[ReproductionPlan], None] | None = None,
) -> Reproduction:
    """Repeat a run of a loop and compare the outputs of its steps, the outcomes of its gates and its metrics.

    If every step of the run was cached, the run that produced the results is reproduced instead.

    Args:
        scratch: an empty folder.
        folder: the project's folder, if the store is not inside it.
        tolerance: relative tolerance for metrics; 0 asks for the same bits.
        listener: receives the progress of the steps.
        trust: reproduce the run even if it is neither from this machine nor signed by a trusted key.
        given: secrets that were masked when the run started, by name.
        shown: called with the plan before anything is executed.

    Raises:
        TrustError: the run is neither from this machine nor signed by a trusted key.
        UsageError: a secret is missing, or the record names a command that is never executed.
        NotFoundError: the project's folder or its former code was not found.
        ProjectError: the project cannot be loaded, or its code differs from that of the run.
    """
    remarks: list[str] = []
    run, steps = producing_run(store, run, remarks)
    folder = project_folder(store, run, folder)
    plan = plan_reproduction(store, run, scratch=scratch, reuse_environment=True, folder=folder)
    check_trust(plan, trust=trust)
    secrets = given_secrets(plan, given)
    if shown is not None:
        shown(plan)
    loop, graph = _load(store, run, steps, folder, scratch, remarks, secrets)
    others = other_packages(run.source.packages)
    if others:
        remarks.append(f"Packages differ from those of the run: {', '.join(others)}.")
    with _scratch_home(store, run, steps, scratch / "home", remarks) as home, _working_in(folder):
        try:
            run_loop(
                loop,
                home,
                trigger=run.trigger or "manual",
                target=_target(graph, steps),
                params=_unmasked(plan.params, secrets),
                listener=listener,
            )
        except EverloopError as error:
            if run.state != "failed":
                remarks.append(f"It failed: {error.message}")
        again = home.records.find(Run, ("loop", "=", loop.name), order="-created_at", limit=1)[0]
        compared, differences = _compare_steps(store, steps, home, again, remarks)
        metrics, other_metrics = compare_metrics(store, run, home, again, tolerance=tolerance)
        artifacts, other_artifacts = compare_artifacts(store, run, home, again)
        baselines = [one for one in other_artifacts if one not in differences]
    differences = [*compare_ends(run, again), *differences, *other_metrics, *baselines]
    return Reproduction(run.id, again.id, tuple(differences), tuple(remarks), compared + metrics + artifacts)


def producing_run(store: Store, run: Run, remarks: list[str]) -> tuple[Run, list[StepRun]]:
    """Return the run that produced the results of a fully cached run, with its steps; or the run itself.

    Raises:
        UsageError: the run has no steps.
    """
    steps = _steps_of(store, run)
    while steps and all(step.status == "cached" for step in steps):
        ids = [artifact for step in reversed(steps) for artifact in step.outputs.values()]
        made_by = store.records.get(Artifact, ids[0]).run if ids else run.id
        if made_by == run.id:
            break
        remarks.append(f"Every step of run {run.id} was cached; the results are from run {made_by}.")
        run = store.records.get(Run, made_by)
        steps = _steps_of(store, run)
    if not steps:
        raise UsageError(f"The run '{run.name}' has no steps to reproduce.", help="See: everloop runs show RUN")
    return run, steps


def _unmasked(value: Any, given: Mapping[str, str]) -> Any:
    match value:
        case str():
            return unmasked(value, given)
        case dict():
            return {name: _unmasked(item, given) for name, item in value.items()}
        case list():
            return [_unmasked(item, given) for item in value]
    return value


def _steps_of(store: Store, run: Run) -> list[StepRun]:
    return store.records.find(StepRun, ("run", "=", run.id), order="id")


def project_folder(store: Store, run: Run, folder: Path | None) -> Path:
    """Return the folder with the `loop.py` of a run.

    Raises:
        NotFoundError: no `loop.py` was found.
    """
    candidates = [folder] if folder else [store.home.parent, Path(run.source.folder or "/"), Path.cwd()]
    for path in candidates:
        if (path / FILE).is_file():
            return path.absolute()
    raise NotFoundError(
        f"No {FILE} in {' or '.join(map(str, candidates))}.",
        help="Name the project's folder: everloop reproduce RUN --dir DIR",
    )


def _load(
    store: Store,
    run: Run,
    steps: list[StepRun],
    folder: Path,
    scratch: Path,
    remarks: list[str],
    secrets: Mapping[str, str],
) -> tuple[Loop, Graph]:
    """Load the loop with the code of the run: from the project if it has not changed, otherwise from git."""
    loop, graph, changed = _loaded(folder, run, steps)
    if not changed:
        note = "" if run.source.git_commit else " (it is not in git)"
        remarks.append(f"The project's code has not changed since the run, by the fingerprints of its steps{note}.")
        return loop, graph
    if run.source.git_commit is None or run.source.git_root is None:
        raise ProjectError(
            f"The code of {', '.join(changed)} has changed since the run, and it was not in git.",
            help="See what changed with: everloop run --explain",
        )
    root = Path(run.source.git_root)
    check_out(store, run.source, scratch / "code", given=secrets, links=is_from_here(run))
    _forget_modules(folder)
    below = folder.relative_to(root) if folder.is_relative_to(root) else Path()
    loop, graph, changed = _loaded(scratch / "code" / below, run, steps)
    if changed:
        raise ProjectError(
            f"The code of {', '.join(changed)} in git differs from the code that ran.",
            help="A newer version of everloop or files that git ignores may be the reason. "
            "See what changed with: everloop run --explain",
        )
    # The code comes from the checkout, but its data are still in the project's folder.
    os.environ["EVERLOOP_PROJECT"] = str(folder)
    remarks.append(f"The code was taken from the commit {run.source.git_commit[:12]}.")
    return loop, graph


def _forget_modules(folder: Path) -> None:
    """Unload the project's modules, so that they are imported again from another folder."""
    here = str(folder)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{here}{os.sep}") and "site-packages" not in file and name.partition(".")[0] != "everloop":
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if entry != here]
    importlib.invalidate_caches()


def _loaded(folder: Path, run: Run, steps: list[StepRun]) -> tuple[Loop, Graph, list[str]]:
    loop = load_project(folder).loop(run.loop)
    graph = graph_of(loop)
    recorded = {step.name: step.code for step in steps if "[" not in step.name}
    changed = [
        name
        for name, code in recorded.items()
        if name not in graph.nodes or code_of(graph.nodes[name].step.function).digest != code
    ]
    return loop, graph, changed


def _target(graph: Graph, steps: list[StepRun]) -> str | None:
    """Return the `target` of the original run; None if it ran all steps."""
    recorded = {step.name for step in steps} & set(graph.nodes)
    if recorded == set(graph.nodes):
        return None
    needed = {need for name in recorded for need in graph.nodes[name].needs}
    ends = sorted(recorded - needed)
    return ends[0] if len(ends) == 1 else None


# --- the scratch home -------------------------------------------------------------------------------------------


@contextmanager
def _scratch_home(store: Store, run: Run, steps: list[StepRun], path: Path, remarks: list[str]) -> Iterator[Store]:
    with open_store(path, project=store.project, actor="everloop:reproduce") as opened:
        # Objects are addressed by digest, so the scratch home can share those of the store.
        locations = replace(opened.urls, objects=store.urls.objects)
        home = Store(locations, project=store.project, actor=opened.actor, clock=opened.clock, records=opened.records)
        _copy_records(store.as_of(run.started_at - _JUST_BEFORE), home)
        _reuse_changed_inputs(store, run, steps, home, remarks)
        if store.clock.simulated:
            home.simulate(run.started_at)
        yield home


def _copy_records(past: Store, home: Store) -> None:
    """Copy the records of the store before the run, except results of steps."""
    for name, kind in KINDS.items():
        if name in _NOT_COPIED:
            continue
        found: list[Any] = past.records.find(kind)
        copied = [one for one in found if not (isinstance(one, Artifact) and one.step is not None)]
        for start in range(0, len(copied), _BATCH):
            home.records.put(*copied[start : start + _BATCH], verb="remembered")


def _reuse_changed_inputs(store: Store, run: Run, steps: list[StepRun], home: Store, remarks: list[str]) -> None:
    """Copy the results of steps whose data have changed since, so that these steps are cached and read nothing."""
    for step in steps:
        changed = _changed_since(step)
        if changed is None or not step.outputs:
            continue
        home.records.put(*(store.records.get(Artifact, key) for key in step.outputs.values()))
        home.records.put(replace(step, observed=()))
        if step.name == "snapshot":
            home.records.put(*store.records.find(Snapshot, ("run", "=", run.id)))
        remarks.append(
            f"The data that '{step.name}' reads have changed since ({changed}), so its original result was used."
        )


def _changed_since(step: StepRun) -> str | None:
    for seen in step.observed:
        try:
            now = plugins.load("observation", seen["kind"])(seen["spec"], since=seen["state"])
        except (EverloopError, OSError):
            return str(seen["kind"])
        if now != seen["state"]:
            patterns = seen["spec"].get("patterns")
            return ", ".join(map(str, patterns)) if isinstance(patterns, list) else str(seen["kind"])
    return None


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- comparing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outputs:
    """The outputs of a step by name, in comparable form. None if equal bytes cannot be expected."""

    values: dict[str, str | None]


def _compare_steps(
    store: Store, steps: list[StepRun], home: Store, again: Run, remarks: list[str]
) -> tuple[int, list[ResultDifference]]:
    after = {step.name: step for step in _steps_of(home, again)}
    found: list[ResultDifference] = []
    not_compared: list[str] = []
    compared = 0
    for step in steps:
        other = after.pop(step.name, None)
        if other is None:
            if not (step.status == "skipped" or "[" in step.name):
                found.append(ResultDifference(f"step {step.name}", step.status, "not run"))
            continue
        compared += 1
        if ("failed" in (step.status, other.status)) and step.status != other.status:
            found.append(ResultDifference(f"step {step.name}", step.status, f"{other.status}: {other.error}"))
            continue
        before, now = _outputs(store, step), _outputs(home, other)
        for name in sorted({*before.values, *now.values}):
            one, two = before.values.get(name, "none"), now.values.get(name, "none")
            if one is None or two is None:
                not_compared.append(step.name)
            elif one != two:
                output = step.name if name == "result" else f"{step.name}.{name}"
                found.append(ResultDifference(f"step {output}", one[:60], two[:60]))
    found += [
        ResultDifference(f"step {name}", "not run", step.status) for name, step in after.items() if "[" not in name
    ]
    if not_compared:
        names = ", ".join(dict.fromkeys(not_compared))
        remarks.append(
            f"The outputs of {names} are pickles, which may differ for equal objects. "
            "The results of the steps after them were compared instead."
        )
    return compared, found


def _outputs(store: Store, step: StepRun) -> _Outputs:
    values: dict[str, str | None] = {}
    for name, key in step.outputs.items():
        artifact = store.records.get(Artifact, key)
        if step.name in ("judge", "release") and artifact.type == "json":
            values[name] = _without_ids(store, artifact)
        else:
            values[name] = None if artifact.type == "pickle" else artifact.digest
    return _Outputs(values)


def _without_ids(store: Store, artifact: Artifact) -> str:
    """Describe gate results or a release without the ids of their records, which are new in every run."""
    value = msgspec.json.decode(store.objects.read(artifact.digest))
    if isinstance(value, dict):
        return f"release {value.get('state')}"
    results = [store.records.get(GateResult, str(result_id)) for result_id in value]
    return ", ".join(f"{result.gate}: {result.outcome}" for result in results) or "no gates"
