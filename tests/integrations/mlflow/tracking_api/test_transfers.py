"""Files in parts, addresses that need no login, and buckets behind the proxy."""

from __future__ import annotations

import os
import subprocess
import textwrap
import urllib.error
import urllib.request
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from everloop.integrations.mlflow.tracking_api import ArtifactLocations, ArtifactRoot
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError
from everloop.integrations.mlflow.tracking_api.files.bucket_files import ArtifactBucket
from everloop.integrations.mlflow.tracking_api.files.multipart_uploads import Uploads
from everloop.integrations.mlflow.tracking_api.files.presigned_urls import PresignedUrl, PresignedUrls
from everloop.server.access import UserStore
from everloop.server.server_options import ServerOptions

MPU = "/api/2.0/mlflow-artifacts/mpu"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


def ask(url, method="GET", body=None, **headers):
    """Status, body and headers of a request without a login."""
    request = urllib.request.Request(url, body, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def begin(api, path, parts):
    folder, _, name = path.rpartition("/")
    got = api.call("POST", f"{MPU}/create/{folder}", {"path": f"/home/me/{name}", "num_parts": parts})
    assert got.status == 200, got.body
    return got.json["upload_id"], [one["url"] for one in got.json["credentials"]]


def test_parts_become_one_file(api, served):
    upload, urls = begin(api, "big/file.bin", 3)
    sent = [bytes([n]) * 100_000 for n in range(3)]
    # In no order, and one of them twice.
    tags = {}
    for number in (2, 0, 1, 1):
        status, _, headers = ask(urls[number], "PUT", sent[number])
        assert status == 200
        tags[number] = headers["etag"]
    named = [{"part_number": n + 1, "etag": tags[n], "url": urls[n]} for n in range(3)]
    for _ in range(2):
        got = api.call("POST", f"{MPU}/complete/big", {"path": "file.bin", "upload_id": upload, "parts": named})
        assert (got.status, got.json) == (200, {})
    assert api.send("GET", f"{PROXY}/big/file.bin").body == b"".join(sent)
    assert api.call("POST", f"{MPU}/abort/big", {"path": "a/file.bin", "upload_id": upload}).status == 200
    assert api.call("POST", f"{MPU}/abort/big", {"path": "a/file.bin", "upload_id": upload}).status == 404
    assert not (served.root / ".uploads" / upload).exists()


def test_what_does_not_fit_is_refused_and_nothing_is_lost(api):
    upload, urls = begin(api, "parts/f", 2)
    _, _, headers = ask(urls[0], "PUT", b"one")
    first = {"part_number": 1, "etag": headers["etag"]}

    def complete(parts, name="f", identity=upload):
        got = api.call("POST", f"{MPU}/complete/parts", {"path": name, "upload_id": identity, "parts": parts})
        return got.status, got.json.get("message", "")

    assert complete([first])[1].startswith("'parts' must list the parts 1 to 2, each once")
    assert complete([first, first])[1].startswith("'parts' must list the parts 1 to 2, each once")
    assert complete([first, {"part_number": 2, "etag": "x"}]) == (400, "Part 2 has not been uploaded.")
    ask(urls[1], "PUT", b"two")
    assert "does not have the ETag" in complete([first, {"part_number": 2, "etag": '"other"'}])[1]
    assert complete([first, {"part_number": 2}], name="other")[0] == 404
    for identity in ("../x", "0" * 36, "%2e%2e", "a" * 3000, ""):
        assert complete([first], identity=identity)[0] in (400, 404)
    for wrong in ("a", {}, [1], [{"part_number": "x"}]):
        assert complete(wrong)[0] == 400
    assert complete([first, {"part_number": 2, "etag": ""}])[0] == 200
    assert api.send("GET", f"{PROXY}/parts/f").body == b"onetwo"
    for parts in (0, -1, 10_001, "x", 1.5):
        assert api.call("POST", f"{MPU}/create/parts", {"path": "g", "num_parts": parts}).status == 400
    for name in ("", "..", "a/..", "a\\..", "x\x00", "C:\\", "%2e%2e", "a" * 300):
        assert api.call("POST", f"{MPU}/create/parts", {"path": name, "num_parts": 1}).status == 400, name
    for path in ("..%2fx", ".uploads/x", "a%5cb", "a/../../x"):
        assert api.call("POST", f"{MPU}/create/{path}", {"path": "f", "num_parts": 1}).status == 400
        assert api.call("GET", f"/api/2.0/mlflow-artifacts/presigned/{path}").status == 400


def test_an_address_allows_one_thing(api):
    api.send("PUT", f"{PROXY}/shown/a.txt", b"0123456789")
    api.send("PUT", f"{PROXY}/shown/b.txt", b"secret")
    given = api.get("/api/2.0/mlflow-artifacts/presigned/shown/a.txt")
    assert given["file_size"] == 10
    assert ask(given["url"])[1] == b"0123456789"
    assert ask(given["url"], range="bytes=2-4")[:2] == (206, b"234")
    assert ask(given["url"], "PUT", b"x")[0] == 403
    assert ask(given["url"], "DELETE")[0] in (403, 405)
    query = dict(parse_qsl(urlsplit(given["url"]).query))
    for name, value in (
        ("path", "shown/b.txt"),
        ("what", "put"),
        ("what", "part"),
        ("where", "file:///etc"),
        ("until", str(int(query["until"]) + 1)),
        ("until", "x"),
        ("seal", ""),
        ("seal", query["seal"][:-1]),
        ("seal", "ä"),
    ):
        changed = given["url"].partition("?")[0] + "?" + urlencode({**query, name: value})
        status, body, _ = ask(changed)
        assert status in (400, 403), (name, value)
        assert b"secret" not in body
    assert api.call("GET", "/api/2.0/mlflow-artifacts/presigned/shown/none").status == 404


def test_an_address_ends():
    seals = PresignedUrls()

    def opened(seals, address):
        return seals.verified(Fields.of_query(urlsplit(address).query.encode()))

    allowed = PresignedUrl("get", "mlflow-artifacts:/", "a")
    assert opened(seals, seals.create("http://h", allowed, 5)) == allowed
    with pytest.raises(MlflowError, match="presigned URL has expired"):
        opened(seals, seals.create("http://h", allowed, -1))
    with pytest.raises(MlflowError, match="signature of this presigned URL is not valid"):
        opened(PresignedUrls(), seals.create("http://h", allowed, 5))


def test_addresses_of_runs_and_models(api):
    run = api.run()
    put = api.post("artifacts/presigned-upload-url", run_id=run, path="dir/a.bin", expiration=60)
    assert ask(put["presigned_url"], "PUT", b"sent")[0] == 200
    got = api.post("artifacts/presigned-download-url", run_id=run, path="dir/a.bin")
    assert (got["file_size"], ask(got["presigned_url"])[1]) == (4, b"sent")
    model = api.post("logged-models", experiment_id="0", name="m")["model"]["info"]["model_id"]
    put = api.post("artifacts/presigned-upload-url", model_id=model, path="MLmodel")
    assert ask(put["presigned_url"], "PUT", b"yaml")[0] == 200
    listed = api.get(f"logged-models/{model}/artifacts/directories")
    assert [one["path"] for one in listed["files"]] == ["MLmodel"]
    for fields in (
        {"run_id": run, "model_id": model},
        {},
        {"run_id": run, "path": "../x"},
        {"run_id": run, "path": ""},
    ):
        assert api.call("POST", "artifacts/presigned-upload-url", {"path": "a", **fields}).status == 400
    for seconds in (0, 604_801, -5, "x"):
        fields = {"run_id": run, "path": "dir/a.bin", "expiration": seconds}
        assert api.call("POST", "artifacts/presigned-download-url", fields).status == 400


@pytest.mark.slow
def test_behind_a_login_an_address_is_enough_and_nothing_else(store):
    from tests.fixtures.control_plane import serving

    UserStore(store).add_user("ada", {"*": "admin"}, "a long enough password")
    with serving(store, ServerOptions(public_url="https://ml.example.com"), auth=True) as control:
        import base64

        login = "Basic " + base64.b64encode(b"ada:a long enough password").decode()
        assert control.request("PUT", f"{PROXY}/a.txt", b"told", authorization=login).status == 200
        given = control.request("GET", "/api/2.0/mlflow-artifacts/presigned/a.txt", authorization=login).json
        assert given["url"].startswith("https://ml.example.com/signed-artifacts?")
        query = urlsplit(given["url"]).query
        assert control.request("GET", f"/signed-artifacts?{query}").body == b"told"
        for path in ("/api/2.0/mlflow-artifacts/presigned/a.txt", f"{PROXY}/a.txt"):
            assert control.request("GET", path).status == 401
        for query in ("", "what=get&where=mlflow-artifacts:/&path=a.txt&until=99999999999&seal=" + "0" * 64):
            assert control.request("GET", f"/signed-artifacts?{query}").status in (400, 403)


@pytest.mark.slow
def test_a_client_sends_and_fetches_in_parts(served, client_python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(CLIENT))
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "1000000",
        "MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE": "1000000",
        "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": "5300000",
        "MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE": "1300000",
    }
    command = [client_python, str(script), served.url, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Falling back" not in done.stderr


CLIENT = """
    import os, sys
    from pathlib import Path
    import mlflow
    from mlflow import MlflowClient
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository as Repository

    url, folder = sys.argv[1], Path(sys.argv[2])
    mlflow.set_tracking_uri(url)
    sent = []
    whole = Repository._upload_part
    Repository._upload_part = staticmethod(lambda *a, **k: (sent.append(1), whole(*a, **k))[1])
    client = MlflowClient(url)
    run = client.create_run("0").info.run_id
    file = folder / "big file.bin"
    file.write_bytes(os.urandom(12_000_000))
    client.log_artifact(run, str(file), "dir")
    assert len(sent) == 3, sent
    back = Path(client.download_artifacts(run, "dir/big file.bin", str(folder)))
    assert back.read_bytes() == file.read_bytes()
"""


def test_abandoned_uploads_are_swept(tmp_path):
    root = ArtifactRoot(tmp_path / "a")
    uploads = Uploads(root)
    old, new = uploads.begin("old", 1), uploads.begin("new", 1)
    (root.drafts() / "draft").write_bytes(b"x")
    for name in (old, "draft"):
        os.utime(root.drafts() / name, (0, 0))
    ArtifactLocations(root).sweep(60)
    assert [one.name for one in root.drafts().iterdir()] == [new]


@pytest.fixture
def bucket(s3):
    import boto3

    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    client.create_bucket(Bucket="models")
    yield client
    for one in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=one["Key"])
    client.delete_bucket(Bucket="models")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket_does_what_a_folder_does(bucket, tmp_path):
    folder = ArtifactBucket("s3://models/team", tmp_path / "drafts")
    for path, body in (("a/b c.txt", b"0123456789"), ("a/ü.bin", b"x" * 3_000_000), ("top", b"")):
        draft = folder.drafts() / "draft"
        draft.write_bytes(body)
        folder.keep(draft, path)
        assert not draft.exists()
        file = folder.open(path)
        assert file.size_bytes == len(body)
        assert body == b"" or file.read(0, len(body)) == body
    assert folder.open("a/b c.txt").read(2, 3) == b"234"
    assert [(one.name, one.is_dir, one.size_bytes) for one in folder.list("")] == [("a", True, 0), ("top", False, 0)]
    assert [one.name for one in folder.list("a")] == ["b c.txt", "ü.bin"]
    assert folder.list("none") == []
    assert (folder.on_disk("a") / "b c.txt").read_bytes() == b"0123456789"
    assert ask(folder.presigned_url("GET", "a/b c.txt", 60))[1] == b"0123456789"
    folder.delete("a")
    assert [one.name for one in folder.list("")] == ["top"]
    folder.delete("top")
    folder.delete("none")
    assert folder.list("") == []
    for path in ("", "../x", "a/%2e%2e/x", "/x", ".uploads/x"):
        with pytest.raises(MlflowError, match="Invalid path"):
            folder.check(path)
    with pytest.raises(MlflowError, match="No such artifact"):
        folder.open("none")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_server_keeps_files_in_a_bucket(bucket, store):
    from tests.fixtures.control_plane import serving

    options = ServerOptions(artifacts_destination="s3://models/proxied", default_artifact_root="s3://models/direct")
    with serving(store, options) as control:
        body = os.urandom(3_000_000)
        assert control.request("PUT", f"{PROXY}/1/big", body).status == 200
        assert control.request("GET", f"{PROXY}/1/big").body == body
        assert control.request("GET", f"{PROXY}/1/big", range="bytes=5-9").body == body[5:10]
        (listed,) = control.request("GET", f"{PROXY}?path=1").json["files"]
        assert listed == {"path": "big", "is_dir": False, "file_size": len(body)}
        given = control.request("GET", "/api/2.0/mlflow-artifacts/presigned/1/big").json
        assert "X-Amz-Signature" in given["url"]
        assert ask(given["url"])[1] == body
        assert control.request("DELETE", f"{PROXY}/1/big").status == 200
        assert control.request("GET", f"{PROXY}/1/big").status == 404

        run = control.request("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0"}).json["run"]["info"]
        assert run["artifact_uri"] == f"s3://models/direct/0/{run['run_id']}/artifacts"
        bucket.put_object(Bucket="models", Key=f"direct/0/{run['run_id']}/artifacts/own.txt", Body=b"by the client")
        (listed,) = control.request("GET", f"/api/2.0/mlflow/artifacts/list?run_id={run['run_id']}").json["files"]
        assert listed == {"path": "own.txt", "is_dir": False, "file_size": 13}
        assert control.request("GET", f"/get-artifact?run_id={run['run_id']}&path=own.txt").body == b"by the client"
        fields = {"run_id": run["run_id"], "path": "signed.txt"}
        given = control.request("POST", "/api/2.0/mlflow/artifacts/presigned-upload-url", fields).json
        assert ask(given["presigned_url"], "PUT", b"signed", content_type="application/octet-stream")[0] == 200
        assert control.request("GET", f"/get-artifact?run_id={run['run_id']}&path=signed.txt").body == b"signed"
