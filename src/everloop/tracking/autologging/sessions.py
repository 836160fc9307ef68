"""One fit that logs itself, from the outermost call to its return."""

from __future__ import annotations

import functools
import threading
import warnings
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from everloop.tracking.journal import journal_frames
from everloop.tracking.runs import current_run, start_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from everloop.tracking.runs import ActiveRun

_LONGEST = 500  # characters of one parameter


@dataclass
class AutologSettings:
    models: bool = False


settings = AutologSettings()

_current: ContextVar[FitSession | None] = ContextVar("everloop_autolog", default=None)
_open: dict[int, FitSession] = {}
_fits: WeakKeyDictionary[ActiveRun, int] = WeakKeyDictionary()
_said: set[str] = set()


class FitSession:
    """What a fit logs to. Every method is safe: trouble becomes one warning, and the fit goes on."""

    def __init__(self, name: str, fitted: Any) -> None:
        self.fitted = fitted
        self._own: ActiveRun | None = None
        around = current_run()
        if around is None:
            self._own = around = start_run(name, tags={"autolog": name})
            self._prefix = ""
        else:
            number = _fits.get(around, 0) + 1
            _fits[around] = number
            self._prefix = f"{name}_{number}/" if number > 1 else ""
        self.run = around
        # The threads themselves: a number is given again to another thread as soon as the first has ended.
        self.threads = WeakSet(threading.enumerate())

    def params(self, values: Mapping[str, Any]) -> None:
        with guarded():
            self.run.log_params({self._prefix + str(name): _short(value) for name, value in values.items()})

    def tags(self, **values: object) -> None:
        with guarded():
            self.run.set_tags({self._prefix + name: value for name, value in values.items()})

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log what is a number among the values."""
        with guarded():
            numbers: dict[str, float] = {}
            for name, value in values.items():
                with suppress(TypeError, ValueError):
                    numbers[self._prefix + str(name)] = float(value)
            if numbers:
                self.run.log(numbers, step=step)

    def model(self, model: Any) -> None:
        if settings.models:
            with guarded():
                self.run.log_model(model, self._prefix + "model")

    def close(self, error: BaseException | None) -> None:
        if self._own is None:
            return
        with guarded():
            if error is None:
                self._own.finish()
            elif isinstance(error, KeyboardInterrupt):
                self._own.finish("interrupted")
            else:
                self._own.finish("failed", journal_frames.text(f"{type(error).__name__}: {error}"))


def current_session() -> FitSession | None:
    """The fit that this code runs inside of, also where it does so in a thread which that fit has started."""
    session = _current.get()
    if session is not None:
        return session
    if not _open or current_run() is not None:
        return None
    here = threading.current_thread()
    return next((one for one in list(_open.values()) if here not in one.threads), None)


def logged(
    original: Callable[..., Any],
    name: Callable[[Any], str | None],
    before: Callable[[FitSession, tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[FitSession, tuple[Any, ...], dict[str, Any], Any], None] | None = None,
) -> Callable[..., Any]:
    """`original`, logging itself where it is the outermost fit.

    Args:
        name: of the run, by the first argument; None: this call does not log.
        before: is given the call's arguments, and may add callbacks to the dict.
        after: is given the result as well.
    """

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        session = _begin(name, args)
        if session is None:
            return original(*args, **kwargs)
        token = _current.set(session)
        _open[id(session)] = session
        error: BaseException | None = None
        try:
            given = dict(kwargs)
            if before is not None:
                with guarded():
                    before(session, args, given)
            result = original(*args, **given)
            if after is not None:
                with guarded():
                    after(session, args, kwargs, result)
            return result
        except BaseException as raised:
            error = raised
            raise
        finally:
            _open.pop(id(session), None)
            _current.reset(token)
            session.close(error)

    return fit


def warn_once(message: str) -> None:
    """Warn, the first time. Where warnings are errors, it stays unsaid: a fit must not fail for it."""
    if message not in _said:
        _said.add(message)
        with suppress(RuntimeWarning):
            warnings.warn(message, RuntimeWarning, stacklevel=3)


class guarded:  # noqa: N801 - used like contextlib.suppress
    """Turns any error inside into one warning."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        warn_once(f"A fit could not log itself: {type(error).__name__}: {error}")
        return True


def _begin(name: Callable[[Any], str | None], args: tuple[Any, ...]) -> FitSession | None:
    with guarded():
        if current_session() is not None:
            return None
        first = args[0] if args else None
        called = name(first)
        return None if called is None else FitSession(called, first)
    return None


def _short(value: Any) -> Any:
    plain = value if isinstance(value, bool | int | float | None) else journal_frames.plain(value)
    if isinstance(plain, bool | int | float | None):
        return plain
    text = plain if isinstance(plain, str) else str(plain)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
