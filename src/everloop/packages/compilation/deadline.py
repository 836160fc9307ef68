"""Limit how long third-party Python code may run in this thread.

Some converters loop forever on some models. A thread cannot be stopped from outside, but the interpreter can raise an
exception in it at its next bytecode instruction, which is enough for pure Python code.
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
    """Raise OutOfTimeError in the block once it has run for `seconds`."""
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
                # It may be pending still, and must not be raised after the block.
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
