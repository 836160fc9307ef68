"""How a step's failure is told: the error that a run raises, and the text that stays in the record."""

from __future__ import annotations

import traceback
from pathlib import Path

from everloop.errors import EverloopError, StepError
from everloop.pipeline.job import RemoteError

_OWN_CODE = str(Path(__file__).parent)


def tell_failure(name: str, error: BaseException) -> BaseException:
    """The error that a run raises: everloop's own as they are, with the step's name; others inside a StepError."""
    if isinstance(error, EverloopError):
        if f"'{name}'" not in str(error):
            error.add_note(f"In step '{name}'.")
        return error
    told = StepError(
        f"Step '{name}' failed: {type(error).__name__}: {error}",
        help="See the traceback above, or: everloop runs show",
    )
    told.__cause__ = error
    return told


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
