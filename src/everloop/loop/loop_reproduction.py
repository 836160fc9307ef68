"""Taking a turn of a loop again, from the same code and the same data, and comparing what every step returned.

The turn is taken in a scratch home that knows what the store knew just before the run began: contracts, snapshots,
versions, aliases, endpoints. It has none of the results of former steps, so every step runs. Data that have changed
since are not read again: what the step had returned then stands for them.
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
from everloop.loop.project import FILE, load_project
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

_LEFT_OUT = ("run", "step", "finding", "gate_result")
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
    """Take the turn again and compare outputs of steps, gates' answers and metrics.

    A run that found everything done is followed to the run that did it.

    Args:
        scratch: an empty folder.
        folder: the project's, if it is not beside the store.
        tolerance: relative, for metrics; 0 wants the same bits.
        trust: take it although it is foreign: neither started on this machine nor signed by a trusted key.
        given: secrets that were masked when the run started, by name.
        shown: called with what will be executed, before it is.

    Raises:
        TrustError: the run, or the run that did its work, is foreign.
        UsageError: a secret is missing, or the record names something that is never executed.
        NotFoundError: the project's folder, or its former code, is not here.
        ProjectError: the project cannot be loaded, or its code is not that of the run.
    """
    remarks: list[str] = []
    run, steps = doer_of(store, run, remarks)
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
        looked, differences = _compare_steps(store, steps, home, again, remarks)
        metrics, other_metrics = compare_metrics(store, run, home, again, tolerance=tolerance)
        artifacts, other_artifacts = compare_artifacts(store, run, home, again)
        baselines = [one for one in other_artifacts if one not in differences]
    differences = [*compare_ends(run, again), *differences, *other_metrics, *baselines]
    return Reproduction(run.id, again.id, tuple(differences), tuple(remarks), looked + metrics + artifacts)


def doer_of(store: Store, run: Run, remarks: list[str]) -> tuple[Run, list[StepRun]]:
    """The run that did the work of a turn that found everything done, with its steps.

    Raises:
        UsageError: the run has no steps.
    """
    steps = _steps_of(store, run)
    while steps and all(step.status == "cached" for step in steps):
        ids = [artifact for step in reversed(steps) for artifact in step.outputs.values()]
        made_by = store.records.get(Artifact, ids[0]).run if ids else run.id
        if made_by == run.id:
            break
        remarks.append(f"The run {run.id} found everything done; the run that did it is {made_by}.")
        run = store.records.get(Run, made_by)
        steps = _steps_of(store, run)
    if not steps:
        raise UsageError(f"The run '{run.name}' has no steps to take again.", help="See: everloop runs show RUN")
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
    """The folder whose `loop.py` a turn is taken from.

    Raises:
        NotFoundError: there is none.
    """
    places = [folder] if folder else [store.home.parent, Path(run.source.folder or "/"), Path.cwd()]
    for place in places:
        if (place / FILE).is_file():
            return place.absolute()
    raise NotFoundError(
        f"No {FILE} in {' or '.join(map(str, places))}.", help="Say where: everloop reproduce RUN --dir DIR"
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
    """The loop with the code that ran: the project's as it is, where that is still the same, else out of git."""
    loop, graph, changed = _loaded(folder, run, steps)
    if not changed:
        what = "" if run.source.git_commit else " (it is not in git)"
        remarks.append(f"The project's code is the same as then, by the fingerprints of its steps{what}.")
        return loop, graph
    if run.source.git_commit is None or run.source.git_root is None:
        raise ProjectError(
            f"The code of {', '.join(changed)} has changed since, and it was not in git.",
            help="See what changed: everloop run --explain",
        )
    root = Path(run.source.git_root)
    check_out(store, run.source, scratch / "code", given=secrets, links=is_from_here(run))
    _forget_modules(folder)
    below = folder.relative_to(root) if folder.is_relative_to(root) else Path()
    loop, graph, changed = _loaded(scratch / "code" / below, run, steps)
    if changed:
        raise ProjectError(
            f"The code of {', '.join(changed)} is in git otherwise than it ran.",
            help="A newer everloop, or files that git does not keep, may be why.",
        )
    # What the code reads is where it always was.
    os.environ["EVERLOOP_PROJECT"] = str(folder)
    remarks.append(f"The code was taken from the commit {run.source.git_commit[:12]}.")
    return loop, graph


