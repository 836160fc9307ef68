"""A limit to how long somebody else's pure Python code may run in this thread.

Converters are known to loop without end on some models. A thread cannot be stopped from outside, but the interpreter
can be asked to raise in it at its next step, which is enough for code that is Python all through.
Source: CPython, "Thread State and the Global Interpreter Lock", `PyThreadState_SetAsyncExc`.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class OutOfTimeError(Exception):
    """The deadline has passed."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the block once it has run for so long."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock, over, fired = threading.Lock(), False, False

    def fire() -> None:
        nonlocal fired
        with lock:
            if not over:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(OutOfTimeError))

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over = True
            if fired:
                # Asked for and perhaps not yet raised: it must not go off somewhere else.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
