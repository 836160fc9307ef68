"""The requests of the differential test: method, path, fields; `{name}` stands for what an earlier answer said.

`save` keeps a value of the answer under a name: `("run", "run.info.run_id")`.
"""

from __future__ import annotations

import re
from typing import Any

from everloop.integrations.mlflow.tracking_api.graphql.mlflow_schema import TEXT

Step = tuple[str, str, Any, tuple[str, str] | None]
BIG = "x" * 7000


def steps() -> list[Step]:
    found: list[Step] = []

    def post(path: str, save: tuple[str, str] | None = None, /, **fields: Any) -> None:
        found.append(("POST", path, fields, save))

    def get(path: str, save: tuple[str, str] | None = None, /, **fields: Any) -> None:
        found.append(("GET", path, fields, save))

    def send(method: str, path: str, /, **fields: Any) -> None:
        found.append((method, path, fields, None))

    _experiments(post, get)
    _runs(post, get)
    _logging(post, get)
    _searching(post, get)
    _datasets(post, get)
    _logged_models(post, get, send)
    _registry(post, get, send)
    _graphql(post)
    _artifacts(post, get, send)
    return found


def _experiments(post: Any, get: Any) -> None:
    e = "experiments/"
    get(e + "get", experiment_id="0")
    get(e + "get", experiment_id="777")
    get(e + "get", experiment_id="abc")
    get(e + "get")
    get(e + "get-by-name", experiment_name="Default")
    get(e + "get-by-name", experiment_name="nothing")
    get(e + "get-by-name")
    post(e + "create", ("exp", "experiment_id"), name="one")
    post(e + "create", name="one")
    post(e + "create")
    post(e + "create", name="")
    post(e + "create", name=123)
    post(e + "create", name="n" * 501)
    post(e + "create", name="tagged", tags=[{"key": "a", "value": "b"}])
    post(e + "create", name="bad tag", tags=[{"key": "../a", "value": "b"}])
    get(e + "get", experiment_id="{exp}")
    get(e + "get-by-name", experiment_name="tagged")
    post(e + "set-experiment-tag", experiment_id="{exp}", key="k", value="v")
    post(e + "set-experiment-tag", experiment_id="{exp}", value="v")
    post(e + "set-experiment-tag", experiment_id="{exp}", key="k" * 251, value="v")
    post(e + "delete-experiment-tag", experiment_id="{exp}", key="nothing")
    get(e + "get", experiment_id="{exp}")
    post(e + "delete-experiment-tag", experiment_id="{exp}", key="k")
    post(e + "update", experiment_id="{exp}", new_name="two")
    post(e + "update", new_name="two")
    get(e + "get", experiment_id="{exp}")
    post(e + "search", max_results=10)
    post(e + "search", max_results=10, filter="name = 'two'")
    post(e + "search", max_results=10, filter="name LIKE 't%'")
    post(e + "search", max_results=10, filter="tags.a = 'b'")
    post(e + "search", max_results=10, filter="name ILIKE 'T%'", order_by=["name DESC"])
    post(e + "search", max_results=10, filter="nonsense = 'b'")
    post(e + "search", max_results=0)
    post(e + "search", max_results=60000)
    post(e + "delete", experiment_id="{exp}")
    post(e + "delete", experiment_id="{exp}")
    get(e + "get", experiment_id="{exp}")
    post(e + "search", max_results=10, view_type="DELETED_ONLY")
    post(e + "update", experiment_id="{exp}", new_name="three")
    post(e + "set-experiment-tag", experiment_id="{exp}", key="k", value="v")
    post("runs/create", experiment_id="{exp}", start_time=1)
    post(e + "restore", experiment_id="{exp}")
    post(e + "restore", experiment_id="{exp}")


