"""What MLflow's own client does against a server; run by the Python that has it. Prints one JSON value."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import lightgbm
import mlflow
import numpy as np
import pandas as pd
import xgboost
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookEvent
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
said = {}
features = np.random.default_rng(0).random((50, 3))
target = (features[:, 0] > 0.5).astype(int)

mlflow.set_experiment("client")
with mlflow.start_run(run_name="outer") as outer:
    mlflow.log_params({"lr": 0.1, "depth": 3})
    for step in range(5):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metrics({"a": 1.0, "nan": float("nan")})
    mlflow.set_tag("team", "x")
    mlflow.log_text("hello", "notes/a.txt")
    mlflow.log_input(mlflow.data.from_numpy(features, name="random"), context="training")
    with mlflow.start_run(nested=True, run_name="inner") as inner:
        mlflow.log_param("k", "v")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "big file.bin").write_bytes(b"x" * 3_000_000)
        mlflow.log_artifacts(folder, "files")

run = client.get_run(outer.info.run_id)
said["outer"] = outer.info.run_id
said["inner"] = inner.info.run_id
said["status"] = run.info.status
said["params"] = run.data.params
said["loss"] = run.data.metrics["loss"]
said["nan"] = str(run.data.metrics["nan"])
said["dataset"] = run.inputs.dataset_inputs[0].dataset.name
said["history"] = [[m.step, m.value] for m in client.get_metric_history(outer.info.run_id, "loss")]
said["files"] = sorted(f.path for f in client.list_artifacts(outer.info.run_id))
said["text"] = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/a.txt")
copied = client.download_artifacts(outer.info.run_id, "files/big file.bin")
said["big"] = Path(copied).stat().st_size
where = "metrics.loss < 0.5 and params.lr = '0.1' and tags.team LIKE 'x%' and attributes.status = 'FINISHED'"
said["found"] = list(mlflow.search_runs(filter_string=where)["run_id"])
said["children"] = list(
    mlflow.search_runs(filter_string=f"tags.`mlflow.parentRunId` = '{outer.info.run_id}'")["run_id"]
)
try:
    client.log_param(outer.info.run_id, "lr", "other")
except MlflowException as error:
    said["changed"] = [error.error_code, "Changing param values is not allowed" in error.message]
try:
    client.get_run("0" * 32)
except MlflowException as error:
    said["missing"] = error.error_code

with mlflow.start_run():
    model = LogisticRegression().fit(features, target)
    info = mlflow.sklearn.log_model(model, name="model", input_example=features[:2], registered_model_name="clf")
client.set_registered_model_alias("clf", "champion", 1)
loaded = mlflow.pyfunc.load_model("models:/clf@champion")
said["answers"] = loaded.predict(features).tolist()
said["predicted"] = bool((loaded.predict(features) == model.predict(features)).all())
said["models"] = [[m.name, m.aliases] for m in client.search_registered_models("name LIKE 'c%'")]
version = client.get_model_version("clf", "1")
said["version"] = [version.run_id == info.run_id, version.source == f"models:/{info.model_id}"]
client.copy_model_version("models:/clf@champion", "copy")
said["copied"] = bool((mlflow.pyfunc.load_model("models:/copy/1").predict(features) == model.predict(features)).all())
client.transition_model_version_stage("clf", "1", "Production")
said["latest"] = [v.version for v in client.get_latest_versions("clf", stages=["Production"])]
client.rename_registered_model("clf", "renamed")
said["renamed"] = client.get_model_version_by_alias("renamed", "champion").version

mlflow.sklearn.autolog()
LogisticRegression().fit(features, target)
mlflow.sklearn.autolog(disable=True)
auto = mlflow.last_active_run()
said["autologged"] = ["C" in auto.data.params, "training_accuracy_score" in auto.data.metrics]
said["logged_models"] = len(mlflow.search_logged_models(output_format="list"))

mlflow.set_experiment("boosted")
mlflow.xgboost.autolog()
mlflow.lightgbm.autolog()
table = xgboost.DMatrix(features, label=target)
with mlflow.start_run() as boosted:
    xgboost.train({"objective": "binary:logistic", "max_depth": 2}, table, 4, evals=[(table, "train")])
rows = lightgbm.Dataset(features, label=target)
with mlflow.start_run() as light:
    sizes = {"objective": "binary", "min_data_in_leaf": 2, "min_data_in_bin": 1, "verbose": -1, "num_threads": 1}
    lightgbm.train(sizes, rows, 4, valid_sets=[rows], valid_names=["train"])
mlflow.xgboost.autolog(disable=True)
mlflow.lightgbm.autolog(disable=True)
said["boosters"] = {}
for name, run_id, metric in (
    ("xgboost", boosted.info.run_id, "train-logloss"),
    ("lightgbm", light.info.run_id, "train-binary_logloss"),
):
    found = client.get_run(run_id)
    (model,) = mlflow.search_logged_models(filter_string=f"source_run_id = '{run_id}'", output_format="list")
    predicted = mlflow.pyfunc.load_model(model.model_uri).predict(features)
    said["boosters"][name] = {
        "params": len(found.data.params) > 3,
        "steps": len(client.get_metric_history(run_id, metric)),
        "files": sorted(file.path for file in client.list_artifacts(run_id)),
        "predicted": len(predicted),
    }

experiment = client.create_experiment("explicit", tags={"team": "y"})
client.set_experiment_tag(experiment, "stage", "try")
client.rename_experiment(experiment, "explicitly")
said["experiments"] = [
    sorted(one.name for one in client.search_experiments(filter_string="tags.team = 'y'")),
    client.get_experiment(experiment).tags["stage"],
]
made = client.create_run(experiment, run_name="explicit", tags={"a": "1"})
name = made.info.run_id
metrics = [mlflow.entities.Metric("m", step / 2, 1000 + step, step) for step in range(700)]
params = [mlflow.entities.Param(f"p{number}", str(number)) for number in range(100)]
client.log_batch(name, metrics, params, [mlflow.entities.RunTag("b", "2")])
client.set_tag(name, "gone", "x")
client.delete_tag(name, "gone")
client.update_run(name, name="renamed")
client.set_terminated(name, "FAILED", end_time=5)
found = client.get_run(name)
said["explicit"] = [
    found.info.run_name, found.info.status, found.info.end_time, len(found.data.params), found.data.metrics["m"],
    {key: value for key, value in found.data.tags.items() if not key.startswith("mlflow.")},
    len(client.get_metric_history(name, "m")),
]  # fmt: skip
other = client.create_run(experiment, start_time=1)
page = client.search_runs([experiment], order_by=["metrics.m DESC"], max_results=1)
rest = client.search_runs([experiment], order_by=["metrics.m DESC"], max_results=1, page_token=page.token)
said["pages"] = [one.info.run_id for one in [*page, *rest]] == [name, other.info.run_id]
client.delete_experiment(experiment)
said["deleted"] = [client.get_experiment(experiment).lifecycle_stage, client.get_run(name).info.lifecycle_stage]
client.restore_experiment(experiment)
said["restored"] = client.get_experiment(experiment).lifecycle_stage

client.log_dict(name, {"a": [1, 2]}, "kinds/values.json")
client.log_dict(name, {"a": [1, 2]}, "kinds/values.yaml")
client.log_text(name, "<b>ü</b>", "kinds/page ü.html")
client.log_image(name, (features[:8, :3, None] * 255).astype("uint8").repeat(3, axis=2), "kinds/image.png")
pixels = (features[:8, :3, None] * 255).astype("uint8").repeat(3, axis=2)
for step in (0, 7, 100):
    client.log_image(name, pixels, key="dog", step=step, timestamp=1795669561300 + step, synchronous=True)
shown = [file.path for file in client.list_artifacts(name, "images")]
said["images"] = [
    len(shown),
    {mlflow.artifacts.load_image(f"runs:/{name}/{path}").size for path in shown if path.endswith("png")} == {(3, 8)},
]
client.log_table(name, data={"q": ["x", "y"], "n": [1, 2]}, artifact_file="kinds/table.json")
client.log_table(name, data=pd.DataFrame({"q": ["z"], "n": [3]}), artifact_file="kinds/table.json")
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "empty").write_bytes(b"")
    client.log_artifact(name, str(Path(folder, "empty")), "kinds/deep/er")
uri = f"runs:/{name}/kinds"
said["kinds"] = {
    "files": {file.path: file.file_size for file in client.list_artifacts(name, "kinds") if "image" not in file.path},
    "dict": [mlflow.artifacts.load_dict(f"{uri}/values.json")["a"]],
    "image": mlflow.artifacts.load_image(f"{uri}/image.png").size,
    "table": len(client.load_table(experiment, "kinds/table.json", run_ids=[name])),
    "empty": Path(mlflow.artifacts.download_artifacts(f"{uri}/deep/er/empty")).stat().st_size,
}

client.create_registered_model("tagged", tags={"a": "b"}, description="first")
source = f"runs:/{name}/kinds"
for number in range(3):
    client.create_model_version("tagged", source, name, tags={"n": str(number)}, description=f"no. {number}")
client.set_model_version_tag("tagged", "1", "seen", "yes")
client.set_model_version_tag("tagged", "1", "lost", "yes")
client.delete_model_version_tag("tagged", "1", "lost")
client.set_registered_model_tag("tagged", "c", "d")
client.delete_registered_model_tag("tagged", "a")
client.update_model_version("tagged", "2", "changed")
client.update_registered_model("tagged", "second")
client.set_registered_model_alias("tagged", "one", "1")
client.set_registered_model_alias("tagged", "two", "2")
client.delete_registered_model_alias("tagged", "two")
client.delete_model_version("tagged", "3")
found = client.get_registered_model("tagged")
said["tagged"] = [
    found.description, found.tags, found.aliases, client.get_model_version("tagged", "1").tags,
    client.get_model_version("tagged", "2").description,
    [one.version for one in client.search_model_versions("name = 'tagged'", order_by=["version_number ASC"])],
    [one.version for one in client.search_model_versions(f"run_id = '{name}' and tags.n = '1'")],
    client.get_model_version_download_uri("tagged", "1"),
]  # fmt: skip
client.delete_registered_model("tagged")
try:
    client.get_registered_model("tagged")
except MlflowException as error:
    said["tagged_gone"] = error.error_code

hook = client.create_webhook("ci", sys.argv[2], [WebhookEvent.from_str("model_version.created")], secret="s3cret")
client.create_registered_model("hooked")
client.create_model_version("hooked", "s3://bucket/x")
client.update_webhook(hook.webhook_id, description="changed")
said["webhook"] = [
    [one.name for one in client.list_webhooks()],
    client.get_webhook(hook.webhook_id).description,
    client.test_webhook(hook.webhook_id).success,
]

client.delete_run(inner.info.run_id)
said["after_delete"] = len(client.search_runs([outer.info.experiment_id], "attributes.run_name = 'inner'"))
client.restore_run(inner.info.run_id)
said["after_restore"] = len(client.search_runs([outer.info.experiment_id], "attributes.run_name = 'inner'"))
sys.stdout.write("\n" + json.dumps(said) + "\n")
