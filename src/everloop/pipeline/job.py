"""One attempt at one step, from stored inputs to stored outputs: the same wherever it runs."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import StepOutputError
from everloop.pipeline.artifacts import Stored, UnkeepableError, keep_value, load_value
from everloop.pipeline.context import LogCall, StepContext, running_step
from everloop.pipeline.outside.read_tracking import watching
from everloop.pipeline.steps import RESULT, Step, no_tracing
from everloop.pipeline.type_annotations import check_result, declared_types, wanted_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from everloop.records import Json
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Kept:
    """In the place of a value: where it is kept."""

    stored: Stored


@dataclass(frozen=True, slots=True)
class Bundle:
    """In the place of a dict of several outputs."""

    outputs: dict[str, Stored]


@dataclass(frozen=True, slots=True)
class Job:
    """What an executor runs. Everything in it can be sent to another process."""

    name: str
    step: Step[..., Any]
    inputs: dict[str, Any]
    """Parameter to value, with `Kept` and `Bundle` where values are in the store."""
    outputs: tuple[str, ...]
    run: str
    code: str
    """Digest of the code that is meant: a worker that has other code under that name must not run it."""
    modules: dict[str, str] = field(default_factory=dict)
    attempt: int = 1
    reached: tuple[str, ...] = ()
    """Names of the functions and values that the step's code reaches."""
    packages: tuple[str, ...] = ()
    """Distributions that it uses."""

    @property
    def timeout_s(self) -> float | None:
        return self.step.timeout_s


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What became of a job that succeeded."""

    outputs: dict[str, Stored]
    observed: tuple[dict[str, Json], ...]
    seconds: float
    logged: tuple[LogCall, ...] = ()
    """What the step logged and the worker could not write itself."""


class RemoteError(Exception):
    """Shows, as a cause, where in the worker an error was raised."""

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
    """Load the inputs, call the function, check and keep what it returns.

    Args:
        log: writes metrics to the run; without it they are returned.
        held: digest to frame, for values that stay in this process between steps.

    Raises:
        StepOutputError: the result is not what the step declares, or cannot be kept.
        Exception: whatever the function raises.
    """
    from everloop.stores import collect_observations

    began = time.perf_counter()
    types = declared_types(job.step.function)
    logged: list[LogCall] = []
    context = StepContext(
        job.run, job.name, store, job.attempt, log or (lambda metrics, at: logged.append((metrics, at)))
    )
    with (
        no_tracing(),
        collect_observations() as seen,
        running_step(context),
        watching(store, job.packages) as watch,
    ):
        arguments = {name: _open(value, store, types.get(name), held) for name, value in job.inputs.items()}
        value = _call(job.step.function, arguments)
        # A lazy frame is only computed while it is kept, so that belongs to the step as well.
        outputs = _keep_result(job, value, types.get("return", Any), store, held)
    read = [one for one in watch.observations(job.reached) if one not in seen]
    return JobOutcome(outputs, (*seen, *read), time.perf_counter() - began, tuple(logged))


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    leading = [
        arguments.pop(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
    ]
    return function(*leading, **arguments)


def open_input(value: Any, load: Callable[[Stored], Any]) -> Any:
    """The value of an input, with everything that is kept read in."""
    if isinstance(value, Kept):
        return load(value.stored)
    if isinstance(value, Bundle):
        return {name: load(stored) for name, stored in value.outputs.items()}
    if type(value) in (list, tuple):
        return type(value)(open_input(item, load) for item in value)
    if type(value) is dict:
        return {key: open_input(item, load) for key, item in value.items()}
    return value


def _open(value: Any, store: Store, annotation: Any, held: Mapping[str, Any] | None) -> Any:
    wanted = wanted_class(annotation) if isinstance(value, Kept) else None

    def load(stored: Stored) -> Any:
        if held is not None and stored.digest in held and _is_eager(stored, wanted):
            # A clone shares the columns but not the names and the order, so a step that changes its input
            # in place changes its own.
            return held[stored.digest].clone()
        return load_value(stored, store.objects, wanted)

    return open_input(value, load)


def _is_eager(stored: Stored, wanted: Any) -> bool:
    from everloop.pipeline.artifacts.frame import form_of

    return (form_of(wanted) or stored.meta.get("form")) == "polars"


def _keep_result(
    job: Job, value: Any, annotation: Any, store: Store, held: MutableMapping[str, Any] | None
) -> dict[str, Stored]:
    check_result(value, annotation, job.name)
    kept: dict[str, Stored] = {}
    for name, item in _named_outputs(job, value).items():
        try:
            stored = keep_value(item, store.objects)
        except UnkeepableError as error:
            what = f"returned a {type(item).__name__}" + ("" if name == RESULT else f" as '{name}'")
            raise StepOutputError(
                f"Step '{job.name}' {what} that cannot be kept: {error}.",
                help="Return a frame, an array, plain values, a Path, or an object that can be pickled.",
            ) from error
        kept[name] = stored
        if held is not None and stored.type == "frame" and stored.meta.get("form") == "polars":
            held[stored.digest] = item
    return kept


def _named_outputs(job: Job, value: Any) -> dict[str, Any]:
    names = job.outputs
    if not names:
        return {RESULT: value}
    if isinstance(value, tuple | list) and len(value) == len(names):
        return dict(zip(names, value, strict=True))
    if isinstance(value, dict) and set(value) == set(names):
        return {name: value[name] for name in names}
    if isinstance(value, tuple | list):
        what = f"{len(value)} values"
    elif isinstance(value, dict):
        what = f"a dict with {', '.join(map(repr, value)) or 'nothing'}"
    else:
        what = f"a {type(value).__name__}"
    raise StepOutputError(
        f"Step '{job.name}' declares the outputs {', '.join(names)}, but it returned {what}.",
        help="Return a tuple in that order or a dict with those keys.",
    )
