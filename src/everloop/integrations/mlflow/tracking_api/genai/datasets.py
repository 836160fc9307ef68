"""Evaluation datasets: create, get, delete, search, tag, and say to which experiments they belong.

Source: MLflow 3's API of evaluation datasets (`/api/3.0/mlflow/datasets…`). Tags, fields and counts travel as JSON
in texts, as its clients read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, invalid, mistyped, ms_of, not_found
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_most, experiment_of
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


def create_dataset(ask: HandlerContext) -> Mapping[str, Any]:
    fields, store = ask.fields, ask.store
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


def get_dataset(ask: HandlerContext) -> Mapping[str, Any]:
    return {"dataset": dataset_out(dataset_of(ask.store, ask.path["dataset_id"]))}


def delete_dataset(ask: HandlerContext) -> Mapping[str, Any]:
    """Delete a dataset with its rows; that there is none is no error."""
    records, found = ask.store.records, find_dataset(ask.store, ask.path["dataset_id"])
    while found is not None:
        rows = records.find(EvaluationRow, ("key", "prefix", f"{found.id}#"), order="key", limit=DELETED_AT_ONCE)
        with records.transaction():
            for row in rows:
                records.delete(EvaluationRow, row.id)
            if not rows:
                records.delete(EvaluationDataset, found.id)
                break
    return {}


def search_datasets(ask: HandlerContext) -> Mapping[str, Any]:
    fields = ask.fields
    most = checked_most(fields, USUAL, MOST, lowest=1, strict=False)
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
        for dataset in ask.store.records.find(EvaluationDataset, order="-id")
        if (not within or within & set(dataset.experiments)) and meets(terms, lambda term, d=dataset: _value(d, term))  # type: ignore[misc]
    ]
    for _, key, ascending in reversed(orders or [("attribute", "created_time", False)]):
        rows.sort(key=lambda dataset, k=key: _attribute(dataset, k), reverse=not ascending)  # type: ignore[misc]
    return paged(rows, page, most, dataset_out, "datasets")


def set_dataset_tags(ask: HandlerContext) -> Mapping[str, Any]:
    name, tags = ask.path["dataset_id"], _tags(ask.fields, required=True)
    with ask.store.records.transaction():
        found = find_dataset(ask.store, name)
        if found is None:
            raise not_found(f"Could not find evaluation dataset with ID {name[:200]}")
        ask.store.records.update(replace(found, tags={**found.tags, **tags}), verb="tagged")
    return {}


def delete_dataset_tag(ask: HandlerContext) -> Mapping[str, Any]:
    """Take a tag away; that there is none is no error."""
    key = ask.path["key"]
    with ask.store.records.transaction():
        found = find_dataset(ask.store, ask.path["dataset_id"])
        if found is not None and key in found.tags:
            left = {name: value for name, value in found.tags.items() if name != key}
            ask.store.records.update(replace(found, tags=left), verb="tagged")
    return {}


def get_experiment_ids(ask: HandlerContext) -> Mapping[str, Any]:
    found = find_dataset(ask.store, ask.path["dataset_id"])
    return {"experiment_ids": list(found.experiments)} if found is not None and found.experiments else {}


def add_to_experiments(ask: HandlerContext) -> Mapping[str, Any]:
    numbers = ask.fields.texts("experiment_ids")
    with ask.store.records.transaction():
        found = _linked(ask)
        added = _numbers(ask.store, numbers)
        experiments = tuple(dict.fromkeys((*found.experiments, *added)))
        if len(experiments) > MOST_EXPERIMENTS:
            raise MlflowError(f"A dataset belongs to at most {MOST_EXPERIMENTS} experiments.")
        changed = replace(found, experiments=experiments, updated_at=ask.store.now())
        found = ask.store.records.update(changed, verb="linked")[0]
    return {"dataset": dataset_out(found)}


def remove_from_experiments(ask: HandlerContext) -> Mapping[str, Any]:
    gone = set(ask.fields.texts("experiment_ids"))
    with ask.store.records.transaction():
        found = _linked(ask)
        if gone & set(found.experiments):
            left = tuple(number for number in found.experiments if number not in gone)
            changed = replace(found, experiments=left, updated_at=ask.store.now())
            found = ask.store.records.update(changed, verb="unlinked")[0]
    return {"dataset": dataset_out(found)}


def dataset_of(store: Store, name: str) -> EvaluationDataset:
    """The dataset that a client names.

    Raises:
        MlflowError: there is none.
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
    answer: dict[str, Any] = {
        "dataset_id": PREFIX + wire_id(dataset.id),
        "name": dataset.name,
        "tags": json.dumps(dataset.tags),
        "digest": dataset.digest,
        "created_time": ms_of(dataset.created_at),
        "last_update_time": ms_of(dataset.updated_at),
    }
    if dataset.fields:
        answer["schema"] = json.dumps(dataset.fields)
    if dataset.rows:
        answer["profile"] = json.dumps({"num_records": dataset.rows})
    if dataset.user is not None:
        answer["created_by"] = dataset.user
    if dataset.updated_by is not None:
        answer["last_updated_by"] = dataset.updated_by
    return answer


def digest_of(name: str, at: datetime) -> str:
    return hashlib.sha256(f"{name}:{ms_of(at)}".encode("utf-8", "surrogatepass")).hexdigest()[:8]


def read_json(fields: Fields, name: str, *, required: bool = True) -> Json:
    """The JSON that stands in a text; None where it is absent and not required."""
    text = fields.text(name, required=required)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid(name, text[:200], "It is no JSON.") from None


def _tags(fields: Fields, *, required: bool) -> dict[str, str]:
    said = read_json(fields, "tags", required=required)
    if said is None:
        return {}
    if not isinstance(said, dict) or any(isinstance(value, dict | list) for value in said.values()):
        raise mistyped("tags", said)
    tags = {key: str(value) for key, value in said.items() if value is not None}
    for key, value in tags.items():
        check_length("key", LONGEST_KEY, key)
        check_length("value", LONGEST_VALUE, value)
    return tags


def _numbers(store: Store, asked: Sequence[str]) -> tuple[str, ...]:
    if len(asked) > MOST_EXPERIMENTS:
        raise MlflowError(f"A dataset belongs to at most {MOST_EXPERIMENTS} experiments.")
    return tuple(dict.fromkeys(str(experiment_of(store, number).number) for number in asked))


def _linked(ask: HandlerContext) -> EvaluationDataset:
    name = ask.path["dataset_id"]
    found = find_dataset(ask.store, name)
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
