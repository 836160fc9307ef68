"""Failures of steps: the error that a run raises, and the text that its record keeps."""

from __future__ import annotations

import traceback
from pathlib import Path

from everloop.errors import EverloopError, StepError
from everloop.pipeline.job import RemoteError

_PIPELINE_FOLDER = str(Path(__file__).parent)


def step_error(name: str, error: BaseException) -> BaseException:
    """The error that a run raises: everloop's own with the step's name as a note, any other as cause of a StepError."""
    if isinstance(error, EverloopError):
        if f"'{name}'" not in str(error):
            error.add_note(f"In step '{name}'.")
        return error
    failure = StepError(
        f"Step '{name}' failed: {show_error(error)}", help="See the traceback above, or: everloop runs show"
    )
    failure.__cause__ = error
    return failure


def show_error(error: BaseException) -> str:
    """Type and text of an error; for `sys.exit` and similar ways to leave a function, a description."""
    try:
        text = str(error)
    except Exception as str_error:
        text = f"(its text cannot be shown: {type(str_error).__name__})"
    match error:
        case SystemExit():
            description = f"it called sys.exit({error.code!r})"
        case KeyboardInterrupt():
            description = "it raised KeyboardInterrupt itself"
        case GeneratorExit():
            description = "it raised GeneratorExit"
        case _:
            return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{description}. A step ends by returning a value or by raising an error"


def describe_failure(error: BaseException) -> str:
    """The error with the frames of the user's code, for the step's record."""
    remote = error.__cause__
    if isinstance(remote, RemoteError):
        return clean_text(remote.text.strip())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PIPELINE_FOLDER not in frame.filename]
    return clean_text("".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).strip())


def clean_text(text: str) -> str:
    """The text without NUL characters and lone surrogates, which some databases refuse."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode()
