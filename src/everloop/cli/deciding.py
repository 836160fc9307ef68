"""`everloop models promote|rollback|requests|approve|reject|withdraw|policy`: who decides what takes the traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.models import AliasName, Reason, named_alias
from everloop.cli.models import app as app
from everloop.cli.output import AsJson, Home, emit, opened, short, table

if TYPE_CHECKING:
    from everloop.records import Alias, AliasRequest, ModelVersion, Release
    from everloop.stores import Store

RequestId = Annotated[str, typer.Argument(help="The request's id, or its beginning; see: everloop models requests.")]


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION.")],
    reason: Reason = "by hand",
    endpoint: Annotated[str | None, typer.Option(help="Default: the endpoint that serves the model.")] = None,
    alias: Annotated[
        str, typer.Option(help="The alias to move; only the champion's traffic moves with it.")
    ] = "champion",
    expect: Annotated[
        str | None, typer.Option(help="Only if this MODEL@VERSION holds the alias now, or `nobody`.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Give a version all the traffic now, on your word; where a policy guards the alias, ask the others first."""
    from everloop.models import ApprovalError, get_version, request_alias
    from everloop.records import Alias, AliasRequest, Endpoint

    with opened(home) as store:
        record = get_version(store, version)
        if endpoint is None:
            serving = store.records.find(Endpoint, ("model", "=", record.model), limit=1)
            endpoint = serving[0].name if serving else record.model
        done: Release | Alias | AliasRequest
        try:
            done = _move(store, record, alias, endpoint, reason, expect)
        except ApprovalError:
            done = request_alias(store, record.model, alias, record.key, reason)

    def draw() -> None:
        if isinstance(done, AliasRequest):
            command = f"everloop models approve {short(done.id)}"
            typer.echo(f"{record.model}@{alias} is guarded; others must agree: {command}")
        elif isinstance(done, Alias):
            typer.echo(f"{done.key} is {record.key} now.")
        else:
            typer.echo(f"{record.key} takes all traffic of '{endpoint}'.")

    emit(done, json, draw)


def _move(
    store: Store, version: ModelVersion, alias: str, endpoint: str, reason: str, expect: str | None
) -> Release | Alias:
    from everloop.loop import promote as promote_version
    from everloop.models import get_version, set_alias
    from everloop.models.aliases import ANYONE, check_holder

    with store.records.transaction():
        holder: str | None = ANYONE
        if expect is not None:
            holder = None if expect == "nobody" else get_version(store, expect).key
        check_holder(store, version.model, alias, holder)
        if alias == "champion":
            return promote_version(store, endpoint, version, reason)
        return set_alias(store, version.model, alias, version.key, reason=reason)


@app.command()
def rollback(
    of: Annotated[
        str, typer.Argument(metavar="MODEL[@ALIAS]", help="A model, whose traffic goes back; or only this alias of it.")
    ],
    reason: Reason = "by hand",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Give the traffic back to the champion before, or another alias to the version that held it before."""
    from everloop.cli.release import take_back
    from everloop.models import take_back_alias

    model, alias = named_alias(of)
    if alias == "champion":
        take_back(model, reason, home, json)
        return
    with opened(home) as store:
        moved = take_back_alias(store, model, alias, reason=reason)
    emit(moved, json, lambda: typer.echo(f"{moved.key} is {moved.version} again."))


@app.command()
def requests(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List wishes to move guarded aliases."""
    from everloop.models import list_requests

    with opened(home) as store:
        found = [one for one in list_requests(store, model) if all_ or one.state in ("open", "approved")]
    rows = [
        (
            short(one.id),
            f"{one.model}@{one.alias} from {one.holder or 'nobody'} to {one.version}",
            one.state,
            one.asked_by,
            ", ".join(vote.by for vote in one.votes if vote.approve),
            one.reason,
        )
        for one in found
    ]
    columns = ("id", "what", "state", "by", "agreed", "why")
    emit(found, json, lambda: table("Requests", columns, rows, empty="Nobody asks for anything.", wrap=("agreed",)))


@app.command()
def approve(
    request: RequestId,
    reason: Reason = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Agree to a request. Not to your own. Once enough agree, promoting the version works."""
    from everloop.models import approve as agree

    with opened(home) as store:
        voted = agree(store, request, reason)
    emit(voted, json, lambda: typer.echo(_told(voted)))


@app.command()
def reject(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Refuse a request, which ends it."""
    from everloop.models import reject as refuse

    with opened(home) as store:
        ended = refuse(store, request, reason)
    emit(ended, json, lambda: typer.echo(_told(ended)))


@app.command()
def withdraw(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Take your own request back."""
    from everloop.models import withdraw as give_up

    with opened(home) as store:
        ended = give_up(store, request, reason)
    emit(ended, json, lambda: typer.echo(_told(ended)))


@app.command()
def policy(
    alias: AliasName,
    approvals: Annotated[int | None, typer.Option(help="How many others must agree; 0 lifts the guard.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Say, or without --approvals ask, how many others must agree before an alias moves."""
    from everloop.models import find_policy, set_policy

    model, name = named_alias(alias)
    with opened(home) as store:
        stands = find_policy(store, model, name) if approvals is None else set_policy(store, model, name, approvals)
    shown = {"alias": f"{model}@{name}", "approvals": stands.approvals if stands else 0}
    told = f"{model}@{name} moves on anybody's word."
    if stands is not None:
        others = "one other agrees" if stands.approvals == 1 else f"{stands.approvals} others agree"
        told = f"{model}@{name} moves when {others}."
    emit(shown, json, lambda: typer.echo(told))


def _told(request: AliasRequest) -> str:
    agreed = f"Now: everloop models promote {request.version} --alias {request.alias}"
    then = {"approved": f" {agreed}", "open": " Others must agree, too."}.get(request.state, "")
    return f"{request.version} for {request.model}@{request.alias}: {request.state}.{then}"
