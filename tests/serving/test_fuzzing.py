"""Requests made from the endpoint's own OpenAPI document, good ones and broken ones, against its running process.

No answer is a 5xx, besides a 504 for a deadline that the client has set itself. None breaks what the document promises,
and the process lives. How many are made a route is set by EVERLOOP_FUZZ; `test_protocols.py` sends bytes that follow no
document at all.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from everloop.serving import EndpointProcess
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

pytestmark = pytest.mark.slow

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("EVERLOOP_FUZZ", "5"))


def test_the_document_is_valid(release: Any, route: Any, local: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    for task in ("binary", "multiclass", "regression"):
        route(release(task=task).key)
        validator.validate(local().ask("GET", "/openapi.json")[1])


def test_every_route_as_its_document_says(store: Store, release: Any, route: Any) -> None:
    import hypothesis
    from hypothesis import HealthCheck, Phase
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import response_schema_conformance

    route(release().key)
    with EndpointProcess(store, "delays") as process:
        schema = schemathesis.openapi.from_url(f"{process.url}/openapi.json")
        pid, asked = process.pid, 0
        statuses: dict[str, set[int]] = {}
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                if mode is GenerationMode.NEGATIVE and operation.method == "get":
                    continue

                @hypothesis.settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: Any) -> None:
                    nonlocal asked
                    asked += 1
                    response = case.call(base_url=process.url, timeout=20)
                    statuses.setdefault(case.path, set()).add(response.status_code)
                    checks = [not_a_server_error, response_schema_conformance]
                    if response.status_code == 504 and case.headers and "X-Request-Timeout-Ms" in case.headers:
                        # The client itself gave the request too little time.
                        checks.remove(not_a_server_error)
                    case.validate_response(response, checks=checks)

                ask()
        assert process.alive
        assert process.pid == pid
    assert asked > 10 * EXAMPLES
    # Not all was refused: what the document describes is what is answered.
    assert all(200 in statuses[path] for path in ("/predict", "/invocations", "/score"))


def test_the_documents_own_example_rows_are_answered(release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    names = app.app.service.loaded_endpoint().signature.names
    rows = [{name: row[name] for name in names} for row in sample_rows(2)]
    split = {"columns": list(names), "data": [list(row.values()) for row in rows]}
    for body in ({"dataframe_split": split}, {"dataframe_records": rows}, {"instances": rows}, {"inputs": rows}):
        assert app.post("/invocations", json.loads(json.dumps(body)))[0] == 200
