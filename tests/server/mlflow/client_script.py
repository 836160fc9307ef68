"""What MLflow's own client does against a server; run by the Python that has it. Prints one JSON value."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
import numpy as np
from mlflow import MlflowClient
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
client.delete_run(inner.info.run_id)
said["after_delete"] = len(client.search_runs([outer.info.experiment_id], "attributes.run_name = 'inner'"))
client.restore_run(inner.info.run_id)
said["after_restore"] = len(client.search_runs([outer.info.experiment_id], "attributes.run_name = 'inner'"))
sys.stdout.write("\n" + json.dumps(said) + "\n")
