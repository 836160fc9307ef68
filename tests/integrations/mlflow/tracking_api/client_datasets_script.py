"""What MLflow's own client does with evaluation datasets; run by the Python that has it. Prints one JSON value."""

import json
import os
import sys

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
import mlflow.genai.datasets as datasets
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.genai.scorers import scorer

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
said = {}
one, two, three = (client.create_experiment(f"evaluated {number}") for number in range(3))


def code_of(call, *args, **more):
    try:
        call(*args, **more)
    except MlflowException as error:
        return [error.error_code, str(error)]
    return None


made = client.create_dataset(name="questions", experiment_id=one, tags={"team": "ml", "stage": "draft"})
known = client.get_dataset(made.dataset_id)
said["made"] = [known.name, known.experiment_ids == [one], known.tags["team"], known.digest == made.digest]
client.create_dataset(name="others", experiment_id=[one, two], tags={"team": "data"})
client.create_dataset(name="third", experiment_id=two, tags={"team": "ml"})


def names(**asked):
    return [dataset.name for dataset in client.search_datasets(**asked)]


said["search"] = {
    "all": names(),
    "experiment": names(experiment_ids=one),
    "tag": names(filter_string="tags.team = 'ml'"),
    "name": names(filter_string="name LIKE '%th%'", order_by=["name DESC"]),
    "page": names(max_results=1),
}
said["refused"] = code_of(client.search_datasets, filter_string="nonsense = 'x'")[0]

client.set_dataset_tags(made.dataset_id, {"stage": "final", "new": "yes"})
client.delete_dataset_tag(made.dataset_id, "team")
tags = client.get_dataset(made.dataset_id).tags
said["tags"] = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}

found = datasets.get_dataset(dataset_id=made.dataset_id)
found.merge_records(
    [
        {"inputs": {"question": "why?", "n": 1}, "expectations": {"answer": "because"}, "tags": {"level": "easy"}},
        {"inputs": {"question": "when?", "n": 2}, "outputs": "now"},
        {"inputs": {"question": "nothing", "n": None}},
    ]
)
found.merge_records([{"inputs": {"n": 1, "question": "why?"}, "expectations": {"source": "book"}}])
table = datasets.get_dataset(dataset_id=made.dataset_id).to_df()
rows = [row for row in table.to_dict("records") if row["inputs"]["question"] != "nothing"]
said["rows"] = [[row["inputs"], row["expectations"], row["source_type"]] for row in rows]
said["level"] = rows[0]["tags"]["level"]
known = client.get_dataset(made.dataset_id)
said["schema"], said["profile"] = json.loads(known.schema), json.loads(known.profile)
said["changed"] = known.digest != made.digest
with mlflow.start_span("traced") as span:
    span.set_inputs({"question": "whence?"})
mlflow.flush_trace_async_logging()
traces = [client.get_trace(span.trace_id)]
found.merge_records(traces)
traced = datasets.get_dataset(dataset_id=made.dataset_id).to_df().to_dict("records")[-1]
said["traced"] = [traced["inputs"], traced["source_type"], traced["source_id"] == span.trace_id]
if hasattr(found, "delete_records"):
    said["deleted_rows"] = found.delete_records([traced["dataset_record_id"], "dr-" + "0" * 32])
    said["left"] = len(datasets.get_dataset(dataset_id=made.dataset_id).to_df())
many = [{"inputs": {"number": number}} for number in range(2500)]
big = client.create_dataset(name="many", experiment_id=three)
big.merge_records(many)
said["many"] = [row["inputs"]["number"] for row in client.get_dataset(big.dataset_id).to_df().to_dict("records")]

try:
    client.add_dataset_to_experiments(made.dataset_id, [two, three])
except KeyError:
    pass  # Older clients have the method but not the route that it calls.
else:
    client.add_dataset_to_experiments(made.dataset_id, [two])
    said["linked"] = client.get_dataset(made.dataset_id).experiment_ids == [one, two, three]
    client.remove_dataset_from_experiments(made.dataset_id, [one, three])
    client.remove_dataset_from_experiments(made.dataset_id, [one])
    said["unlinked"] = client.get_dataset(made.dataset_id).experiment_ids == [two]
    said["nowhere"] = code_of(client.add_dataset_to_experiments, "d-nonexistent", [one])


@scorer
def exact(outputs, expectations):
    return outputs == expectations["answer"]


@mlflow.trace
def predict(question):
    return "no" if question == "q3" else question.replace("q", "a")


mlflow.set_experiment(experiment_id=three)
asked = client.create_dataset(name="asked", experiment_id=three)
asked.merge_records(
    [{"inputs": {"question": f"q{number}"}, "expectations": {"answer": f"a{number}"}} for number in range(4)]
)
result = mlflow.genai.evaluate(data=asked, predict_fn=predict, scorers=[exact])
said["evaluated"] = [float(result.metrics["exact/mean"]), len(mlflow.search_traces(run_id=result.run_id))]
wrong = mlflow.search_traces(filter_string="feedback.exact = 'false'", return_type="list")
said["wrong"] = [trace.info.request_preview for trace in wrong]
said["input"] = mlflow.get_run(result.run_id).inputs.dataset_inputs[0].dataset.name
asked.merge_records(mlflow.search_traces(return_type="list"))
said["again"] = len(asked.to_df())

client.delete_dataset(made.dataset_id)
said["gone"] = code_of(client.get_dataset, made.dataset_id)
sys.stdout.write("\n" + json.dumps(said) + "\n")
