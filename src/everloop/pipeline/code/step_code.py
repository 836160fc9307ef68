"""The code of a step, remembered until something in it changes."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_dependencies import CodeDependencies, TracedCode
from everloop.pipeline.code.code_parts import Code
from everloop.pipeline.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_TRACED: weakref.WeakKeyDictionary[Any, TracedCode] = weakref.WeakKeyDictionary()


def code_of(function: Callable[..., Any]) -> Code:
    """The code that a step's function depends on, remembered until a file or a name in it changes."""
    if isinstance(function, Step):
        function = function.function
    try:
        traced = _TRACED.get(function)
    except TypeError:
        return CodeDependencies().trace(function).code
    if traced is None or not traced.is_current():
        traced = CodeDependencies().trace(function)
        _TRACED[function] = traced
    return traced.code


def accept_changes(functions: Iterable[Callable[..., Any]]) -> None:
    """Call this after steps ran here: changes to their own constants are not an edit, so their code stays valid."""
    for function in functions:
        plain = function.function if isinstance(function, Step) else function
        with suppress(TypeError):
            traced = _TRACED.get(plain)
            if traced is not None:
                traced.accept_changes()


__all__ = ["Code", "accept_changes", "code_of"]
