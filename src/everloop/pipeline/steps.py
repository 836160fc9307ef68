"""A step: a plain function with a name and with rules for running it."""

from __future__ import annotations

import copyreg
import functools
import inspect
import re
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

P = ParamSpec("P")
R = TypeVar("R")

RESULT = "result"
"""The name of the only output of a step that declares none."""

by_value: ContextVar[frozenset[str]] = ContextVar("everloop_by_value", default=frozenset())
"""Modules whose steps are pickled by value, because the receiving process has other code under that name."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_SPREAD = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Step(Generic[P, R]):
    """A function that a graph can run. Outside of a graph, calling the step calls the function.

    Attributes:
        function: the function.
        name: unique in a graph.
        retries: how often to try again after an error, a timeout or a lost worker.
        backoff_s: wait before the first retry. It doubles with each retry, and varies at random by up to a half.
        timeout_s: an attempt that takes longer is killed. A step with a timeout always runs in a separate process,
            because nothing else can reliably stop native code.
        cache: whether an earlier result may be used instead of running.
        version: changing it makes the step run again.
        resources: the resources that one run needs, such as `{"cpu": 2, "memory": "4GB"}`.
        outputs: names of several outputs, if the function returns a tuple (in that order) or a dict (with those keys).
        environment: requirements that are installed for this step, as for pip. Only Ray can do that.
        on_driver: run the step in the process of the run, even if its executor uses other machines. For steps that
            change things outside of their result, such as files of the project.
    """

    # Set by functools.update_wrapper.
    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        retries: int = 0,
        backoff_s: float = 1.0,
        timeout_s: float | None = None,
        cache: bool = True,
        version: str | int | None = None,
        resources: Mapping[str, float | str] | None = None,
        outputs: Iterable[str] | None = None,
        environment: Iterable[str] = (),
        on_driver: bool = False,
    ) -> None:
        if not callable(function):
            raise UsageError(
                f"@step decorates a function, not {function!r}.",
                help="Write @step, or @step(name='…') with named arguments.",
            )
        step_name: str = name or getattr(function, "__name__", None) or type(function).__name__
        self.function = function
        self.name: str = "step" if step_name == "<lambda>" else step_name
        self.retries = retries
        self.backoff_s = backoff_s
        self.timeout_s = timeout_s
        self.cache = cache
        self.version = None if version is None else str(version)
        self.resources = dict(resources or {})
        self.outputs = tuple(outputs) if outputs is not None else ()
        self.environment = (environment,) if isinstance(environment, str) else tuple(environment)
        self.on_driver = on_driver
        self._check(outputs)
        functools.update_wrapper(self, function)

    def _check(self, outputs: Iterable[str] | None) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"'{self.name}' is not a valid name of a step.", help="Use letters, digits, '_' and '-'.")
        if isinstance(outputs, str) or len(set(self.outputs)) != len(self.outputs):
            raise UsageError(
                f"Step '{self.name}' declares outputs={outputs!r}.",
                help='Give distinct names, such as outputs=("train", "test").',
            )
        if self.retries < 0 or self.backoff_s < 0 or (self.timeout_s is not None and self.timeout_s <= 0):
            raise UsageError(
                f"Step '{self.name}' has retries={self.retries}, backoff_s={self.backoff_s}, "
                f"timeout_s={self.timeout_s}.",
                help="None of them may be negative, and timeout_s must be above 0.",
            )
        if not all(isinstance(one, str) and one.strip() for one in self.environment):
            raise UsageError(
                f"Step '{self.name}' declares environment={self.environment!r}.",
                help='List requirements as for pip, such as environment=["torch==2.5.1"].',
            )
        if self.environment and self.on_driver:
            raise UsageError(
                f"Step '{self.name}' declares an environment and on_driver=True.",
                help="The process of the run has one environment. Drop one of the two.",
            )
        if inspect.isgeneratorfunction(self.function) or inspect.iscoroutinefunction(self.function):
            raise UsageError(
                f"Step '{self.name}' is a generator or a coroutine; a step returns its result.",
                help="Return a list or a frame.",
            )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        tracer = tracing.get()
        if tracer is None:
            return self.function(*args, **kwargs)
        # Inside a trace the call adds a node, and returns a reference to its future result.
        return cast("R", tracer.call(self, args, kwargs))

    def map(self, values: Any, /, **fixed: Any) -> Any:
        """Run the step once per value, which is passed to its first parameter. Each result is cached by itself.

        Outside of a graph this returns the list of results. Inside a trace it returns the output of one node that
        fans out; there, `values` may also be the output of another step.
        """
        tracer = tracing.get()
        if tracer is None:
            return [cast("Any", self.function)(value, **fixed) for value in values]
        return tracer.call_map(self, values, fixed)

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameter name to default, without `*args` and `**kwargs`."""
        return {one.name: one.default for one in self.signature.parameters.values() if one.kind not in _SPREAD}

    @property
    def takes_any(self) -> bool:
        """Whether the function has a `**kwargs` parameter."""
        return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in self.signature.parameters.values())

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for missing attributes: here, one of several outputs, as in `split.train`.
        if name in self.__dict__.get("outputs", ()):
            return Output(self, name)
        raise AttributeError(f"{type(self).__name__} {self.__dict__.get('name', '')!r} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<step {self.name}>"

    def __reduce__(self) -> Any:
        # Like functions: pickled by reference if another process can find the step by its name, else by value.
        module, name = self.__dict__.get("__module__", ""), self.__dict__.get("__qualname__", "")
        if module not in ("__main__", *by_value.get()) and _find_by_name(module, name) is self:
            return _load_by_name, (module, name)
        return copyreg.__newobj__, (Step,), self.__dict__  # type: ignore[attr-defined]


def _find_by_name(module: str, qualified: str) -> Any:
    value: Any = sys.modules.get(module)
    for part in qualified.split("."):
        value = getattr(value, part, None) if part != "<locals>" else None
    return value


def _load_by_name(module: str, qualified: str) -> Any:
    __import__(module)
    found = _find_by_name(module, qualified)
    if not isinstance(found, Step):
        raise AttributeError(f"module {module} has no step {qualified}")
    return found


@dataclass(frozen=True, slots=True)
class Output:
    """One named output of a step that has several: `split.train`, before the step is in a graph."""

    step: Step[..., Any]
    name: str


class Tracer(Protocol):
    """Receives calls of steps instead of running them."""

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any: ...

    def call_map(self, step: Step[..., Any], values: Any, fixed: Mapping[str, Any]) -> Any: ...


tracing: ContextVar[Tracer | None] = ContextVar("everloop_tracing", default=None)
"""The tracer that receives calls of steps in this context; None if steps run when called."""


@contextmanager
def no_tracing() -> Iterator[None]:
    """Inside the block, steps are plain functions, so that one step can call another."""
    token = tracing.set(None)
    try:
        yield
    finally:
        tracing.reset(token)


@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(
    *,
    name: str | None = None,
    retries: int = 0,
    backoff_s: float = 1.0,
    timeout_s: float | None = None,
    cache: bool = True,
    version: str | int | None = None,
    resources: Mapping[str, float | str] | None = None,
    outputs: Iterable[str] | None = None,
    environment: Iterable[str] = (),
    on_driver: bool = False,
) -> Callable[[Callable[P, R]], Step[P, R]]: ...


def step(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a step: `@step`, or `@step(retries=2, timeout_s=60)`. See `Step` for the options."""
    if function is None:
        return lambda function: Step(function, **options)
    return Step(function, **options)
