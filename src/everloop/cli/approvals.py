"""`everloop models promote|rollback|requests|approve|reject|withdraw|policy`: who decides what takes the traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli import formatting
from everloop.cli.models import Reason, app as app, named_alias
from everloop.cli.output import AsJson, Home, emit, opened, say, short, table

if TYPE_CHECKING:
    from everloop.records import Alias, AliasRequest, GateResult, ModelVersion, Release
    from everloop.stores import Store

RequestId = Annotated[str, typer.Argument(help="The request's id, or its beginning; see: everloop models requests.")]


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION.")],
    reason: Annotated[
        str | None,
        typer.Option(help="Why; kept with the event. Default: the reason that others agreed to, else `by hand`."),
    ] = None,
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
    """Give a version all the traffic, on your word. Where a policy guards the alias this asks the others instead; once
    they have agreed, the same command moves it. Straight back to the version before needs no agreement, once.
    """
    from everloop.records import Alias, AliasRequest, EndpointRecord
    from everloop.registry import ApprovalError, get_version, list_requests, request_alias
    from everloop.registry.history import last_move

    with opened(home) as store:
        record = get_version(store, version)
        if endpoint is None:
            serving = store.records.find(EndpointRecord, ("model", "=", record.model), limit=1)
            endpoint = serving[0].name if serving else record.model
        if reason is None:
            agreed = list_requests(store, record.model, alias, state="approved")
            reason = next((one.reason for one in agreed if one.version == record.key), "") or "by hand"
        done: Release | Alias | AliasRequest
        try:
            done = _move(store, record, alias, endpoint, reason, expect)
        except ApprovalError:
            done = request_alias(store, record.model, alias, record.key, reason)
        against = _failed_gates(store, record.key)
        asked_id = _short_ids(store)[done.id] if isinstance(done, AliasRequest) else ""
        move = last_move(store, record.model, alias)

    def draw() -> None:
        if isinstance(done, AliasRequest):
            instead = f"{record.key} instead of {done.holder or 'nobody'}"
            say(f"{record.model}@{alias} is guarded, so this is asked for: {instead}.")
            say(f"Others must agree: everloop models approve {asked_id}")
        elif isinstance(done, Alias):
            say(f"{done.key} is {record.key} now.")
        else:
            say(f"{record.key} takes all traffic of '{endpoint}'.")
        if not isinstance(done, AliasRequest) and move is not None and move.data.get("way_back"):
            say("It goes straight back to it, so nobody had to agree; forth again takes an agreement.")
        for gate in against:
            say(f"Its gates said no: {gate.gate}: {gate.message}")

    emit(done, json, draw)


def _move(
    store: Store, version: ModelVersion, alias: str, endpoint: str, reason: str, expect: str | None
) -> Release | Alias:
    from everloop.loop import promote as promote_version
    from everloop.registry import get_version, set_alias
    from everloop.registry.aliases import ANYONE, check_holder

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
    """Give the traffic back to the champion before. Or another alias to the version that held it before."""
    from everloop.cli.release import take_back
    from everloop.records import EndpointRecord
    from everloop.registry import take_back_alias

    model, alias = named_alias(of)
    with opened(home) as store:
        # A champion that no endpoint serves, as one that MLflow's client has set, is an alias like any other.
        served = alias == "champion" and any(
            store.records.find(EndpointRecord, (field, "=", model), limit=1) for field in ("model", "name")
        )
    if served:
        take_back(model, reason, home, json)
        return
    with opened(home) as store:
        moved = take_back_alias(store, model, alias, reason=reason)
    emit(moved, json, lambda: say(f"{moved.key} is {moved.version} again."))


@app.command()
def requests(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List wishes to move guarded aliases. Who asked, when and why, and what the others said."""
    from everloop.registry import list_requests

    with opened(home) as store:
        found = [one for one in list_requests(store, model) if all_ or one.state in ("open", "approved")]
        ids = _short_ids(store)
    rows = [
        (
            ids[one.id],
            f"{one.model}@{one.alias} from {one.holder or 'nobody'} to {one.version}",
            one.state,
            f"{formatting.second(one.created_at)} {one.asked_by}",
            formatting.answers(one),
            one.reason,
        )
        for one in found
    ]
    columns = ("id", "what", "state", "asked", "answers", "why")
    empty = "Nobody asks for anything." if all_ else "Nothing is open. What is over shows --all."
    emit(found, json, lambda: table("Requests, times in UTC", columns, rows, empty=empty, wrap=("asked",)))


