"""Where clients' files may be: behind the proxy, on a disk that they share with the server, or elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest

from everloop.integrations.mlflow.tracking_api import ArtifactLocations, ArtifactRoot
from everloop.integrations.mlflow.tracking_api.codec import MlflowError

pytestmark = pytest.mark.slow

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]
REFUSED = [
    "/etc",
    "file:///etc",
    "file:///etc/../etc",
    "../x",
    "a/../../x",
    "a/..%2f..%2fx",
    "a/%252e%252e/x",
    "a\\..\\x",
    "a\x00b",
    "file://elsewhere/x",
    "file:///tmp?x",
    "file:///tmp#x",
    "ftp://host/x",
    "s3://other/x",
    "s3://team/../other",
    "s3://teams/x",
    "C:\\x",
    "mlflow-artifacts:/../x",
    "mlflow-artifacts://host/x",
    "x" * 2049,
]


@pytest.fixture
def places(tmp_path):
    working = tmp_path / "working"
    working.mkdir()
    allowed = ["s3://team/", "shared"]
    return ArtifactLocations(ArtifactRoot(tmp_path / "proxied"), (tmp_path / "root").as_uri(), allowed, working)


def test_new_experiments_go_below_the_default(tmp_path, places):
    proxied = ArtifactRoot(tmp_path / "proxied")
    assert ArtifactLocations(proxied).of_experiment(7) == "mlflow-artifacts:/7"
    assert ArtifactLocations(proxied, "s3://bucket/team/").of_experiment(7) == "s3://bucket/team/7"
    assert ArtifactLocations(proxied, "runs", working=tmp_path).of_experiment(7) == f"{tmp_path}/runs/7"
    assert places.of_experiment(7) == f"file://{tmp_path}/root/7"


def test_a_relative_location_lies_below_the_working_folder(tmp_path, places):
    assert places.checked("my_location") == f"{tmp_path}/working/my_location"
    for same in (
        f"{tmp_path}/root/a",
        f"file://{tmp_path}/root/a%20b",
        f"{tmp_path}/working/a",
        f"{tmp_path}/working/shared/a",
        "s3://team/a",
        "mlflow-artifacts:/a/b",
    ):
        assert places.checked(same) == same


@pytest.mark.parametrize("uri", REFUSED)
def test_other_locations_are_refused(places, uri):
    with pytest.raises(MlflowError):
        places.checked(uri)


@pytest.mark.parametrize("uri", ["my_location", "/srv/x", "file:///srv/x", "s3://team/x"])
def test_nothing_is_allowed_unless_the_operator_says_so(tmp_path, uri):
    with pytest.raises(MlflowError, match="allow-artifact-root"):
        ArtifactLocations(ArtifactRoot(tmp_path / "proxied"), working=tmp_path).checked(uri)


def test_only_named_folders_are_read(tmp_path, places):
    folder, within = places.find(f"file://{tmp_path}/root/1/run/artifacts", "dir/file")
    assert (folder.root, within) == (tmp_path / "root", "1/run/artifacts/dir/file")
    folder, within = places.find("mlflow-artifacts:/1/run/artifacts")
    assert (folder.root, within) == (tmp_path / "proxied", "1/run/artifacts")
    # A relative location is its clients' own.
    for elsewhere in (f"{tmp_path}/working/x", f"{tmp_path}/rootless/x", "/etc", "s3://teams/x", "file://host/root/x"):
        with pytest.raises(MlflowError, match="This server does not store the files"):
            places.find(elsewhere, "file")
    folder, within = places.find(f"{tmp_path}/root/../../etc", "passwd")
    with pytest.raises(MlflowError, match="Invalid path"):
        folder.open(within)


def test_the_proxy_by_its_whole_address(tmp_path):
    address = "http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts"
    places = ArtifactLocations(ArtifactRoot(tmp_path / "proxied"), address, working=tmp_path)
    assert places.of_experiment(3) == f"{address}/3"
    folder, within = places.find(f"{address}/3/run/artifacts", "dir/file")
    assert (folder.root, within) == (tmp_path / "proxied", "3/run/artifacts/dir/file")
    for elsewhere in ("http://127.0.0.1:5000/other/3", "http://other/api/2.0/mlflow-artifacts/artifacts/3"):
        with pytest.raises(MlflowError, match="This server does not store the files"):
            places.find(elsewhere, "file")


@contextmanager
def server(folder, *arguments):
    command = [*EVERLOOP, "server", "--port", "0", "--home", str(folder / "home"), "--json", *arguments]
    environment = {**os.environ, "EVERLOOP_KEYS": str(folder / "keys")}
    with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True) as child:
        try:
            text = ""
            while not text.rstrip().endswith("}"):
                line = child.stdout.readline()
                assert line, text
                text += line
            yield json.loads(text)["url"]
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=20) == 0
        finally:
            child.kill()


def test_clients_on_the_same_disk_read_and_write_there_themselves(tmp_path, client_python):
    root = tmp_path / "art"
    with server(tmp_path, "--default-artifact-root", root.as_uri()) as url:
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(CLIENT))
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        command = [client_python, str(script), url, str(root), str(tmp_path)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CLIENT = """
    import json, sys
    from pathlib import Path
    from urllib.parse import urlencode
    from urllib.request import Request, urlopen
    from urllib.error import HTTPError

    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    url, root, working = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    client = MlflowClient(url)
    mlflow.set_tracking_uri(url)

    def said(address, body=None, **query):
        kind = {"Content-Type": "application/octet-stream"}
        request = Request(f"{url}{address}?{urlencode(query)}", data=body, headers=kind)
        with urlopen(request) as answer:
            return answer.read().decode()

    relative = client.create_experiment("relative", artifact_location="my_location")
    assert client.get_experiment(relative).artifact_location == str(working / "my_location")
    experiment = client.create_experiment("art")
    location = client.get_experiment(experiment).artifact_location
    assert location == f"{root.as_uri()}/{experiment}"
    assert client.get_experiment("0").artifact_location == f"{root.as_uri()}/0"

    run = client.create_run(experiment).info
    assert run.artifact_uri == f"{location}/{run.run_id}/artifacts"
    file = working / "my.file"
    file.write_text("Hello, World!")
    client.log_artifact(run.run_id, str(file))
    client.log_artifact(run.run_id, str(file), "dir")
    assert (root / experiment / run.run_id / "artifacts" / "dir" / "my.file").exists()
    assert {one.path for one in client.list_artifacts(run.run_id)} == {"my.file", "dir"}
    listed = json.loads(said("/api/2.0/mlflow/artifacts/list", run_id=run.run_id, path="dir"))
    assert listed["files"] == [{"path": "dir/my.file", "is_dir": False, "file_size": 13}]
    assert said("/get-artifact", run_uuid=run.run_id, path="dir/my.file") == "Hello, World!"
    said("/ajax-api/2.0/mlflow/upload-artifact", b"sent", run_uuid=run.run_id, path="up.txt")
    assert said("/get-artifact", run_uuid=run.run_id, path="up.txt") == "sent"
    for path, words in (("", "must specify path"), ("../x", "Invalid path"), ("/x", "Invalid path")):
        try:
            said("/ajax-api/2.0/mlflow/upload-artifact", b"x", run_uuid=run.run_id, path=path)
        except HTTPError as error:
            assert error.code == 400 and words in json.loads(error.read())["message"]
        else:
            raise AssertionError(path)

    client.create_registered_model("m")
    for source in ("", "/model", "/.", "/model/.."):
        client.create_model_version("m", run.artifact_uri + source, run.run_id)
    client.create_model_version("m", run.artifact_uri.removeprefix("file://"), run.run_id)
    for source, of in (
        (run.artifact_uri, None),
        (run.artifact_uri + "/../x", run.run_id),
        (run.artifact_uri + "/%2e%2e/x", run.run_id),
        (run.artifact_uri + "/%252e%252e/x", run.run_id),
        ("/tmp", run.run_id),
        ("file:///tmp", run.run_id),
        ("my.file", run.run_id),
    ):
        try:
            client.create_model_version("m", source, of)
        except MlflowException as error:
            assert "To use a local path as a model version source" in str(error), error
        else:
            raise AssertionError(source)

    from sklearn.linear_model import LogisticRegression

    mlflow.set_experiment("art")
    with mlflow.start_run():
        model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        logged = mlflow.sklearn.log_model(model, name="model", registered_model_name="whole")
    assert list(mlflow.pyfunc.load_model("models:/whole/1").predict([[0.0], [1.0]])) == [0, 1]
    address = f"/ajax-api/2.0/mlflow/logged-models/{logged.model_id}/artifacts"
    assert "MLmodel" in said(f"{address}/directories")
    assert logged.model_id in said(f"{address}/files", artifact_file_path="MLmodel")
"""
