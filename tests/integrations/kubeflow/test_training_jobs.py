"""Training jobs and experiments of Katib run here as processes, and are recorded as runs."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest

from everloop.errors import StepError, UsageError
from everloop.integrations.kubeflow.katib_experiment import run_experiment
from everloop.integrations.kubeflow.training_jobs import metrics_in, read_manifest, replicas_of, run_job_manifest
from everloop.records import Run
from everloop.tracking import series_of

MEET = """
import os, socket
rank, port = int(os.environ["PET_NODE_RANK"]), int(os.environ["PET_MASTER_PORT"])
others = int(os.environ["PET_NNODES"]) - 1
if rank == 0:
    with socket.create_server((os.environ["PET_MASTER_ADDR"], port)) as server:
        seen = []
        for _ in range(others):
            connection, _ = server.accept()
            seen.append(connection.recv(10).decode())
    print("loss=0.5 accuracy=0.25")
    print(f"loss=2.5e-1, others={sum(map(int, seen))}")
else:
    import time
    while True:
        try:
            connection = socket.create_connection((os.environ["PET_MASTER_ADDR"], port))
            break
        except OSError:
            time.sleep(0.05)
    connection.sendall(str(rank).encode())
    print("loss=99")
"""


def train_job(script, nodes=1, **trainer):
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "train"},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "trainer": {"numNodes": nodes, "command": ["python3", "-c", script], **trainer},
        },
    }


def experiment(script, search="grid", **spec):
    words = ["python3", "-c", script, "${trialParameters.rate}", "${trialParameters.kind}"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {"template": {"spec": {"containers": [{"name": "main", "image": "x", "command": words}]}}},
    }
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {"name": "search"},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "loss"},
            "algorithm": {"algorithmName": search},
            "parallelTrialCount": 2,
            "parameters": [
                {"name": "lr", "parameterType": "double", "feasibleSpace": {"min": "0.1", "max": "0.4", "step": "0.1"}},
                {"name": "kind", "parameterType": "categorical", "feasibleSpace": {"list": ["a", "b"]}},
            ],
            "trialTemplate": {
                "trialParameters": [{"name": "rate", "reference": "lr"}, {"name": "kind", "reference": "kind"}],
                "trialSpec": job,
            },
            **spec,
        },
    }


def parameter(name, low, high):
    return {"name": name, "parameterType": "double", "feasibleSpace": {"min": low, "max": high}}


SCORE = "import sys; print('loss=%r' % (abs(float(sys.argv[1]) - 0.3) + (sys.argv[2] == 'a')))"


def test_replicas_of_a_train_job_find_each_other_and_the_first_one_is_measured(store):
    result = run_job_manifest(train_job(MEET, nodes=3), store)
    assert result.metrics == {"loss": [0.5, 0.25], "accuracy": [0.25], "others": [3.0]}
    run = store.records.get(Run, result.run)
    assert (run.name, run.state, run.tags["kubeflow.kind"]) == ("train", "finished", "TrainJob")
    assert run.metrics == {"loss": 0.25, "accuracy": 0.25, "others": 3.0}
    points = store.records.read_points(series_of(run.id))
    assert [(point.step, point.value) for point in points if point.key == "loss"] == [(0, 0.5), (1, 0.25)]


def test_a_pytorch_job_has_a_master_and_workers(store):
    def role(replicas):
        container = {"name": "pytorch", "command": ["python3", "-c", MEET]}
        return {"replicas": replicas, "template": {"spec": {"containers": [container]}}}

    manifest = {"kind": "PyTorchJob", "spec": {"pytorchReplicaSpecs": {"Worker": role(2), "Master": role(1)}}}
    assert run_job_manifest(manifest, store).metrics["others"] == [3.0]


def test_when_a_replica_fails_the_others_are_ended(store):
    script = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"
    with pytest.raises(StepError, match="'train-1' ended with code 3"):
        run_job_manifest(train_job(script, nodes=2), store)
    assert [run.state for run in store.records.find(Run)] == ["failed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": None}, "only in the image of the runtime 'torch-distributed'"),
        ({"numNodes": 0}, "'numNodes' is 0"),
        ({"numNodes": "two"}, "'numNodes' is 'two'"),
        ({"numNodes": 65}, "65 replicas"),
    ],
)
def test_a_job_that_cannot_run_here_says_why(store, changes, message):
    with pytest.raises(UsageError, match=message):
        run_job_manifest(train_job("", **changes), store)
    assert store.records.find(Run) == []


def test_a_variable_of_a_secret_is_named():
    manifest = experiment(SCORE)["spec"]["trialTemplate"]["trialSpec"]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {}}}]
    with pytest.raises(UsageError, match="'TOKEN' comes from Kubernetes"):
        replicas_of(manifest)


def test_a_grid_tries_every_combination_and_each_trial_is_a_run(store):
    result = run_experiment(experiment(SCORE), store)
    assert sorted((one.assignments["lr"], one.assignments["kind"]) for one in result.trials) == [
        (lr, kind) for lr in ("0.1", "0.2", "0.3", "0.4") for kind in "ab"
    ]
    assert result.best.assignments == {"lr": "0.3", "kind": "b"}
    assert result.best.value == pytest.approx(0.0, abs=1e-12)
    parent = store.records.get(Run, result.run)
    children = store.records.find(Run, ("parent", "=", parent.id))
    assert {child.id for child in children} == {one.run for one in result.trials}
    assert {child.state for child in children} == {"finished"}
    assert {(child.params["lr"], child.params["kind"]) for child in children} == {
        (one.assignments["lr"], one.assignments["kind"]) for one in result.trials
    }
    assert parent.tags["best.lr"] == "0.3"


def test_random_search_is_repeatable_and_ends_at_its_goal(store):
    manifest = experiment(SCORE, "random", maxTrialCount=5, parallelTrialCount=1)
    manifest["spec"]["parameters"][0]["feasibleSpace"] = {"min": "0.001", "max": "1", "distribution": "logUniform"}
    first, second = (run_experiment(copy.deepcopy(manifest), store) for _ in range(2))
    assert [one.assignments for one in first.trials] == [one.assignments for one in second.trials]
    assert len(first.trials) == 5
    assert all(0.001 <= float(one.assignments["lr"]) <= 1 for one in first.trials)
    assert len({one.assignments["lr"] for one in first.trials}) == 5
    manifest["spec"]["objective"]["goal"] = 100
    assert len(run_experiment(manifest, store).trials) == 1


def test_failed_trials_count(store):
    script = "import sys; print('loss=1') if sys.argv[2] == 'a' else sys.exit(1)"
    found = run_experiment(experiment(script, maxFailedTrialCount=4), store)
    assert sorted(one.value is None for one in found.trials) == [False] * 4 + [True] * 4
    with pytest.raises(StepError, match=r"trials of 'search' failed. The last: .*ended with code 1"):
        run_experiment(experiment(script, maxFailedTrialCount=1), store)
    with pytest.raises(StepError, match="has printed no 'loss'"):
        run_experiment(experiment("print('nothing')", maxFailedTrialCount=99), store)


@pytest.mark.slow
def test_a_trial_that_fails_does_not_end_those_beside_it(store):
    # Half of the trials fail while the one beside them is still running.
    script = "import sys, time; sys.exit(1) if sys.argv[2] == 'b' else time.sleep(0.4); print('loss=1')"
    found = run_experiment(experiment(script, maxFailedTrialCount=8), store)
    assert sorted((one.assignments["kind"], one.value) for one in found.trials if one.value) == [("a", 1.0)] * 4
    assert len(found.trials) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"algorithmName": "tpe"}}, "algorithm 'tpe' does not run here"),
        ({"objective": {}}, "no objective"),
        ({"parameters": []}, "no parameters"),
        ({"algorithm": {"algorithmName": "random"}}, "no end"),
        ({"metricsCollectorSpec": {"collector": {"kind": "TensorFlowEvent"}}}, "collector 'TensorFlowEvent'"),
        ({"parameters": [parameter("lr", "2", "1")]}, "a range from 2 to 1"),
        ({"parameters": [parameter("other", "1", "2")]}, "refers to 'lr', which is not a parameter"),
        ({"parameters": [parameter("lr", "0", "1")]}, "refers to 'kind', which is not a parameter"),
    ],
)
def test_an_experiment_that_cannot_run_here_says_why(store, changes, message):
    with pytest.raises(UsageError, match=message):
        run_experiment(experiment(SCORE, **changes), store)
    assert store.records.find(Run) == []


def test_metrics_are_found_as_katib_finds_them():
    text = "epoch 1: loss=0.5, val-acc = 1e-2\n{metric: x}\nloss=-.5 a|b=3 name=text\n"
    assert metrics_in(text) == {"loss": [0.5, -0.5], "val-acc": [0.01], "a|b": [3.0]}
    assert not math.isnan(metrics_in("x=1.")["x"][0])


@pytest.mark.slow
def test_the_command_line_runs_a_manifest(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps(experiment(SCORE)))
    assert read_manifest(path)["kind"] == "Experiment"
    command = [sys.executable, "-c", "from everloop.cli import main; main()", "run", str(path)]
    done = subprocess.run(
        [*command, "--home", str(tmp_path / "home"), "--json"],
        capture_output=True, text=True, check=True, env={**os.environ, "EVERLOOP_KEYS": str(tmp_path / "keys")},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["best"]["assignments"] == {"lr": "0.3", "kind": "b"}
    assert len(found["trials"]) == 8
