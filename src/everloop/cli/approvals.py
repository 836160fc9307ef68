"""`everloop models promote|rollback|requests|approve|reject|withdraw|policy`: move aliases, with approvals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli import formatting
from everloop.cli.models import Reason, app as app, split_alias
from everloop.cli.output import AsJson, Home, emit, opened, say, table, unique_prefixes

if TYPE_CHECKING:
    from everloop.records import Alias, AliasRequest, GateResult, ModelVersion, Release
    from everloop.stores import Store

RequestId = Annotated[str, typer.Argument(help="Id of the request, or a unique prefix. See: everloop models requests")]


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION.")],
    reason: Annotated[
        str | None,
        typer.Option(
            help="Reason, recorded with the event. Default: the reason of the approved request, or 'by hand'."
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Endpoint to switch. Default: the endpoint that serves the model.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias to move. Only `champion` moves traffic as well.")] = "champion",
    expect: Annotated[
        str | None,
        typer.Option(help="Move the alias only if this MODEL@VERSION holds it now; `nobody`: only if no version does."),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Promote a version to champion, or to another alias. All traffic moves with the champion alias.

    If a policy guards the alias, this creates a request for approval instead. Repeat the command once enough others
    have approved. Moving the alias straight back to the previous version needs no approval, once.
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
            approved = list_requests(store, record.model, alias, state="approved")
            reason = next((one.reason for one in approved if one.version == record.key), "") or "by hand"
        result: Release | Alias | AliasRequest
        try:
            result = _move(store, record, alias, endpoint, reason, expect)
        except ApprovalError:
            result = request_alias(store, record.model, alias, record.key, reason)
        failed = _failed_gates(store, record.key)
        request_id = _short_ids(store)[result.id] if isinstance(result, AliasRequest) else ""
        move = last_move(store, record.model, alias)

    def draw() -> None:
        if isinstance(result, AliasRequest):
            change = f"{record.key} instead of {result.holder or 'no version'}"
            say(f"{record.model}@{alias} is guarded by a policy, so the change was requested: {change}.")
            say(f"Others approve it with: everloop models approve {request_id}")
        elif isinstance(result, Alias):
            say(f"{result.key} is now {record.key}.")
        else:
            say(f"{record.key} now receives all traffic of '{endpoint}'.")
        if not isinstance(result, AliasRequest) and move is not None and move.data.get("way_back"):
            say("Moving straight back needs no approval, once. Moving forward again does.")
        for gate in failed:
            say(f"Failed gate: {gate.gate}: {gate.message}")

    emit(result, json, draw)


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
    of: Annotated[str, typer.Argument(metavar="MODEL[@ALIAS]", help="Model to roll back, or one of its aliases.")],
    reason: Reason = "by hand",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Roll back a model, or one of its aliases.

    Its previous champion, or the alias's previous version, takes over.
    """
    from everloop.cli.release import roll_back_endpoint
    from everloop.records import EndpointRecord
    from everloop.registry import take_back_alias

    model, alias = split_alias(of)
    with opened(home) as store:
        # A champion that no endpoint serves, such as one set by MLflow's client, is an ordinary alias.
        served = alias == "champion" and any(
            store.records.find(EndpointRecord, (field, "=", model), limit=1) for field in ("model", "name")
        )
    if served:
        roll_back_endpoint(model, reason, home, json)
        return
    with opened(home) as store:
        moved = take_back_alias(store, model, alias, reason=reason)
    emit(moved, json, lambda: say(f"{moved.key} is again {moved.version}."))


