"""Changing the `[store]` settings of an `everloop.toml`, without touching anything else in it."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = re.compile(r"^\s*\[\s*store\s*\]\s*(#.*)?$")
_ANY_HEADER = re.compile(r"^\s*\[")


def with_settings(text: str, changes: Mapping[str, str]) -> str:
    """The text of an `everloop.toml` with some settings of `[store]` set.

    Raises:
        ProjectError: the file is written in a way that cannot be changed safely. The help shows the lines to write.
    """
    lines = text.splitlines()
    expected: dict[str, Any] = tomllib.loads(text)
    expected = {**expected, "store": {**expected.get("store", {}), **changes}}
    written = {name: f"{name} = {_quoted(value)}" for name, value in changes.items()}
    start = next((number for number, line in enumerate(lines) if _HEADER.match(line)), None)
    if start is None:
        lines += [*([""] if lines else []), "[store]", *written.values()]
    else:
        end = next((n for n in range(start + 1, len(lines)) if _ANY_HEADER.match(lines[n])), len(lines))
        for number in range(start + 1, end):
            name = lines[number].partition("=")[0].strip()
            if name in written:
                lines[number] = written.pop(name)
        lines[start + 1 : start + 1] = written.values()
    changed = "\n".join(lines) + "\n"
    try:
        fits = tomllib.loads(changed) == expected
    except tomllib.TOMLDecodeError:
        fits = False
    if not fits:
        shown = ", ".join(f"{name} = {_quoted(value)}" for name, value in changes.items())
        raise ProjectError(
            "The [store] settings are written in a way that everloop cannot change.",
            help=f"Write them as lines below [store]: {shown}",
        )
    return changed


def write_config(path: Path, text: str) -> None:
    """Replace the file in one step."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor, draft = tempfile.mkstemp(prefix=".everloop-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _quoted(text: str) -> str:
    # A JSON string without surrogates is a TOML basic string.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
