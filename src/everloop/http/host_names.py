"""The host names that a server answers to.

Another site can point its own domain at this machine (DNS rebinding). Requests of its pages then look as if they came
from this server's own pages, except for the `Host` header, which holds the other site's domain.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ProjectError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
VARIABLE = "EVERLOOP_ALLOWED_HOSTS"
"""The environment variable with further host names, separated by commas or spaces; `*` allows every name."""
_INTERNAL = (".local", ".internal", ".localhost", ".svc", ".cluster.local", ".test", ".home.arpa")
_PLATFORMS = (
    "KUBERNETES_SERVICE_HOST", "K_SERVICE", "AIP_", "SAGEMAKER_", "AWS_EXECUTION_ENV", "ECS_CONTAINER_METADATA_URI",
    "AWS_CONTAINER_CREDENTIALS_", "AZUREML_", "WEBSITE_SITE_NAME", "CONTAINER_APP_NAME",
)  # fmt: skip
"""Environment variables, or prefixes of them, by which container platforms can be recognized."""
_MOST_REMEMBERED = 1_000


def host_name(value: str) -> str | None:
    """The name in a `Host` header, in lower case, without port or brackets; None if it is not a valid name."""
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens at this name or address."""
    return host in LOOPBACK or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(name: str) -> bool:
    """Whether a name is an IP address. The domain of another site cannot be one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HostRule:
    """Decides whether a `Host` header names this server.

    The loopback names and the address at which the connection arrived are always allowed.
    """

    def __init__(self, allowed: Sequence[str] = (), *, addresses: bool = False, internal: bool = False) -> None:
        """Prepare.

        Args:
            allowed: further names; `*.example.com` for all subdomains, `*` for every name.
            addresses: allow every IP address, for servers that are reached by others than their own (NAT, probes).
            internal: allow names that no public site can have: those without a dot, `.local`, `.internal`, `.svc` and
                the like.
        """
        names = [name.strip().lower() for name in allowed]
        self._names = LOOPBACK | {name for name in names if not name.startswith("*")}
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._all = "*" in names
        self._addresses = addresses
        self._internal = internal
        self._accepted: set[bytes] = set()
        self.origins = frozenset(name.encode() for name in names if not name.startswith("*"))
        """The configured names as they appear in `Origin`, because a proxy may have changed `Host`."""

    def allows(self, value: bytes, local: str | None) -> bool:
        """Whether the value of a `Host` header names this server.

        Args:
            local: the address at which the connection arrived. It is always allowed: a domain can be pointed anywhere,
                an IP address cannot.
        """
        if value in self._accepted:
            return True
        name = host_name(value.decode("latin-1"))
        if name is None or not (self._all or self._allows_name(name, local)):
            return False
        if len(self._accepted) < _MOST_REMEMBERED:
            self._accepted.add(value)
        return True

    def _allows_name(self, name: str, local: str | None) -> bool:
        if name in self._names or name == local or (self._endings and name.endswith(self._endings)):
            return True
        if is_address(name):
            return self._addresses
        # Some clients take short or hexadecimal numbers (127.1, 0x7f.1) for addresses. No platform sends them.
        return self._internal and not name[-1].isdigit() and ("." not in name or name.endswith(_INTERNAL))


def rule_for(host: str, allowed: Sequence[str] = (), *, asks_token: bool = False, contained: bool = False) -> HostRule:
    """The rule of a process that serves endpoints at `host`.

    On loopback: the loopback names and `allowed`. At any other address:

    - with a list, the names in it, and IP addresses, because probes send them;
    - without a list, every name if each request needs a token, because a page of another site does not have one;
    - in a container without a list, every name if a platform runs it, because the platform sends its own names; else
      IP addresses and internal names.

    Args:
        asks_token: every request except health checks needs a token.
        contained: the process listens in a container and does not check tokens.
    """
    if is_loopback(host):
        return HostRule(allowed)
    if not allowed and (asks_token or (contained and on_platform(os.environ))):
        return HostRule(("*",))
    return HostRule(allowed, addresses=True, internal=contained and not allowed)


def on_platform(environment: Mapping[str, str]) -> bool:
    """Whether a platform runs this container: Kubernetes, KServe, SageMaker, Vertex AI, Azure ML, ECS, Cloud Run."""
    return any(name.startswith(_PLATFORMS) for name in environment)


def allowed_hosts(given: Sequence[str] = (), start: Path | None = None) -> tuple[str, ...]:
    """The further host names that an endpoint's process answers to.

    Args:
        given: from the command line. If empty, those in the environment variable `EVERLOOP_ALLOWED_HOSTS`, else
            `allowed_hosts` under `[serving]` in the nearest `everloop.toml`.
        start: the folder from which that file is searched upwards.

    Raises:
        ProjectError: `allowed_hosts` in the file is not a list of names.
    """
    from everloop.stores.home import nearest_config

    texts: Sequence[str] = given
    if not texts and os.environ.get(VARIABLE):
        texts = (os.environ[VARIABLE],)
    if not texts and (config := nearest_config(start or Path.cwd())) is not None:
        try:
            found = tomllib.loads(config.read_text(encoding="utf-8")).get("serving", {})
        except (OSError, ValueError) as error:
            raise ProjectError(f"Cannot read '{config}': {error}.") from error
        texts = found.get("allowed_hosts", ()) if isinstance(found, dict) else ()
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise ProjectError(
                f"[serving] allowed_hosts in '{config}' is not a list of names.",
                help='Write allowed_hosts = ["ml.example.com"].',
            )
    return tuple(name for text in texts for name in text.replace(",", " ").split())
