"""`everloop models verify|sbom|export|import` and `everloop trust`, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from everloop.registry import save_model
from everloop.stores import open_store
from everloop.stores.trust import Keyring

TABLE = pl.DataFrame({"a": [1.0, 2.0, 3.0]})


@pytest.fixture
def made(everloop):
    """The command, on a store with `double@1`, a model that is Python code."""
    with open_store(create=True) as store:
        save_model(lambda table: table["a"] * 2.0, "double", TABLE, store=store)
    return everloop


@pytest.mark.slow
def test_a_package_is_verified_exported_and_imported(made, monkeypatch, tmp_path):
    everloop = made
    found = everloop("models", "verify", "double@1", "--json")
    assert found.code == 0
    assert found.json["ok"]
    assert found.json["answered_rows"] > 5
    assert found.json["largest_difference"] == 0.0
    assert "double@1 is valid" in everloop("models", "verify", "double").out
    bill = everloop("models", "sbom", "double@1").out
    TABLE.write_csv("rows.csv")
    assert everloop("predict", "double@1", "-i", "rows.csv", "-o", "scored.csv").code == 0
    assert pl.read_csv("scored.csv")["score"].to_list() == [2.0, 4.0, 6.0]
    assert json.loads(bill)["metadata"]["component"]["name"] == "double"
    assert everloop("models", "sbom", "double@1", "-o", "bill.json").code == 0
    assert Path("bill.json").read_text() == bill
    sent = everloop("models", "export", "double@1", "-o", "double.tar.zst", "--json").json
    assert everloop("models", "export", "double@1", "-o", "double.tar.zst").code == 2
    public = everloop("trust", "show").out.strip()

    # Another machine, which trusts no other key yet.
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    refused = everloop("models", "import", "double.tar.zst", "--home", "other", "--json")
    assert refused.code == 5
    assert "everloop trust add KEY" in refused.json["error"]["help"]
    untrusted = everloop("models", "verify", "double@1", "--json")
    assert untrusted.code == 10
    assert not untrusted.json["answers"]
    assert everloop("trust", "add", public).code == 2  # the key has no name
    assert everloop("trust", "add", public, "--name", "alice").code == 0
    arrived = everloop("models", "import", "double.tar.zst", "--as", "double", "--home", "other", "--json")
    assert arrived.json["version"]["key"] == "double@1"
    assert arrived.json["package"]["digest"] == sent["package"]
    assert everloop("models", "verify", "double@1", "--home", "other", "--json").json["ok"]


@pytest.mark.slow
def test_trust_is_given_and_withdrawn(made, monkeypatch, tmp_path):
    everloop = made
    digest = everloop("models", "show", "double@1", "--json").json["package"]["digest"]
    own = everloop("trust", "show", "--json").json
    assert own["name"] == "machine"
    Path("own.pub").write_text(own["public"] + "\n")
    assert everloop("trust", "rm", "machine").code == 2

    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    assert "Nothing is trusted yet" in everloop("trust", "ls").out
    assert everloop("models", "verify", "double@1").code == 10
    assert everloop("trust", "add", "own.pub", "--json").json["name"] == "own"
    assert everloop("models", "verify", "double@1").code == 0
    other = Keyring(tmp_path / "third").public_key()
    assert everloop("trust", "add", other, "--name", "own").code == 4  # the name is taken by another key
    assert everloop("trust", "rm", own["id"], "--json").json["name"] == "own"
    assert everloop("models", "verify", "double@1").code == 10

    # One package, no matter which key signed it.
    assert everloop("trust", "add", digest, "--name", "read by me").code == 0
    assert everloop("trust", "ls", "--json").json == [
        {"kind": "digest", "name": "read by me", "id": digest, "public": None}
    ]
    assert everloop("models", "verify", "double@1").code == 0
    assert "read by me" in everloop("trust", "show", digest).out
    assert everloop("trust", "rm", digest).code == 0
    assert everloop("models", "verify", "double@1").code == 10
    assert everloop("trust", "rm", digest).code == 3
    assert everloop("trust", "add", "sha256:nonsense").code == 2
    assert everloop("trust", "add", "not a key", "--name", "x").code == 2


@pytest.mark.slow
def test_images_and_scripts_of_platforms_are_written(made):
    everloop = made
    context = everloop("models", "context", "double", "-o", "image")
    assert context.code == 0, context.err
    assert "Build the image with: docker build -t double:1 image" in context.out
    dockerfile = everloop("models", "dockerfile", "double@1").out
    assert Path("image/Dockerfile").read_text() == dockerfile
    assert everloop("models", "dockerfile", "double@1", "--base", "mine:1", "--json").json["dockerfile"].count("mine:1")
    assert everloop("models", "context", "double", "-o", "image").code != 0  # the folder is not empty
    script = everloop("models", "azure", "double@1", "-o", "azure", "--json")
    assert script.code == 0, script.err
    assert script.json["version"] == "double@1"
    assert "def run(" in Path("azure/score.py").read_text()
    for command in ("context", "azure"):
        assert everloop("models", command, "double@9", "-o", "other").code == 3
