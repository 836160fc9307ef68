"""Nothing that a client names leads out of the operator's folder, or makes a browser run what it uploaded."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.local_files import ArtifactRoot, safe_parts

PROXY = "/api/2.0/mlflow-artifacts/artifacts"
ESCAPES = [
    "../x", "a/../../x", "..", "%2e%2e/x", "a/%2e%2e/%2e%2e/x", "%252e%252e%252fx", "%25252e%25252e/x", "..%2fx",
    "..%5cx", "a%5c..%5cx", "a\\..\\x", "/etc/passwd", "%2fetc/passwd", "//etc/passwd", "C:/x", "c:x", "C%3a/x",
    "file:///etc/passwd", "file:x", "a%00b", "a%2500b", "a#b", "a%23b", "a%253fb", "a%3fb", "a;b", "a%3bb",
    ".uploads/x", "./.uploads/x", "%2euploads/x", "a%0ab", "x" * 300, "a/" * 3000,
]  # fmt: skip


HARMLESS = {"application/octet-stream", "text/plain", "application/pdf"}


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out(api, served, tmp_path, path):
    spelled = path.replace("\\", "%5c").replace("#", "%23")
    before = sorted(p for p in served.root.parent.rglob("*") if p.is_file() and ".everloop" not in p.parts)
    for method, body in (("PUT", b"evil"), ("GET", None), ("DELETE", b"")):
        got = api.send(method, f"{PROXY}/{spelled}", body)
        assert got.status in (400, 404), (method, got.status, got.body)
        assert b"root:" not in got.body
    after = sorted(p for p in served.root.parent.rglob("*") if p.is_file() and ".everloop" not in p.parts)
    assert before == after


@pytest.mark.parametrize("path", ["../x", "%2e%2e/x", "/etc", "C:/", "a\\b", "..%2f.."])
def test_no_listing_or_download_leads_out(api, path):
    run = api.run()
    for address, fields in (
        (PROXY, {"path": path}),
        ("artifacts/list", {"run_id": run, "path": path}),
        ("/get-artifact", {"run_id": run, "path": path}),
    ):
        got = api.call("GET", address, fields)
        assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), (address, got.body)


def test_symbolic_links_are_neither_followed_nor_listed(api, served, tmp_path):
    (tmp_path / "secret").write_text("s")
    folder = served.root / "links"
    folder.mkdir()
    (folder / "file").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    assert api.send("GET", f"{PROXY}/links/file").status == 400
    assert api.send("GET", f"{PROXY}/links/folder/secret").status == 400
    assert api.send("PUT", f"{PROXY}/links/folder/new", b"x").status == 400
    assert api.send("PUT", f"{PROXY}/links/file", b"x").status == 400
    assert api.get(PROXY, path="links") == {}
    assert (tmp_path / "secret").read_text() == "s"


@pytest.mark.parametrize(
    "place",
    [
        "/etc", "file:///etc", "../x", "mlflow-artifacts:/../x", "mlflow-artifacts:/%2e%2e/x", "s3://other/x",
        "mlflow-artifacts://host/x", "s3://allowed/../x", "s3://allowed/%2e%2e/x", "mlflow-artifacts:/a?b", "a#b",
        "http://127.0.0.1/x", "gs://x", "FILE:///etc", "file:/etc", "file:etc", "file://localhost/etc",
        "file://C:/x", "C:\\x",
        "\\\\host\\share", "//etc", "%2fetc", "%252fetc", "mlflow-artifacts:/a;b", "mlflow-artifacts:/a%00",
        "mlflow-artifacts:/a#b",
        "mlflow-artifacts:/%252e%252e/x", "mlflow-artifacts:/a\\..\\x", "mlflow-artifacts:/.uploads/x",
        "mlflow-artifacts:////etc",
        "mlflow-artifacts:/C:/x", "mlflow-artifacts:/file:x", "s3://allowed@evil/", "s3://allowed/..%2f..",
        "s3://allowed/%252e%252e/x",
        "s3://allowed/a?versionId=1", "s3://allowed/a#b", "s3://allowed/a;b", "s3://allowed\\x",
        "s3://allowed.evil/x", "s3:/allowed/x",
        "S3://ALLOWED/", " /etc", "dbfs:/x", "hdfs:///x", "ftp://h/x", "sftp://h/x", "models:/m/1", "runs:/x/y",
        "\x00", "s3://allowed/\x00",
    ],
)  # fmt: skip
def test_an_experiment_is_kept_only_where_the_operator_allows(api, place):
    got = api.call("POST", "experiments/create", {"name": f"placed {place}", "artifact_location": place})
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), got.body


def test_places_that_the_operator_allows(api):
    for name, place in (("bucket", "s3://allowed/team"), ("own", "mlflow-artifacts:/team")):
        made = api.post("experiments/create", name=name, artifact_location=place)["experiment_id"]
        assert api.get("experiments/get", experiment_id=made)["experiment"]["artifact_location"] == place


@pytest.mark.parametrize(
    "source",
    [
        "/etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc", "etc/passwd", "C:/x",
        "s3://b/../x", "s3://b/%2e%2e/x", "s3://b/%252e%252e/x", "mlflow-artifacts:/0/other", "s3://b/a\x00",
        "http://h/api/2.0/mlflow-artifacts/artifacts/0/x", "models:/nothing/1", "models:/x", "models://h/x/1",
        "runs:/other/m", "mlflow-artifacts://h/0", "models:/m-" + "0" * 32,
        "file:x", "file://localhost/etc/passwd", "file:////etc", "file:%2f%2fetc", "%2fetc%2fpasswd", "..", "../x",
        "./x", "a/../../x",
        "\\\\host\\share", "C:\\x", "~/x", "s3://b/a\\..\\x", "s3://b/%252e%252e%252fx", "s3://b/x?a=/../..",
        "s3://b/x#/../..", "mlflow-artifacts:/../x", "mlflow-artifacts:/%2e%2e/x", "mlflow-artifacts:/.uploads/x",
        "models:/../1", "models:/sourced/../../x", "models:/m-x/../..", "runs:/../x", "", " ", "\x00",
    ],
)  # fmt: skip
def test_a_version_has_no_source_elsewhere(api, source):
    api.call("POST", "registered-models/create", {"name": "sourced"})
    got = api.call("POST", "model-versions/create", {"name": "sourced", "source": source})
    assert got.status in (400, 404), got.body
    run = api.run()
    got = api.call("POST", "model-versions/create", {"name": "sourced", "source": source, "run_id": run})
    assert got.status in (400, 404), got.body


@pytest.mark.parametrize(
    "source", ["/etc/passwd", "file:///etc/passwd", "../x", "C:/x", "a/b", "s3://b/../x", "a b", ""]
)
@pytest.mark.parametrize("tag", ["mlflow.prompt.is_prompt"])
def test_no_tag_switches_the_check_of_a_source_off(api, source, tag):
    api.call("POST", "registered-models/create", {"name": "tagged"})
    tags = [{"key": tag, "value": "true"}]
    got = api.call("POST", "model-versions/create", {"name": "tagged", "source": source, "tags": tags})
    assert got.status == 400, got.body
    # What a prompt's own client sends is a word, and stays one when the tag is taken off.
    word = api.post("model-versions/create", name="tagged", source="prompt-template", tags=tags)["model_version"]
    api.call("DELETE", "model-versions/delete-tag", {"name": "tagged", "version": word["version"], "key": tag})
    said = api.get("model-versions/get-download-uri", name="tagged", version=word["version"])
    assert said["artifact_uri"] == "prompt-template"


@pytest.mark.parametrize(
    ("name", "fine"),
    [("a\nRUN evil", False), ("a\x1b[2J", False), ("a\u202eb", False), ("a\rb",
    False), ("x" * 257, False), ("x" * 256, True),
     ("<script>alert(1)</script>".replace("/", "|"), True), ("näme $(id) `id` \"'", True)],
)  # fmt: skip
def test_models_have_names_that_are_what_they_seem(api, name, fine):
    got = api.call("POST", "registered-models/create", {"name": name})
    assert got.status == (200 if fine else 400), got.body
    api.call("POST", "registered-models/create", {"name": "before"})
    if not fine:
        assert api.call("POST", "registered-models/rename", {"name": "before", "new_name": name}).status == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "registered-models/create", {"name": "long", "description": "x" * 50_001}),
        ("POST", "registered-models/create", {"name": "long", "tags": [{"key": "k" * 251, "value": ""}]}),
        ("POST", "registered-models/create", {"name": "long", "tags": [{"key": "k", "value": "v" * 100_001}]}),
        ("PATCH", "registered-models/update", {"name": "kept", "description": "x" * 50_001}),
        ("PATCH", "model-versions/update", {"name": "kept", "version": "1", "description": "x" * 50_001}),
        ("POST", "model-versions/create", {"name": "kept", "source": "s3://b/" + "x" * 3000}),
        ("POST", "model-versions/set-tag", {"name": "kept", "version": "1", "key": "k" * 251, "value": ""}),
        ("POST", "registered-models/alias", {"name": "kept", "version": "1", "alias": "a" * 256}),
        ("POST", "experiments/create", {"name": "x" * 501}),
        ("POST", "experiments/create", {"name": "far", "artifact_location": "mlflow-artifacts:/" + "x/" * 2000}),
    ],
)
def test_names_and_texts_have_an_end(api, method, path, body):
    api.call("POST", "registered-models/create", {"name": "kept"})
    api.call("POST", "model-versions/create", {"name": "kept", "source": "s3://b/x"})
    got = api.call(method, path, body)
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), got.body
    assert len(got.body) < 5000


@pytest.mark.parametrize(
    "part", ["..", "%2e%2e", "%252e%252e", "..%2f..", "a%00", "C%3a", "%2fetc", "file%3ax", "a%5cb", "*", "'--"]
)
@pytest.mark.parametrize(
    ("method", "template"),
    [
        ("GET", "runs/get?run_id={}"), ("GET", "artifacts/list?run_id={}&path="), ("GET", "logged-models/{}"),
        ("DELETE", "logged-models/{}"), ("PATCH", "logged-models/{}"), ("GET", "webhooks/{}"), ("DELETE",
        "webhooks/{}"),
        ("GET", "/get-artifact?run_id={}&path=x"), ("GET", "/model-versions/get-artifact?name={}&version=1&path=x"),
        ("GET", "/model-versions/get-artifact?name=m&version={}&path=x"), ("GET", "experiments/get?experiment_id={}"),
        ("GET", "/api/3.0/mlflow/traces/{}"), ("GET", "registered-models/alias?name=m&alias={}"),
    ],
)  # fmt: skip
def test_ids_lead_nowhere(api, method, template, part):
    got = api.call(method, template.format(part), {}) if method != "GET" else api.send("GET", _address(template, part))
    assert 400 <= got.status < 500, (got.status, got.body)
    assert b"root:" not in got.body


def _address(template, part):
    address = template.format(part)
    return address if address.startswith("/") else f"/api/2.0/mlflow/{address}"


@pytest.mark.parametrize("path", ESCAPES)
def test_no_upload_in_parts_or_link_leads_out(api, path):
    spelled = path.replace("\\", "%5c").replace("#", "%23")
    for verb in ("create", "complete", "abort"):
        got = api.send(
            "POST", f"/api/2.0/mlflow-artifacts/mpu/{verb}/{spelled}", b"{}", content_type="application/json"
        )
        assert got.status in (400, 404, 501), (verb, got.status, got.body)
    got = api.send("GET", f"/api/2.0/mlflow-artifacts/presigned/{spelled}")
    assert got.status in (400, 404, 501), got.body
    run = api.run()
    for verb in ("upload", "download"):
        got = api.call("POST", f"artifacts/presigned-{verb}-url", {"run_id": run, "path": path})
        assert got.status in (400, 404, 501), (verb, got.body)


@pytest.mark.parametrize(
    "name",
    [
        "x.svg",
        "x.html",
        "x.xhtml",
        "x.xml",
        "x.js",
        "x.mjs",
        "x.pdf",
        "x.swf",
        "x.css",
        "x.json",
        "x.htm\u202etxt",
        "x",
        "x.hta",
    ],
)
def test_no_kind_of_upload_is_rendered(api, name):
    run = api.run()
    spelled = quote(name)
    body = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    sent = {"content_type": "text/html"}
    assert api.send("PUT", f"{PROXY}/0/{run}/artifacts/{spelled}", body, **sent).status == 200
    for address in (f"{PROXY}/0/{run}/artifacts/{spelled}", f"/get-artifact?run_id={run}&path={spelled}"):
        for asked in ({}, {"accept": "text/html"}, {"range": "bytes=0-10"}):
            got = api.send("GET", address, **asked)
            assert got.status in (200, 206), got.body
            # Never a type that a browser runs; and none is shown in the server's own origin.
            assert got.headers["content-type"].partition(";")[0] in HARMLESS
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["content-disposition"].startswith("attachment")
            assert "\n" not in got.headers["content-disposition"]
            assert "sandbox" in got.headers["content-security-policy"]


def test_a_source_on_another_machine_is_refused_as_mlflow_does(api):
    api.call("POST", "registered-models/create", {"name": "sourced"})
    fields = {"name": "sourced", "source": "file://123.456.789.123/path", "run_id": api.run()}
    got = api.call("POST", "model-versions/create", fields)
    # The one input that is answered with 500: MLflow's own tests ask for it.
    assert (got.status, got.json["error_code"]) == (500, "INTERNAL_ERROR")
    assert "is not a valid remote uri" in got.json["message"]


def test_uploads_are_never_shown_as_pages(api):
    run = api.run()
    experiment = "0"
    api.send("PUT", f"{PROXY}/{experiment}/{run}/artifacts/page.html", b"<script>alert(1)</script>")
    for address in (f"{PROXY}/{experiment}/{run}/artifacts/page.html", f"/get-artifact?run_id={run}&path=page.html"):
        got = api.send("GET", address)
        assert got.status == 200
        assert got.headers["content-type"] == "application/octet-stream"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-disposition"].startswith("attachment")
        assert "sandbox" in got.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain"), ("MLmodel", "text/plain"), ("a.json", "text/plain"), ("a.js", "text/plain"),
        ("a.png", "image/png"), ("a.PDF", "application/pdf"), ("a.pkl", "application/octet-stream"),
        ("a.html", "application/octet-stream"), ("a.svg", "application/octet-stream"),
        ("a.xhtml", "application/octet-stream"), ("html", "application/octet-stream"),
        ("dog+step+100+timestamp+1795669561300+2f00b0c8-5c2e-4a7b-9a0e-0dcf5dbd53a1.png", "image/png"),
        ("dog%step%100%timestamp%1795669561300%t800b0c8-5c2e-4a7b-9a0e-0dcf5dbd53a1.png", "image/png"),
        ("dog%step%100%timestamp%1795669561300%002eb0c8-5c2e-4a7b-9a0e-0dcf5dbd53a1%compressed.webp", "image/webp"),
    ],
)  # fmt: skip
def test_files_are_told_by_their_names(api, name, kind):
    address = f"{PROXY}/kinds/{quote(name)}"
    assert api.send("PUT", address, b"<script>alert(1)</script>").status == 200
    got = api.send("GET", address, accept="text/html")
    assert got.headers["content-type"] == kind
    assert got.headers["content-disposition"] == f"attachment; filename={name}"
    assert "sandbox" in got.headers["content-security-policy"]


def test_a_name_cannot_end_its_header(api):
    got = api.send("PUT", f"{PROXY}/kinds/{quote('a b.txt')}", b"x")
    assert got.status == 200
    got = api.send("GET", f"{PROXY}/kinds/{quote('a b.txt')}")
    assert got.headers["content-disposition"] == 'attachment; filename="a b.txt"'
    for name in ('q"uote.txt', "ü.txt"):
        assert api.send("PUT", f"{PROXY}/kinds/{quote(name)}", b"x").status == 200
        said = api.send("GET", f"{PROXY}/kinds/{quote(name)}").headers["content-disposition"]
        assert said.startswith('attachment; filename="')
        assert said.endswith(f"; filename*=UTF-8''{quote(name)}")
        assert said.count('"') == 2


def test_a_folder_is_not_replaced_nor_a_file_entered(api):
    assert api.send("PUT", f"{PROXY}/kept/a", b"1").status == 200
    assert api.send("PUT", f"{PROXY}/kept", b"2").status == 400
    assert api.send("PUT", f"{PROXY}/kept/a/b", b"3").status == 400
    assert api.send("GET", f"{PROXY}/kept/a").body == b"1"


def test_names_with_signs_stay_names(tmp_path):
    root = ArtifactRoot(tmp_path / "a")
    assert safe_parts("a b/ü/100%.png") == ("a b", "ü", "100%.png")
    assert root.resolve("a/./b") == root.root / "a" / "b"
    with pytest.raises(MlflowError):
        root.resolve("%" + "25" * 30 + "2e")
