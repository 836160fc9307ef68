"""Routes for uploads in parts, and for presigned URLs of this server or of the bucket that stores a file."""

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
    download,
    receive_file,
    send_response,
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


def presign_upload(context: HandlerContext) -> Mapping[str, Any]:
    run, model = context.fields.text("run_id", required=False), context.fields.text("model_id", required=False)
    path, seconds = _path(context.fields.text("path")), _seconds(context)
    if bool(run) == bool(model):
        raise MlflowError("Exactly one of run_id and model_id must be provided.")
    uri = artifact_uri(find_run(context.store, run)) if run else find_logged_model(context.store, model).artifacts_at
    folder, within = context.artifacts.find(uri, path)
    folder.check(within)
    check_changeable(context.store, context.artifacts, folder, within)
    server_url = context.presigned_urls.create(context.origin, PresignedUrl("put", uri, path), seconds)
    return {"presigned_url": folder.presigned_url("PUT", within, seconds) or server_url, "headers": {}}


def presign_download(context: HandlerContext) -> Mapping[str, Any]:
    run, path, seconds = context.fields.text("run_id"), _path(context.fields.text("path")), _seconds(context)
    url, size = _download(context, artifact_uri(find_run(context.store, run)), path, seconds)
    return {"presigned_url": url, "headers": {}, "file_size": size}


def presign_proxied(context: HandlerContext) -> Mapping[str, Any]:
    url, size = _download(context, PROXY, _path(context.path["path"]), USUAL_S)
    return {"url": url, "headers": {}, "file_size": size}


def begin_upload(context: HandlerContext) -> Mapping[str, Any]:
    path, count = _destination(context), context.fields.integer("num_parts", 1)
    upload_id = context.artifacts.uploads.begin(path, count)
    urls = [
        context.presigned_urls.create(context.origin, PresignedUrl("part", upload_id, str(number)), PARTS_S)
        for number in range(1, count + 1)
    ]
    credentials = [{"url": url, "part_number": number, "headers": {}} for number, url in enumerate(urls, 1)]
    return {"upload_id": upload_id, "credentials": credentials}


def complete_upload(context: HandlerContext) -> Mapping[str, Any]:
    path, upload_id = _destination(context), context.fields.text("upload_id")
    parts = [
        (part.integer("part_number"), part.text("etag", required=False)) for part in context.fields.objects("parts")
    ]
    check_changeable(context.store, context.artifacts, context.artifacts.proxied, path)
    context.artifacts.uploads.complete(upload_id, path, parts)
    return {}


def abort_upload(context: HandlerContext) -> Mapping[str, Any]:
    path, upload_id = _destination(context), context.fields.text("upload_id")
    context.artifacts.uploads.abort(upload_id, path)
    return {}


async def use_presigned_url(
    context: HandlerContext, scope: Scope, receive: Receive, send: Send, threads: WorkerThreads
) -> None:
    """Upload or download what the presigned URL of this request allows.

    Raises:
        MlflowError: the URL is not valid, or not for this method.
    """
    allowed = context.presigned_urls.verified(context.fields)
    if scope["method"] != {"get": "GET", "put": "PUT", "part": "PUT"}[allowed.what]:
        raise MlflowError("This presigned URL is for another method.", "PERMISSION_DENIED")
    if allowed.what == "part":
        part = await threads.short(lambda: context.artifacts.uploads.part(allowed.where, int(allowed.path)))
        await receive_file(
            context.artifacts.proxied.drafts(),
            partial(_keep_part, part),
            receive,
            quick=context.artifacts.proxied.quick,
        )
        await send_response(send, 200, b"", headers=((b"etag", entity_tag(part).encode()),))
        return
    folder, within = context.artifacts.find(allowed.where, allowed.path)
    if allowed.what == "get":
        await download(folder, within, scope, send)
    else:
        await threads.short(lambda: check_changeable(context.store, context.artifacts, folder, within))
        await upload(folder, within, receive)
        await send_response(send, 200, b"")


def _keep_part(part: Path, draft: Path) -> None:
    draft.replace(part)


def _download(context: HandlerContext, uri: str, path: str, seconds: int) -> tuple[str, int]:
    folder, within = context.artifacts.find(uri, path)
    file = folder.open(within)
    file.close()
    server_url = context.presigned_urls.create(context.origin, PresignedUrl("get", uri, path), seconds)
    return folder.presigned_url("GET", within, seconds) or server_url, file.size_bytes


def _destination(context: HandlerContext) -> str:
    """Return the path of an upload in parts: the requested folder, and the last part of the client's local path."""
    name = re.split(r"[/\\]", context.fields.text("path"))[-1]
    if name in ("", ".", ".."):
        raise invalid_path()
    return _path(f"{_path(context.path['path']).rstrip('/')}/{name}")


def _path(path: str) -> str:
    if not safe_parts(path):
        raise invalid_path()
    return path


def _seconds(context: HandlerContext) -> int:
    seconds = context.fields.integer("expiration", USUAL_S)
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
