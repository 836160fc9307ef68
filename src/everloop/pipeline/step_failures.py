"""How a step's failure is told: the error that a run raises, and the text that stays in the record."""

from __future__ import annotations

import traceback
from pathlib import Path

from everloop.errors import EverloopError, StepError
from everloop.pipeline.job import RemoteError

_OWN_CODE = str(Path(__file__).parent)


def failure_text(name: str, error: BaseException) -> BaseException:
    """The error that a run raises: everloop's own as they are, with the step's name; others inside a StepError."""
    if isinstance(error, EverloopError):
        if f"'{name}'" not in str(error):
            error.add_note(f"In step '{name}'.")
        return error
    told = StepError(
        f"Step '{name}' failed: {show_error(error)}", help="See the traceback above, or: everloop runs show"
    )
    told.__cause__ = error
    return told


def show_error(error: BaseException) -> str:
    """Kind and text of an error; in words where it is a way to leave a function other than an error."""
    try:
        text = str(error)
    except Exception as trouble:
        text = f"(its text cannot be shown: {type(trouble).__name__})"
    match error:
        case SystemExit():
            said = f"it called sys.exit({error.code!r})"
        case KeyboardInterrupt():
            said = "it raised KeyboardInterrupt itself"
        case GeneratorExit():
            said = "it raised GeneratorExit"
        case _:
            return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said}. A step ends by returning a value or by raising an error"


def describe_failure(error: BaseException) -> str:
    """The error and the frames of the user's code, for the record."""
    remote = error.__cause__
    if isinstance(remote, RemoteError):
        return clean_text(remote.text.strip())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _OWN_CODE not in frame.filename]
    return clean_text("".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).strip())


def clean_text(text: str) -> str:
    """A text that every database takes."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
