"""Values that training has not seen: refused or flagged, as the endpoint's option says, by every protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import UsageError
from everloop.packages.signature import Input, Signature
from everloop.records import EndpointRecord
from everloop.serving.endpoint_settings import settings_of
from everloop.serving.unseen_values import UnseenValueChecks, checks_for
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

ROW = sample_rows()[0]
SIGNATURE = Signature(
    inputs=(
        Input(name="age", type="int", low=1.0, high=9.0),
        Input(name="shop", type="string", categories=("a", "b")),
        Input(name="free", type="float"),
    ),
    task="regression",
)


def test_what_is_found() -> None:
    checks = UnseenValueChecks(SIGNATURE, refuse=False)
    assert checks.find([(1, "a", 1e9), (9, "b", None), (None, None, -1.0)]) == []
    assert checks.find([(5, "a", 0.0), (10, "c", 0.0)]) == [
        {"row": 1, "input": "age", "flag": "out_of_range", "seen": [1.0, 9.0]},
        {"row": 1, "input": "shop", "flag": "unseen_category"},
    ]
    assert checks_for(SIGNATURE, None) is None
    with pytest.raises(UsageError, match="'maybe'"):
        settings_of({"unseen": "maybe"})


@pytest.mark.parametrize("policy", ["flag", "refuse"])
def test_every_protocol_keeps_the_policy(store: Store, release: Any, route: Any, local: Any, policy: str) -> None:
    endpoint = route(release().key)
    store.records.update(replace(store.records.get(EndpointRecord, endpoint.name), options={"unseen": policy}))
    app = local()
    strange = {**ROW, "carrier": "never heard of"}
    for path, rows in (
        ("/predict", "rows"),
        ("/score", "instances"),
        ("/invocations", "dataframe_records"),
    ):
        status, body = app.post(path, {rows: [ROW]})
        assert status == 200
        assert "flags" not in body
        status, body = app.post(path, {rows: [ROW, strange]})
        if policy == "flag":
            assert status == 200
            assert {"row": 1, "input": "carrier", "flag": "unseen_category"} in body["flags"]
        else:
            assert status in (400, 422)
            assert "rows[1].carrier" in str(body)
