"""The executor that a name or URL stands for: `local`, `pool`, `ray`, `ray://HOST:PORT`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from everloop import plugins
from everloop.errors import ProjectError, UsageError

if TYPE_CHECKING:
    from everloop.pipeline.executors.executor import Executor

DEFAULT = "local"
SETTING = "executor"
"""Key of everloop.toml, above its first table."""


def load_executor(name: str) -> Executor:
    """Create an executor. `local` is another name of `inline`.

    Raises:
        UsageError: there is no such executor, or it does not take an address.
    """
    check_executor(name)
    kind, separator, address = name.partition("://")
    made = plugins.load("executor", "inline" if kind == DEFAULT else kind)
    return cast("Executor", made(address) if separator else made())


def check_executor(name: str, what: str = "The executor") -> str:
    """Return the name if it stands for an executor.

    Args:
        what: the beginning of the message.

    Raises:
        UsageError: it does not.
    """
    kind, separator, address = name.partition("://")
    known = [DEFAULT, *(one for one in plugins.names("executor") if one != "inline")]
    if kind not in (*known, "inline"):
        raise UsageError(f"{what} '{name}' is unknown.", help=f"Choose one of: {', '.join(known)}, ray://HOST:PORT")
    if separator and kind in (DEFAULT, "inline", "pool"):
        raise UsageError(f"{what} '{name}' has an address, which '{kind}' does not take.", help=f"Write: {kind}")
    if separator and not address:
        raise UsageError(f"{what} '{name}' has no address.", help=f"Write {kind}://HOST:PORT, or: {kind}")
    return name


def configured_executor(folder: Path | None = None) -> str:
    """The executor that the nearest `everloop.toml` sets; `local` if it sets none.

    Raises:
        ProjectError: the file cannot be read, or its setting is not a string.
        UsageError: it sets an executor that does not exist.
    """
    from everloop.stores.home import nearest_config

    config = nearest_config(folder or Path.cwd())
    if config is None:
        return DEFAULT
    try:
        found = tomllib.loads(config.read_text(encoding="utf-8")).get(SETTING, DEFAULT)
    except (OSError, ValueError) as error:
        raise ProjectError(f"Cannot read '{config}': {error}.") from error
    if not isinstance(found, str):
        raise ProjectError(
            f"'{SETTING}' in '{config}' is not a string.", help='Write it above the first table: executor = "pool"'
        )
    return check_executor(found, f"The executor in '{config}'")