def _runs(post: Any, get: Any) -> None:
    r = "runs/"
    post(
        r + "create", ("run", "run.info.run_id"), experiment_id="{exp}", start_time=1000, run_name="first", user_id="u"
    )
    post(r + "create", experiment_id="555", start_time=1000)
    post(
        r + "create",
        ("second", "run.info.run_id"),
        experiment_id="{exp}",
        start_time=2000,
        tags=[{"key": "mlflow.runName", "value": "b"}, {"key": "team", "value": "red"}],
    )
    post(r + "create", experiment_id="{exp}", run_name="a", tags=[{"key": "mlflow.runName", "value": "b"}])
    get(r + "get", run_id="{run}")
    get(r + "get", run_uuid="{run}")
    get(r + "get", run_id="0" * 32)
    get(r + "get", run_id="nothing")
    get(r + "get")
    post(r + "update", run_id="{run}", status="FINISHED", end_time=5000)
    post(r + "update", run_id="{run}", run_name="renamed")
    post(r + "update", run_id="{run}", status="SCHEDULED")
    post(r + "update", run_id="{second}", status="KILLED", end_time=9000)
    post(r + "update", run_id="0" * 32, status="FINISHED")
    post(r + "update", status="FINISHED")
    get(r + "get", run_id="{run}")


def _logging(post: Any, get: Any) -> None:
    r = "runs/"
    post(r + "log-metric", run_id="{run}", key="m", value=1.5, timestamp=10, step=1)
    post(r + "log-metric", run_id="{run}", key="m", value=1.5, timestamp=10, step=1)
    post(r + "log-metric", run_id="{run}", key="m", value=0.5, timestamp=20, step=0)
    post(r + "log-metric", run_id="{run}", key="m", value="NaN", timestamp=30, step=2)
    post(r + "log-metric", run_id="{run}", key="inf", value="Infinity", timestamp=30)
    post(r + "log-metric", run_id="{run}", key="neg", value="-Infinity", timestamp=30, step=-5)
    post(r + "log-metric", run_id="{run}", key="m", value="abc", timestamp=30)
    post(r + "log-metric", run_id="{run}", key="m", timestamp=30)
    post(r + "log-metric", run_id="{run}", key="m", value=1)
    post(r + "log-metric", run_id="{run}", value=1, timestamp=1)
    post(r + "log-metric", key="m", value=1, timestamp=1)
    post(r + "log-metric", run_id="{run}", key="a/../b", value=1, timestamp=1)
    post(r + "log-metric", run_id="{run}", key="bad?key", value=1, timestamp=1)
    post(r + "log-metric", run_id="{run}", key="k" * 251, value=1, timestamp=1)
    post(r + "log-metric", run_id="{run}", key="m", value=1, timestamp=-1)
    post(r + "log-metric", run_id="0" * 32, key="m", value=1, timestamp=1)
    post(r + "log-metric", run_id="{run}", key="m", value=3, timestamp="40", step="3")
    get("metrics/get-history", run_id="{run}", metric_key="m")
    get("metrics/get-history", ("page", "next_page_token"), run_id="{run}", metric_key="m", max_results=2)
    get("metrics/get-history", run_id="{run}", metric_key="m", max_results=2, page_token="{page}")
    get("metrics/get-history", run_id="{run}", metric_key="m", max_results=0)
    get("metrics/get-history", run_id="{run}", metric_key="nothing")
    get("metrics/get-history", run_id="{run}")
    post(r + "log-parameter", run_id="{run}", key="p", value="1")
    post(r + "log-parameter", run_id="{run}", key="p", value="1")
    post(r + "log-parameter", run_id="{run}", key="p", value="2")
    post(r + "log-parameter", run_id="{run}", key="empty", value="")
    post(r + "log-parameter", run_id="{run}", key="long", value=BIG)
    post(r + "log-parameter", run_id="{run}", value="2")
    post(r + "log-parameter", run_id="{run}", key="p", value=5)
    post(r + "set-tag", run_id="{run}", key="t", value="a")
    post(r + "set-tag", run_id="{run}", key="t", value="b")
    post(r + "set-tag", run_id="{run}", key="mlflow.runName", value="by tag")
    post(r + "set-tag", run_id="{run}", value="b")
    post(r + "set-tag", run_id="{run}", key="gone", value="b")
    post(r + "delete-tag", run_id="{run}", key="gone")
    post(r + "delete-tag", run_id="{run}", key="gone")
    metrics = [{"key": f"b{n}", "value": n, "timestamp": n, "step": n} for n in range(3)]
    params = [{"key": "q", "value": "1"}]
    post(r + "log-batch", run_id="{run}", metrics=metrics, params=params, tags=[{"key": "u", "value": "w"}])
    post(r + "log-batch", run_id="{run}", metrics=metrics, params=params)
    post(r + "log-batch", run_id="{run}", params=[{"key": "q", "value": "2"}])
    post(r + "log-batch", run_id="{run}", params=[{"key": "z", "value": "2"}, {"key": "z", "value": "2"}])
    post(r + "log-batch", run_id="{run}", metrics=[{"key": "m", "timestamp": 1}])
    post(r + "log-batch", run_id="{run}", metrics=[{"value": 1, "timestamp": 1}])
    post(r + "log-batch", run_id="{run}", metrics=[{"key": "a//b", "value": 1, "timestamp": 1}])
    post(r + "log-batch", run_id="{run}", params=[{"value": "1"}])
    post(r + "log-batch", run_id="{run}", tags=[{"value": "1"}])
    post(r + "log-batch", run_id="{run}", params=[{"key": f"x{n}", "value": "1"} for n in range(101)])
    post(r + "log-batch", run_id="{run}", tags=[{"key": f"x{n}", "value": "1"} for n in range(101)])
    many = [{"key": "m", "value": 1, "timestamp": n, "step": n} for n in range(1001)]
    post(r + "log-batch", run_id="{run}", metrics=many)
    post(r + "log-batch", run_id="{run}", metrics=many[:1000], params=[{"key": "over", "value": "1"}])
    post(r + "log-batch", metrics=metrics)
    post(r + "log-batch", run_id="{run}")
    data = {"name": "d", "digest": "abc", "source_type": "local", "source": "s", "schema": "sc"}
    inputs = [{"tags": [{"key": "mlflow.data.context", "value": "train"}], "dataset": data}]
    post(r + "log-inputs", run_id="{run}", datasets=inputs)
    post(r + "log-inputs", run_id="{run}", datasets=inputs)
    get(r + "get", run_id="{run}")


