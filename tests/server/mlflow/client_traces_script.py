"""What MLflow's own client does with traces and prompts; run by the Python that has it. Prints one JSON value."""

import json
import os
import sys

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanType
from mlflow.exceptions import MlflowException

mlflow.set_tracking_uri(sys.argv[1])
client = MlflowClient()
said = {}
experiment = mlflow.set_experiment("traces")


@mlflow.trace(span_type=SpanType.RETRIEVER)
def look_up(question):
    return [{"page_content": f"about {question}"}]


@mlflow.trace(name="answer", attributes={"kind": "test"})
def ask(question):
    mlflow.update_current_trace(tags={"team": "x"}, client_request_id="mine-1")
    found = look_up(question)
    with mlflow.start_span("say") as span:
        span.set_inputs({"found": found})
        span.set_outputs("because")
    return "because"


ask("why?")
first = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()

try:
    with mlflow.start_span("breaks") as span:
        span.set_inputs(3)
        raise ValueError("no")
except ValueError:
    pass
broken = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()

with mlflow.start_run() as run:
    ask("again?")
inside = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()

trace = client.get_trace(first)
said["trace"] = [trace.info.trace_id, trace.info.state.value, trace.info.client_request_id, trace.info.tags["team"]]
said["name"] = trace.info.tags["mlflow.traceName"]
said["spans"] = sorted([span.name, span.span_type, span.parent_id is None] for span in trace.data.spans)
root = next(span for span in trace.data.spans if span.parent_id is None)
said["io"] = [root.inputs, root.outputs, root.attributes["kind"]]
said["preview"] = [trace.info.request_preview, trace.info.response_preview]
said["broken"] = client.get_trace(broken).info.state.value


def found(text=None, **more):
    traces = mlflow.search_traces(locations=[experiment.experiment_id], filter_string=text, return_type="list", **more)
    return [one.info.trace_id for one in traces]


said["all"] = found() == [inside, broken, first]
said["oldest"] = found(order_by=["timestamp_ms ASC"], max_results=1) == [first]
said["by_state"] = found("trace.status = 'ERROR'") == [broken]
said["by_tag"] = found("tag.team = 'x'") == [inside, first]
said["by_name"] = found("trace.name = 'breaks'") == [broken]
said["by_run"] = found(f"attributes.run_id = '{run.info.run_id}'") == [inside]
said["whole"] = {
    len(one.data.spans)
    for one in mlflow.search_traces(
        locations=[experiment.experiment_id], filter_string="tag.team = 'x'", return_type="list"
    )
} == {3}
try:
    found("trace.nonsense = 'x'")
except MlflowException as error:
    said["refused"] = error.error_code

mlflow.set_trace_tag(first, "seen", "yes")
mlflow.delete_trace_tag(first, "team")
said["tags"] = {k: v for k, v in client.get_trace(first).info.tags.items() if not k.startswith("mlflow.")}
source = AssessmentSource(source_type="HUMAN", source_id="ada")
feedback = mlflow.log_feedback(trace_id=first, name="good", value=True, source=source, rationale="short")
mlflow.log_expectation(trace_id=first, name="answer", value="because", source=source)
mlflow.update_assessment(first, feedback.assessment_id, mlflow.entities.Feedback(name="good", value=False))
known = {one.name: one.value for one in client.get_trace(first).info.assessments}
said["assessments"] = known
said["one"] = mlflow.get_assessment(first, feedback.assessment_id).value
mlflow.delete_assessment(first, feedback.assessment_id)
said["left"] = [one.name for one in client.get_trace(first).info.assessments]
said["deleted"] = client.delete_traces(experiment.experiment_id, trace_ids=[broken])
said["after"] = found() == [inside, first]

prompt = mlflow.genai.register_prompt(name="hello", template="Say hello to {{name}}", commit_message="first")
mlflow.genai.register_prompt(name="hello", template="Greet {{name}}", commit_message="second")
mlflow.genai.set_prompt_alias("hello", alias="live", version=1)
said["prompt"] = [
    mlflow.genai.load_prompt("prompts:/hello/2").format(name="Bob"),
    mlflow.genai.load_prompt("prompts:/hello@live").format(name="Bob"),
]
said["prompts"] = [one.name for one in mlflow.genai.search_prompts()]
said["models"] = [one.name for one in client.search_registered_models() if one.name == "hello"]
sys.stdout.write("\n" + json.dumps(said) + "\n")