def _forget_modules(folder: Path) -> None:
    """Let the modules of the project be found anew, elsewhere."""
    here = str(folder)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{here}{os.sep}") and "site-packages" not in file and name.partition(".")[0] != "everloop":
            del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place != here]
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
    """The step that the turn was to lead to; None where it was all of them."""
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
        # Bytes are known by their digests: those of the store serve, and what comes out the same is there already.
        places = replace(opened.urls, objects=store.urls.objects)
        home = Store(places, project=store.project, actor=opened.actor, clock=opened.clock, records=opened.records)
        _remember(store.as_of(run.started_at - _JUST_BEFORE), home)
        _stand_in(store, run, steps, home, remarks)
        if store.clock.simulated:
            home.simulate(run.started_at)
        yield home


def _remember(past: Store, home: Store) -> None:
    """Put what the store knew."""
    for name, kind in KINDS.items():
        if name in _LEFT_OUT:
            continue
        found: list[Any] = past.records.find(kind)
        kept = [one for one in found if not (isinstance(one, Artifact) and one.step is not None)]
        for start in range(0, len(kept), _BATCH):
            home.records.put(*kept[start : start + _BATCH], verb="remembered")


def _stand_in(store: Store, run: Run, steps: list[StepRun], home: Store, remarks: list[str]) -> None:
    """Steps whose data have changed since are found done: with what they had returned, and nothing to look at."""
    for step in steps:
        changed = _changed_since(step)
        if changed is None or not step.outputs:
            continue
        home.records.put(*(store.records.get(Artifact, key) for key in step.outputs.values()))
        home.records.put(replace(step, observed=()))
        if step.name == "snapshot":
            home.records.put(*store.records.find(Snapshot, ("run", "=", run.id)))
        remarks.append(f"What '{step.name}' reads has changed since ({changed}): what it had returned was taken.")


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
    """What a step returned, in a form that can be compared; None where its bytes say nothing."""

    said: dict[str, str | None]


def _compare_steps(
    store: Store, steps: list[StepRun], home: Store, again: Run, remarks: list[str]
) -> tuple[int, list[ResultDifference]]:
    after = {step.name: step for step in _steps_of(home, again)}
    found: list[ResultDifference] = []
    loose: list[str] = []
    looked = 0
    for step in steps:
        other = after.pop(step.name, None)
        if other is None:
            if not (step.status == "skipped" or "[" in step.name):
                found.append(ResultDifference(f"step {step.name}", step.status, "not taken"))
            continue
        looked += 1
        if ("failed" in (step.status, other.status)) and step.status != other.status:
            found.append(ResultDifference(f"step {step.name}", step.status, f"{other.status}: {other.error}"))
            continue
        before, now = _outputs(store, step), _outputs(home, other)
        for name in sorted({*before.said, *now.said}):
            one, two = before.said.get(name, "none"), now.said.get(name, "none")
            if one is None or two is None:
                loose.append(step.name)
            elif one != two:
                what = step.name if name == "result" else f"{step.name}.{name}"
                found.append(ResultDifference(f"step {what}", one[:60], two[:60]))
    found += [
        ResultDifference(f"step {name}", "not taken", step.status) for name, step in after.items() if "[" not in name
    ]
    if loose:
        names = ", ".join(dict.fromkeys(loose))
        remarks.append(f"Pickles of equal objects may differ: of {names}, what follows from it was compared.")
    return looked, found


def _outputs(store: Store, step: StepRun) -> _Outputs:
    said: dict[str, str | None] = {}
    for name, key in step.outputs.items():
        artifact = store.records.get(Artifact, key)
        if step.name in ("judge", "release") and artifact.type == "json":
            said[name] = _decided(store, artifact)
        else:
            said[name] = None if artifact.type == "pickle" else artifact.digest
    return _Outputs(said)


def _decided(store: Store, artifact: Artifact) -> str:
    """Gates' answers and the release without the ids of their records, which are new each time."""
    value = msgspec.json.decode(store.objects.read(artifact.digest))
    if isinstance(value, dict):
        return f"release {value.get('state')}"
    results = [store.records.get(GateResult, str(answer)) for answer in value]
    return ", ".join(f"{result.gate}: {result.outcome}" for result in results) or "no gates"