def _searching(post: Any, get: Any) -> None:
    def search(**fields: Any) -> None:
        post("runs/search", experiment_ids=["{exp}"], **fields)

    search()
    search(filter="metrics.m > 2")
    search(filter="metrics.m < 2")
    search(filter="params.p = '1' and tags.t = 'b'")
    search(filter="params.p != '2'")
    search(filter="tags.team LIKE 'r%'")
    search(filter="tags.team ILIKE 'R%'")
    search(filter="attributes.status = 'KILLED'")
    search(filter="status != 'KILLED'")
    search(filter="attributes.run_name = 'by tag'")
    search(filter="start_time >= 2000")
    search(filter="run_id = '{run}'")
    search(filter="run_id IN ('{run}', 'x')")
    search(filter="run_id NOT IN ('{run}')")
    search(filter='params."p" = "1"')
    search(filter="params.`p` = '1'")
    search(filter="tags.team IS NULL")
    search(filter="tags.team IS NOT NULL")
    search(filter="dataset.name = 'd'")
    search(filter="datasets.context = 'nothing'")
    search(filter="metrics.m > 'a'")
    search(filter="params.p > 1")
    search(filter="params.p = 1")
    search(filter="wrong.p = '1'")
    search(filter="attributes.wrong = '1'")
    search(filter="metrics.m > 1 or metrics.m < 0")
    search(filter="metrics.m >")
    search(filter="metrics.m LIKE 'a'")
    search(order_by=["metrics.m ASC"])
    search(order_by=["start_time ASC"])
    search(order_by=["params.p DESC"])
    search(order_by=["attributes.status ASC"])
    search(order_by=["metrics.m SIDEWAYS"])
    search(max_results=50001)
    search(max_results=-1)
    search(run_view_type="DELETED_ONLY")
    post("runs/search", ("more", "next_page_token"), experiment_ids=["{exp}"], max_results=1)
    post("runs/search", experiment_ids=[])
    post("runs/search", experiment_ids=["abc"])
    search(page_token="nonsense")
    post("runs/delete", run_id="{second}")
    post("runs/delete", run_id="{second}")
    search()
    search(run_view_type="ALL")
    search(run_view_type="DELETED_ONLY")
    get("runs/get", run_id="{second}")
    post("runs/log-metric", run_id="{second}", key="m", value=1, timestamp=1)
    post("runs/log-parameter", run_id="{second}", key="m", value="1")
    post("runs/update", run_id="{second}", status="FINISHED")
    post("runs/restore", run_id="{second}")
    post("runs/restore", run_id="0" * 32)
    get("runs/get", run_id="{second}")


