"""The rows of an evaluation dataset: put in or merged by their inputs, read in pages, deleted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, invalid, mistyped, ms_of
from everloop.integrations.mlflow.tracking_api.experiment_routes import checked_most
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
"""Keys in one question to the store."""
_NO_FIELDS: dict[str, Json] = {"inputs": {}, "outputs": {}, "expectations": {}, "version": "1.0"}


def upsert_rows(ask: HandlerContext) -> Mapping[str, Any]:
    """Put rows in. One whose inputs are there already is merged into that one, so that a request may come twice."""
    store, name = ask.store, ask.path["dataset_id"]
    said = [_checked(row) for row in _list(read_json(ask.fields, "records"))]
    digests = [_digest(row["inputs"]) for row in said]
    with store.records.transaction():
        dataset = dataset_of(store, name)
        now = store.now()
        before = {row.digest: row for row in _rows_at(store, dataset, digests)}
        after, updated = dict(before), 0
        for row, digest in zip(said, digests, strict=True):
            known = after.get(digest)
            updated += known is not None
            after[digest] = _merged(known, row, now) if known else _new(store, dataset, row, digest, now)
        # A row that says what it said before is left alone: a request that comes twice writes no history.
        store.records.update(*(row for digest, row in after.items() if digest in before and row is not before[digest]))
        made = [row for digest, row in after.items() if digest not in before]
        store.records.put(*made)
        by = [row["tags"][USER] for row in said if USER in (row.get("tags") or {})]
        store.records.update(
            replace(
                dataset,
                digest=digest_of(dataset.name, now),
                fields=_with_fields(dataset.fields, said),
                rows=dataset.rows + len(made),
                updated_by=str(by[-1]) if by else None,
                updated_at=now,
            )
        )
    return {"inserted_count": len(made), "updated_count": updated}


def get_rows(ask: HandlerContext) -> Mapping[str, Any]:
    most = checked_most(ask.fields, USUAL, MOST, lowest=1, strict=False)
    after = _after(ask.fields.text("page_token", required=False))
    dataset = find_dataset(ask.store, ask.path["dataset_id"])
    if dataset is None:
        return {"records": "[]"}
    # Ids grow with time.
    found = ask.store.records.find(
        EvaluationRow, ("key", "prefix", f"{dataset.id}#"), ("id", ">", after), limit=most + 1
    )
    answer: dict[str, Any] = {"records": json.dumps([row_out(row) for row in found[:most]])}
    if len(found) > most:
        last = found[most - 1]
        token = f"{ms_of(last.created_at)}:{ROW_PREFIX}{wire_id(last.id)}"
        answer["next_page_token"] = base64.b64encode(token.encode()).decode()
    return answer


def delete_rows(ask: HandlerContext) -> Mapping[str, Any]:
    asked = {record_id(name.removeprefix(ROW_PREFIX)) for name in ask.fields.texts("dataset_record_ids")}
    store = ask.store
    with store.records.transaction():
        dataset = dataset_of(store, ask.path["dataset_id"])
        found = [row for row in store.records.get_many(EvaluationRow, sorted(asked)) if row.dataset == dataset.id]
        for row in found:
            store.records.delete(EvaluationRow, row.id)
        if found:
            store.records.update(replace(dataset, rows=max(dataset.rows - len(found), 0)))
    return {"deleted_count": len(found)}


def row_out(row: EvaluationRow) -> dict[str, Any]:
    answer: dict[str, Any] = {
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
            answer[name] = value
    if row.source is not None:
        kind, data = row.source["source_type"], row.source["source_data"]
        answer["source"], answer["source_type"] = row.source, kind
        named = data.get("trace_id" if kind == "TRACE" else "source_id")
        if isinstance(named, str):
            answer["source_id"] = named
    return answer


def _list(said: Json) -> list[Json]:
    if not isinstance(said, list):
        raise mistyped("records", said)
    return said


def _checked(row: Json) -> dict[str, Any]:
    """One row as it was sent, its parts of the types that they must have.

    Raises:
        MlflowError: it is none.
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
        raise MlflowError("The inputs of a record cannot be kept.") from None


def _rows_at(store: Store, dataset: EvaluationDataset, digests: Sequence[str]) -> Iterable[EvaluationRow]:
    keys = [f"{dataset.id}#{digest}" for digest in dict.fromkeys(digests)]
    for begin in range(0, len(keys), _AT_ONCE):
        yield from store.records.find(EvaluationRow, ("key", "in", keys[begin : begin + _AT_ONCE]))


def _new(
    store: Store, dataset: EvaluationDataset, said: Mapping[str, Any], digest: str, now: datetime
) -> EvaluationRow:
    tags = said.get("tags") or {}
    user = str(tags[USER]) if USER in tags else None
    return store.new(
        EvaluationRow,
        dataset=dataset.id,
        digest=digest,
        inputs=said["inputs"],
        outputs=said.get("outputs", {}),
        expectations=said.get("expectations"),
        tags=tags,
        source=said.get("source") or None,
        user=user,
        updated_by=user,
        updated_at=now,
    )


def _merged(row: EvaluationRow, said: Mapping[str, Any], now: datetime) -> EvaluationRow:
    tags, expectations = said.get("tags") or {}, said.get("expectations")
    merged = replace(
        row,
        outputs=said.get("outputs", row.outputs),
        expectations={**(row.expectations or {}), **expectations} if expectations else row.expectations,
        tags={**row.tags, **tags},
        updated_by=str(tags[USER]) if USER in tags else row.updated_by,
    )
    return row if merged == row else replace(merged, updated_at=now)


def _with_fields(known: dict[str, Json], said: Iterable[Mapping[str, Any]]) -> dict[str, Json]:
    """The names and types that the rows have had, with those of more rows; who came first gives the type."""
    fields = {name: dict(value) if isinstance(value, dict) else value for name, value in (known or _NO_FIELDS).items()}
    seen = bool(known)
    for row in said:
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
    """The id of the row behind which a page begins."""
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
