"""What a step prints: kept with its run as an artifact, while it still appears where it is printed.

`print`, warnings and logging of the thread that runs the step are seen. Output of its other threads, of processes that
it starts and of C code goes past Python's streams and is not kept.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from everloop.pipeline.artifacts import keep_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.pipeline.artifacts import Stored
    from everloop.stores.objects.content_addressing import ContentStore

LOG = "log"
"""Name of the artifact: `<step>.log`."""
MOST_HEAD = 200_000
MOST_TAIL = 800_000
"""Characters that are kept of a long output: its beginning and its end."""
_ATTRIBUTE = "_everloop_step_log"


class StepOutput:
    """The text that one step has printed."""

    def __init__(self) -> None:
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._head_size = self._tail_size = self._dropped = 0

    def add(self, text: str) -> None:
        room = MOST_HEAD - self._head_size
        if room > 0:
            self._head.append(text[:room])
            self._head_size += min(len(text), room)
            text = text[room:]
        if not text:
            return
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail_size > MOST_TAIL:
            first = self._tail.popleft()
            extra = min(len(first), self._tail_size - MOST_TAIL)
            self._tail_size -= extra
            self._dropped += extra
            if len(first) > extra:
                self._tail.appendleft(first[extra:])

    @property
    def text(self) -> str:
        """What was printed; of a very long output without its middle."""
        gap = f"\n… {self._dropped:,} characters are left out …\n" if self._dropped else ""
        return "".join(self._head) + gap + "".join(self._tail)


_current: ContextVar[StepOutput | None] = ContextVar("everloop_step_output", default=None)


class _Tee:
    """A stream that also hands what a step writes to its output. Everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if (output := _current.get()) is not None:
            output.add(text)
        written: int = self.stream.write(text)
        return written

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _LogHandler(logging.Handler):
    """Keeps log records, unless a handler has already written them to a stream that is seen."""

    def emit(self, record: logging.LogRecord) -> None:
        if (output := _current.get()) is None or _reaches_tee(record.name):
            return
        with suppress(Exception):  # a record whose arguments do not fit its format must not stop the step
            output.add(f"{record.levelname}:{record.name}:{record.getMessage()}\n")


def _reaches_tee(name: str) -> bool:
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(isinstance(getattr(handler, "stream", None), _Tee) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


_guard = threading.Lock()
_installed: list[tuple[_Tee | None, _Tee | None, _LogHandler]] = []
_users = 0


@contextmanager
def collect_output() -> Iterator[StepOutput]:
    """Inside the block, collect what this thread prints. Several threads may do so at once."""
    global _users
    output = StepOutput()
    with _guard:
        if _users == 0:
            _install()
        _users += 1
    token = _current.set(output)
    try:
        yield output
    finally:
        _current.reset(token)
        with _guard:
            _users -= 1
            if _users == 0:
                _remove()


def _install() -> None:
    handler = _LogHandler()
    # A process without a console, such as a service, may have no streams.
    out, err = (None if stream is None else _Tee(stream) for stream in (sys.stdout, sys.stderr))
    _installed.append((out, err, handler))
    # A tee passes on everything that a stream has, but is not one itself.
    streams: Any = (out or sys.stdout, err or sys.stderr)
    sys.stdout, sys.stderr = streams
    # Without any handler, Python itself writes warnings to the stream. A handler of ours would end that, and would make
    # `logging.basicConfig` in a step do nothing.
    if logging.getLogger().handlers:
        logging.getLogger().addHandler(handler)


def _remove() -> None:
    out, err, handler = _installed.pop()
    # If the step has put another stream there, that one stays.
    if out is not None and cast("Any", sys.stdout) is out:
        sys.stdout = out.stream
    if err is not None and cast("Any", sys.stderr) is err:
        sys.stderr = err.stream
    logging.getLogger().removeHandler(handler)


def keep_output(output: StepOutput, objects: ContentStore) -> Stored | None:
    """Store what was printed, with secrets masked; None if nothing was."""
    from everloop.tracking.secrets.masking import mask_text

    text = output.text
    if not text.strip():
        return None
    stored = keep_value(mask_text(text).encode("utf-8", "backslashreplace"), objects)
    meta = {**stored.meta, "shows": "text", "media": "text/plain; charset=utf-8", "file": "log.txt"}
    return replace(stored, meta=meta)


def attach_log(error: BaseException, stored: Stored | None) -> None:
    """Let an error carry what its step had printed, also from another process."""
    if stored is not None:
        with suppress(AttributeError, TypeError):
            setattr(error, _ATTRIBUTE, stored)


def log_of(error: BaseException) -> Stored | None:
    """Return what the step of an error had printed."""
    found: Stored | None = getattr(error, _ATTRIBUTE, None)
    return found