def _datasets(post: Any, get: Any) -> None:
    # The one spelling that MLflow's own server answers; its page asks here.
    search = "/ajax-api/2.0/mlflow/experiments/search-datasets"
    post(search, experiment_ids=["{exp}"])
    post(search, experiment_ids=["0"])
    post(search, experiment_ids=["777"])
    post(search, experiment_ids=["{exp}", "{exp}"])
    post(search, experiment_ids=["{exp}", "abc"])
    post(search, experiment_ids=[])
    post(search)
    post(search, experiment_ids=["0"] * 21)
    plain = {"name": "plain", "digest": "1", "source_type": "local", "source": "s"}
    post("runs/log-inputs", run_id="{second}", datasets=[{"dataset": plain}])
    post(search, experiment_ids=["{exp}"])


def _logged_models(post: Any, get: Any, send: Any) -> None:
    m = "logged-models"
    post(m, ("model", "model.info.model_id"), experiment_id="{exp}", name="lm", model_type="t", source_run_id="{run}")
    post(m)
    post(m, experiment_id="{exp}", name="a/b")
    post(m, experiment_id="555", name="lm")
    get(m + "/{model}")
    get(m + "/m-" + "0" * 32)
    send("PATCH", m + "/{model}", model_id="{model}", status="LOGGED_MODEL_READY")
    send("PATCH", m + "/{model}/tags", tags=[{"key": "a", "value": "b"}])
    send("DELETE", m + "/{model}/tags/nothing")
    post(m + "/{model}/params", model_id="{model}", params=[{"key": "lr", "value": "1"}])
    post("runs/log-metric", run_id="{run}", key="acc", value=0.9, timestamp=7, step=1, model_id="{model}")
    get(m + "/{model}")
    post(m + "/search", experiment_ids=["{exp}"])
    post(m + "/search", experiment_ids=["{exp}"], filter="metrics.acc > 0.5")
    post(m + "/search", experiment_ids=["{exp}"], filter="metrics.acc > 0.95")
    post(m + "/search", experiment_ids=["{exp}"], filter="params.lr = '1' AND tags.a = 'b'")
    post(m + "/search", experiment_ids=["{exp}"], filter="name = 'lm'")
    post(m + "/search", experiment_ids=["{exp}"], order_by=[{"field_name": "metrics.acc", "ascending": False}])
    post(m + "/search", experiment_ids=["{exp}"], datasets=[{"dataset_digest": "x"}])
    post("runs/outputs", run_id="{run}", models=[{"model_id": "{model}", "step": 0}])
    send("DELETE", m + "/{model}/tags/a")


