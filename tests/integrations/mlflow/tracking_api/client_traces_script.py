"""What MLflow's own client does with traces and prompts; run by the Python that has it. Prints one JSON value."""

import json
import math
import os
import sys
import urllib.request

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, SpanType, TraceData
from mlflow.entities.trace_status import TraceStatus
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
said["by_text"] = found("trace.text LIKE '%again?%'") == [inside]
said["by_span"] = found("span.type = 'RETRIEVER' AND span.name = 'look_up'") == [inside, first]
said["by_pattern"] = found("trace.name RLIKE '^(answer|none)$'") == [inside, first]
store = client._tracing_client.store
with mlflow.start_run() as other:
    pass
client.link_traces_to_run([broken], other.info.run_id)
said["by_link"] = found(f"attribute.run_id = '{other.info.run_id}'") == [broken]
if hasattr(client._tracing_client, "calculate_trace_filter_correlation"):
    both = client._tracing_client.calculate_trace_filter_correlation(
        [experiment.experiment_id], "tags.team = 'x'", "trace.status = 'OK'"
    )
    none = client._tracing_client.calculate_trace_filter_correlation(
        [experiment.experiment_id], "tags.team = 'z'", "trace.status = 'OK'"
    )
    said["correlation"] = [
        both.npmi, both.filter1_count, both.filter2_count, both.joint_count, both.total_count, math.isnan(none.npmi)
    ]  # fmt: skip
if hasattr(store, "query_trace_metrics"):
    from mlflow.entities.trace_metrics import AggregationType, MetricAggregation, MetricViewType

    points = store.query_trace_metrics(
        experiment_ids=[experiment.experiment_id],
        view_type=MetricViewType.TRACES,
        metric_name="trace_count",
        aggregations=[MetricAggregation(aggregation_type=AggregationType.COUNT)],
        dimensions=["trace_status"],
    )
    said["figures"] = [[point.dimensions["trace_status"], point.values["COUNT"]] for point in points]
address = f"{sys.argv[1]}/ajax-api/2.0/mlflow/get-trace-artifact?request_id={first}"
with urllib.request.urlopen(address) as answer:
    kept = TraceData.from_dict(json.loads(answer.read()))
    whole = {span.span_id: span.to_dict() for span in client.get_trace(first).data.spans}
    same = whole == {span.span_id: span.to_dict() for span in kept.spans}
    said["file"] = [answer.headers["content-disposition"], same]
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
said["by_feedback"] = found("feedback.good = 'false' AND expectation.answer = 'because'") == [first]
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
client.link_prompt_versions_to_trace([mlflow.genai.load_prompt("prompts:/hello/2")], first)
said["by_prompt"] = not hasattr(store, "link_prompts_to_trace") or found("prompt = 'hello/2'") == [first]
said["prompts"] = [one.name for one in mlflow.genai.search_prompts()]
said["models"] = [one.name for one in client.search_registered_models() if one.name == "hello"]

older = store.deprecated_start_trace_v2(
    experiment_id=experiment.experiment_id,
    timestamp_ms=1000,
    request_metadata={"meta1": "apple", "meta2": "grape"},
    tags={"tag1": "football", "tag2": "basketball"},
)
ended = store.deprecated_end_trace_v2(
    request_id=older.request_id,
    timestamp_ms=3000,
    status=TraceStatus.OK,
    request_metadata={"meta1": "orange", "meta3": "banana"},
    tags={"tag1": "soccer", "tag3": "tennis"},
)
said["older"] = [
    [one.status.value, one.timestamp_ms, one.execution_time_ms or 0, one.request_metadata] for one in (older, ended)
]
said["older_tags"] = {key: value for key, value in ended.tags.items() if not key.startswith("mlflow.")}

number = experiment.experiment_id
made = [store.register_scorer(number, "polite", json.dumps({"name": name})) for name in ("polite", "second")]
said["scorers"] = [getattr(one, "scorer_version", one) for one in made]
said["scorers"].append([[one.scorer_name, one.scorer_version] for one in store.list_scorers(number)])
said["scorers"].append([one.scorer_version for one in store.list_scorer_versions(number, "polite")])
said["scorers"].append(store.get_scorer(number, "polite", version=1)._serialized_scorer)
store.delete_scorer(number, "polite", version=1)
said["scorers"].append([one.scorer_version for one in store.list_scorer_versions(number, "polite")])
store.delete_scorer(number, "polite")
try:
    store.get_scorer(number, "polite")
except MlflowException as error:
    said["scorers"].append(error.error_code)
sys.stdout.write("\n" + json.dumps(said) + "\n")
