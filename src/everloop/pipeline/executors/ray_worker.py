"""What runs on a node of a Ray cluster: one job, from its spec to a reply.

A node that shares the files of the machine that the job comes from imports the project's modules from the same files.
Any other node unpacks them from the code bundle, into a folder of its own.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, StoreError, UsageError
from everloop.pipeline.cluster_calls import lend_cluster
from everloop.pipeline.code.code_bundles import CodeBundle, roots_of, same_files
from everloop.pipeline.code.project_modules import finder
from everloop.pipeline.code.step_code import code_of, relocatable_digest
from everloop.pipeline.executors.job_specs import JobSpec, unreachable_part
from everloop.pipeline.executors.worker import (
    Failed,
    Stale,
    adopt_variables,
    clock_of_job,
    failed,
    follow_clock,
    run_job,
)
from everloop.pipeline.job import Job
from everloop.pipeline.plan_inputs import decode_inputs
from everloop.pipeline.step_progress import StepProgress, watch_steps
from everloop.pipeline.value_digests import digest_text
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.pipeline.cluster_calls import ClusterCalls
    from everloop.pipeline.job import JobOutcome
    from everloop.pipeline.steps import Step
    from everloop.stores import Store
    from everloop.stores.home import StoreUrls

_REPORT_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Unreachable:
    """This node cannot use the store, and has not run the job."""

    node: str
    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class MissingFile:
    """The step did not find a file on this node, which does not share the files of the run."""

    text: str


_stores: dict[tuple[Any, ...], Store] = {}
_reached: list[tuple[str, str, dict[str, str]]] = []
"""Machine, home and local parts of the stores that this worker has found."""
_bundles: dict[str, CodeBundle] = {}
_steps: dict[tuple[str, str], tuple[Step[..., Any], str]] = {}
"""Digests of a pickled step and of its code in the run, to the step and the digest of its code here."""
_project: list[tuple[str, dict[str, str]]] = []
"""Digest of the code bundle whose modules this worker has imported, and its modules with the files of the run."""


def run_spec(
    data: bytes, report: Callable[[str, StepProgress], None] | None = None, cluster: ClusterCalls | None = None
) -> bytes:
    """Run a job. Returns the pickled reply.

    Args:
        data: a `JobSpec` as JSON.
        report: receives the job's name and the progress of its step, at most twice a second.
        cluster: lent to the step, for calls on other nodes.
    """
    import cloudpickle

    # What a step prints goes to the standard error of the run, as its standard output may be read by a machine.
    with redirect_stdout(sys.stderr):
        try:
            reply = _run(JobSpec.from_json(data), report, cluster)
        except EverloopError as error:
            reply = failed(error)
    sent: bytes = cloudpickle.dumps(reply)
    return sent


def _run(
    spec: JobSpec, report: Callable[[str, StepProgress], None] | None, cluster: ClusterCalls | None
) -> JobOutcome | Failed | Stale | Unreachable | MissingFile:
    if spec.everloop != VERSION:
        raise UsageError(
            f"The node {_this_node()} has everloop {VERSION}, but the run uses {spec.everloop}.",
            help=f"Install the same on each node: pip install 'everloop[ray]=={spec.everloop}'",
        )
    local = spec.local
    # A worker runs many jobs of a run, and checks once.
    if local is not None and (local.machine, local.home, local.parts) not in _reached:
        missing = unreachable_part(local)
        if missing is not None:
            return Unreachable(_this_node(), *missing)
        _reached.append((local.machine, local.home, local.parts))
    adopt_variables(spec.variables)
    store = _open_store(spec)
    try:
        step = _find_step(spec, store)
    except (ImportError, AttributeError, SyntaxError) as error:
        # The modules here cannot be imported, or have no such step: then their code is sent.
        return Stale(outdated=True) if spec.by_name else failed(error)
    if step is None:
        return Stale(outdated=True)
    job = Job(
        name=spec.name,
        node=spec.node,
        step=step,
        inputs=decode_inputs(spec.inputs),
        run=spec.run,
        modules=spec.local.modules if spec.local is not None else {},
        attempt=spec.attempt,
        reached=spec.reached,
    )
    if job.timeout_s is not None:
        reply = _run_isolated(job, store)
    else:
        with (
            watch_steps(_throttled(report)) if report is not None else nullcontext(),
            lend_cluster(cluster) if cluster is not None else nullcontext(),
        ):
            reply = run_job(job, store)
    if isinstance(reply, Failed) and reply.missing_file and local is None:
        return MissingFile(reply.message)
    return reply


def _run_isolated(job: Job, store: Store) -> JobOutcome | Failed:
    """Run a job with a timeout in a process of its own on this node, which can be killed."""
    from everloop.pipeline.executors.pool import PoolExecutor

    executor = PoolExecutor(workers=1)
    logged: list[Any] = []
    future = executor.submit(job, store, log=lambda metrics, step: logged.append((metrics, step)), held={})
    try:
        outcome = future.result()
    except Exception as error:
        return failed(error)
    return replace(outcome, logged=(*outcome.logged, *logged))


def _open_store(spec: JobSpec) -> Store:
    """The run's store. Without a local part, its home is a folder of this node."""
    from everloop.stores import trust
    from everloop.stores.home import StoreUrls, open_urls

    local = spec.local
    home = Path(local.home) if local is not None else _node_folder() / f"home-{digest_text(repr(spec.urls))[:16]}"
    parts = {**spec.urls, **(local.parts if local is not None else {})}
    urls = StoreUrls(home=home, **parts)  # type: ignore[arg-type]
    key = (urls, spec.project, spec.actor, spec.key, spec.clock is None)
    store = _stores.get(key)
    if store is None:
        clock = clock_of_job(urls, spec.clock)
        if spec.key not in [one.public for one in trust.Keyring().listing()]:
            # This node has keys of its own. It may load what the run has signed, because it runs the run's code.
            os.environ["EVERLOOP_KEYS"] = str(_node_folder() / "keys")
            trust.Keyring().trust(spec.key, f"driver-{digest_text(spec.key)[:16]}")
        store = open_urls(urls, project=spec.project, actor=spec.actor, clock=clock, create=local is None)
        _check_run(store, urls, spec)
        _stores[key] = store
    follow_clock(store, spec.clock)
    return store