def _registry(post: Any, get: Any, send: Any) -> None:
    r, v = "registered-models/", "model-versions/"
    post(r + "create", name="clf", description="d", tags=[{"key": "a", "value": "b"}])
    post(r + "create", name="clf")
    post(r + "create")
    post(r + "create", name="a/b")
    post(r + "create", name="a:b")
    post(r + "create", name="  ")
    get(r + "get", name="clf")
    get(r + "get", name="nothing")
    get(r + "get")
    post(v + "create", name="clf", source="models:/{model}", model_id="{model}", run_id="{run}")
    post(v + "create", name="clf", source="s3://bucket/x", run_link="link", description="second")
    post(v + "create", name="nothing", source="s3://bucket/x")
    post(v + "create", name="clf")
    post(v + "create", name="clf", source="/etc/passwd")
    post(v + "create", name="clf", source="file:///etc/passwd")
    post(v + "create", name="clf", source="s3://bucket/../x")
    post(v + "create", name="clf", source="mlflow-artifacts:/0/x")
    post(v + "create", name="clf", source="runs:/{run}/m", run_id="{run}")
    post(v + "create", name="clf", source="runs:/{run}/m", run_id="{second}")
    get(v + "get", name="clf", version="1")
    get(v + "get", name="clf", version="99")
    get(v + "get", name="clf", version="abc")
    get(v + "get-download-uri", name="clf", version="1")
    get(v + "get-download-uri", name="clf", version="2")
    post(r + "alias", name="clf", alias="champion", version="1")
    post(r + "alias", name="clf", alias="latest", version="1")
    post(r + "alias", name="clf", alias="v1", version="1")
    post(r + "alias", name="clf", alias="a b", version="1")
    post(r + "alias", name="clf", alias="x", version="77")
    get(r + "alias", name="clf", alias="champion")
    get(r + "alias", name="clf", alias="nothing")
    send("PATCH", v + "update", name="clf", version="2", description="new")
    send("PATCH", r + "update", name="clf", description="whole")
    post(v + "set-tag", name="clf", version="2", key="k", value="v")
    post(v + "set-tag", name="clf", version="2", value="v")
    send("DELETE", v + "delete-tag", name="clf", version="2", key="k")
    post(r + "set-tag", name="clf", key="k", value="v")
    send("DELETE", r + "delete-tag", name="clf", key="k")
    post(v + "transition-stage", name="clf", version="1", stage="production", archive_existing_versions=False)
    post(v + "transition-stage", name="clf", version="2", stage="Production", archive_existing_versions=True)
    post(v + "transition-stage", name="clf", version="2", stage="wrong")
    post(v + "transition-stage", name="clf", version="2", stage="None", archive_existing_versions=True)
    post(r + "get-latest-versions", name="clf")
    post(r + "get-latest-versions", name="clf", stages=["Production"])
    get(r + "get", name="clf")
    get(r + "search")
    get(r + "search", filter="name LIKE 'c%'")
    get(r + "search", filter="tags.a = 'b'")
    get(r + "search", filter="wrong = 'c'")
    get(r + "search", max_results=1001)
    get(r + "search", order_by=["name DESC"])
    get(r + "search", order_by=["wrong DESC"])
    get(v + "search", filter="name = 'clf'")
    get(v + "search", filter="name = 'clf'", order_by=["version_number ASC"])
    get(v + "search", filter="run_id = '{run}'")
    get(v + "search", filter="version_number > 1")
    get(v + "search", filter="wrong = 'x'")
    post(r + "rename", name="clf", new_name="renamed")
    post(r + "rename", name="nothing", new_name="other")
    get(r + "get", name="renamed")
    get(r + "alias", name="renamed", alias="champion")
    send("DELETE", r + "alias", name="renamed", alias="champion")
    send("DELETE", v + "delete", name="renamed", version="2")
    send("DELETE", v + "delete", name="renamed", version="2")
    get(v + "get", name="renamed", version="2")
    send("DELETE", r + "delete", name="renamed")
    send("DELETE", r + "delete", name="renamed")
    post(r + "create", name="p", tags=[{"key": "mlflow.prompt.is_prompt", "value": "true"}])
    get(r + "search")
    get(r + "search", filter="tags.`mlflow.prompt.is_prompt` = 'true'")


