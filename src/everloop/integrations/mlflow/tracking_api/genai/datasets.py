"""Routes for evaluation datasets: create, get, delete, search, tag, and link to experiments.

Source: MLflow 3's API of evaluation datasets (`/api/3.0/mlflow/datasets…`). Tags, fields and counts are sent as JSON
in strings, as MLflow's clients expect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, invalid, mistyped, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit, experiment_of
from everloop.integrations.mlflow.tracking_api.filter_strings import Grammar, Term, meets, parse_filter, parse_order
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.name_rules import check_length
from everloop.integrations.mlflow.tracking_api.page_tokens import Page, paged
from everloop.integrations.mlflow.tracking_api.serializers import record_id, wire_id
from everloop.records import EvaluationDataset, EvaluationRow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from everloop.records import Json
    from everloop.stores import Store

PREFIX = "d-"
USER = "mlflow.user"
USUAL, MOST = 1000, 50_000
LONGEST_NAME, LONGEST_KEY, LONGEST_VALUE = 255, 255, 5000
DELETED_AT_ONCE = 500
MOST_EXPERIMENTS = 1000
_GRAMMAR = Grammar(
    texts=frozenset({"name", "created_by", "last_updated_by"}),
    numbers=frozenset({"created_time", "last_update_time"}),
    listed=frozenset({"name"}),
)
_ORDERS = Grammar(
    texts=frozenset({"name"}),
    numbers=frozenset({"created_time", "last_update_time"}),
)


def create_dataset(context: HandlerContext) -> Mapping[str, Any]:
    fields, store = context.fields, context.store
    name = fields.text("name")
    check_length("name", LONGEST_NAME, name)
    tags = _tags(fields, required=False)
    now = store.now()
    made = store.new(
        EvaluationDataset,
        name=name,
        digest=digest_of(name, now),
        experiments=_numbers(store, fields.texts("experiment_ids")),
        tags=tags,
        user=tags.get(USER),
        updated_by=tags.get(USER),
        created_at=now,
        updated_at=now,
    )
    store.records.put(made)
    return {"dataset": {**dataset_out(made), "experiment_ids": list(made.experiments)}}


def get_dataset(context: HandlerContext) -> Mapping[str, Any]:
    return {"dataset": dataset_out(dataset_of(context.store, context.path["dataset_id"]))}


def delete_dataset(context: HandlerContext) -> Mapping[str, Any]:
    """Delete a dataset with its rows. A missing dataset is not an error."""
    records, found = context.store.records, find_dataset(context.store, context.path["dataset_id"])
    while found is not None:
        rows = records.find(EvaluationRow, ("key", "prefix", f"{found.id}#"), order="key", limit=DELETED_AT_ONCE)
        with records.transaction():
            for row in rows:
                records.delete(EvaluationRow, row.id)
            if not rows:
                records.delete(EvaluationDataset, found.id)
                break
    return {}


def search_datasets(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    most = checked_limit(fields, USUAL, MOST, lowest=1, strict=False)
    terms = parse_filter(fields.text("filter_string", required=False), _GRAMMAR)
    if any(term.op == "NOT IN" for term in terms):
        raise MlflowError("List values for 'name' are only supported with the IN comparator.")
    orders = [parse_order(text, _ORDERS) for text in fields.texts("order_by")]
    if any(entity == "tag" for entity, _, _ in orders):
        raise MlflowError("Invalid order_by entity: tag")
    page = Page.of(fields.text("page_token", required=False))
    within = set(fields.texts("experiment_ids"))
    rows = [
        dataset
        for dataset in context.store.records.find(EvaluationDataset, order="-id")
        if (not within or within & set(dataset.experiments)) and meets(terms, lambda term, d=dataset: _value(d, term))  # type: ignore[misc]
    ]
    for _, key, ascending in reversed(orders or [("attribute", "created_time", False)]):
        rows.sort(key=lambda dataset, k=key: _attribute(dataset, k), reverse=not ascending)  # type: ignore[misc]
    return paged(rows, page, most, dataset_out, "datasets")


def set_dataset_tags(context: HandlerContext) -> Mapping[str, Any]:
    name, tags = context.path["dataset_id"], _tags(context.fields, required=True)
    with context.store.records.transaction():
        found = find_dataset(context.store, name)
        if found is None:
            raise not_found(f"Could not find evaluation dataset with ID {name[:200]}")
        context.store.records.update(replace(found, tags={**found.tags, **tags}), verb="tagged")
    return {}


def delete_dataset_tag(context: HandlerContext) -> Mapping[str, Any]:
    """Delete a tag. A missing tag is not an error."""
    key = context.path["key"]
    with context.store.records.transaction():
        found = find_dataset(context.store, context.path["dataset_id"])
        if found is not None and key in found.tags:
            left = {name: value for name, value in found.tags.items() if name != key}
            context.store.records.update(replace(found, tags=left), verb="tagged")
    return {}


def get_experiment_ids(context: HandlerContext) -> Mapping[str, Any]:
    found = find_dataset(context.store, context.path["dataset_id"])
    return {"experiment_ids": list(found.experiments)} if found is not None and found.experiments else {}


def add_to_experiments(context: HandlerContext) -> Mapping[str, Any]:
    numbers = context.fields.texts("experiment_ids")
    with context.store.records.transaction():
        found = _linked(context)
        added = _numbers(context.store, numbers)
        experiments = tuple(dict.fromkeys((*found.experiments, *added)))
        if len(experiments) > MOST_EXPERIMENTS:
            raise MlflowError(f"A dataset can belong to at most {MOST_EXPERIMENTS} experiments.")
        changed = replace(found, experiments=experiments, updated_at=context.store.now())
        found = context.store.records.update(changed, verb="linked")[0]
    return {"dataset": dataset_out(found)}


def remove_from_experiments(context: HandlerContext) -> Mapping[str, Any]:
    removed = set(context.fields.texts("experiment_ids"))
    with context.store.records.transaction():
        found = _linked(context)
        if removed & set(found.experiments):
            left = tuple(number for number in found.experiments if number not in removed)
            changed = replace(found, experiments=left, updated_at=context.store.now())
            found = context.store.records.update(changed, verb="unlinked")[0]
    return {"dataset": dataset_out(found)}


def dataset_of(store: Store, name: str) -> EvaluationDataset:
    """Return the dataset with this id.

    Raises:
        MlflowError: there is no such dataset.
    """
    found = find_dataset(store, name)
    if found is None:
        raise not_found(f"Evaluation dataset with id '{name[:200]}' not found")
    return found


def find_dataset(store: Store, name: str) -> EvaluationDataset | None:
    if not name.startswith(PREFIX) or not (name.isascii() and name.isprintable()):
        return None
    found = store.records.find(EvaluationDataset, ("id", "=", record_id(name.removeprefix(PREFIX))), limit=1)
    return found[0] if found else None


def dataset_out(dataset: EvaluationDataset) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "dataset_id": PREFIX + wire_id(dataset.id),
        "name": dataset.name,
        "tags": json.dumps(dataset.tags),
        "digest": dataset.digest,
        "created_time": ms_of(dataset.created_at),
        "last_update_time": ms_of(dataset.updated_at),
    }
    if dataset.fields:
        payload["schema"] = json.dumps(dataset.fields)
    if dataset.rows:
        payload["profile"] = json.dumps({"num_records": dataset.rows})
    if dataset.user is not None:
        payload["created_by"] = dataset.user
    if dataset.updated_by is not None:
        payload["last_updated_by"] = dataset.updated_by
    return payload


def digest_of(name: str, at: datetime) -> str:
    return hashlib.sha256(f"{name}:{ms_of(at)}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


def read_json(fields: Fields, name: str, *, required: bool = True) -> Json:
    """Parse a field with JSON in a string; None if it is absent and not required."""
    text = fields.text(name, required=required)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(name, text[:200], "It is not valid JSON.") from None


def _tags(fields: Fields, *, required: bool) -> dict[str, str]:
    value = read_json(fields, "tags", required=required)
    if value is None:
        return {}
    if not isinstance(value, dict) or any(isinstance(value, dict | list) for value in value.values()):
        raise mistyped("tags", value)
    tags = {key: str(value) for key, value in value.items() if value is not None}
    for key, value in tags.items():
        check_length("key", LONGEST_KEY, key)
        check_length("value", LONGEST_VALUE, value)
    return tags


def _numbers(store: Store, numbers: Sequence[str]) -> tuple[str, ...]:
    if len(numbers) > MOST_EXPERIMENTS:
        raise MlflowError(f"A dataset can belong to at most {MOST_EXPERIMENTS} experiments.")
    return tuple(dict.fromkeys(str(experiment_of(store, number).number) for number in numbers))


def _linked(context: HandlerContext) -> EvaluationDataset:
    name = context.path["dataset_id"]
    found = find_dataset(context.store, name)
    if found is None:
        raise not_found(f"Dataset '{name[:200]}' not found")
    return found


def _value(dataset: EvaluationDataset, term: Term) -> Any:
    return dataset.tags.get(term.key) if term.entity == "tag" else _attribute(dataset, term.key)


def _attribute(dataset: EvaluationDataset, key: str) -> Any:
    match key:
        case "name":
            return dataset.name
        case "created_by":
            return dataset.user
        case "last_updated_by":
            return dataset.updated_by
        case "created_time":
            return ms_of(dataset.created_at)
    return ms_of(dataset.updated_at)


_ONE = "3.0/mlflow/datasets/{dataset_id}"
ROUTES = (
    HandlerRoute("POST", "3.0/mlflow/datasets/create", create_dataset, "write", slow=True),
    HandlerRoute("POST", "3.0/mlflow/datasets/search", search_datasets, "read", slow=True),
    HandlerRoute("GET", "3.0/mlflow/datasets/search", search_datasets, "read", slow=True),
    HandlerRoute("GET", _ONE, get_dataset, "read"),
    HandlerRoute("DELETE", _ONE, delete_dataset, "delete", slow=True),
    HandlerRoute("PATCH", f"{_ONE}/tags", set_dataset_tags, "write"),
    HandlerRoute("DELETE", f"{_ONE}/tags/{{key}}", delete_dataset_tag, "write"),
    HandlerRoute("GET", f"{_ONE}/experiment-ids", get_experiment_ids, "read"),
    HandlerRoute("POST", f"{_ONE}/add-experiments", add_to_experiments, "write", slow=True),
    HandlerRoute("POST", f"{_ONE}/remove-experiments", remove_from_experiments, "write", slow=True),
)
