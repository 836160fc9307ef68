"""`everloop server`: the control plane alone; `everloop users` and `everloop tokens`: who may enter it."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, messages, opened, say, table

users = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Who may log in to a server of this store.")
tokens = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Secrets for scripts, each with an end.")

Roles = Annotated[
    list[str] | None,
    typer.Option("--role", help="viewer, editor, approver or admin; PROJECT=ROLE for one project. Repeatable."),
]


def server(
    port: Annotated[int | None, typer.Option(help="0 takes a free one. Default: 8100.")] = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen at; any but loopback needs a login. Default: 127.0.0.1.")
    ] = None,
    default_artifact_root: Annotated[
        str | None,
        typer.Option(
            help="A folder or URI where MLflow's clients keep new experiments' files by themselves, as in"
            " file:///data/mlflow or s3://bucket/team. Default: they send them to this server."
        ),
    ] = None,
    artifacts_destination: Annotated[
        str | None,
        typer.Option(help="The folder or bucket for what clients send here. Default: artifacts in the home."),
    ] = None,
    allow_artifact_root: Annotated[
        list[str] | None, typer.Option(help="A further folder or beginning of URIs that clients may name; repeatable.")
    ] = None,
    mlflow_page: Annotated[
        str | None, typer.Option(help="The folder of an installed MLflow: shows its page at /, and ours at /status.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="How clients reach this server where something stands before it: https://NAME.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the server may be addressed; *.NAME for all below.")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="The address or network of a proxy in front, 10.0.0.5 or 10.0.0.0/8, whose X-Forwarded-For counts;"
            " repeatable."
        ),
    ] = None,
    auth: Annotated[
        bool | None, typer.Option("--auth/--no-auth", help="Ask for a login. Default: once there are users.")
    ] = None,
    upload_limit: Annotated[
        int | None, typer.Option(help="The longest artifact, in megabytes. Default: 10240.")
    ] = None,
    allow_webhook_network: Annotated[
        list[str] | None, typer.Option(help="A private network that webhooks may reach, 10.1.0.0/16; repeatable.")
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line for each request, to stderr.")] = False,
    project: Annotated[str | None, typer.Option(help="Default: what everloop.toml says, else 'default'.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Serve the API, the status page and MLflow's clients until Ctrl-C or SIGTERM.

    What is not given here is as [server] of everloop.toml says.
    """
    import logging
    import sys

    from everloop.server.control_plane import ControlPlane
    from everloop.server.server_options import MEGABYTE
    from everloop.server.server_settings import read_settings
    from everloop.stores import open_store

    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if access_log:
        logging.getLogger("everloop.access").setLevel(logging.INFO)
    # Said by uvicorn of every connection that sends no HTTP: noise that anybody can make.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings = read_settings().changed(
        host=host,
        port=port,
        auth=auth,
        allowed_hosts=tuple(allowed_host or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        default_artifact_root=default_artifact_root,
        artifacts_destination=artifacts_destination,
        allowed_artifact_roots=tuple(allow_artifact_root or ()),
        mlflow_page=mlflow_page,
        public_url=public_url,
        upload_bytes=None if upload_limit is None else upload_limit * MEGABYTE,
        webhook_networks=tuple(allow_webhook_network or ()),
    )
    with open_store(home, project=project) as store:
        control = ControlPlane(
            store, host=settings.host, port=settings.port, options=settings.options, auth=settings.auth
        )

        def tell() -> None:
            facts = {
                "url": control.url,
                "home": str(store.home),
                "project": store.project,
                "login": control.options.auth,
            }
            emit(facts, json, lambda: say(f"everloop serves '{store.project}' at {control.url}"))
            sys.stdout.flush()

        control.serve(ready=tell)


