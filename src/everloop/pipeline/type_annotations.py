"""What a step declares about its inputs and its result, and whether a value is that."""

from __future__ import annotations

import builtins
import importlib
import inspect
import numbers
import sys
import types
import typing
from typing import Any

from everloop.errors import StepOutputError
from everloop.pipeline.code.source_files import find_source

if typing.TYPE_CHECKING:
    from collections.abc import Callable

# What stands for a number: whole ones for others, as type checkers have it, and those of NumPy.
_KEPT_TYPES = frozenset({"polars", "pandas", "pyarrow", "numpy"})
_NUMBERS: dict[type, type] = {int: numbers.Integral, float: numbers.Real, complex: numbers.Complex}


def declared_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter name to type, and `return`. What cannot be resolved here is left out."""
    plain = inspect.unwrap(function)
    space = _Names(plain)
    found: dict[str, Any] = {}
    try:
        annotations = dict(getattr(plain, "__annotations__", {}))
    except NameError:
        return found
    for name, annotation in annotations.items():
        # One at a time: a single name that cannot be resolved would lose them all.
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found.update(typing.get_type_hints(holder, globalns={}, localns=space))
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return found


class _Names(dict[str, Any]):
    """A function's globals and, where those have no such name, what its module imports for type checkers only."""

    def __init__(self, function: Any) -> None:
        super().__init__(getattr(function, "__globals__", {}))
        self._function = function

    def __missing__(self, name: str) -> Any:
        code = getattr(self._function, "__code__", None)
        source = find_source(code.co_filename) if code is not None else None
        for module, attribute in source.guarded_imports.get(name, []) if source is not None else []:
            loaded = sys.modules.get(module)
            if loaded is None and module.partition(".")[0] in _KEPT_TYPES:
                # Whoever declares a frame is about to handle one.
                loaded = importlib.import_module(module)
            if loaded is not None:
                return getattr(loaded, attribute) if attribute else loaded
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise KeyError(name)


def wanted_class(annotation: Any) -> Any:
    """The class that a reader wants: of `X | None` it is X; None where it does not matter."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        return inner[0] if len(inner) == 1 else None
    return annotation


def matches(value: object, annotation: Any) -> bool:
    """Whether a value is what an annotation says, as far as can be told without looking inside containers."""
    if annotation in (Any, inspect.Parameter.empty) or isinstance(annotation, typing.TypeVar | str):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(matches(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is typing.Annotated:
        return matches(value, arguments[0])
    if isinstance(annotation, typing.NewType):
        return matches(value, annotation.__supertype__)
    kind = origin or annotation
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return True
    if typing.is_typeddict(kind):
        return isinstance(value, dict)
    return isinstance(value, (kind, _NUMBERS.get(kind, kind)))


def check_result(value: object, annotation: Any, step: str) -> None:
    """Raise where a step returned something other than it declares.

    Raises:
        StepOutputError: names the step and both types.
    """
    if not matches(value, annotation):
        raise StepOutputError(
            f"Step '{step}' declares that it returns {show_type(annotation)}, but it returned {_show_value(value)}.",
            help="Return that, or change the annotation behind '->'.",
        )


def show_type(annotation: Any) -> str:
    """A type as people write it."""
    if annotation is type(None) or annotation is None:
        return "None"
    if typing.get_origin(annotation) is not None or not isinstance(annotation, type):
        return str(annotation).replace("typing.", "")
    module = annotation.__module__.partition(".")[0]
    return annotation.__qualname__ if module == "builtins" else f"{module}.{annotation.__qualname__}"


def _show_value(value: object) -> str:
    if value is None:
        return "None"
    kind = show_type(type(value))
    text = repr(value) if isinstance(value, bool | int | float | str) else ""
    return f"a {kind} ({text[:60]})" if text else f"a {kind}"
