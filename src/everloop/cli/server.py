"""`everloop server`: the control plane; `everloop users` and `everloop tokens`: who may log in to it."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.output import AsJson, Home, emit, messages, opened, say, table

users = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage the users of the server.")
tokens = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage access tokens for scripts.")

UserName = Annotated[str, typer.Argument(help="Name of the user.")]
TokenName = Annotated[str, typer.Argument(help="Name of the token.")]
Ask = Annotated[bool, typer.Option("--ask", help="Prompt for the password instead of generating one.")]
Roles = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        help="Role: viewer, editor, approver or admin in every project, or PROJECT=ROLE in one; repeatable.",
    ),
]


def server(
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. Default: 8100.")] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on. Any but loopback requires a login. Default: 127.0.0.1."),
    ] = None,
    default_artifact_root: Annotated[
        str | None,
        typer.Option(
            help="Folder or URI, such as file:///data/mlflow or s3://bucket/team, to which MLflow's clients write the"
            " artifacts of new experiments directly. Default: they send them to this server."
        ),
    ] = None,
    artifacts_destination: Annotated[
        str | None,
        typer.Option(
            help="Folder or bucket for artifacts that clients send to this server."
            " Default: artifacts in the store folder."
        ),
    ] = None,
    allow_artifact_root: Annotated[
        list[str] | None,
        typer.Option(help="Further folder or URI prefix that clients may use for artifacts; repeatable."),
    ] = None,
    mlflow_page: Annotated[
        str | None,
        typer.Option(
            help="Folder of an installed MLflow. Its web page is served at /, and everloop's moves to /status."
        ),
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(help="URL at which clients reach this server behind a proxy, such as https://NAME.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Further host name to accept; *.NAME accepts its subdomains; repeatable."),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a reverse proxy, such as 10.0.0.5 or 10.0.0.0/8, whose X-Forwarded-For header"
            " is trusted; repeatable."
        ),
    ] = None,
    auth: Annotated[
        bool | None,
        typer.Option("--auth/--no-auth", help="Require a login or not. Default: required as soon as there are users."),
    ] = None,
    upload_limit: Annotated[
        int | None, typer.Option(help="Maximum size of an artifact, in megabytes. Default: 10240.")
    ] = None,
    allow_webhook_network: Annotated[
        list[str] | None,
        typer.Option(help="Private network that webhooks may reach, such as 10.1.0.0/16; repeatable."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Log one line per request to standard error.")
    ] = False,
    project: Annotated[
        str | None, typer.Option(help="Project to serve. Default: as set in everloop.toml, else 'default'.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Serve the API and the web page until Ctrl-C or SIGTERM.

    MLflow's clients can use the server as well.

    Options that are not given are taken from [server] in everloop.toml.
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
    # Uvicorn warns about every connection that does not speak HTTP. Any client could fill the log that way.
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

        def announce() -> None:
            facts = {
                "url": control.url,
                "home": str(store.home),
                "project": store.project,
                "login": control.options.auth,
            }
            emit(facts, json, lambda: say(f"Project '{store.project}' is ready at {control.url}"))
            sys.stdout.flush()

        control.serve(ready=announce)


@users.command("add")
def add_user(name: UserName, role: Roles = None, ask: Ask = False, home: Home = None, json: AsJson = False) -> None:
    """Add a user. Without --ask, a password is generated and printed once."""
    from everloop.server.access import UserStore

    password = _prompt_password() if ask else None
    with opened(home, create=True) as store:
        user, generated = UserStore(store).add_user(name, _roles(role or ["viewer"]), password)
    result = {"name": user.name, "roles": user.roles, "password": generated}

    def draw() -> None:
        say(f"{user.name}: {_roles_text(dict(user.roles))}")
        if generated:
            say(f"password: {generated}")
            messages().print(
                "Save the password: it is not shown again. A server that runs without a login requires one after its"
                " next restart."
            )

    emit(result, json, draw)


@users.command("ls")
def list_users(home: Home = None, json: AsJson = False) -> None:
    """List users."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        found = UserStore(store).users()
    result = [{"name": user.name, "roles": user.roles, "created_at": user.created_at} for user in found]
    rows = [(user.name, _roles_text(dict(user.roles)), user.created_at) for user in found]
    empty = (
        "No users yet: without users, only this machine can reach the server."
        " Add one with: everloop users add NAME --role admin"
    )
    emit(result, json, lambda: table("Users", ("name", "roles", "created"), rows, empty=empty))


