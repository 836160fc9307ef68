"""Routes for the rows of an evaluation dataset: add or merge them by their inputs, read them in pages, delete them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, invalid, mistyped, ms_of
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_limit
from everloop.integrations.mlflow.tracking_api.genai.datasets import (
    MOST,
    PREFIX,
    USER,
    USUAL,
    dataset_of,
    digest_of,
    find_dataset,
    read_json,
)
from everloop.integrations.mlflow.tracking_api.handler_context import LARGE_BODY, HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.serializers import record_id, wire_id
from everloop.records import EvaluationDataset, EvaluationRow

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.records import Json
    from everloop.stores import Store

ROW_PREFIX = "dr-"
SOURCES = ("UNSPECIFIED", "TRACE", "HUMAN", "DOCUMENT", "CODE")
_AT_ONCE = 200
"""Keys in one query to the store."""
_NO_FIELDS: dict[str, Json] = {"inputs": {}, "outputs": {}, "expectations": {}, "version": "1.0"}


def upsert_rows(context: HandlerContext) -> Mapping[str, Any]:
    """Add rows. A row with the inputs of an existing one is merged into it, so a request may safely be repeated."""
    store, name = context.store, context.path["dataset_id"]
    sent = [_checked(row) for row in _list(read_json(context.fields, "records"))]
    digests = [_digest(row["inputs"]) for row in sent]
    with store.records.transaction():
        dataset = dataset_of(store, name)
        now = store.now()
        before = {row.digest: row for row in _rows_at(store, dataset, digests)}
        after, updated = dict(before), 0
        for row, digest in zip(sent, digests, strict=True):
            known = after.get(digest)
            updated += known is not None
            after[digest] = _merged(known, row, now) if known else _new(store, dataset, row, digest, now)
        # An unchanged row is not written, so a repeated request adds no history.
        store.records.update(*(row for digest, row in after.items() if digest in before and row is not before[digest]))
        made = [row for digest, row in after.items() if digest not in before]
        store.records.put(*made)
        users = [row["tags"][USER] for row in sent if USER in (row.get("tags") or {})]
        store.records.update(
            replace(
                dataset,
                digest=digest_of(dataset.name, now),
                fields=_with_fields(dataset.fields, sent),
                rows=dataset.rows + len(made),
                updated_by=str(users[-1]) if users else None,
                updated_at=now,
            )
        )
    return {"inserted_count": len(made), "updated_count": updated}


def get_rows(context: HandlerContext) -> Mapping[str, Any]:
    most = checked_limit(context.fields, USUAL, MOST, lowest=1, strict=False)
    after = _after(context.fields.text("page_token", required=False))
    dataset = find_dataset(context.store, context.path["dataset_id"])
    if dataset is None:
        return {"records": "[]"}
    # Ids sort by creation time.
    found = context.store.records.find(
        EvaluationRow, ("key", "prefix", f"{dataset.id}#"), ("id", ">", after), limit=most + 1
    )
    response: dict[str, Any] = {"records": json.dumps([row_out(row) for row in found[:most]])}
    if len(found) > most:
        last = found[most - 1]
        token = f"{ms_of(last.created_at)}:{ROW_PREFIX}{wire_id(last.id)}"
        response["next_page_token"] = base64.b64encode(token.encode()).decode()
    return response


def delete_rows(context: HandlerContext) -> Mapping[str, Any]:
    requested_ids = {record_id(name.removeprefix(ROW_PREFIX)) for name in context.fields.texts("dataset_record_ids")}
    store = context.store
    with store.records.transaction():
        dataset = dataset_of(store, context.path["dataset_id"])
        found = [
            row for row in store.records.get_many(EvaluationRow, sorted(requested_ids)) if row.dataset == dataset.id
        ]
        for row in found:
            store.records.delete(EvaluationRow, row.id)
        if found:
            store.records.update(replace(dataset, rows=max(dataset.rows - len(found), 0)))
    return {"deleted_count": len(found)}


def row_out(row: EvaluationRow) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "dataset_record_id": ROW_PREFIX + wire_id(row.id),
        "dataset_id": PREFIX + wire_id(row.dataset),
        "inputs": row.inputs,
        "tags": row.tags,
        "created_time": ms_of(row.created_at),
        "last_update_time": ms_of(row.updated_at),
    }
    for name, value in (
        ("outputs", row.outputs),
        ("expectations", row.expectations),
        ("created_by", row.user),
        ("last_updated_by", row.updated_by),
    ):
        if value is not None:
            payload[name] = value
    if row.source is not None:
        kind, data = row.source["source_type"], row.source["source_data"]
        payload["source"], payload["source_type"] = row.source, kind
        named = data.get("trace_id" if kind == "TRACE" else "source_id")
        if isinstance(named, str):
            payload["source_id"] = named
    return payload


def _list(sent: Json) -> list[Json]:
    if not isinstance(sent, list):
        raise mistyped("records", sent)
    return sent


def _checked(row: Json) -> dict[str, Any]:
    """Check the types of a row's fields.

    Raises:
        MlflowError: a field has the wrong type.
    """
    if not isinstance(row, dict):
        raise MlflowError("Each record must be a dictionary")
    for name in ("inputs", "expectations", "tags", "source"):
        if row.get(name) is not None and not isinstance(row[name], dict):
            raise mistyped(f"records.{name}", row[name])
    checked = {**row, "inputs": row.get("inputs", {})}
    if checked["inputs"] is None:
        raise MlflowError("inputs must be provided")
    if row.get("source"):
        kind = str(row["source"].get("source_type", "")).upper()
        if kind not in SOURCES:
            raise MlflowError(f"Invalid dataset record source type: {kind[:100]}. Valid source types: {list(SOURCES)}")
        data = row["source"].get("source_data")
        if data is not None and not isinstance(data, dict):
            raise mistyped("records.source.source_data", data)
        checked["source"] = {"source_type": kind, "source_data": data or {}}
    return checked


def _digest(inputs: Json) -> str:
    try:
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    except (RecursionError, ValueError):
        raise MlflowError("The inputs of a record cannot be stored: they are nested too deeply.") from None


def _rows_at(store: Store, dataset: EvaluationDataset, digests: Sequence[str]) -> Iterable[EvaluationRow]:
    keys = [f"{dataset.id}#{digest}" for digest in dict.fromkeys(digests)]
    for begin in range(0, len(keys), _AT_ONCE):
        yield from store.records.find(EvaluationRow, ("key", "in", keys[begin : begin + _AT_ONCE]))


def _new(
    store: Store, dataset: EvaluationDataset, sent: Mapping[str, Any], digest: str, now: datetime
) -> EvaluationRow:
    tags = sent.get("tags") or {}
    user = str(tags[USER]) if USER in tags else None
    return store.new(
        EvaluationRow,
        dataset=dataset.id,
        digest=digest,
        inputs=sent["inputs"],
        outputs=sent.get("outputs", {}),
        expectations=sent.get("expectations"),
        tags=tags,
        source=sent.get("source") or None,
        user=user,
        updated_by=user,
        updated_at=now,
    )


def _merged(row: EvaluationRow, sent: Mapping[str, Any], now: datetime) -> EvaluationRow:
    tags, expectations = sent.get("tags") or {}, sent.get("expectations")
    merged = replace(
        row,
        outputs=sent.get("outputs", row.outputs),
        expectations={**(row.expectations or {}), **expectations} if expectations else row.expectations,
        tags={**row.tags, **tags},
        updated_by=str(tags[USER]) if USER in tags else row.updated_by,
    )
    return row if merged == row else replace(merged, updated_at=now)


def _with_fields(known: dict[str, Json], sent: Iterable[Mapping[str, Any]]) -> dict[str, Json]:
    """Return the names and types of the rows' fields, extended by more rows.

    The first row with a field sets its type.
    """
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in (known or _NO_FIELDS).items()}
    seen = bool(known)
    for row in sent:
        seen = True
        for part in ("inputs", "outputs", "expectations"):
            value, types = row.get(part), fields[part]
            if isinstance(value, dict) and isinstance(types, dict):
                for name, item in value.items():
                    types.setdefault(name, _type(item))
            elif part == "outputs" and value is not None and not types:
                fields[part] = _type(value)
    return fields if seen else {}


def _type(value: Json) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "float"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _after(token: str) -> str:
    """Return the id of the last row of the previous page."""
    if not token:
        return ""
    try:
        _, colon, name = base64.b64decode(token, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        name = colon = ""
    if not colon or not name.startswith(ROW_PREFIX):
        raise invalid("page_token", token[:200])
    return record_id(name.removeprefix(ROW_PREFIX))


_ROWS = "3.0/mlflow/datasets/{dataset_id}/records"
ROUTES = (
    HandlerRoute("POST", _ROWS, upsert_rows, "write", slow=True, body_bytes=LARGE_BODY),
    HandlerRoute("GET", _ROWS, get_rows, "read", slow=True),
    HandlerRoute("DELETE", _ROWS, delete_rows, "delete", slow=True),
)
