"""`everloop run FILE.yaml`: run a compiled Kubeflow pipeline, an experiment of Katib or a training job here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.cli.output import cell, console, count, emit, messages, opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.integrations.kubeflow.katib_experiment import KatibResult
    from everloop.integrations.kubeflow.pipeline_run import PipelineRun


def run_pipeline_file(
    path: str,
    params: dict[str, Any],
    *,
    on: str | None,
    force: Sequence[str],
    explain: bool,
    home: Path | None,
    json: bool,
) -> None:
    """Run the pipeline of a file once, and print its steps and outputs.

    Raises:
        UsageError: an option that does not apply to pipelines, or anything that `run_pipeline` raises.
    """
    from everloop.errors import UsageError
    from everloop.integrations.kubeflow.pipeline_run import run_pipeline
    from everloop.integrations.kubeflow.pipeline_spec import read_pipeline
    from everloop.integrations.kubeflow.training_jobs import read_manifest

    if on not in (None, "local") or explain or force:
        option = "--explain" if explain else "--force" if force else f"--on {on}"
        raise UsageError(
            f"'{option}' does not apply to a Kubeflow pipeline: its tasks run as processes of this machine.",
            help=f"Leave it out: everloop run {path}",
        )
    manifest = read_manifest(path)
    if manifest is not None:
        _run_manifest(manifest, params, home=home, json=json)
        return
    spec = read_pipeline(path)
    for remark in spec.remarks:
        messages().print(remark, markup=False)
    with opened(home, create=True) as store:
        listener = None
        if not json:
            from everloop.cli.progress import StepLines

            listener = StepLines()
            messages().print(f"[bold]{cell(spec.name)}[/bold] → {cell(store.home)}")
        result = run_pipeline(spec, store, params=params, listener=listener, check=False)
    emit(_result_json(result), json, lambda: _draw(result))
    if result.error is not None:
        raise result.error


def _run_manifest(manifest: dict[str, Any], params: dict[str, Any], *, home: Path | None, json: bool) -> None:
    from everloop.errors import UsageError
    from everloop.integrations.kubeflow.katib_experiment import run_experiment
    from everloop.integrations.kubeflow.training_jobs import EXPERIMENT, run_job_manifest

    if params:
        raise UsageError(
            f"'--set' does not apply to a manifest of the kind '{manifest['kind']}'.",
            help="Change the values in the file.",
        )
    with opened(home, create=True) as store:
        if manifest["kind"] != EXPERIMENT:
            job = run_job_manifest(manifest, store)
            latest = {name: values[-1] for name, values in job.metrics.items()}
            emit({"run": job.run, "metrics": latest}, json, lambda: _draw_metrics(job.run, latest))
            return
        found = run_experiment(manifest, store)
    trials = [{"run": one.run, **one.assignments, "value": one.value, "error": one.error} for one in found.trials]
    best = {"run": found.best.run, "assignments": found.best.assignments, "value": found.best.value}
    result = {"run": found.run, "best": best, "trials": trials, "goal_reached": found.goal_reached}
    emit(result, json, lambda: _draw_experiment(found))


def _draw_metrics(run: str, metrics: dict[str, float]) -> None:
    console().print(f"Finished. Run: {run}")
    for name, value in metrics.items():
        console().print(f"  {name} = {value:g}", markup=False)


def _draw_experiment(found: KatibResult) -> None:
    goal = ", and the goal was reached" if found.goal_reached else ""
    console().print(f"{count(len(found.trials), 'trial')} ran{goal}. Run: {found.run}")
    shown = ", ".join(f"{name} = {value}" for name, value in found.best.assignments.items())
    console().print(f"  best: {found.best.value:g} with {shown}. Run: {found.best.run}", markup=False, soft_wrap=True)


def _result_json(result: PipelineRun) -> dict[str, Any]:
    return {
        "run": result.run,
        "steps": [
            {"name": one.name, "status": one.status, "seconds": one.seconds, "reason": one.reason, "error": one.error}
            for one in result.steps
        ],
        "outputs": result.parameters,
        "artifacts": {
            name: [
                {"uri": one.uri, "digest": one.stored.digest if one.stored else None, "metadata": one.metadata}
                for one in values
            ]
            for name, values in result.artifacts.items()
        },
    }


def _draw(result: PipelineRun) -> None:
    ran = sum(one.status == "ran" for one in result.steps)
    console().print(f"{ran} of {count(len(result.steps), 'step')} ran. Run: {result.run}")
    for name, value in result.parameters.items():
        console().print(f"  {name} = {value!r}", markup=False, soft_wrap=True)
    for name, values in result.artifacts.items():
        for one in values:
            shown = one.stored.digest if one.stored else one.uri
            console().print(f"  {name}: {shown}", markup=False, soft_wrap=True)
