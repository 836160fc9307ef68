"""Files with which other programs keep `everloop up` running: a systemd unit and a compose file.

Neither contains secrets. The unit reads environment variables from a file that only the operator writes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import AlreadyExistsError, UsageError
from everloop.stores.full_disk import writing
from everloop.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

ENVIRONMENT = "everloop.env"
"""Name of the file beside `loop.py` with environment variables, such as credentials of a bucket."""
STOP_S = 90
"""How long the processes may take to stop: a run is interrupted and the answers in flight are written."""


def everloop_command() -> list[str]:
    """The command that runs this installation of everloop, with absolute paths."""
    script = Path(sys.executable).parent / "everloop"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from everloop.cli import main; main()"]


def systemd_unit(folder: Path, options: Sequence[str] = ()) -> str:
    """A systemd unit that keeps `everloop up` running for a project.

    Args:
        folder: project folder.
        options: further options of `everloop up`.

    Raises:
        UsageError: the path contains a line break, which a unit cannot express.
    """
    folder = folder.resolve()
    command = [*everloop_command(), "up", "--dir", str(folder), *options]
    for text in command:
        if "\n" in text or "\r" in text:
            raise UsageError(f"A systemd unit cannot contain {text!r}.", help="Rename the folder.")
    lines = [
        "[Unit]",
        f"Description=everloop up for {_specifiers(folder.name)}",
        "Documentation=https://everloop.readthedocs.io/operations",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=exec",
        f"WorkingDirectory={_specifiers(str(folder))}",
        f"EnvironmentFile=-{_specifiers(str(folder / ENVIRONMENT))}",
        f"ExecStart={' '.join(_systemd_word(word) for word in command)}",
        # SIGTERM goes to the supervisor, which stops its children in order. What is left after that is killed.
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_S}",
        "Restart=always",
        "RestartSec=5",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ]
    return "\n".join(lines)


def compose_file(folder: Path, target: Path, *, port: int = 8100) -> str:
    """A compose file with two services: `up` without runners, and `runner`, of which several can be started.

    Args:
        folder: project folder, which becomes the build context.
        target: file that the text will be written to. The context is relative to it.
        port: port of the web page and the API on the host.
    """
    folder = folder.resolve()
    context = Path(os.path.relpath(folder, target.resolve().parent)).as_posix()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    requirements = (folder / "requirements.txt").exists()
    dockerfile = "\n".join(
        [
            f"FROM python:{python}-slim",
            "RUN useradd --create-home everloop && mkdir -p /store && chown everloop /store",
            f"RUN pip install --no-cache-dir 'everloop[ml,postgres]=={VERSION}'",
            *(["COPY requirements.txt /tmp/", "RUN pip install -r /tmp/requirements.txt"] if requirements else []),
            "USER everloop",
            "WORKDIR /project",
            "",
        ]
    )
    health = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8100/health', timeout=5)"
    up = ["everloop", "up", "--dir", "/project", "--home", "/store", "--host", "0.0.0.0", "--runners", "0"]  # noqa: S104
    common = [
        "    build:",
        f"      context: {_yaml(context)}",
        f"      dockerfile_inline: {_yaml(dockerfile)}",
        "    volumes:",
        '      - type: "bind"',
        f"        source: {_yaml(context)}",
        '        target: "/project"',
        '      - "store:/store"',
        "    env_file:",
        f"      - path: {_yaml(f'{context}/{ENVIRONMENT}')}",
        "        required: false",
        "    init: true",
        '    restart: "unless-stopped"',
        f'    stop_grace_period: "{STOP_S}s"',
    ]
    lines = [
        "# Other machines can reach the server, so it needs a login. Add an administrator before the first start:",
        "#   docker compose run --rm up everloop users add NAME --role admin --home /store",
        f"# Environment variables, such as credentials of a bucket, are read from {ENVIRONMENT} beside loop.py.",
        "services:",
        "  up:",
        *common,
        f"    command: {_yaml(up)}",
        "    ports:",
        f'      - "127.0.0.1:{port}:8100"',
        "    healthcheck:",
        f"      test: {_yaml(['CMD', 'python', '-c', health])}",
        *_health_times(),
        "  runner:",
        *common,
        f"    command: {_yaml(['everloop', 'runner', '--dir', '/project', '--home', '/store'])}",
        "    depends_on:",
        '      - "up"',
        "    healthcheck:",
        f"      test: {_yaml(['CMD', 'everloop', 'status', '--home', '/store', '--check', 'runner'])}",
        *_health_times(),
        "volumes:",
        "  store: {}",
        "",
    ]
    return "\n".join(lines)


def write_service_file(path: Path, text: str) -> None:
    """Write a file that does not exist yet, or that has this text already.

    Raises:
        AlreadyExistsError: the file exists with other content, which may have been edited by hand.
    """
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise AlreadyExistsError(f"'{path}' exists already and differs.", help="Choose another name, or remove it.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _health_times() -> list[str]:
    return ['      interval: "30s"', '      timeout: "10s"', "      retries: 3", '      start_period: "60s"']


def _specifiers(text: str) -> str:
    """systemd replaces `%n` and the like everywhere in a unit (systemd.unit(5), "Specifiers")."""
    return text.replace("%", "%%")


def _systemd_word(word: str) -> str:
    """A word of a command line as systemd reads it (systemd.service(5), "Command lines")."""
    escaped = _specifiers(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    plain = escaped == word and word and not set(word) & set(" \t';")
    return word if plain else f'"{escaped}"'


def _yaml(value: object) -> str:
    """JSON is YAML as well. Compose replaces `$NAME`, so a dollar sign is doubled."""
    return json.dumps(value).replace("$", "$$")