@app.command()
def requests(
    model: Annotated[str | None, typer.Argument(help="Show only this model. Default: all.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show closed requests, too.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List requests to move guarded aliases. Shows who requested what, when and why, and how others voted."""
    from everloop.errors import NotFoundError
    from everloop.registry import list_requests, list_versions
    from everloop.registry.model_versions import what_exists

    with opened(home) as store:
        if model is not None and not list_versions(store, model):
            raise NotFoundError(what_exists(store, model), help="See: everloop models ls")
        found = [one for one in list_requests(store, model) if all_ or one.state in ("open", "approved")]
        ids = _short_ids(store)
    rows = [
        (
            ids[one.id],
            f"{one.model}@{one.alias} from {one.holder or 'no version'} to {one.version}",
            one.state,
            f"{formatting.second(one.created_at)} {one.asked_by}",
            formatting.votes(one),
            one.reason,
        )
        for one in found
    ]
    columns = ("id", "what", "state", "requested", "votes", "why")
    empty = "There are no requests." if all_ else "There are no open requests. To see closed ones, add --all."
    emit(found, json, lambda: table("Requests, times in UTC", columns, rows, empty=empty, wrap=("requested",)))


@app.command()
def approve(
    request: RequestId,
    reason: Reason = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Approve another person's request. Once it has enough approvals, the version can be promoted."""
    from everloop.registry import approve as approve_request

    with opened(home) as store:
        approved = approve_request(store, request, reason)
    emit(approved, json, lambda: say(_summary(approved)))


@app.command()
def reject(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Reject a request. One rejection closes it."""
    from everloop.registry import reject as reject_request

    with opened(home) as store:
        rejected = reject_request(store, request, reason)
    emit(rejected, json, lambda: say(_summary(rejected)))


@app.command()
def withdraw(request: RequestId, reason: Reason = "", home: Home = None, json: AsJson = False) -> None:
    """Withdraw your own request."""
    from everloop.registry import withdraw as withdraw_request

    with opened(home) as store:
        withdrawn = withdraw_request(store, request, reason)
    emit(withdrawn, json, lambda: say(_summary(withdrawn)))


@app.command()
def policy(
    alias: Annotated[
        str | None, typer.Argument(help="MODEL@ALIAS, or MODEL for its champion. Default: list all policies.")
    ] = None,
    approvals: Annotated[
        int | None, typer.Option(help="Number of other people who must approve; 0 removes the policy.")
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Set or show approval policies.

    A policy says how many other people must approve before an alias moves.
    """
    from everloop.errors import UsageError
    from everloop.records import AliasPolicy
    from everloop.registry import find_policy, list_versions, set_policy

    if alias is None:
        if approvals is not None:
            raise UsageError(
                "--approvals needs the alias that the policy is for.",
                help="Name it: everloop models policy MODEL@ALIAS --approvals N",
            )
        with opened(home) as store:
            policies = store.records.find(AliasPolicy, order="key")
        rows = [(one.key, one.approvals) for one in policies]
        empty = "No alias is guarded. Guard one with: everloop models policy MODEL@ALIAS --approvals 1"
        emit(policies, json, lambda: table("Policies", ("alias", "approvals needed"), rows, empty=empty))
        return
    model, name = split_alias(alias)
    with opened(home) as store:
        found = find_policy(store, model, name) if approvals is None else set_policy(store, model, name, approvals)
        known = bool(list_versions(store, model))
    result = {"alias": f"{model}@{name}", "approvals": found.approvals if found else 0}
    message = f"{model}@{name} is not guarded: it moves without approval."
    if found is not None:
        others = "1 other person has" if found.approvals == 1 else f"{found.approvals} other people have"
        message = f"{model}@{name} is guarded: it moves once {others} approved."
    if not known:
        message += f" There is no model '{model}' yet."
    emit(result, json, lambda: say(message))


def _short_ids(store: Store) -> dict[str, str]:
    from everloop.registry import list_requests

    return unique_prefixes([one.id for one in list_requests(store)])


def _failed_gates(store: Store, version: str) -> list[GateResult]:
    """Return the gates whose latest result for a version is a failure. Warnings do not count."""
    from everloop.loop.gates.gate_checks import latest_results, rejects

    return [result for result in latest_results(store, version) if rejects(result)]


def _summary(request: AliasRequest) -> str:
    command = f"everloop models promote {request.version} --alias {request.alias}"
    next_step = {"approved": f" Promote it with: {command}", "open": " It needs more approvals."}.get(request.state, "")
    return f"{request.version} for {request.model}@{request.alias}: {request.state}.{next_step}"
