"""What a policy guards stays guarded for MLflow's clients, whatever they call."""

from __future__ import annotations

import json
import subprocess

import pytest

from everloop.registry import alias_history, approve, find_alias, list_requests, request_alias, set_policy, withdraw

CLIENT = """
import json, sys
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

client = MlflowClient(sys.argv[1], registry_uri=sys.argv[1])
name = sys.argv[2]

def say(what, call):
    try:
        call()
        said[what] = "done"
    except MlflowException as error:
        said[what] = error.error_code

said = {}
say("move", lambda: client.set_registered_model_alias(name, "champion", "2"))
say("move to where it is", lambda: client.set_registered_model_alias(name, "champion", "1"))
say("delete the alias", lambda: client.delete_registered_model_alias(name, "champion"))
say("delete the version", lambda: client.delete_model_version(name, "1"))
say("delete the model", lambda: client.delete_registered_model(name))
say("rename", lambda: client.rename_registered_model(name, name + "-2"))
say("stage", lambda: client.transition_model_version_stage(name, "2", "Production"))
say("stage, archiving", lambda: client.transition_model_version_stage(name, "2", "production", True))
say("out of the stage", lambda: client.transition_model_version_stage(name, "3", "Archived"))
say("another stage", lambda: client.transition_model_version_stage(name, "2", "Staging"))
say("update", lambda: client.update_model_version(name, "2", "alias: champion"))
say("tag", lambda: client.set_model_version_tag(name, "2", "champion", "true"))
say("copy", lambda: client.copy_model_version(f"models:/{name}/2", name))
say("another alias", lambda: client.set_registered_model_alias(name, "Champion", "2"))
said["champion"] = client.get_model_version_by_alias(name, "champion").version
print(json.dumps(said))
"""


@pytest.fixture
def guarded(served):
    """A model of three versions whose champion and production are guarded."""
    api, store = served.caller, served.store
    name = f"guarded-{store.records.last_event()}"
    api.post("registered-models/create", name=name)
    for number in (1, 2, 3):
        api.post("model-versions/create", name=name, source=f"s3://b/{number}")
    api.post("registered-models/alias", name=name, alias="champion", version="1")
    api.post("model-versions/transition-stage", name=name, version="3", stage="Production")
    for alias in ("champion", "production"):
        set_policy(store, name, alias, 1)
    return name


