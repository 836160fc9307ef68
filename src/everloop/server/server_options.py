"""What an operator decides about a server when it starts."""

from __future__ import annotations

from dataclasses import dataclass

MEGABYTE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Limits and permissions of one control plane. Sizes in bytes, times in seconds."""

    auth: bool = False
    """Whether every request but those to open routes needs a login."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which this server may be addressed, beside this machine's own; `*.example.com` for all below."""
    default_artifact_root: str | None = None
    """The folder or URI below which new experiments get places for their files, which clients reach by themselves.
    None: clients send their files to this server."""
    allowed_artifact_roots: tuple[str, ...] = ()
    """Further folders and beginnings of URIs that clients may name."""
    artifacts_destination: str | None = None
    """The folder or bucket for files that clients send to this server. None: `artifacts` in the home."""
    mlflow_page: str | None = None
    """The folder of an installed MLflow, or of its built page, which is then shown at `/`."""
    public_url: str | None = None
    """How clients reach this server where something stands before it: `https://ml.example.com`. None: as they say."""
    json_bytes: int = 16 * MEGABYTE
    """The longest body that is read as a whole."""
    upload_bytes: int = 10 * 1024 * MEGABYTE
    """The longest body that is streamed into the store."""
    stall_s: float = 30.0
    """The longest silence in the middle of a body."""
    body_s: float = 60.0
    """The longest time that a body of at most `json_bytes` may take."""
    least_upload_bytes_per_s: int = 1024
    """The slowest upload that is waited for, on average after the first `body_s`."""
    endpoint_answer_s: float = 300.0
    """How long an endpoint may take before the first byte of its answer, where it is asked through this server."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of proxies before this server, such as `10.0.0.5`. Only what comes from them may say by
    `X-Forwarded-For` for which client it asks."""
    access_stale_s: float = 10.0
    """How long users and tokens hold on while the store cannot be read; then requests that need a login get 503."""
    webhook_networks: tuple[str, ...] = ()
    """Private networks that webhooks may reach all the same, such as `10.1.0.0/16`."""