def _check_run(store: Store, urls: StoreUrls, spec: JobSpec) -> None:
    """Check that these are the run's records and objects, not others at the same path."""
    from everloop.records import Run

    for part, found in (
        ("records", store.records.find(Run, ("id", "=", spec.run), limit=1)),
        ("objects", store.objects.has(spec.bundle)),
    ):
        if not found:
            store.close()
            raise StoreError(
                f"The node {_this_node()} does not find run {spec.run} in the {part} of the store ({urls!r}).",
                help="Give each part of the store a URL that every node reaches, in everloop.toml: [store] records, "
                "objects, tables.",
            )


def _find_step(spec: JobSpec, store: Store) -> Step[..., Any] | None:
    """The step of a job; None if the code here is not the run's."""
    local = spec.local
    project = (spec.bundle, local.modules if local is not None else {})
    if _project != [project]:
        _forget_modules()
    known, digest = _steps.get((spec.function, spec.node.code), (None, ""))
    if known is not None and (not spec.by_name or code_of(known.function).digest == digest):
        return known
    if spec.bundle not in _bundles:
        _bundles[spec.bundle] = CodeBundle.from_bytes(store.objects.read(spec.bundle))
    bundle = _bundles[spec.bundle]
    _project[:] = [project]
    if local is not None and same_files(bundle, local.modules):
        folder, files = local.folder, dict(local.modules)
        path = [*local.search_path]
    else:
        unpacked = _node_folder() / "code" / spec.bundle.rpartition(":")[2]
        files = bundle.unpack(unpacked)
        folder = local.folder if local is not None and Path(local.folder).is_dir() else str(unpacked)
        path = [str(unpacked), *(local.search_path if local is not None else ())]
    os.chdir(folder)
    if local is None:
        os.environ["EVERLOOP_PROJECT"] = folder
    for entry in reversed(path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    importlib.invalidate_caches()
    finder.add(files)
    if spec.by_name:
        for name in spec.node.modules:
            importlib.import_module(name)
    step: Step[..., Any] = pickle.loads(store.objects.read(spec.function))  # noqa: S301 - its digest comes from the run
    digest = code_of(step.function).digest if spec.by_name else ""
    if spec.by_name and digest != spec.node.code and relocatable_digest(step, roots_of(files)) != spec.code:
        return None
    _steps[spec.function, spec.node.code] = step, digest
    return step


def _forget_modules() -> None:
    """Forget the modules of the last project, or of its earlier text, so that they are imported again.

    A worker stays warm between runs of one executor. If it kept a module, classes in it would differ from those of the
    same name in code that is sent.
    """
    _steps.clear()
    for bundle, _ in _project:
        for name in _bundles[bundle].modules:
            sys.modules.pop(name, None)
    _project.clear()


def _node_folder() -> Path:
    """A folder of this node and user, for what a job needs that cannot be reached by a path of the run."""
    folder = Path(tempfile.gettempdir()) / f"everloop-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Anyone can create a folder in /tmp, and code is imported from this one.
        raise StoreError(
            f"'{folder}' on the node {_this_node()} belongs to another user, or others can use it.",
            help=f"Remove it on that node, or set TMPDIR there: rm -r {folder}",
        )
    return folder


def _this_node() -> str:
    import socket

    return socket.gethostname()


def _throttled(report: Callable[[str, StepProgress], None]) -> Callable[[str, StepProgress], None]:
    """Pass on the latest progress every half a second; a step may report it very often."""
    last = [0.0]
    guard = threading.Lock()

    def watch(name: str, progress: StepProgress) -> None:
        now = time.monotonic()
        with guard:
            if now - last[0] < _REPORT_EVERY_S and progress.done != progress.total:
                return
            last[0] = now
        report(name, progress)

    return watch


__all__ = ["Unreachable", "run_spec"]
