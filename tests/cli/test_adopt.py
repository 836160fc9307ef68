"""`everloop models adopt` packages a version that MLflow's client registered, from the server's folder of artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from everloop.packages import build_package
from everloop.records import ModelVersion
from everloop.registry import register
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

pytest.importorskip("yaml")


@pytest.fixture
def sent(everloop):
    """The command, on a store with `sent@1`: its files are an MLflow folder of the server, and it has no package."""
    with open_store(".everloop", create=True) as store:
        package = build_package(train_sample("linear"), store=store, sample=sample_table())
        register(store, "own", package)
        source = "mlflow-artifacts:/1/models/m-1/artifacts"
        store.records.put(store.new(ModelVersion, model="sent", version=1, package="", source=source))
    Path(".everloop/artifacts/1/models/m-1").mkdir(parents=True)
    folder = ".everloop/artifacts/1/models/m-1/artifacts"
    assert everloop("models", "export", "own@1", "-o", folder, "--format", "mlflow").code == 0
    return everloop


def test_a_registered_version_is_packaged_and_can_be_used(sent):
    sample_table().head(5).write_parquet("rows.parquet")
    assert sent("predict", "sent@1", "-i", "rows.parquet", "-o", "before.csv").code == 3
    result = sent("models", "adopt", "sent@1")
    assert result.code == 0, result.err
    assert result.out.startswith("sent@1 now has a package: sha256:")
    assert result.out.endswith("Serve it with: everloop serve sent@1\n")
    assert sent("models", "verify", "sent@1", "--json").json["ok"]
    scored = sent("predict", "sent@1", "-i", "rows.parquet", "-o", "scored.csv", "--json")
    assert scored.json["rows"] == 5
    again = sent("models", "adopt", "sent@1")
    assert (again.code, "'sent@1' already has a package" in again.err) == (4, True)


def test_the_result_is_json_and_the_files_may_be_elsewhere(sent):
    shutil.move(".everloop/artifacts", "elsewhere")
    lost = sent("models", "adopt", "sent@1")
    assert lost.code != 0
    assert "The files of 'sent@1' do not exist" in " ".join(lost.err.split())
    result = sent("models", "adopt", "sent@1", "--artifacts", "elsewhere", "--json")
    assert (result.code, result.json["version"]["key"]) == (0, "sent@1")
    assert result.json["version"]["package"] == result.json["package"]["digest"]


def test_a_folder_that_is_not_a_model_is_refused(sent):
    Path(".everloop/artifacts/1/models/m-1/artifacts/MLmodel").unlink()
    result = sent("models", "adopt", "sent@1")
    assert result.code != 0
    assert "MLmodel" in result.err
    assert "Traceback" not in result.err
    assert sent("models", "show", "sent@1", "--json").json["package"] is None


def test_only_registered_versions_are_adopted(sent):
    missing = sent("models", "adopt", "sent@2")
    assert (missing.code, "Versions: 1" in missing.err) == (3, True)
    own = sent("models", "adopt", "own@1")
    assert own.code == 4
    assert "everloop models show own@1" in own.err
