"""Which datasets runs have read: each once with what it was for, of the experiments that are asked for."""

from __future__ import annotations

import pytest

from everloop.integrations.mlflow.tracking_api.web_page import dataset_summaries

PATHS = [
    f"/{root}/{path}/experiments/search-datasets"
    for root in ("api", "ajax-api")
    for path in ("2.0/mlflow", "2.0mlflow")
]


def _read(api, run, name, context=None):
    tags = [{"key": "mlflow.data.context", "value": context}] if context else []
    data = {"name": name, "digest": f"{name}-1", "source_type": "local", "source": "s", "profile": "large"}
    api.post("runs/log-inputs", run_id=run, datasets=[{"dataset": data, "tags": tags}])


@pytest.mark.parametrize("path", PATHS)
def test_each_dataset_once_for_each_use(api, path):
    experiment = api.post("experiments/create", name=path.replace("/", " "))["experiment_id"]
    for context in ("train", "train", "test", None):
        _read(api, api.run(experiment), "flights", context)
    put_away = api.run(experiment)
    _read(api, put_away, "weather")
    api.post("runs/delete", run_id=put_away)
    told = api.post(path, experiment_ids=[experiment])["dataset_summaries"]
    of_flights = {"experiment_id": experiment, "name": "flights", "digest": "flights-1"}
    of_weather = {"experiment_id": experiment, "name": "weather", "digest": "weather-1"}
    uses = [{**of_flights, "context": context} for context in ("train", "test")]
    assert told == [*uses, of_flights, of_weather]


def test_runs_of_no_experiment_belong_to_the_default_one(api, served):
    from everloop.tracking import start_run

    with start_run(store=served.store, name="a script's"):
        pass
    _read(api, api.run("0"), "weather", "eval")
    told = api.post("experiments/search-datasets", experiment_ids=["0"])["dataset_summaries"]
    assert {"experiment_id": "0", "name": "weather", "digest": "weather-1", "context": "eval"} in told
    other = api.post("experiments/create", name="without data")["experiment_id"]
    assert api.post("experiments/search-datasets", experiment_ids=[other]) == {}


def test_lists_end_and_are_read_in_parts(api, monkeypatch):
    experiment = api.post("experiments/create", name="many data")["experiment_id"]
    for number in range(7):
        _read(api, api.run(experiment), f"d{number}")
    monkeypatch.setattr(dataset_summaries, "_PER_READ", 2)
    told = api.post("experiments/search-datasets", experiment_ids=[experiment])["dataset_summaries"]
    assert [one["name"] for one in told] == [f"d{number}" for number in range(7)]
    monkeypatch.setattr(dataset_summaries, "MOST", 3)
    told = api.post("experiments/search-datasets", experiment_ids=[experiment])["dataset_summaries"]
    assert [one["name"] for one in told] == ["d0", "d1", "d2"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "SearchDatasets request must specify at least one experiment_id."),
        ({"experiment_ids": []}, "SearchDatasets request must specify at least one experiment_id."),
        (
            {"experiment_ids": ["0"] * 21},
            "SearchDatasets request cannot specify more than 20 experiment_ids. Received 21 experiment_ids.",
        ),
        ({"experiment_ids": ["x"]}, "Invalid experiment ID 'x'. Experiment ID must be a valid integer."),
        ({"experiment_ids": "0"}, "Invalid value"),
        ({"experiment_ids": [0]}, "Invalid value"),
    ],
)
def test_what_is_refused_is_refused_in_mlflows_words(api, fields, says):
    got = api.call("POST", "experiments/search-datasets", fields)
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert got.json["message"].startswith(says)