PAGE_RUN = """
query GetRun($data: MlflowGetRunInput!) @component(name: "a page") {
  mlflowGetRun(input: $data) {
    __typename
    apiError { code message helpUrl }
    run {
      info { runName status runUuid experimentId endTime lifecycleStage startTime userId }
      experiment { name tags { key value } artifactLocation lifecycleStage effectiveTraceArchivalRetention }
      modelVersions { status version name source runLink statusMessage modelParams { name } description }
      data {
        metrics { key value step timestamp datasetName modelId runId }
        params { key value }
        tags { key value }
      }
      inputs {
        datasetInputs { dataset { digest name profile schema source sourceType } tags { key value } }
        modelInputs { modelId }
      }
      outputs { modelOutputs { modelId step } }
    }
  }
}
"""


def _graphql(post: Any) -> None:
    def ask(query: str, **variables: Any) -> None:
        post("/graphql", query=query, variables=variables)

    def run_of(what: str, name: str) -> str:
        return '{ mlflowGetRun(input: {runId: "' + name + '"}) { run { ' + what + " } } }"

    ask(PAGE_RUN, data={"runId": "{run}"})
    ask(PAGE_RUN, data={"runUuid": "{second}"})
    ask(PAGE_RUN, data={"runId": "0" * 32})
    ask(PAGE_RUN, data={"runId": 5})
    ask(PAGE_RUN, data={"nothing": "{run}"})
    ask(PAGE_RUN)
    ask(run_of("modelVersions { version creationTimestamp deploymentJobState { jobState runState jobId } }", "{run}"))
    experiment = "{ experiment { experimentId name lifecycleStage tags { key value } workspace } apiError { code } }"
    ask('{ mlflowGetExperiment(input: {experimentId: "{exp}"}) ' + experiment + "}")
    ask('{ mlflowGetExperiment(input: {experimentId: "777"}) ' + experiment + "}")
    ask('{ mlflowGetExperiment(input: {experimentId: "abc"}) ' + experiment + "}")
    ask("{ mlflowGetExperiment(input: {experimentId: 7}) " + experiment + "}")
    ask('{ mlflowGetExperiment(input: {experimentId: "{exp}"}) { experiment { nothing } } }')
    ask('{ one: mlflowGetExperiment(input: {experimentId: "0"}) { experiment { name } } '
        'two: mlflowGetExperiment(input: {experimentId: "777"}) { experiment { name } } }')  # fmt: skip
    runs = "{ runs { info { runName status } data { params { key } } experiment { name } } nextPageToken }"
    search = "query q($input: MlflowSearchRunsInput) { mlflowSearchRuns(input: $input) " + runs + " }"
    for kind in (search, search.replace("query", "mutation", 1)):
        ask(kind, input={"experimentIds": ["{exp}"]})
        ask(kind, input={"experimentIds": ["{exp}"], "filter": "params.p = '1'"})
        ask(kind, input={"experimentIds": ["{exp}"], "orderBy": ["start_time ASC"], "maxResults": 5})
        ask(kind, input={"experimentIds": ["{exp}"], "filter": "wrong.p = '1'"})
        ask(kind, input={"experimentIds": ["{exp}"], "runViewType": "SOME"})
        ask(kind, input={"experimentIds": []})
    ask('{ mlflowSearchRuns(input: {experimentIds: ["{exp}"], maxResults: 4294967296}) { nextPageToken } }')
    datasets = "{ datasetSummaries { experimentId name digest context } apiError { message } }"
    ask('mutation { mlflowSearchDatasets(input: {experimentIds: ["{exp}"]}) ' + datasets + " }")
    ask("mutation { mlflowSearchDatasets(input: {experimentIds: []}) " + datasets + " }")
    history = '(input: {runIds: ["{run}", "{second}"], metricKey: "b1"}) { metrics { key value step timestamp runId } }'
    ask("{ mlflowGetMetricHistoryBulkInterval" + history + " }")
    ask('{ mlflowListArtifacts(input: {runId: "{run}"}) { files { path isDir fileSize } nextPageToken } }')
    ask('{ mlflowListArtifacts(input: {runId: "{run}", path: "../x"}) { files { path } } }')
    versions = "{ modelVersions { name version status currentStage runId tags { key value } } nextPageToken }"
    ask("{ mlflowSearchModelVersions(input: {}) " + versions + " }")
    ask("{ mlflowSearchModelVersions(input: {filter: \"name = 'renamed'\", maxResults: 3}) " + versions + " }")
    ask("{ mlflowSearchModelVersions(input: {filter: \"wrong = 'x'\"}) " + versions + " }")
    ask('{ test(inputString: "said") { output __typename } }')
    ask('query a { test(inputString: "a") { output } } query b { test(inputString: "b") { output } }')
    post("/graphql", query='query a { test(inputString: "a") { output } }', operationName="a")
    post("/graphql", query='query a { test(inputString: "a") { output } }', operationName="b")
    ask("{ " + " ".join(f'a{n}: test(inputString: "x") {{ output }}' for n in range(10)) + " }")
    ask("{ " + " ".join(f'a{n}: test(inputString: "x") {{ output }}' for n in range(11)) + " }")
    ask("{ " + 'test(inputString: "x") { output } ' * 11 + "}")
    ask('{ test(inputString: "x") { ' + " ".join(f"o{n}: output" for n in range(11)) + " } }")
    ask('{ test(inputString: "x") { ' + " ".join(f"... on Test {{ o{n}: output }}" for n in range(11)) + " } }")
    ask(run_of("info { runId } " * 501, "{run}"))
    ask("{ a { a { a { a { a { a { a { a { a { a { a } } } } } } } } } } }")
    ask('{ test(inputString: "x") { ...f } } fragment f on Test { output ...f }')
    ask("{ ...f } fragment f on Query { ...g } fragment g on Query { ...f }")
    ask("{ nothing }")
    ask('{ test(inputString: "x") @nothing { output } }')
    ask("{ __schema { queryType { name } mutationType { name } subscriptionType { name } } }")
    # Deeper than ten: introspection as tools send it is refused by both.
    ask("{ __schema { types { fields { type { ofType { ofType { ofType { ofType { ofType { ofType { name }}}}}}}}}}}")
    for kind in re.findall(r"^(?:type|enum|input|scalar) (\w+)", TEXT, re.MULTILINE):
        ask("query t($n: String!) { __type(name: $n) { name kind enumValues { name } "
            "inputFields { name defaultValue type { name kind ofType { name } } } "
            "fields { name args { name type { name } } type { name kind ofType { name kind ofType { name } } } } } }",
            n=kind)  # fmt: skip


def _artifacts(post: Any, get: Any, send: Any) -> None:
    get("/ajax-api/2.0/mlflow/gateway-proxy", gateway_path="api/2.0/endpoints/")
    get("artifacts/list", run_id="{run}")
    get("artifacts/list", run_id="{run}", path="../x")
    get("artifacts/list", run_id="0" * 32)
    get("artifacts/list")
    get("/api/2.0/mlflow-artifacts/artifacts", path="../x")
    get("/api/2.0/mlflow-artifacts/artifacts", path="nothing")
    post("artifacts/presigned-upload-url", run_id="{run}", path="a")
    post("artifacts/presigned-upload-url", path="a")
    post("artifacts/presigned-download-url", run_id="{run}", path="a")
    get("/api/2.0/mlflow-artifacts/presigned/a")
    send("DELETE", "logged-models/{model}")
    get("logged-models/{model}")