@users.command("role")
def set_roles(name: UserName, role: Roles = None, home: Home = None, json: AsJson = False) -> None:
    """Replace the roles of a user."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        user = UserStore(store).set_roles(name, _roles(role or []))
    emit({"name": user.name, "roles": user.roles}, json, lambda: say(f"{name}: {_roles_text(dict(user.roles))}"))


@users.command("password")
def set_password(name: UserName, ask: Ask = False, home: Home = None, json: AsJson = False) -> None:
    """Set a new password for a user. Without --ask, one is generated and printed once."""
    from everloop.server.access import UserStore

    password = _prompt_password() if ask else None
    with opened(home) as store:
        generated = UserStore(store).set_password(name, password)
    message = f"password: {generated}" if generated else f"Changed the password of '{name}'."
    emit({"name": name, "password": generated}, json, lambda: say(message))


@users.command("rm")
def remove_user(name: UserName, home: Home = None, json: AsJson = False) -> None:
    """Remove a user. Their tokens stop working."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        UserStore(store).remove_user(name)
    emit({"removed": name}, json, lambda: say(f"Removed the user '{name}'."))


@tokens.command("create")
def create_token(
    name: TokenName,
    user: Annotated[str, typer.Option(help="User who owns the token.")],
    role: Roles = None,
    expires: Annotated[
        str | None, typer.Option(help="Lifetime, such as 30d or 12h. Default: it does not expire.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Create a token for a user and print it once.

    It grants at most the roles in --role and those of the user.
    """
    from everloop.server.access import UserStore
    from everloop.stores.durations import parse_duration

    lifetime = parse_duration(expires) if expires else None
    with opened(home) as store:
        token, secret = UserStore(store).create_token(name, user, _roles(role) if role else None, lifetime)
    result = {"name": name, "owner": user, "roles": token.roles, "expires_at": token.expires_at, "secret": secret}
    emit(result, json, lambda: say(secret))


@tokens.command("ls")
def list_tokens(home: Home = None, json: AsJson = False) -> None:
    """List tokens. Their secrets are not stored, so they are not shown."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        found = UserStore(store).tokens()
    names = ("name", "owner", "prefix", "roles", "created_at", "expires_at", "used_at", "revoked_at")
    result = [{name: getattr(token, name) for name in names} for token in found]
    rows = [
        (t.name, t.owner, t.prefix + "…", _roles_text(dict(t.roles)), t.expires_at, t.used_at, t.revoked_at)
        for t in found
    ]
    columns = ("name", "owner", "prefix", "roles", "expires", "last used", "revoked")
    empty = "No tokens yet. Create one with: everloop tokens create NAME --user USER"
    emit(result, json, lambda: table("Tokens", columns, rows, empty=empty))


@tokens.command("revoke")
def revoke_token(name: TokenName, home: Home = None, json: AsJson = False) -> None:
    """Revoke a token. It stops working at once."""
    from everloop.server.access import UserStore

    with opened(home) as store:
        token = UserStore(store).revoke_token(name)
    result = {"name": name, "revoked_at": token.revoked_at}
    emit(result, json, lambda: say(f"Revoked the token '{name}'."))


def _prompt_password() -> str:
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return answer


def _roles(texts: list[str]) -> dict[str, str]:
    """Parse roles: `admin` applies to every project, `flights=admin` to one."""
    found: dict[str, str] = {}
    for text in texts:
        project, equals, role = text.rpartition("=")
        found[project if equals else "*"] = role
    return found


def _roles_text(roles: dict[str, str]) -> str:
    return ", ".join(role if project == "*" else f"{project}={role}" for project, role in roles.items()) or "no roles"
