"""Options of a control plane: limits and permissions that the operator sets when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEGABYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits and permissions of one control plane. Sizes in bytes, times in seconds."""

    auth: bool = False
    """Whether requests need a login. A few open routes, such as `/health`, never do."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that requests may use, in addition to this machine's own; `*.example.com` allows all subdomains."""
    default_artifact_root: str | None = None
    """The folder or URI below which new experiments keep their files; clients read and write it directly.
    None: clients send their files to this server."""
    allowed_artifact_roots: tuple[str, ...] = ()
    """More folders and URI prefixes that clients may name as an artifact location."""
    artifacts_destination: str | None = None
    """The folder or bucket for files that clients send to this server. None: the folder `artifacts` in the home."""
    mlflow_page: str | None = None
    """The folder of an installed MLflow, or of its built web page, which is then served at `/`."""
    public_url: str | None = None
    """The URL by which clients reach this server behind a proxy: `https://ml.example.com`.
    None: taken from the `Host` header of each request."""
    json_bytes: int = 16 * MEGABYTE
    """The longest body that is read into memory at once."""
    upload_bytes: int = 10 * 1024 * MEGABYTE
    """The longest body that is streamed into the store."""
    stall_s: float = 30.0
    """The longest pause in the middle of a body."""
    body_s: float = 60.0
    """The longest time that a body of at most `json_bytes` may take."""
    least_upload_bytes_per_s: int = 1024
    """The lowest average speed of an upload, measured after the first `body_s`; slower uploads are refused."""
    endpoint_answer_s: float = 300.0
    """How long an endpoint may take to send the first byte of its response to a forwarded request."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies in front of this server, such as `10.0.0.5`.
    `X-Forwarded-For` is only read from requests that come from them."""
    access_stale_s: float = 10.0
    """How long logins keep working while the store cannot be read; after that, requests that need a login get 503."""
    webhook_networks: tuple[str, ...] = ()
    """Private networks that webhooks may reach nevertheless, such as `10.1.0.0/16`."""
    project_folder: Path | None = None
    """The project that `everloop up` keeps up; not a setting. None: this server knows no project's files."""
