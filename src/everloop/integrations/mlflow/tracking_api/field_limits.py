"""How long each field of MLflow's protocol may be, by its name: texts in characters, lists in elements.

These are the outermost limits, checked where a field is read, so that no route can forget one. A route whose field
MLflow itself limits refuses earlier, in MLflow's words (`names.py`). MLflow's own clients stay far below all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

LONGEST_TEXT = 10_000
"""Of a field that is not listed below."""
LONGEST_ELEMENT = 1_000
"""Of one text of a list that is not listed below."""
MOST_ELEMENTS = 10_000
"""Of a list that is not listed below."""

LONGEST_ID = 500
"""Of the shortest fields, which need no look-up where a text is shorter."""
_TEXT, _FILTER, _FILE = 1_000_000, 100_000, 17_000_000

TEXTS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "experiment_id", "run_id", "run_uuid", "model_id", "trace_id", "request_id", "source_run_id", "upload_id",
            "assessment_id", "client_request_id", "version", "stage", "status", "state", "action", "entity", "what",
            "aggregation_type", "metric_name", "view_type", "field_name", "model_type", "request_time",
            "execution_duration", "operationName", "etag", "dataset_digest", "digest",
        ),
        LONGEST_ID,
    ),
    "user_id": 1_000,
    "secret": 1_000,
    "url": 4_000,
    "run_name": 8_000,
    **dict.fromkeys(("filter", "filter_string", "filter_string1", "filter_string2", "base_filter"), _FILTER),
    "query": 100_000,
    "source": 70_000,
    "description": 200_000,
    # The value of a tag or parameter is cut or refused by its own rule; a prompt and a scorer are texts of people's.
    **dict.fromkeys(
        (
            "value", "model_json", "model_input", "model_output", "serialized_scorer", "request_preview",
            "response_preview",
        ),
        _TEXT,
    ),
    "inputs": _FILE,
    "records": _FILE,
    # What a dataset looks like.
    **dict.fromkeys(("schema", "profile"), _FILE),
}  # fmt: skip
"""Characters of a text."""

LISTS: Mapping[str, int] = {
    "order_by": 100,
    "dimensions": 20,
    "aggregations": 50,
    "filters": 100,
    "stages": 100,
    "events": 200,
    "parts": 10_000,
    # A batch that is too long is refused in MLflow's words.
    **dict.fromkeys(("metrics", "params", "tags"), 100_000),
}
"""Elements of a list."""

ELEMENTS: Mapping[str, int] = {
    "filters": _FILTER,
    "stages": LONGEST_ID,
    **dict.fromkeys(
        ("experiment_ids", "run_id", "run_ids", "trace_ids", "request_ids", "dataset_record_ids"), LONGEST_ID
    ),
}
"""Characters of one text of a list."""


def most_characters(name: str) -> int:
    return TEXTS.get(name, LONGEST_TEXT)


def most_elements(name: str) -> int:
    return LISTS.get(name, MOST_ELEMENTS)


def most_characters_each(name: str) -> int:
    return ELEMENTS.get(name, LONGEST_ELEMENT)
