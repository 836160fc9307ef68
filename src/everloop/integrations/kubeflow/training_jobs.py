"""TrainJobs, PyTorchJobs and Jobs of Kubernetes, run as processes of this machine.

Each replica is a process. Distributed ones find each other as on a cluster: `torchrun` and `torch.distributed` read the
variables `PET_*`, `MASTER_ADDR`, `MASTER_PORT`, `WORLD_SIZE` and `RANK`. Images are not used.

Sources of the formats: kubeflow/trainer, `trainer.kubeflow.org/v1alpha1`; kubeflow/training-operator,
`kubeflow.org/v1` (PyTorchJob); Kubernetes, `batch/v1`.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import MissingExtraError, UsageError
from everloop.integrations.kubeflow.component_process import ContainerTask, run_container
from everloop.integrations.kubeflow.placeholders import PlaceholderValues

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.stores import Store

KINDS = ("TrainJob", "PyTorchJob", "Job")
EXPERIMENT = "Experiment"
_MOST_REPLICAS = 64
_METRIC = re.compile(r"(?<![\w|-])([\w|-]++)\s*+=\s*+([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[Ee][+-]?\d+)?)")
# A name is tried from its first letter only and as a whole, or a long line without metrics would take quadratic time.
"""A metric in the output, as in the default filter of Katib's collector `StdOut`."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """The end of a job that succeeded."""

    run: str
    """Id of the run."""
    metrics: dict[str, list[float]]
    """Name to all values that the first replica has printed as `name=value`, in order."""


