"""The service files that `everloop up` writes on request, from its other options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_services(folder: Path, systemd: Path | None, compose: Path | None, options: Mapping[str, object]) -> None:
    """Write the requested files, and print what to do with them.

    Args:
        options: options of `everloop up` and their values; None leaves one out.
    """
    from everloop.server.service_files import compose_file, systemd_unit, write_service_file

    if systemd is not None:
        given = {**options, "--home": options["--home"] and str(_absolute(options["--home"]))}
        words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
        write_service_file(systemd, systemd_unit(folder, words))
        say(f"Wrote the systemd unit {systemd}. Start it with: systemctl --user enable --now {systemd.resolve()}")
    if compose is not None:
        port = options["--port"]
        text = compose_file(folder, compose, **({"port": port} if isinstance(port, int) and port else {}))
        write_service_file(compose, text)
        say(f"Wrote the compose file {compose}. Start it with: docker compose --file {compose} up --build --detach")


def _absolute(path: object) -> Path:
    from pathlib import Path

    return Path(str(path)).expanduser().resolve()
