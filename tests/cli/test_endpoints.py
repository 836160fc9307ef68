"""`everloop endpoints` and `everloop release`: set a traffic split, and control a rollout."""

from __future__ import annotations

import pytest

from everloop.loop.releases.rollout import start_release
from everloop.records import EndpointRecord, ModelVersion
from everloop.stores import open_store


@pytest.fixture
def rollout(everloop):
    """The command, on a store whose endpoint `delays` rolls out `m@2` with a canary of 10 %."""
    with open_store(".everloop") as store:
        versions = []
        for number in (1, 2):
            version = store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}")
            store.records.put(version)
            versions.append(version)
        start_release(store, "delays", versions[0])
        start_release(store, "delays", versions[1], steps=(10, 50, 100))
    return everloop


def routes():
    with open_store(".everloop") as store:
        return {route.version: route.percent for route in store.records.get(EndpointRecord, "delays").routes}


def test_an_endpoint_is_shown_with_its_traffic_and_releases(rollout):
    shown = rollout("endpoints", "show", "delays")
    assert shown.code == 0
    for part in ("m@1 90% champion", "m@2 10% canary", "rolling_out", "completed"):
        assert part in shown.out
    found = rollout("endpoints", "show", "delays", "--json").json
    assert [release["candidate"] for release in found["releases"]] == ["m@2", "m@1"]
    assert rollout("endpoints", "show", "delay").code == 3


def test_a_traffic_split_is_set(rollout):
    assert rollout("release", "abort", "delays").code == 0
    result = rollout("endpoints", "route", "delays", "m@1=70", "m@2=30")
    assert (result.code, "m@1 70%" in result.out, "m@2 30%" in result.out) == (0, True, True), result.err
    assert routes() == {"m@1": 70.0, "m@2": 30.0}
    assert rollout("endpoints", "route", "delays", "m@1=100", "m@2=shadow").code == 0
    listed = rollout("endpoints", "ls", "--json").json[0]["routes"]
    assert [(route["version"], route["role"]) for route in listed] == [("m@1", "champion"), ("m@2", "shadow")]
    for wrong in ("m@1=lots", "m@9=100", "m@1"):
        refused = rollout("endpoints", "route", "delays", wrong)
        assert refused.code != 0
        assert "Traceback" not in refused.err
    assert routes()["m@1"] == 100.0


def test_a_rollout_advances_by_hand_and_is_rolled_back(rollout):
    result = rollout("release", "advance", "delays", "--reason", "looks good")
    assert result.out.strip() == "m@2: rolling out, 50% of the traffic."
    assert "looks good" in rollout("release", "show", "delays").out
    assert rollout("release", "advance", "delays", "--json").json["state"] == "completed"
    assert routes() == {"m@2": 100.0}
    back = rollout("release", "rollback", "delays")
    assert back.out.strip() == "Rolled back m@2. m@1 now receives all traffic."
    assert routes() == {"m@1": 100.0}
    assert rollout("release", "advance", "delays").code == 3


def test_a_rollout_is_aborted_by_the_prefix_of_its_id(rollout):
    release = rollout("release", "ls", "--json").json[0]
    result = rollout("release", "abort", release["id"][:30])
    assert result.code == 0
    assert "m@1 now receives all traffic" in result.out
    assert routes() == {"m@1": 100.0}
    assert rollout("release", "show", release["id"], "--json").json["release"]["state"] == "rolled_back"


def test_releases_is_another_name_for_release(rollout):
    assert rollout("releases", "ls", "--json").json == rollout("release", "ls", "--json").json
    listed = rollout("--help").out
    assert "  release " in listed
    assert "  releases " not in listed
