"""The environments of a project, such as dev, staging and production: each has a store and an endpoint.

They are declared in `everloop.toml`:

    [environments.staging]
    store = "/srv/everloop/staging"            # home of the store; default: the store of [store]
    records = "postgresql://host/staging"      # optional, as in [store]; also objects and tables
    endpoint = "delays"                        # default: the endpoint that serves the model
    rollout = [10, 50, 100]                    # shares of the traffic in percent; default: all at once
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError, ProjectError

if TYPE_CHECKING:
    from everloop.stores import Store

FIRST = "dev"
"""The environment that a merge releases to."""
_PARTS = ("records", "objects", "tables", "log")
_KNOWN = ("store", *_PARTS, "endpoint", "rollout")


@dataclass(frozen=True, slots=True)
class DeploymentEnvironment:
    """One environment. `home` is None if it uses the project's own store."""

    name: str
    home: Path | None = None
    parts: dict[str, str] = field(default_factory=dict, repr=False)
    """URLs of records, objects, tables and log, which may contain passwords."""
    endpoint: str | None = None
    rollout: tuple[float, ...] = (100.0,)
    project: str | None = None

    def open(self, folder: Path, *, create: bool = False) -> Store:
        """Open the environment's store.

        Args:
            folder: the project's folder, for the project's own store.
            create: create the store if it is missing.

        Raises:
            NotFoundError: the store does not exist, and `create` is off.
        """
        from everloop.loop.project_folder import enter_folder
        from everloop.stores import open_store
        from everloop.stores.home import open_urls, store_urls

        if self.home is None:
            enter_folder(folder)
            return open_store(None, create=create)
        return open_urls(store_urls(self.home, self.parts), project=self.project, create=create)


def read_environments(folder: Path) -> dict[str, DeploymentEnvironment]:
    """Read the environments of a project from its `everloop.toml`; empty without such a file.

    Raises:
        ProjectError: the file cannot be read, or an environment has an unknown or invalid setting.
    """
    from everloop.loop.declaration_checks import check_name
    from everloop.stores.home import nearest_config

    config = nearest_config(folder)
    if config is None:
        return {}
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProjectError(f"Cannot read '{config}': {error}.") from error
    tables = content.get("environments", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ProjectError(
            f"'environments' in '{config}' is not a group of sections.",
            help='Write [environments.dev] and store = "…".',
        )
    project = content.get("project", {})
    name = project.get("name") if isinstance(project, dict) else None
    for one in tables:
        check_name("an environment", one, "staging")
    return {one: _environment(one, table, config, name) for one, table in tables.items()}


def get_environment(folder: Path, name: str) -> DeploymentEnvironment:
    """Return one environment of a project. `dev` is the project's own store, unless it is declared otherwise.

    Raises:
        NotFoundError: the project does not declare it.
        ProjectError: as for `read_environments`.
    """
    found = {FIRST: DeploymentEnvironment(FIRST), **read_environments(folder)}
    if name not in found:
        known = ", ".join(found) or "none"
        raise NotFoundError(
            f"everloop.toml declares no environment '{name}'. Declared: {known}.",
            help=f'Add a section to everloop.toml: [environments.{name}] with store = "FOLDER".',
        )
    return found[name]


def _environment(name: str, table: dict[str, Any], config: Path, project: object) -> DeploymentEnvironment:
    where = f"[environments.{name}] in '{config}'"
    unknown = sorted(set(table) - set(_KNOWN))
    if unknown:
        raise ProjectError(
            f"{where} has an unknown setting '{unknown[0]}'.", help=f"Known settings: {', '.join(_KNOWN)}"
        )
    for setting in (*_PARTS, "store", "endpoint"):
        if not isinstance(table.get(setting, ""), str) or table.get(setting) == "":
            raise ProjectError(f"'{setting}' in {where} is not a text.", help="Put the path, URL or name in quotes.")
    parts = {part: table[part] for part in _PARTS if part in table}
    if parts and "store" not in table:
        raise ProjectError(
            f"{where} has '{next(iter(parts))}' but no 'store'.", help='Add the home of the store: store = "FOLDER".'
        )
    home = None
    if "store" in table:
        home = (config.parent / Path(table["store"]).expanduser()).absolute()
    return DeploymentEnvironment(
        name,
        home,
        parts,
        table.get("endpoint"),
        checked_rollout(table.get("rollout", [100]), where),
        project if isinstance(project, str) else None,
    )


def checked_rollout(value: object, where: str) -> tuple[float, ...]:
    """Return the steps of a rollout, in percent.

    Raises:
        ProjectError: they are not numbers that rise to 100.
    """
    numbers = [float(one) for one in value if isinstance(one, int | float) and not isinstance(one, bool)] if isinstance(
        value, list
    ) else []  # fmt: skip
    rising = all(0 < one <= 100 for one in numbers) and numbers == sorted(set(numbers))
    if not isinstance(value, list) or len(numbers) != len(value) or not numbers or not rising or numbers[-1] != 100:
        raise ProjectError(
            f"'rollout' in {where} is {value!r}.", help="Give shares of the traffic that rise to 100: [10, 50, 100]."
        )
    return tuple(numbers)
