"""Route runs/search: translates MLflow's filter and order to everloop's run search."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from everloop.errors import UsageError
from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit, view_of
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.serializers import DEFAULT, STATE_OF, STATUS_OF, record_id, run_out
from everloop.records import Run
from everloop.stores.clock import moment_of
from everloop.tracking.search.run_filters import And, Compare, Expression, Or
from everloop.tracking.search.run_search import search_runs as search

USUAL, MOST = 1000, 50_000
_ALL = 100_000
_GRAMMAR = Grammar(
    texts=frozenset({"run_id", "run_name", "status", "user_id", "artifact_uri"}),
    numbers=frozenset({"start_time", "end_time"}),
    entities=frozenset({"attribute", "metric", "param", "tag", "dataset"}),
    listed=frozenset({"run_id"}),
    aliases=(
        ("Created", "start_time"),
        ("created", "start_time"),
        ("Run Name", "run_name"),
        ("Run name", "run_name"),
        ("run name", "run_name"),
    ),
)
_FIELD = {
    "run_id": "id",
    "run_name": "name",
    "status": "state",
    "user_id": "user",
    "artifact_uri": "artifacts_at",
    "start_time": "started_at",
    "end_time": "ended_at",
}
_MAP = {"metric": "metrics", "param": "params", "tag": "tags"}


def search_runs(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    most = checked_limit(fields, USUAL, MOST)
    experiments = fields.texts("experiment_ids")
    terms = parse_filter(fields.text("filter", required=False), _GRAMMAR)
    order = _order(fields.texts("order_by"))
    view = view_of(fields, "run_view_type")
    token = fields.text("page_token", required=False)
    if not experiments or most == 0:
        return {}
    where = And(
        (
            _in_experiments(experiments),
            *(_expression(term) for term in terms if term.entity != "dataset"),
            *([] if view == "all" else [Compare(("archived_at",), "is null" if view == "active" else "is not null")]),
        )
    )
    of_datasets = [term for term in terms if term.entity == "dataset"]
    if of_datasets:
        rows = [
            run
            for run in _found(context, where, order, _ALL, None).rows
            if any(meets(of_datasets, lambda term, d=d: d.get(term.key)) for d in datasets_of(cast("Run", run)))  # type: ignore[misc]
        ]
        return paged(rows, Page.of(token), most, run_out, "runs")
    found = _found(context, where, order, most, token or None)
    response: dict[str, Any] = {"runs": [run_out(run) for run in cast("list[Run]", found.rows)]} if found.rows else {}
    if found.next is not None:
        response["next_page_token"] = found.next
    return response


def _found(context: HandlerContext, where: Expression, order: Sequence[str], most: int, after: str | None) -> Any:
    try:
        return search(context.store, where, order_by=order, limit=most, after=after, include_archived=True)
    except UsageError as error:
        raise MlflowError(f"Invalid page token, {error}" if after is not None else str(error)) from error


def experiment_numbers(experiments: Iterable[str]) -> list[str]:
    """Return the numbers of experiments in the form that records use."""
    numbers = []
    for number in experiments:
        try:
            numbers.append(str(int(number)))
        except ValueError:
            raise MlflowError(f"Invalid experiment ID '{number}'. Experiment ID must be a valid integer.") from None
    return numbers


def _in_experiments(experiments: Iterable[str]) -> Expression:
    numbers = experiment_numbers(experiments)
    inside: Expression = Compare(("experiment",), "in", tuple(numbers))
    return Or((inside, Compare(("experiment",), "is null"))) if DEFAULT in numbers else inside


def _expression(term: Term) -> Expression:
    path = (_MAP[term.entity], term.key) if term.entity != "attribute" else (_FIELD[term.key],)
    if term.op in ("IS NULL", "IS NOT NULL"):
        if term.entity not in ("param", "tag"):
            raise MlflowError(
                f"IS NULL / IS NOT NULL is only supported for tags and params, not for '{term.entity}' '{term.key}'"
            )
        return Compare(path, "is null" if term.op == "IS NULL" else "is not null")
    if path == ("state",):
        if term.op in ("=", "!=") and term.value not in STATE_OF:
            raise MlflowError(f"Invalid run status '{term.value}'. Valid values are {list(STATE_OF)}")
        return Compare(path, "in", tuple(state for state, status in STATUS_OF.items() if term.holds(status)))
    value: Any = term.value
    if path == ("id",):
        value = tuple(map(record_id, value)) if isinstance(value, tuple) else record_id(str(value))
    elif path[0] in ("started_at", "ended_at"):
        try:
            value = moment_of(int(value * 1000))
        except (OverflowError, ValueError):
            raise MlflowError(f"{term.key} = {value} is not a time in milliseconds since 1970.") from None
    compared = Compare(path, cast("Any", term.op.lower()), value)
    if term.op in ("!=", "NOT IN"):
        # In MLflow a run without the value meets no comparison.
        return And((Compare(path, "is not null"), compared))
    return compared


def _order(clauses: Sequence[str]) -> list[str]:
    order: list[str] = []
    for clause in clauses:
        entity, key, ascending = parse_order(clause, _GRAMMAR)
        if entity == "dataset":
            raise MlflowError("order_by must name a metric, param, tag or attribute, not a dataset.")
        if entity == "attribute":
            name = _FIELD[key]
        else:
            name = f"{_MAP[entity]}.{json.dumps(key, ensure_ascii=False)}"
        if name == "artifacts_at":
            name = "id"
        order.append(name if ascending else f"-{name}")
    if not any(name.removeprefix("-") == "started_at" for name in order):
        order.append("-started_at")
    # Runs with equal start times are sorted by id, as clients expect.
    return order if {"id", "-id"} & set(order) else [*order, "id"]


def datasets_of(run: Run) -> list[dict[str, Any]]:
    """Return the datasets that a run has read, each with its `context` (its purpose), or None."""
    found = []
    for entry in run.inputs:
        if "dataset" in entry:
            dataset_input = entry["dataset"]
            tags = {tag["key"]: tag["value"] for tag in dataset_input.get("tags", [])}
            found.append({**dataset_input["dataset"], "context": tags.get("mlflow.data.context")})
    return found


ROUTES = (HandlerRoute("POST", "2.0/mlflow/runs/search", search_runs, "read", slow=True),)
