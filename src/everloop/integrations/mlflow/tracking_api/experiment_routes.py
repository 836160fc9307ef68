"""Routes for experiments: create, get, search, delete, restore, rename, tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, mistyped, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_experiment, check_experiment_tag
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.serializers import DEFAULT, experiment_out
from everloop.records import Experiment, Run

if TYPE_CHECKING:
    from everloop.stores import Store

MOST = 50_000
USUAL = 1000
_GRAMMAR = Grammar(
    texts=frozenset({"name"}),
    numbers=frozenset({"creation_time", "last_update_time"}),
)
_ORDERS = Grammar(
    texts=frozenset({"name", "experiment_id"}),
    numbers=frozenset({"creation_time", "last_update_time"}),
    entities=frozenset({"attribute"}),
)
VIEWS = {"ACTIVE_ONLY": "active", "DELETED_ONLY": "deleted", "ALL": "all", "1": "active", "2": "deleted", "3": "all"}


def create_experiment(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.text("name")
    location = context.fields.text("artifact_location", required=False)
    tags = context.fields.pairs("tags")
    check_experiment(name)
    for key, value in tags.items():
        check_experiment_tag(key, value)
    location = context.artifacts.checked(location) if location else ""
    store = context.store
    with store.records.transaction():
        default_experiment(store)
        if store.records.find(Experiment, ("key", "=", name), limit=1):
            raise MlflowError(f"Experiment(name={name}) already exists.", "RESOURCE_ALREADY_EXISTS")
        last = store.records.find(Experiment, order="-number", limit=1)
        number = last[0].number + 1
        made = _new(store, number, name, location or context.artifacts.of_experiment(number), tags)
        store.records.put(made)
    return {"experiment_id": str(made.number)}


def get_experiment(context: HandlerContext) -> Mapping[str, Any]:
    return {"experiment": experiment_out(experiment_of(context.store, context.fields.text("experiment_id")))}


def get_experiment_by_name(context: HandlerContext) -> Mapping[str, Any]:
    name = context.fields.text("experiment_name")
    default_experiment(context.store)
    found = context.store.records.find(Experiment, ("key", "=", name), limit=1)
    if not found:
        raise not_found(f"Could not find experiment with name '{name}'")
    return {"experiment": experiment_out(found[0])}


def delete_experiment(context: HandlerContext) -> Mapping[str, Any]:
    _set_archived(context, True)
    return {}


def restore_experiment(context: HandlerContext) -> Mapping[str, Any]:
    _set_archived(context, False)
    return {}


def update_experiment(context: HandlerContext) -> Mapping[str, Any]:
    number, name = context.fields.text("experiment_id"), context.fields.text("new_name", required=False)
    if not name:
        return {}
    check_experiment(name)
    store = context.store
    with store.records.transaction():
        found = experiment_of(store, number)
        if found.archived_at is not None:
            raise MlflowError("Cannot rename a non-active experiment.", "INVALID_STATE")
        holder = store.records.find(Experiment, ("key", "=", name), limit=1)
        if holder and holder[0].id != found.id:
            raise MlflowError(f"Experiment(name={name}) already exists.", "RESOURCE_ALREADY_EXISTS")
        if name != found.name:
            store.records.update(replace(found, name=name, updated_at=store.now()), verb="renamed")
    return {}


def set_experiment_tag(context: HandlerContext) -> Mapping[str, Any]:
    number, key = context.fields.text("experiment_id"), context.fields.text("key")
    value = context.fields.text("value", required=False)
    check_experiment_tag(key, value)
    with context.store.records.transaction():
        found = active_experiment(context.store, number)
        if found.tags.get(key) != value:
            context.store.records.update(replace(found, tags={**found.tags, key: value}), verb="tagged")
    return {}


def delete_experiment_tag(context: HandlerContext) -> Mapping[str, Any]:
    number, key = context.fields.text("experiment_id"), context.fields.text("key")
    with context.store.records.transaction():
        found = active_experiment(context.store, number)
        if key not in found.tags:
            raise not_found(f"No tag with name: {key} in experiment with id {number}")
        left = {name: value for name, value in found.tags.items() if name != key}
        context.store.records.update(replace(found, tags=left), verb="tagged")
    return {}


def search_experiments(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    most = checked_limit(fields, USUAL, MOST, lowest=1, strict=False)
    terms = parse_filter(fields.text("filter", required=False), _GRAMMAR)
    orders = [parse_order(text, _ORDERS) for text in fields.texts("order_by")]
    view = view_of(fields, "view_type")
    page = Page.of(fields.text("page_token", required=False))
    default_experiment(context.store)
    rows = [
        experiment
        for experiment in context.store.records.find(Experiment)
        if (view == "all" or (experiment.archived_at is None) == (view == "active"))
        and meets(terms, lambda term, e=experiment: _value(e, term))  # type: ignore[misc]
    ]
    if not orders:
        orders = [("attribute", "creation_time", False), ("attribute", "experiment_id", False)]
    else:
        rows.sort(key=lambda e: e.number)
    for _, key, ascending in reversed(orders):
        rows.sort(key=lambda e, k=key: _sort_value(e, k), reverse=not ascending)  # type: ignore[misc]
    return paged(rows, page, most, experiment_out, "experiments")


def experiment_of(store: Store, number: str) -> Experiment:
    """Return the experiment with this number, deleted or not.

    Raises:
        MlflowError: there is no such experiment.
    """
    number = number or DEFAULT
    try:
        wanted = int(number)
    except ValueError:
        raise MlflowError(f"Invalid experiment ID '{number}'. Experiment ID must be a valid integer.") from None
    if wanted == 0:
        return default_experiment(store)
    found = store.records.find(Experiment, ("number", "=", wanted), limit=1) if abs(wanted) < 1 << 62 else []
    if not found:
        raise not_found(f"No Experiment with id={wanted} exists")
    return found[0]


def active_experiment(store: Store, number: str) -> Experiment:
    found = experiment_of(store, number)
    if found.archived_at is not None:
        raise MlflowError(f"The experiment {found.number} must be in the 'active' state. Current state is deleted.")
    return found


def default_experiment(store: Store, location: str = "mlflow-artifacts:/0") -> Experiment:
    """Return experiment 0, creating it on first use. It may have been renamed.

    Args:
        location: its artifact location, if it is created now.
    """
    found = store.records.find(Experiment, ("number", "=", 0), limit=1)
    if found:
        return found[0]
    with store.records.transaction():
        found = store.records.find(Experiment, ("number", "=", 0), limit=1)
        if found:
            return found[0]
        made = _new(store, 0, "Default", location, {})
        store.records.put(made)
    return made


def view_of(fields: Fields, name: str) -> str:
    """Return `active`, `deleted` or `all`."""
    value = fields.raw(name)
    if isinstance(value, list):
        value = value[0]
    if value is None:
        return "active"
    view = VIEWS.get(str(value))
    if view is None:
        raise MlflowError(
            f"Invalid value '{value}' for parameter '{name}'. It must be ACTIVE_ONLY, DELETED_ONLY or ALL."
        )
    return view


def checked_limit(fields: Fields, usual: int, most: int, *, lowest: int = 0, strict: bool = True) -> int:
    """Return the requested number of rows."""
    limit = fields.integer("max_results", usual)
    if limit > most:
        if strict:
            raise mistyped("max_results", fields.shown_value("max_results"))
        raise MlflowError(f"Invalid value {limit} for parameter 'max_results' supplied. It must be at most {most}")
    if limit < lowest:
        raise MlflowError(f"Invalid value {limit} for parameter 'max_results' supplied. It must be a positive integer")
    return limit


def _set_archived(context: HandlerContext, archived: bool) -> None:
    store, number = context.store, context.fields.text("experiment_id")
    with store.records.transaction():
        found = experiment_of(store, number)
        if (found.archived_at is not None) == archived:
            raise not_found(f"No Experiment with id={found.number} exists")
        now = store.now()
        moment = now if archived else None
        verb = "archived" if archived else "unarchived"
        store.records.update(replace(found, archived_at=moment, updated_at=now), verb=verb)
        runs = _runs_of(store, found.number)
        store.records.update(*(replace(run, archived_at=moment) for run in runs), verb=verb)


def _runs_of(store: Store, number: int) -> Sequence[Run]:
    if number == 0:
        return store.records.find(Run, ("experiment", "in", (DEFAULT, None)))
    return store.records.find(Run, ("experiment", "=", str(number)))


def _new(store: Store, number: int, name: str, location: str, tags: dict[str, str]) -> Experiment:
    return store.new(
        Experiment,
        number=number,
        name=name,
        artifacts_at=location,
        tags=tags,
        updated_at=store.now(),
    )


def _value(experiment: Experiment, term: Term) -> Any:
    if term.entity == "tag":
        return experiment.tags.get(term.key)
    return _sort_value(experiment, term.key)


def _sort_value(experiment: Experiment, key: str) -> Any:
    match key:
        case "name":
            return experiment.name
        case "experiment_id":
            return experiment.number
        case "creation_time":
            return ms_of(experiment.created_at)
    return ms_of(experiment.updated_at)


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/experiments/create", create_experiment, "write"),
    HandlerRoute("GET", "2.0/mlflow/experiments/get", get_experiment, "read"),
    HandlerRoute("GET", "2.0/mlflow/experiments/get-by-name", get_experiment_by_name, "read"),
    HandlerRoute("POST", "2.0/mlflow/experiments/search", search_experiments, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow/experiments/search", search_experiments, "read", slow=True),
    HandlerRoute("POST", "2.0/mlflow/experiments/delete", delete_experiment, "delete", slow=True),
    HandlerRoute("POST", "2.0/mlflow/experiments/restore", restore_experiment, "write", slow=True),
    HandlerRoute("POST", "2.0/mlflow/experiments/update", update_experiment, "write"),
    HandlerRoute("POST", "2.0/mlflow/experiments/set-experiment-tag", set_experiment_tag, "write"),
    HandlerRoute("POST", "2.0/mlflow/experiments/delete-experiment-tag", delete_experiment_tag, "write"),
)
