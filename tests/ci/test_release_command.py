"""After a merge: train and release to dev, then promote the same digest to staging, as the jobs of CI do."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from everloop.stores import open_store


@pytest.mark.slow
def test_a_merge_is_released_and_promoted(repository, command, tmp_path):
    repository.write(
        "everloop.toml",
        """
        [project]
        name = "shop"

        [environments.staging]
        store = "../staging"
        endpoint = "returns"
        """,
    )
    junit = tmp_path / "out" / "junit.xml"
    code, out = command("ci", "release", "--environment", "dev", "--junit", junit, "--json")
    assert code == 0, out
    released = json.loads(out)
    assert released["release"]["state"] == "completed"
    root = ET.parse(junit).getroot()  # noqa: S314 - written here
    assert int(root.attrib["tests"]) == len(released["gates"]) == 4
    digest = released["version"]["package"]
    code, out = command("ci", "promote", "--from", "dev", "--to", "staging", "--digest", digest, "--json")
    assert code == 0, out
    assert json.loads(out)["package"] == digest
    with open_store(tmp_path / "staging", project="shop", create=False) as staging:
        events = [event for event in staging.records.events_since(0) if event.verb == "promoted"]
    assert events[0].data["package"] == digest
    assert command("ci", "promote", "--from", "dev", "--to", "dev")[0] == 2
    wrong = "sha256:" + "0" * 64
    assert command("ci", "promote", "--from", "dev", "--to", "staging", "--digest", wrong)[0] == 4
    assert "staging" in command("ci", "environments")[1]


@pytest.mark.slow
def test_a_rejected_candidate_is_not_released(repository, command):
    repository.change("loop.py", 'AtLeast("roc_auc", 0.60)', 'AtLeast("roc_auc", 0.999)')
    code, out = command("ci", "release", "--json")
    assert code == 11
    assert json.loads(out)["release"]["state"] == "rejected"
