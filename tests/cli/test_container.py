"""An image's entry points, run as processes with only the distributions that the image would have installed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from everloop.deploy.image_environment import port_of
from everloop.deploy.image_serving import find_model
from everloop.deploy.image_training import hyperparameters
from everloop.deploy.images import write_context
from everloop.errors import NotFoundError, UsageError
from everloop.packages import build_package
from everloop.prediction_log.segment_stores import open_segments
from everloop.registry import export_package, load_model, register
from everloop.stores import open_store
from everloop.testing.models import sample_rows, sample_table, train_sample


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The contents of an image: a build context, and a folder with only the distributions of its requirements."""
    folder = tmp_path_factory.mktemp("image")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "home", create=True) as store:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        version = register(store, "delays", build_package(train_sample("lightgbm"), store=store, sample=sample_table()))
        made = write_context(store, version.key, folder / "context", train=True)
        export_package(store, version.key, folder / "exported")
    site = folder / "site"
    site.mkdir()
    for line in made.distributions:
        found = distribution(line.partition("==")[0])
        base = Path(found.locate_file(""))
        for top in {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(base / top)
    return folder


def environment(image, root, **more):
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{image / 'context'}{os.pathsep}{image / 'site'}",
        "TMPDIR": str(root / "tmp"),
        "EVERLOOP_IMAGE": str(image / "context"),
        "EVERLOOP_CONTAINER_ROOT": str(root),
        "EVERLOOP_MODEL": "delays",
        "EVERLOOP_HOST": "127.0.0.1",
        "EVERLOOP_LOG": "none",
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
        **more,
    }


# Without site-packages, so that only the image's distributions are found.
ENTRY = [sys.executable, "-S", "-m", "everloop.cli.container"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def send(url, body=None):
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def serving(arguments, env, port):
    with subprocess.Popen([*ENTRY, "serve", *arguments], env=env, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr.read().decode()
                    time.sleep(0.05)
            yield
            # What a platform does before it takes the container away; it waits 30 seconds.
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


PLATFORMS = {
    "sagemaker": ("SAGEMAKER_BIND_TO_PORT", "opt/ml/model", {}, "/ping", "/invocations"),
    "vertex": (
        "AIP_HTTP_PORT",
        "vertex",
        {"AIP_HEALTH_ROUTE": "/well", "AIP_PREDICT_ROUTE": "/ask", "AIP_STORAGE_URI": "{root}/vertex"},
        "/well",
        "/ask",
    ),
    "azure": ("PORT", "azure/delays/7", {"AZUREML_MODEL_DIR": "{root}/azure/delays"}, "/", "/score"),
    # With nothing installed but what the image holds, a log can be shipped as well.
    "kserve": (None, "mnt/models", {"EVERLOOP_LOG": "{root}/log"}, "/v1/models/delays", "/v1/models/delays:predict"),
}


@pytest.mark.slow
@pytest.mark.parametrize("platform", sorted(PLATFORMS))
def test_serve_as_the_platform_asks(image, tmp_path, platform):
    variable, mounted, more, health, predict = PLATFORMS[platform]
    place = tmp_path / mounted
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(image / "exported")
    port = free_port()
    env = environment(image, tmp_path, **{name: value.format(root=tmp_path) for name, value in more.items()})
    if variable:
        env[variable] = str(port)
    arguments = [] if variable else ["--http_port", str(port), "--model_name", "delays"]
    with serving(arguments, env, port):
        url = f"http://127.0.0.1:{port}"
        assert send(url + health)[0] == 200
        rows = sample_rows(3)
        body = json.dumps({"instances": rows}, default=str).encode()
        status, answer = send(url + predict, body)
        assert status == 200
        found = json.loads(answer)
        wanted = train_sample("lightgbm").predict_scores(sample_table().head(3))
        np.testing.assert_array_equal(found["probabilities"], wanted)
        assert send(url + predict, b'{"instances": [{"nonsense": 1}]}')[0] == 400
    if env["EVERLOOP_LOG"] != "none":
        assert len(open_segments(env["EVERLOOP_LOG"]).find("predictions@default@delays-1")) == 1


@pytest.mark.slow
def test_train_and_serve_what_was_trained(image, tmp_path):
    table = sample_table(300)
    for name, rows in (("train", table.head(200)), ("validation", table.tail(100))):
        channel = tmp_path / "opt/ml/input/data" / name
        channel.mkdir(parents=True)
        rows.head(120).write_csv(channel / "a.csv")
        rows.slice(120).write_csv(channel / "b.csv")
    config = tmp_path / "opt/ml/input/config"
    config.mkdir()
    (config / "hyperparameters.json").write_text('{"sagemaker_region": "\\"x\\"", "target": "late"}')
    model = tmp_path / "opt/ml/model"
    model.mkdir(parents=True)
    env = environment(image, tmp_path)
    done = subprocess.run([*ENTRY, "train"], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    metrics = dict(line.split("=") for line in done.stdout.split())
    assert 0.5 < float(metrics["roc_auc"]) <= 1.0
    trained = load_model(model)
    assert trained.manifest.target == "late"
    # The recipe of the image's own package, on new rows.
    assert trained.manifest.training["recipe"]["algorithm"] == "lightgbm"
    assert find_model(tmp_path, {"EVERLOOP_CONTAINER_ROOT": str(tmp_path)}) == model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ('{"target": "nonsense"}', "nonsense"),
        ('{"depth": "3"}', "no hyperparameter 'depth'"),
        ('{"target": "late", "budget_s": "-1"}', "budget_s"),
        ("{", "not valid JSON"),
    ],
)
def test_training_that_fails_says_why_where_it_is_looked_for(image, tmp_path, hyper, message):
    channel = tmp_path / "opt/ml/input/data/train"
    channel.mkdir(parents=True)
    sample_table(50).write_parquet(channel / "rows.parquet")
    config = tmp_path / "opt/ml/input/config"
    config.mkdir()
    (config / "hyperparameters.json").write_text(hyper)
    env = environment(image, tmp_path)
    done = subprocess.run([*ENTRY, "train"], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert message in (tmp_path / "opt/ml/output/failure").read_text()


@pytest.mark.slow
def test_nothing_to_serve_and_nothing_to_learn_from(image, tmp_path):
    env = environment(image, tmp_path, EVERLOOP_IMAGE=str(tmp_path))
    for verb in ("serve", "train"):
        done = subprocess.run([*ENTRY, verb], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == NotFoundError.exit_code
        assert "There is no" in done.stderr


def test_ports_and_hyperparameters(tmp_path):
    assert port_of({}) == 8080
    assert port_of({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2", "AIP_HTTP_PORT": "3"}) == 3
    assert port_of({"PORT": "1", "SAGEMAKER_BIND_TO_PORT": "2"}) == 2
    with pytest.raises(UsageError, match=r"\$PORT"):
        port_of({"PORT": "eighty"})
    assert hyperparameters(tmp_path, ["seed=3", "metric=log_loss"]) == {"seed": 3, "metric": "log_loss"}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        hyperparameters(tmp_path, ["seed"])