def read_manifest(path: Path | str) -> Spec | None:
    """The manifest of a job or an experiment in a file; None if the file holds something else.

    Raises:
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "Reading manifests of Kubernetes needs PyYAML.", help="Install it with: pip install 'everloop[kfp]'"
        ) from error
    try:
        documents = [one for one in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")) if one is not None]
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        # It is read as a pipeline next, which says what is wrong with it.
        return None
    found = documents[0] if len(documents) == 1 else None
    return found if isinstance(found, dict) and found.get("kind") in (*KINDS, EXPERIMENT) else None


def run_job_manifest(manifest: Spec, store: Store) -> JobResult:
    """Run a job as a run, and log the metrics that its first replica prints as `name=value`.

    Raises:
        UsageError: the manifest is not of a kind that runs here, or lacks what a job needs.
        StepError: a replica failed; the others have been ended.
    """
    from everloop.tracking import start_run

    name = str((manifest.get("metadata") or {}).get("name") or manifest.get("kind"))
    containers = replicas_of(manifest)
    tags = {"kubeflow.kind": str(manifest["kind"])}
    with start_run(name, store=store, params={"replicas": len(containers)}, tags=tags, trigger="manual") as run:
        metrics = run_replicas(name, containers)
        log_metrics(run, metrics)
        return JobResult(run.id, metrics)


def log_metrics(run: Any, metrics: Mapping[str, list[float]]) -> None:
    """Log each value of each metric, with its position as the step."""
    for name, values in metrics.items():
        for step, value in enumerate(values):
            run.log({name: value}, step=step)


def replicas_of(manifest: Spec) -> list[Spec]:
    """The container of each replica, rank 0 first, with the variables by which they find each other.

    Raises:
        UsageError: as for `run_job_manifest`.
    """
    kind, spec = manifest.get("kind"), manifest.get("spec")
    if kind not in KINDS or not isinstance(spec, dict):
        raise UsageError(f"A manifest of the kind '{kind}' does not run here.", help=f"Kinds: {', '.join(KINDS)}")
    if kind == "TrainJob":
        trainer = spec.get("trainer") or {}
        if not trainer.get("command"):
            runtime = (spec.get("runtimeRef") or {}).get("name")
            raise UsageError(
                f"The TrainJob has no command: its program is only in the image of the runtime '{runtime}'.",
                help="Write spec.trainer.command, or run it on Kubernetes.",
            )
        return _distributed([trainer] * _count(trainer.get("numNodes", 1), "numNodes"), trainer.get("numProcPerNode"))
    if kind == "PyTorchJob":
        found: list[Spec] = []
        replicas = spec.get("pytorchReplicaSpecs") or {}
        for role in ("Master", "Worker"):
            if role in replicas:
                count = _count(replicas[role].get("replicas", 1), f"{role}.replicas")
                found += [_container(replicas[role].get("template"), "pytorch")] * count
        if not found:
            raise UsageError("The PyTorchJob has no Master and no Worker.", help="Write spec.pytorchReplicaSpecs.")
        return _distributed(found, spec.get("nprocPerNode"))
    return [_container(spec.get("template"), None)]


class _JobStop(threading.Event):
    """Ends the replicas of one job: it is set itself, or that of all jobs is."""

    def __init__(self, all_jobs: threading.Event | None) -> None:
        super().__init__()
        self._all_jobs = all_jobs

    def is_set(self) -> bool:
        return super().is_set() or (self._all_jobs is not None and self._all_jobs.is_set())


def run_replicas(name: str, containers: list[Spec], stop: threading.Event | None = None) -> dict[str, list[float]]:
    """Run the replicas beside each other, and return the metrics that the first one prints.

    Args:
        stop: ends the replicas when it is set.

    Raises:
        StepError: one failed; the others have been ended.
    """
    ended = _JobStop(stop)
    with tempfile.TemporaryDirectory(prefix="everloop-kubeflow-") as folder:
        tasks = []
        for rank, container in enumerate(containers):
            own = Path(folder, str(rank))
            own.mkdir()
            shown = name if len(containers) == 1 else f"{name}-{rank}"
            tasks.append(ContainerTask(shown, container, PlaceholderValues({}), own, Path(folder, "packages"), ended))
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = [pool.submit(run_container, task) for task in tasks]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                # After a failure or Ctrl-C, no replica waits for ever for one that is gone.
                if not all(future.done() and future.exception() is None for future in futures):
                    ended.set()
            failures = [error for future in futures if (error := future.exception()) is not None]
        failed = next((error for error in failures if not isinstance(error, KeyboardInterrupt)), None)
        if failed is not None or failures:
            raise failed or failures[0]
        return metrics_in(tasks[0].log.read_text(encoding="utf-8", errors="replace"))


def metrics_in(text: str) -> dict[str, list[float]]:
    """The metrics of an output: `loss=0.3`, any number in a line."""
    found: dict[str, list[float]] = {}
    for name, value in _metrics(text):
        found.setdefault(name, []).append(value)
    return found


def _metrics(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        for name, value in _METRIC.findall(line):
            yield name, float(value)


def _container(template: Any, name: str | None) -> Spec:
    """The container of a pod with this name, or its only one."""
    containers = (((template or {}).get("spec")) or {}).get("containers") or []
    chosen = [one for one in containers if one.get("name") == name] or containers
    if len(chosen) != 1:
        raise UsageError(
            f"The pod has {len(chosen)} containers, and it is not known which one is to run.",
            help="Leave one container in spec.template.spec.containers.",
        )
    container: Spec = chosen[0]
    if any("value" not in one for one in container.get("env") or ()):
        secret = next(one["name"] for one in container["env"] if "value" not in one)
        raise UsageError(
            f"The variable '{secret}' comes from Kubernetes (valueFrom), which is not here.",
            help=f"Set it before the command, and remove it from the file: export {secret}=…",
        )
    return container


def _distributed(containers: list[Spec], processes: Any) -> list[Spec]:
    if len(containers) > _MOST_REPLICAS:
        raise UsageError(
            f"The job has {len(containers)} replicas, but at most {_MOST_REPLICAS} run on one machine.",
            help="Lower the number of replicas for a run here.",
        )
    port = str(_free_port())
    per_node = str(processes) if str(processes or "").isdigit() else "1"
    found = []
    for rank, container in enumerate(containers):
        own = {
            "PET_NNODES": str(len(containers)),
            "PET_NPROC_PER_NODE": per_node,
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(len(containers)),
            "RANK": str(rank),
        }
        variables = [{"name": name, "value": value} for name, value in own.items()]
        found.append({**container, "env": [*variables, *(container.get("env") or ())]})
    return found


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"'{name}' is {value!r}.", help="Write a whole number of at least 1.")
    return value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def places() -> int:
    """How many trials may run here at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
