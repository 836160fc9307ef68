"""The code of a step, remembered until something in it changes."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_dependencies import CodeDependencies, TracedCode
from everloop.pipeline.code.code_parts import Code
from everloop.pipeline.steps import Step
from everloop.pipeline.value_digests import ignoring_location

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


def relocatable_digest(function: Callable[..., Any], folders: Iterable[str]) -> str:
    """The digest of a function's code that does not depend on where the folders of its project are.

    A constant such as `Path(__file__).parent` differs between machines, though the code is the same.
    """
    with ignoring_location(folders):
        traced = CodeDependencies().trace(function.function if isinstance(function, Step) else function)
    return traced.code.digest


def accept_changes(functions: Iterable[Callable[..., Any]]) -> None:
    """Call this after steps ran here: changes to their own constants are not an edit, so their code stays valid."""
    for function in functions:
        plain = function.function if isinstance(function, Step) else function
        with suppress(TypeError):
            traced = _TRACED.get(plain)
            if traced is not None:
                traced.accept_changes()


__all__ = ["Code", "accept_changes", "code_of", "relocatable_digest"]
