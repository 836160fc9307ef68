"""Under which names a server may be addressed.

A page of another site can make its own name lead to this machine (DNS rebinding). Its requests then look as if they
came from a page of this server, but for the `Host` header, which holds the name of the other site.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
VARIABLE = "EVERLOOP_ALLOWED_HOSTS"
"""The environment variable that names further hosts, with commas or spaces between; `*` allows every name."""
_INTERNAL = (".local", ".internal", ".localhost", ".svc", ".cluster.local", ".test", ".home.arpa")
_PLATFORMS = (
    "KUBERNETES_SERVICE_HOST", "K_SERVICE", "AIP_", "SAGEMAKER_", "AWS_EXECUTION_ENV", "ECS_CONTAINER_METADATA_URI",
    "AWS_CONTAINER_CREDENTIALS_", "AZUREML_", "WEBSITE_SITE_NAME", "CONTAINER_APP_NAME",
)  # fmt: skip
"""Variables, or how their names begin, by which platforms that run containers let themselves be known."""
_MOST_REMEMBERED = 1_000


def host_name(value: str) -> str | None:
    """The name in a `Host` header, in small letters and without port or brackets; None if it is none."""
    if value.startswith("["):
        name, closed, port = value[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
        try:
            return str(ipaddress.IPv6Address(name))
        except ValueError:
            return None
    name, colon, port = value.partition(":")
    if (colon and not _is_port(f":{port}")) or not name:
        return None
    if not all(character.isascii() and (character.isalnum() or character in "-._") for character in name):
        return None
    return name.lower().removesuffix(".") or None


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and (text[1:].isdecimal() or text == ":") and len(text) < 7


def is_address(name: str) -> bool:
    """Whether a name is an IP address. No other site's name can be one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HostRule:
    """Which `Host` is this server's.

    Always right: loopback's names, and the address at which the connection arrived.
    """

    def __init__(self, allowed: Sequence[str] = (), *, addresses: bool = False, internal: bool = False) -> None:
        """Prepare.

        Args:
            allowed: further names; `*.example.com` for all below it, `*` for every name.
            addresses: allow every IP address: this server is reached through others than its own (NAT, probes).
            internal: allow names that no page of the internet can have: those without a dot, `.local`, `.internal`,
                `.svc` and the like.
        """
        names = [name.strip().lower() for name in allowed]
        self._names = LOOPBACK | {name for name in names if not name.startswith("*")}
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._every = "*" in names
        self._addresses = addresses
        self._internal = internal
        self._good: set[bytes] = set()
        self.origins = frozenset(name.encode() for name in names if not name.startswith("*"))
        """The configured names, as the authority of an `Origin`: a proxy may have changed `Host` on the way."""

    def allows(self, headers: Iterable[tuple[bytes, bytes]], local: str | None) -> bool:
        """Whether the one `Host` header names this server.

        Args:
            local: the address at which the connection arrived. A name can be made to lead anywhere, a number
                cannot, so this number itself is always right.
        """
        values = [value for name, value in headers if name == b"host"]
        return len(values) == 1 and self.allows_value(values[0], local)

    def allows_value(self, value: bytes, local: str | None) -> bool:
        """Whether the value of a `Host` header names this server."""
        if value in self._good:
            return True
        name = host_name(value.decode("latin-1"))
        if name is None or not (self._every or self._allows_name(name, local)):
            return False
        if len(self._good) < _MOST_REMEMBERED:
            self._good.add(value)
        return True

    def _allows_name(self, name: str, local: str | None) -> bool:
        if name in self._names or name == local or (self._endings and name.endswith(self._endings)):
            return True
        if is_address(name):
            return self._addresses
        # Numbers with other dots (127.1, 0x7f.1) are addresses to some clients. No platform sends them.
        return self._internal and not name[-1].isdigit() and ("." not in name or name.endswith(_INTERNAL))


def rule_for(host: str, allowed: Sequence[str] = (), *, asks_token: bool = False, contained: bool = False) -> HostRule:
    """The rule of a process that serves endpoints at `host`.

    On loopback: loopback's names and `allowed`. At any other address, where a list is given: that list, and IP
    addresses, which probes send. Without a list: every name where each request needs a token, since a page of another
    site does not have it; in a container every name where a platform runs it, which stands in front and sends names
    of its own, else IP addresses and internal names.

    Args:
        asks_token: everything but health checks needs a token.
        contained: the process listens in a container without a token of its own.
    """
    if host in LOOPBACK:
        return HostRule(allowed)
    if not allowed and (asks_token or (contained and on_platform(os.environ))):
        return HostRule(("*",))
    return HostRule(allowed, addresses=True, internal=contained and not allowed)


def on_platform(environment: Mapping[str, str]) -> bool:
    """Whether a platform runs this container: Kubernetes, KServe, SageMaker, Vertex AI, Azure ML, ECS, Cloud Run."""
    return any(name.startswith(_PLATFORMS) for name in environment)


def allowed_hosts(given: Sequence[str] = (), start: Path | None = None) -> tuple[str, ...]:
    """The names under which an endpoint's process may be addressed, beside its own.

    Args:
        given: on the command line. Without any, those of the environment variable `EVERLOOP_ALLOWED_HOSTS`, else
            `allowed_hosts` under `[serving]` in the nearest `everloop.toml`.
        start: where that file is looked for, upwards.

    Raises:
        ProjectError: the file has something else there.
    """
    from everloop.stores.home import nearest_config

    texts: Sequence[str] = given
    if not texts and os.environ.get(VARIABLE):
        texts = (os.environ[VARIABLE],)
    if not texts and (config := nearest_config(start or Path.cwd())) is not None:
        try:
            found = tomllib.loads(config.read_text(encoding="utf-8")).get("serving", {})
        except (OSError, ValueError) as error:
            raise ProjectError(f"'{config}' cannot be read: {error}.") from error
        texts = found.get("allowed_hosts", ()) if isinstance(found, dict) else ()
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise ProjectError(
                f"[serving] allowed_hosts in '{config}' is not a list of names.",
                help='Write allowed_hosts = ["ml.example.com"].',
            )
    return tuple(name for text in texts for name in text.replace(",", " ").split())