@users.command("add")
def add_user(
    name: str,
    role: Roles = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for the password instead of making one.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add somebody. Without --ask a password is made and printed once."""
    from everloop.server.access import UserStore

    password = _asked() if ask else None
    with opened(home, create=True) as store:
        user, made = UserStore(store).add_user(name, _roles(role or ["viewer"]), password)
    shown = {"name": user.name, "roles": user.roles, "password": made}

    def draw() -> None:
        say(f"{user.name}: {_told(dict(user.roles))}")
        if made:
            say(f"password: {made}")
            messages().print("Keep it: it is shown this once. A server that runs without a login asks after a restart.")

    emit(shown, json, draw)


@users.command("ls")
def list_users(home: Home = None, json: AsJson = False) -> None:
    """List users."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        found = UserStore(store).users()
    shown = [{"name": user.name, "roles": user.roles, "created_at": user.created_at} for user in found]
    rows = [(user.name, _told(dict(user.roles)), user.created_at) for user in found]
    empty = "No users: the server is for this machine only. Add one with: everloop users add NAME --role admin"
    emit(shown, json, lambda: table("Users", ("name", "roles", "since"), rows, empty=empty))


@users.command("role")
def set_roles(name: str, role: Roles = None, home: Home = None, json: AsJson = False) -> None:
    """Replace somebody's roles."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        user = UserStore(store).set_roles(name, _roles(role or []))
    emit({"name": user.name, "roles": user.roles}, json, lambda: say(f"{name}: {_told(dict(user.roles))}"))


@users.command("password")
def set_password(
    name: str,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for the password instead of making one.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Give somebody a new password; without --ask it is made and printed once."""
    from everloop.server.access import UserStore

    password = _asked() if ask else None
    with opened(home) as store:
        made = UserStore(store).set_password(name, password)
    emit({"name": name, "password": made}, json, lambda: say(f"password: {made}" if made else "Changed."))


@users.command("rm")
def remove_user(name: str, home: Home = None, json: AsJson = False) -> None:
    """Remove somebody; what the tokens of a removed user open is nothing."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        UserStore(store).remove_user(name)
    emit({"removed": name}, json, lambda: say(f"{name} may not enter any more."))


@tokens.command("create")
def create_token(
    name: str,
    user: Annotated[str, typer.Option(help="Whose it is.")],
    role: Roles = None,
    expires: Annotated[str | None, typer.Option(help="After this time, such as 30d or 12h.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Make a token for a user, printed once. It may at most what --role says, and what the user may."""
    from everloop.server.access import UserStore
    from everloop.stores.durations import parse_duration

    lifetime = parse_duration(expires) if expires else None
    with opened(home) as store:
        token, secret = UserStore(store).create_token(name, user, _roles(role) if role else None, lifetime)
    shown = {"name": name, "owner": user, "roles": token.roles, "expires_at": token.expires_at, "secret": secret}
    emit(shown, json, lambda: say(secret))


@tokens.command("ls")
def list_tokens(home: Home = None, json: AsJson = False) -> None:
    """List tokens; their secrets are kept nowhere."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        found = UserStore(store).tokens()
    names = ("name", "owner", "prefix", "roles", "created_at", "expires_at", "used_at", "revoked_at")
    shown = [{name: getattr(token, name) for name in names} for token in found]
    rows = [
        (t.name, t.owner, t.prefix + "…", _told(dict(t.roles)), t.expires_at, t.used_at, t.revoked_at) for t in found
    ]
    columns = ("name", "owner", "begins", "roles", "expires", "last used", "revoked")
    emit(shown, json, lambda: table("Tokens", columns, rows, empty="No tokens."))


@tokens.command("revoke")
def revoke_token(name: str, home: Home = None, json: AsJson = False) -> None:
    """Make a token open nothing from now on."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        token = UserStore(store).revoke_token(name)
    shown = {"name": name, "revoked_at": token.revoked_at}
    emit(shown, json, lambda: say(f"{name} opens nothing any more."))


def _asked() -> str:
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return answer


def _roles(texts: list[str]) -> dict[str, str]:
    """`admin` is for every project, `flights=admin` for one."""
    found: dict[str, str] = {}
    for text in texts:
        project, equals, role = text.rpartition("=")
        found[project if equals else "*"] = role
    return found


def _told(roles: dict[str, str]) -> str:
    return ", ".join(role if project == "*" else f"{project}={role}" for project, role in roles.items()) or "nothing"
