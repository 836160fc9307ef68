"""The code of a step, remembered for as long as nothing in it has changed."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_dependencies import Code, CodeDependencies, Known
from everloop.pipeline.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KNOWN: weakref.WeakKeyDictionary[Any, Known] = weakref.WeakKeyDictionary()


def code_of(function: Callable[..., Any]) -> Code:
    """The code that a step's function reaches; remembered until a file or a name in it changes."""
    if isinstance(function, Step):
        function = function.function
    try:
        known = _KNOWN.get(function)
    except TypeError:
        return CodeDependencies().trace(function).code
    if known is None or not known.still():
        known = CodeDependencies().trace(function)
        _KNOWN[function] = known
    return known.code


def settle(functions: Iterable[Callable[..., Any]]) -> None:
    """After steps have run here: what they did to their own constants is no edit, so their code stays known."""
    for function in functions:
        plain = function.function if isinstance(function, Step) else function
        with suppress(TypeError):
            known = _KNOWN.get(plain)
            if known is not None:
                known.settle()


__all__ = ["Code", "code_of", "settle"]
