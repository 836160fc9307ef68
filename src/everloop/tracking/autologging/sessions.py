"""Logging of one fit, from the outermost call to its return."""

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

_MAX_CHARACTERS = 500  # of one parameter


@dataclass
class AutologSettings:
    models: bool = False


settings = AutologSettings()

_current: ContextVar[FitSession | None] = ContextVar("everloop_autolog", default=None)
_open: dict[int, FitSession] = {}
_fits: WeakKeyDictionary[ActiveRun, int] = WeakKeyDictionary()
_warned: set[str] = set()


class FitSession:
    """Logs one fit to a run. No method raises: an error becomes one warning, and the fit continues."""

    def __init__(self, name: str, fitted: Any) -> None:
        self.fitted = fitted
        self._started_run: ActiveRun | None = None
        run = current_run()
        if run is None:
            self._started_run = run = start_run(name, tags={"autolog": name})
            self._prefix = ""
        else:
            number = _fits.get(run, 0) + 1
            _fits[run] = number
            self._prefix = f"{name}_{number}/" if number > 1 else ""
        self.run = run
        # Thread objects, not their numbers: a number may be used again once its thread has ended.
        self.threads_before = WeakSet(threading.enumerate())

    def params(self, values: Mapping[str, Any]) -> None:
        with guarded():
            self.run.log_params({self._prefix + str(name): _short(value) for name, value in values.items()})

    def tags(self, **values: object) -> None:
        with guarded():
            self.run.set_tags({self._prefix + name: value for name, value in values.items()})

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log those values that are numbers."""
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
        """End the run, if this fit has started it."""
        if self._started_run is None:
            return
        with guarded():
            if error is None:
                self._started_run.finish()
            elif isinstance(error, KeyboardInterrupt):
                self._started_run.finish("interrupted")
            else:
                self._started_run.finish("failed", journal_frames.text(f"{type(error).__name__}: {error}"))


def current_session() -> FitSession | None:
    """The fit that this code runs inside of, also in threads that the fit has started. None outside of a fit."""
    session = _current.get()
    if session is not None:
        return session
    if not _open or current_run() is not None:
        return None
    thread = threading.current_thread()
    return next((one for one in list(_open.values()) if thread not in one.threads_before), None)


def logged(
    original: Callable[..., Any],
    name: Callable[[Any], str | None],
    before: Callable[[FitSession, tuple[Any, ...], dict[str, Any]], None] | None = None,
    after: Callable[[FitSession, tuple[Any, ...], dict[str, Any], Any], None] | None = None,
) -> Callable[..., Any]:
    """Wrap `original` so that a call is logged if it is the outermost fit.

    Args:
        name: returns the name of the run, given the first argument; None if this call should not be logged.
        before: called with the call's arguments; may add callbacks to the keyword arguments.
        after: called with the arguments and the result.
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
            new_kwargs = dict(kwargs)
            if before is not None:
                with guarded():
                    before(session, args, new_kwargs)
            result = original(*args, **new_kwargs)
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
    """Warn, but only the first time. If warnings are errors, do not warn: a fit must not fail because of this."""
    if message not in _warned:
        _warned.add(message)
        with suppress(RuntimeWarning):
            warnings.warn(message, RuntimeWarning, stacklevel=3)


class guarded:  # noqa: N801 - used like contextlib.suppress
    """Turns any error inside into one warning."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        warn_once(f"Autologging of a fit failed: {type(error).__name__}: {error}")
        return True


def _begin(name: Callable[[Any], str | None], args: tuple[Any, ...]) -> FitSession | None:
    with guarded():
        if current_session() is not None:
            return None
        first = args[0] if args else None
        run_name = name(first)
        return None if run_name is None else FitSession(run_name, first)
    return None


def _short(value: Any) -> Any:
    plain = value if isinstance(value, bool | int | float | None) else journal_frames.plain(value)
    if isinstance(plain, bool | int | float | None):
        return plain
    text = plain if isinstance(plain, str) else str(plain)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"
