"""Files in parts, and by addresses that need no login: from this server, or from the bucket that keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from everloop.integrations.mlflow.tracking_api.approved_files import check_changeable
from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.artifact_location import invalid_path, safe_parts
from everloop.integrations.mlflow.tracking_api.files.artifact_proxy import (
    Receive,
    Scope,
    Send,
    answer,
    download,
    take,
    upload,
)
from everloop.integrations.mlflow.tracking_api.files.multipart_uploads import entity_tag
from everloop.integrations.mlflow.tracking_api.files.presigned_urls import LONGEST_S, PresignedUrl
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.logged_model_routes import find_logged_model
from everloop.integrations.mlflow.tracking_api.run_routes import find_run
from everloop.integrations.mlflow.tracking_api.serializers import artifact_uri
from everloop.integrations.mlflow.tracking_api.worker_threads import WorkerThreads

USUAL_S = 900
PARTS_S = 86_400
PROXY = "mlflow-artifacts:/"


def presign_upload(ask: HandlerContext) -> Mapping[str, Any]:
    run, model = ask.fields.text("run_id", required=False), ask.fields.text("model_id", required=False)
    path, seconds = _path(ask.fields.text("path")), _seconds(ask)
    if bool(run) == bool(model):
        raise MlflowError("Exactly one of run_id and model_id must be provided.")
    uri = artifact_uri(find_run(ask.store, run)) if run else find_logged_model(ask.store, model).artifacts_at
    folder, within = ask.artifacts.find(uri, path)
    folder.check(within)
    check_changeable(ask.store, ask.artifacts, folder, within)
    own = ask.seals.address(ask.origin, PresignedUrl("put", uri, path), seconds)
    return {"presigned_url": folder.address("PUT", within, seconds) or own, "headers": {}}


def presign_download(ask: HandlerContext) -> Mapping[str, Any]:
    run, path, seconds = ask.fields.text("run_id"), _path(ask.fields.text("path")), _seconds(ask)
    url, size = _download(ask, artifact_uri(find_run(ask.store, run)), path, seconds)
    return {"presigned_url": url, "headers": {}, "file_size": size}


def presign_proxied(ask: HandlerContext) -> Mapping[str, Any]:
    url, size = _download(ask, PROXY, _path(ask.path["path"]), USUAL_S)
    return {"url": url, "headers": {}, "file_size": size}


def begin_upload(ask: HandlerContext) -> Mapping[str, Any]:
    path, count = _destination(ask), ask.fields.integer("num_parts", 1)
    identity = ask.artifacts.uploads.begin(path, count)
    addresses = [
        ask.seals.address(ask.origin, PresignedUrl("part", identity, str(number)), PARTS_S)
        for number in range(1, count + 1)
    ]
    credentials = [{"url": url, "part_number": number, "headers": {}} for number, url in enumerate(addresses, 1)]
    return {"upload_id": identity, "credentials": credentials}


def complete_upload(ask: HandlerContext) -> Mapping[str, Any]:
    path, identity = _destination(ask), ask.fields.text("upload_id")
    parts = [(part.integer("part_number"), part.text("etag", required=False)) for part in ask.fields.objects("parts")]
    check_changeable(ask.store, ask.artifacts, ask.artifacts.proxied, path)
    ask.artifacts.uploads.complete(identity, path, parts)
    return {}


def abort_upload(ask: HandlerContext) -> Mapping[str, Any]:
    path, identity = _destination(ask), ask.fields.text("upload_id")
    ask.artifacts.uploads.abort(identity, path)
    return {}


async def use_address(ask: HandlerContext, scope: Scope, receive: Receive, send: Send, threads: WorkerThreads) -> None:
    """Do what the address of this request allows.

    Raises:
        MlflowError: it was not given by this server, or not for this.
    """
    allowed = ask.seals.opened(ask.fields)
    if scope["method"] != {"get": "GET", "put": "PUT", "part": "PUT"}[allowed.what]:
        raise MlflowError("This address allows something else.", "PERMISSION_DENIED")
    if allowed.what == "part":
        part = await threads.short(lambda: ask.artifacts.uploads.part(allowed.where, int(allowed.path)))
        await take(
            ask.artifacts.proxied.drafts(), partial(_keep_part, part), receive, quick=ask.artifacts.proxied.quick
        )
        await answer(send, 200, b"", headers=((b"etag", entity_tag(part).encode()),))
        return
    folder, within = ask.artifacts.find(allowed.where, allowed.path)
    if allowed.what == "get":
        await download(folder, within, scope, send)
    else:
        await threads.short(lambda: check_changeable(ask.store, ask.artifacts, folder, within))
        await upload(folder, within, receive)
        await answer(send, 200, b"")


def _keep_part(part: Path, draft: Path) -> None:
    draft.replace(part)


def _download(ask: HandlerContext, uri: str, path: str, seconds: int) -> tuple[str, int]:
    folder, within = ask.artifacts.find(uri, path)
    file = folder.open(within)
    file.close()
    own = ask.seals.address(ask.origin, PresignedUrl("get", uri, path), seconds)
    return folder.address("GET", within, seconds) or own, file.size_bytes


def _destination(ask: HandlerContext) -> str:
    """What an upload in parts will be called: the folder that is asked, and the last name of the client's own path."""
    name = re.split(r"[/\\]", ask.fields.text("path"))[-1]
    if name in ("", ".", ".."):
        raise invalid_path()
    return _path(f"{_path(ask.path['path']).rstrip('/')}/{name}")


def _path(path: str) -> str:
    if not safe_parts(path):
        raise invalid_path()
    return path


def _seconds(ask: HandlerContext) -> int:
    seconds = ask.fields.integer("expiration", USUAL_S)
    if not 1 <= seconds <= LONGEST_S:
        raise MlflowError(f"expiration must be between 1 and {LONGEST_S} seconds (got {seconds}).")
    return seconds


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/artifacts/presigned-upload-url", presign_upload, "write", slow=True),
    HandlerRoute("POST", "2.0/mlflow/artifacts/presigned-download-url", presign_download, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow-artifacts/presigned/{path}", presign_proxied, "read", slow=True),
    HandlerRoute("POST", "2.0/mlflow-artifacts/mpu/create/{path}", begin_upload, "write", slow=True),
    HandlerRoute("POST", "2.0/mlflow-artifacts/mpu/complete/{path}", complete_upload, "write", slow=True),
    HandlerRoute("POST", "2.0/mlflow-artifacts/mpu/abort/{path}", abort_upload, "write", slow=True),
)
