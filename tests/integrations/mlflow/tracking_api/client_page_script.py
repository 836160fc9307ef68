"""What MLflow's client leaves on a server for its page to show; run by the Python that has it. Prints one JSON."""

import json
import os
import sys

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.pyfunc import PythonModel

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
said = {}


class Doubles(PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input


said["experiment"] = mlflow.set_experiment("flight delays").experiment_id
client.set_experiment_tag(said["experiment"], "mlflow.note.content", "What makes flights late")
runs = []
for number, (rate, team) in enumerate(((0.25, "red"), (0.5, "blue"))):
    with mlflow.start_run(run_name=f"attempt-{number}") as run:
        mlflow.log_params({"learning_rate": rate, "depth": 3 + number})
        for step in range(20):
            mlflow.log_metric("loss", round((number + 1) / (step + 1), 4), step=step)
        mlflow.log_metrics({"auc": 0.8125 + number / 16, "nothing": float("nan")})
        mlflow.set_tag("team", team)
        mlflow.log_text("late by forty minutes\n", "notes/findings.txt")
        mlflow.log_dict({"rows": 17}, "summary.json")
        data = np.arange(12.0).reshape(4, 3) + number
        mlflow.log_input(mlflow.data.from_numpy(data, name=f"flights-{number}"), context="training")
    runs.append(run.info.run_id)
said["runs"] = runs
with mlflow.start_run(run_id=runs[0]):
    info = mlflow.pyfunc.log_model(
        name="doubler", python_model=Doubles(), registered_model_name="delays", pip_requirements=[]
    )
said["model"] = info.model_id
client.set_registered_model_alias("delays", "champion", 1)
client.update_model_version("delays", "1", description="The first that was good enough")
client.set_model_version_tag("delays", "1", "checked", "by-hand")


@mlflow.trace
def answer(question):
    return f"{question} is late"


answer("flight 17")
mlflow.flush_trace_async_logging()
sys.stdout.write("\n" + json.dumps(said) + "\n")
