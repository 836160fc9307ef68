"""Inspection of Python objects: the function inside a wrapper, a closure's values, the names in compiled code."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import types
from pathlib import Path
from typing import Any

from everloop.pipeline.steps import Step

TRACKED = "__everloop_tracked__"
"""Marks a package's reader that is wrapped so that what it reads is tracked."""


def unwrapped(value: Any) -> Any:
    """The function inside a step, a method or a descriptor; any other value unchanged."""
    while True:
        if isinstance(value, Step):
            value = value.function
        elif isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property) and value.fget is not None:
            value = value.fget
        elif isinstance(value, types.FunctionType) and TRACKED in vars(value):
            value = vars(value)["__wrapped__"]
        elif not isinstance(value, types.FunctionType | type) and isinstance(
            inner := inspect.getattr_static(value, "__wrapped__", None) or _wrapped(value), types.FunctionType
        ):
            # functools.cache and other wrappers that are written in C.
            value = inner
        else:
            return value


def _wrapped(value: Any) -> Any:
    return value.__wrapped__ if isinstance(value, functools._lru_cache_wrapper) else None


def cells_of(function: types.FunctionType) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:
            continue  # the enclosing function has not assigned this name yet
    return cells


def names_in(code: types.CodeType) -> list[str]:
    names = [*code.co_names, *code.co_freevars]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += names_in(constant)
    return [name for name in dict.fromkeys(names) if not hasattr(builtins, name)]


def file_of_methods(cls: type) -> str | None:
    for item in map(unwrapped, vars(cls).values()):
        if isinstance(item, types.FunctionType):
            return item.__code__.co_filename
    return None


def label_of(module: str) -> str:
    """A module's name as used in the names of parts. A script has the name of its file, whether run or imported."""
    if module == "__main__":
        filename = getattr(sys.modules.get("__main__"), "__file__", None)
        return Path(filename).stem if filename else "__main__"
    return module
