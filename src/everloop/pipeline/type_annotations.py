"""Type annotations of steps: resolving them, and checking a result against them."""

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

_DATA_PACKAGES = frozenset({"polars", "pandas", "pyarrow", "numpy"})
# As for type checkers, an int is a valid float. NumPy's numbers are valid too.
_NUMBERS: dict[type, type] = {int: numbers.Integral, float: numbers.Real, complex: numbers.Complex}


def declared_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter name to type, and `return`. Annotations that cannot be resolved are left out."""
    plain = inspect.unwrap(function)
    namespace = _Names(plain)
    found: dict[str, Any] = {}
    try:
        annotations = dict(getattr(plain, "__annotations__", {}))
    except NameError:
        return found
    for name, annotation in annotations.items():
        # One at a time: in a single call, one name that cannot be resolved would fail them all.
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found.update(typing.get_type_hints(holder, globalns={}, localns=namespace))
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
    return found


class _Names(dict[str, Any]):
    """A function's globals, and for other names, what its module imports under `if TYPE_CHECKING:`."""

    def __init__(self, function: Any) -> None:
        super().__init__(getattr(function, "__globals__", {}))
        self._function = function

    def __missing__(self, name: str) -> Any:
        code = getattr(self._function, "__code__", None)
        source = find_source(code.co_filename) if code is not None else None
        for module, attribute in source.guarded_imports.get(name, []) if source is not None else []:
            loaded = sys.modules.get(module)
            if loaded is None and module.partition(".")[0] in _DATA_PACKAGES:
                # A step that declares a frame will need this package anyway.
                loaded = importlib.import_module(module)
            if loaded is not None:
                return getattr(loaded, attribute) if attribute else loaded
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise KeyError(name)


def wanted_class(annotation: Any) -> Any:
    """The class that an annotation asks for: X for `X | None`; None if there are several."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(annotation) if one is not type(None)]
        return inner[0] if len(inner) == 1 else None
    return annotation


def matches(value: object, annotation: Any) -> bool:
    """Whether a value has the annotated type, checked without looking inside containers."""
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
    """Check the result of a step against its return annotation.

    Raises:
        StepOutputError: it does not match; the message names the step and both types.
    """
    if not matches(value, annotation):
        raise StepOutputError(
            f"Step '{step}' declares that it returns {show_type(annotation)}, but it returned {_show_value(value)}.",
            help="Return that type, or change the annotation after '->'.",
        )


def show_type(annotation: Any) -> str:
    """A type as it is written in code."""
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