@app.command()
def approve(
    request: RequestId,
    reason: Reason = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Agree to a request, not to your own. Once enough have agreed, promoting the version works."""
    from everloop.registry import approve as agree

    with opened(home) as store:
        voted = agree(store, request, reason)
    emit(voted, json, lambda: say(_told(voted)))


@app.command()
def reject(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Refuse a request, which ends it. One refusal is enough."""
    from everloop.registry import reject as refuse

    with opened(home) as store:
        ended = refuse(store, request, reason)
    emit(ended, json, lambda: say(_told(ended)))


@app.command()
def withdraw(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Take your own request back."""
    from everloop.registry import withdraw as give_up

    with opened(home) as store:
        ended = give_up(store, request, reason)
    emit(ended, json, lambda: say(_told(ended)))


@app.command()
def policy(
    alias: Annotated[
        str | None, typer.Argument(help="MODEL@ALIAS; MODEL alone means its champion. Default: list every policy.")
    ] = None,
    approvals: Annotated[int | None, typer.Option(help="How many others must agree; 0 lifts the guard.")] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Guard an alias. Say how many others must agree before it moves; without --approvals, ask how many."""
    from everloop.errors import UsageError
    from everloop.records import AliasPolicy
    from everloop.registry import find_policy, list_versions, set_policy

    if alias is None:
        if approvals is not None:
            raise UsageError("Which alias?", help="Name it: everloop models policy MODEL@ALIAS --approvals N")
        with opened(home) as store:
            policies = store.records.find(AliasPolicy, order="key")
        rows = [(one.key, one.approvals) for one in policies]
        empty = "No alias is guarded. Guard one: everloop models policy MODEL@ALIAS --approvals 1"
        emit(policies, json, lambda: table("Policies", ("alias", "others who must agree"), rows, empty=empty))
        return
    model, name = named_alias(alias)
    with opened(home) as store:
        stands = find_policy(store, model, name) if approvals is None else set_policy(store, model, name, approvals)
        known = bool(list_versions(store, model))
    shown = {"alias": f"{model}@{name}", "approvals": stands.approvals if stands else 0}
    told = f"{model}@{name} moves on anybody's word."
    if stands is not None:
        others = "one other agrees" if stands.approvals == 1 else f"{stands.approvals} others agree"
        told = f"{model}@{name} moves when {others}."
    if not known:
        told += f" There is no model '{model}' yet."
    emit(shown, json, lambda: say(told))


def _short_ids(store: Store) -> dict[str, str]:
    """As much of each request's id as tells it from all others: requests of one moment begin alike."""
    from everloop.registry import list_requests

    ids = [one.id for one in list_requests(store)]
    shown = {}
    for whole in ids:
        length = len(short(whole))
        while length < len(whole) and sum(other.startswith(whole[:length]) for other in ids) > 1:
            length += 1
        shown[whole] = whole[:length]
    return shown


def _failed_gates(store: Store, version: str) -> list[GateResult]:
    """The gates whose last answer about a version was no."""
    from everloop.records import GateResult

    last = {gate.gate: gate for gate in store.records.find(GateResult, ("candidate", "=", version), order="id")}
    return [gate for gate in last.values() if gate.outcome == "fail"]


def _told(request: AliasRequest) -> str:
    agreed = f"Now: everloop models promote {request.version} --alias {request.alias}"
    then = {"approved": f" {agreed}", "open": " Others must agree, too."}.get(request.state, "")
    return f"{request.version} for {request.model}@{request.alias}: {request.state}.{then}"
