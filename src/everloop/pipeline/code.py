"""The code of a step, remembered for as long as nothing in it has changed."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from everloop.pipeline.reach import Code, Known, Reach
from everloop.pipeline.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable

_KNOWN: weakref.WeakKeyDictionary[Any, Known] = weakref.WeakKeyDictionary()


def code_of(function: Callable[..., Any]) -> Code:
    """The code that a step's function reaches; remembered until a file or a name in it changes."""
    if isinstance(function, Step):
        function = function.function
    try:
        known = _KNOWN.get(function)
    except TypeError:
        return Reach().trace(function).code
    if known is None or not known.still():
        known = Reach().trace(function)
        _KNOWN[function] = known
    return known.code


__all__ = ["Code", "code_of"]
