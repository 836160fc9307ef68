"""Valid and invalid requests generated from the control plane's OpenAPI document never get a 5xx."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from everloop.records import Package
from everloop.registry import register
from everloop.server.server_options import ServerOptions

pytestmark = pytest.mark.slow

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("EVERLOOP_FUZZ", "5"))


def test_every_route_as_its_document_says(store, serve):
    import hypothesis
    from hypothesis import HealthCheck, Phase
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode

    for number in (1, 2):
        package = store.new(Package, digest=f"sha256:{number:064d}", format="linear", signature={}, size_bytes=1)
        store.records.put(package)
        register(store, "delays", package)
    asked, statuses = 0, set()
    with serve(store, ServerOptions(webhook_networks=("127.0.0.0/8",))) as control:
        schema = schemathesis.openapi.from_url(f"{control.url}/api/openapi.json")
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
                def ask(case):
                    nonlocal asked
                    asked += 1
                    response = case.call(base_url=control.url, timeout=20)
                    statuses.add(response.status_code)
                    case.validate_response(response, checks=[not_a_server_error])

                # What takes any text at all cannot be asked wrongly.
                with suppress(hypothesis.errors.Unsatisfiable):
                    ask()
        assert control.request("GET", "/health").status == 200
    assert asked > 20 * EXAMPLES
    assert {200, 400, 404} <= statuses


def test_the_document_is_valid(store, serve):
    validator = pytest.importorskip("openapi_spec_validator")
    with serve(store) as control:
        validator.validate(control.request("GET", "/api/openapi.json").json)
