"""One attempt at one step, from stored inputs to stored outputs. Every executor runs it in the same way."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import StepOutputError
from everloop.pipeline.artifacts import Stored, UnkeepableError, keep_value, load_value
from everloop.pipeline.context import LogCall, StepContext, running_step
from everloop.pipeline.outside.read_tracking import track_reads
from everloop.pipeline.step_output import attach_log, collect_output, keep_output
from everloop.pipeline.steps import RESULT, Step, no_tracing
from everloop.pipeline.type_annotations import check_result, declared_types, wanted_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from everloop.pipeline.graph_plan import PlanNode
    from everloop.records import Json
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class StoredInput:
    """Stands for an input whose value is in the store."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class StoredOutputs:
    """Stands for an input that is a dict of several outputs of one step."""

    outputs: dict[str, Stored]


@dataclass(frozen=True, slots=True)
class Job:
    """The work that an executor runs. All of it can be sent to another process."""

    name: str
    """The name of the node, or `node[3]` for an element of a step that fans out."""
    node: PlanNode
    """The step in the run's plan."""
    step: Step[..., Any]
    inputs: dict[str, Any]
    """Parameter to value, with `StoredInput` and `StoredOutputs` for values that are in the store."""
    run: str
    modules: dict[str, str] = field(default_factory=dict)
    """Project module to its file on this machine."""
    attempt: int = 1
    reached: tuple[str, ...] = ()
    """Names of the functions and values that the step's code depends on."""

    @property
    def code(self) -> str:
        """Digest of the step's code: a worker that has other code under that name must not run it."""
        return self.node.code

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.node.gives)

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions that its code uses."""
        return tuple(self.node.packages)

    @property
    def timeout_s(self) -> float | None:
        return self.node.timeout_s


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The result of a job that succeeded."""

    outputs: dict[str, Stored]
    observed: tuple[dict[str, Json], ...]
    seconds: float
    logged: tuple[LogCall, ...] = ()
    """Metrics that the step logged and that the caller has to write."""
    printed: Stored | None = None
    """What the step printed; None if it printed nothing."""


class RemoteError(Exception):
    """The traceback of an error in a worker, attached to that error as its cause."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def perform(
    job: Job,
    store: Store,
    *,
    log: Callable[[dict[str, Any], int | None], None] | None = None,
    held: MutableMapping[str, Any] | None = None,
) -> JobOutcome:
    """Load the inputs, call the function, check its result and store it.

    Args:
        log: writes metrics to the run; without it, they are returned in the outcome.
        held: digest to frame, for frames that stay in this process's memory between steps.

    Raises:
        StepOutputError: the result is not what the step declares, or cannot be stored.
        Exception: any error of the function.
    """
    from everloop.stores import collect_observations

    began = time.perf_counter()
    types = declared_types(job.step.function)
    logged: list[LogCall] = []
    context = StepContext(
        job.run, job.name, store, job.attempt, log or (lambda metrics, step: logged.append((metrics, step)))
    )
    with collect_output() as output:
        try:
            with (
                no_tracing(),
                collect_observations() as declared,
                running_step(context),
                track_reads(store, job.packages) as tracker,
            ):
                arguments = {
                    name: _load_input(value, store, types.get(name), held) for name, value in job.inputs.items()
                }
                value = _call(job.step.function, arguments)
                # A lazy frame is computed when it is stored, so storing is part of the step as well.
                outputs = _store_result(job, value, types.get("return", Any), store, held)
        except Exception as error:
            attach_log(error, keep_output(output, store.objects))
            raise
    tracked = [one for one in tracker.observations(job.reached) if one not in declared]
    printed = keep_output(output, store.objects)
    return JobOutcome(outputs, (*declared, *tracked), time.perf_counter() - began, tuple(logged), printed)


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    leading = [
        arguments.pop(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    return function(*leading, **arguments)


def _load_stored(value: Any, load: Callable[[Stored], Any]) -> Any:
    """An input with every stored value inside loaded."""
    if isinstance(value, StoredInput):
        return load(value.stored)
    if isinstance(value, StoredOutputs):
        return {name: load(stored) for name, stored in value.outputs.items()}
    if type(value) in (list, tuple):
        return type(value)(_load_stored(item, load) for item in value)
    if type(value) is dict:
        return {key: _load_stored(item, load) for key, item in value.items()}
    return value


def _load_input(value: Any, store: Store, annotation: Any, held: Mapping[str, Any] | None) -> Any:
    wanted = wanted_class(annotation) if isinstance(value, StoredInput) else None

    def load(stored: Stored) -> Any:
        if held is not None and stored.digest in held and _is_eager(stored, wanted):
            # A clone shares the columns, but not their names and order. So a step that changes its input in place
            # does not change the frame of other steps.
            return held[stored.digest].clone()
        return load_value(stored, store.objects, wanted)

    return _load_stored(value, load)


def _is_eager(stored: Stored, wanted: Any) -> bool:
    from everloop.pipeline.artifacts.frame import form_of

    return (form_of(wanted) or stored.meta.get("form")) == "polars"


def _store_result(
    job: Job, value: Any, annotation: Any, store: Store, held: MutableMapping[str, Any] | None
) -> dict[str, Stored]:
    check_result(value, annotation, job.name)
    outputs: dict[str, Stored] = {}
    for name, item in _named_outputs(job, value).items():
        try:
            stored = keep_value(item, store.objects)
        except UnkeepableError as error:
            returned = f"returned a {type(item).__name__}" + ("" if name == RESULT else f" as '{name}'")
            raise StepOutputError(
                f"Step '{job.name}' {returned} that cannot be stored: {error}.",
                help="Return a frame, an array, plain values, a Path, or an object that can be pickled.",
            ) from error
        outputs[name] = stored
        if held is not None and stored.type == "frame" and stored.meta.get("form") == "polars":
            held[stored.digest] = item
    return outputs


def _named_outputs(job: Job, value: Any) -> dict[str, Any]:
    names = job.outputs
    if not names:
        return {RESULT: value}
    if isinstance(value, tuple | list) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    if isinstance(value, dict) and set(value) == set(names):
        return {name: value[name] for name in names}
    if isinstance(value, tuple | list):
        returned = f"{len(value)} values"
    elif isinstance(value, dict):
        returned = f"a dict with the keys {', '.join(map(repr, value))}" if value else "an empty dict"
    else:
        returned = f"a {type(value).__name__}"
    raise StepOutputError(
        f"Step '{job.name}' declares the outputs {', '.join(names)}, but it returned {returned}.",
        help="Return a tuple in that order or a dict with those keys.",
    )