@pytest.mark.slow
def test_mlflows_client_gets_around_nothing(served, guarded, mlflow_python):
    done = subprocess.run(
        [mlflow_python, "-W", "ignore", "-c", CLIENT, served.url, guarded], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    refused = {"RESOURCE_CONFLICT", "PERMISSION_DENIED"}
    for what in ("move", "delete the alias", "delete the version", "delete the model", "rename", "stage",
                 "stage, archiving", "out of the stage"):  # fmt: skip
        assert said.pop(what) in refused, what
    assert said.pop("champion") == "1"
    assert set(said.values()) == {"done"}
    assert [one.version for one in alias_history(served.store, guarded, "champion")] == [f"{guarded}@1"]


def test_what_was_agreed_to_is_done_by_whoever_calls(api, served, guarded):
    moved = {"name": guarded, "alias": "champion", "version": "2"}
    refused = api.call("POST", "registered-models/alias", moved)
    assert (refused.status, refused.json["error_code"]) == (409, "RESOURCE_CONFLICT")
    assert "everloop models promote" in refused.json["message"]
    asked = request_alias(served.store.as_actor("user:ann"), guarded, "champion", f"{guarded}@2")
    approve(served.store.as_actor("user:bob"), asked.id)
    api.post("registered-models/alias", **moved)
    last = alias_history(served.store, guarded, "champion")[-1]
    assert (last.version, last.approved_by) == (f"{guarded}@2", ("user:bob",))


def test_a_policy_without_holder_holds_the_models_name(api, served, guarded):
    name = f"{guarded}-x"
    api.post("registered-models/create", name=name)
    api.post("model-versions/create", name=name, source="s3://b/1")
    set_policy(served.store, name, "champion", 1)
    asked = request_alias(served.store, name, "champion", f"{name}@1")
    renamed = api.call("POST", "registered-models/rename", {"name": name, "new_name": f"{name}-y"})
    assert (renamed.status, renamed.json["error_code"]) == (403, "PERMISSION_DENIED")
    # Nor is a model that bears the alias given the name of one whose alias is guarded.
    assert api.call("DELETE", "registered-models/delete", {"name": name}).status == 200
    assert [one.state for one in list_requests(served.store, name)] == ["void"]
    assert asked.state == "open"
    other = f"{guarded}-other"
    api.post("registered-models/create", name=other)
    api.post("model-versions/create", name=other, source="s3://b/2")
    api.post("registered-models/alias", name=other, alias="champion", version="1")
    renamed = api.call("POST", "registered-models/rename", {"name": other, "new_name": name})
    assert renamed.status == 409, renamed.body
    assert find_alias(served.store, name, "champion") is None


def test_a_deleted_version_takes_its_requests_along(api, served, guarded):
    asked = request_alias(served.store.as_actor("user:ann"), guarded, "champion", f"{guarded}@2")
    assert api.call("DELETE", "model-versions/delete", {"name": guarded, "version": "2"}).status == 200
    assert [(one.id, one.state) for one in list_requests(served.store, guarded)] == [(asked.id, "void")]


def test_the_files_of_what_was_agreed_to_stay_as_they_were(api, served):
    proxy, name = "/api/2.0/mlflow-artifacts/artifacts", f"filed-{served.store.records.last_event()}"
    run = api.run()
    place = f"{proxy}/0/{run}/artifacts/model/model.skops"
    assert api.send("PUT", place, b"agreed").status == 200
    api.post("registered-models/create", name=name)
    api.post("model-versions/create", name=name, source=f"runs:/{run}/model", run_id=run)
    api.post("registered-models/alias", name=name, alias="champion", version="1")
    set_policy(served.store, name, "champion", 1)
    for change in (
        api.send("PUT", place, b"other"),
        api.send("PUT", f"{proxy}/0/{run}/artifacts/model/more", b"other"),
        api.send("DELETE", place),
        api.send("DELETE", f"{proxy}/0/{run}/artifacts/model"),
        api.send("DELETE", f"{proxy}/0/{run}"),
        api.call("POST", "artifacts/presigned-upload-url", {"run_id": run, "path": "model/model.skops"}),
        api.send("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=model/model.skops", b"other"),
    ):
        assert (change.status, change.json["error_code"]) == (403, "PERMISSION_DENIED"), change.body
    parts = api.call("POST", f"/api/2.0/mlflow-artifacts/mpu/create/0/{run}/artifacts/model", {"path": "model.skops"})
    (part,) = parts.json["credentials"]
    assert api.send("PUT", "/signed" + part["url"].partition("/signed")[2], b"other").status == 200
    sent = {"path": "model.skops", "upload_id": parts.json["upload_id"], "parts": [{"part_number": 1}]}
    got = api.call("POST", f"/api/2.0/mlflow-artifacts/mpu/complete/0/{run}/artifacts/model", sent)
    assert got.status == 403
    assert api.send("GET", place).body == b"agreed"
    assert api.send("GET", f"/model-versions/get-artifact?name={name}&version=1&path=model.skops").body == b"agreed"
    # What lies beside it is nobody's promise, and neither is it once the policy is lifted.
    assert api.send("PUT", f"{proxy}/0/{run}/artifacts/other", b"x").status == 200
    set_policy(served.store, name, "champion", 0)
    assert api.send("PUT", place, b"other").status == 200


def test_the_files_of_what_is_asked_for_stay_as_they_are(api, served):
    proxy, name = "/api/2.0/mlflow-artifacts/artifacts", f"asked-{served.store.records.last_event()}"
    model = api.post("logged-models", experiment_id="0", name="m")["model"]["info"]
    place = f"{proxy}/{model['artifact_uri'].removeprefix('mlflow-artifacts:/')}/model.skops"
    assert api.send("PUT", place, b"first").status == 200
    api.post("registered-models/create", name=name)
    for _ in range(2):
        api.post("model-versions/create", name=name, source=f"models:/{model['model_id']}", model_id=model["model_id"])
    set_policy(served.store, name, "champion", 1)
    assert api.send("PUT", place, b"second").status == 200
    asked = request_alias(served.store, name, "champion", f"{name}@2")
    assert api.send("PUT", place, b"third").status == 403
    withdraw(served.store, asked.id)
    assert api.send("PUT", place, b"third").status == 200
