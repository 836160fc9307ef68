"""What the components of a compiled loop call: begin a run, run one step of it, finish it.

Components hand on references to results in the store, never the results themselves. A step runs in the scheduler of
every other run, so its cache key, records and lineage are those of `everloop run`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, StepError
from everloop.pipeline.graph_plan import Plan
from everloop.pipeline.value_digests import digest_text
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from everloop.pipeline.graph import Node
    from everloop.records import Json
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class RunOrder:
    """Where the store of a compiled loop is, and which object in it holds the loop. Plain data, for a parameter."""

    digest: str
    """Digest of the object with the plan; see `keep_order`."""
    project: str
    home: str | None = None
    """Home of a store on this machine; None if all of its parts have URLs."""
    urls: dict[str, str] = field(default_factory=dict)
    """Part of the store to its URL."""
    folder: str | None = None
    """The project's folder, for relative paths, where it exists."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunOrder:
        """The inverse of `to_json`.

        Raises:
            CorruptionError: the text is something else.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CorruptionError(
                f"The parameter 'order' is not what everloop wrote: {error}.", help="Leave it at its default."
            ) from error


def keep_order(
    store: Store, plan: Plan, nodes: Mapping[str, Node], *, loop: str | None, params: Mapping[str, Json]
) -> str:
    """Store a plan with its steps for components. Returns the digest.

    Raises:
        StepError: a parameter of a step cannot be pickled.
    """
    import pickle

    import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(dict(nodes))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise StepError(
            f"The steps of '{plan.name}' cannot be sent to components: {error}.",
            help="Use parameters that can be pickled.",
        ) from error
    data = {
        "everloop": VERSION,
        "plan": plan.to_json(),
        "nodes": store.objects.add(pickled),
        "loop": loop,
        "params": dict(params),
    }
    return store.objects.add(json.dumps(data, sort_keys=True).encode())


def begin(order: str) -> str:
    """Create the run. Returns its id."""
    from everloop.stores.verify import mark_lost
    from everloop.tracking import start_run

    with _opened(order) as (store, data, plan):
        mark_lost(store)
        tags = {"kubeflow.plan": plan.digest}
        with start_run(
            plan.name, store=store, params=data["params"], tags=tags, loop=data["loop"], trigger="kubeflow"
        ) as run:
            run.set_code(_code(plan))
            return run.id


def run_step(order: str, step: str, run: str, inputs: Mapping[str, Any], result: Any) -> None:
    """Run one step, or take its result from the cache.

    Args:
        inputs: step to the artifact with which its component ended.
        result: the artifact that this component makes.

    Raises:
        EverloopError: the step failed.
    """
    from everloop.pipeline.artifacts import Stored
    from everloop.pipeline.executors.executor_choice import load_executor
    from everloop.pipeline.run_listener import Listener
    from everloop.pipeline.scheduler import GraphScheduler
    from everloop.tracking import start_run

    with _opened(order) as (store, data, plan):
        nodes = _load_nodes(data, plan, store)
        executor = load_executor("pool" if nodes[step].step.timeout_s is not None else "inline")
        try:
            with start_run(resume=run, store=store) as active:
                scheduler = GraphScheduler(store, active, nodes, [step], executor, frozenset(), Listener())
                for need, artifact in inputs.items():
                    told = json.loads(Path(artifact.path).read_text(encoding="utf-8"))
                    scheduler.results[need] = {name: Stored(**one) for name, one in told["outputs"].items()}
                scheduler.run_all()
                active.set_code(_code(plan))
                if scheduler.result.error is not None:
                    raise scheduler.result.error
        finally:
            executor.close()
        record = scheduler.result.step(step)
        outputs = {name: asdict(one) for name, one in scheduler.results[step].items()}
        Path(result.path).write_text(json.dumps({"step": step, "outputs": outputs}), encoding="utf-8")
        result.metadata.update(
            {
                "run": run,
                "step": step,
                "status": record.status,
                **{f"digest_{name}": one["digest"] for name, one in outputs.items()},
            }
        )


def finish(order: str, run: str, state: str, message: str | None) -> None:
    """Record the end of a run, and which of its steps did not run because another one failed."""
    from everloop.records import StepRun
    from everloop.tracking import start_run

    with _opened(order) as (store, _, plan):
        done = {step.name: step for step in store.records.find(StepRun, ("run", "=", run))}
        failed = next((step for step in done.values() if step.status == "failed"), None)
        active = start_run(resume=run, store=store)
        active.set_code(_code(plan))
        if failed is None and state == "SUCCEEDED":
            active.finish("finished")
            return
        why = f"'{failed.name}' failed" if failed is not None else "the pipeline ended early"
        skipped = [
            store.new(
                StepRun,
                run=run,
                name=node.name,
                status="skipped",
                reason=why,
                fingerprint="",
                code=node.code,
                depends_on=node.needs,
            )
            for node in plan.nodes
            if node.name not in done
        ]
        if skipped:
            store.records.put(*skipped)
        error = failed.error if failed is not None and failed.error else message or "the pipeline failed"
        active.finish("failed", error)


def _code(plan: Plan) -> str:
    texts = [text for node in plan.nodes for text in (node.name, node.code)]
    return f"code:{digest_text(*texts)}"


@contextmanager
def _opened(order: str) -> Iterator[tuple[Store, dict[str, Any], Plan]]:
    from everloop.stores.home import StoreUrls, open_store, open_urls

    wanted = RunOrder.from_json(order)
    if wanted.folder is not None and Path(wanted.folder).is_dir():
        os.chdir(wanted.folder)
        os.environ["EVERLOOP_PROJECT"] = wanted.folder
    if wanted.urls and wanted.home is not None:
        home = Path(wanted.home)
        urls = StoreUrls(home=home if home.is_dir() else Path.cwd() / ".everloop", **wanted.urls)  # type: ignore[arg-type]
        store = open_urls(urls, project=wanted.project)
    else:
        store = open_store(wanted.home, project=wanted.project, create=False)
    with store:
        data = json.loads(store.objects.read(wanted.digest))
        if data["everloop"] != VERSION:
            raise StepError(
                f"The pipeline was compiled by everloop {data['everloop']}; this component has {VERSION}.",
                help="Use an image with the same version, or compile it again.",
            )
        yield store, data, Plan.from_json(data["plan"])


def _load_nodes(data: dict[str, Any], plan: Plan, store: Store) -> dict[str, Node]:
    """The steps of the plan, with the project's modules from the bundle unless the folder has the same."""
    import pickle
    import tempfile

    from everloop.pipeline.code.code_bundles import CodeBundle
    from everloop.pipeline.code.project_modules import finder

    if plan.bundle is not None:
        bundle = CodeBundle.from_bytes(store.objects.read(plan.bundle))
        here = Path.cwd()
        files = {module: str(here / path) for module, path in bundle.modules.items()}
        folder = here
        if not all(
            Path(file).is_file() and Path(file).read_bytes().decode("utf-8", "surrogateescape") == bundle.files[path]
            for file, path in zip(files.values(), bundle.modules.values(), strict=True)
        ):
            folder = Path(tempfile.mkdtemp(prefix="everloop-code-")) / "code"
            files = bundle.unpack(folder)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        finder.add(files)
    found: dict[str, Node] = pickle.loads(store.objects.read(data["nodes"]))  # noqa: S301 - its digest is in the order
    return found
