"""What an artifact of a run contains: a preview of it by type, and its bytes with headers that make them harmless.

Nothing that is stored here is trusted. A pickle is never loaded. Bytes are sent with a content security policy that
gives them an origin of their own, without scripts; pictures are shown by `<img>`, where the scripts of an SVG do not
run, and HTML is shown as its source.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop.errors import DataError, NotFoundError
from everloop.records import Artifact, Json

if TYPE_CHECKING:
    from everloop.stores import Store

Kind = Literal["text", "json", "html", "image", "table", "folder", "none"]

MOST_BYTES = 32 * 1024 * 1024
"""The largest artifact that is read as a whole, to be sent or shown."""
MOST_TEXT = 200_000
"""Characters of a text that a preview has."""
MOST_FILES = 1000
_ROWS = 50
_COLUMNS = 100
_CELL = 200
_TEXT_BYTES = 4096
"""How many of the first bytes decide whether they are text."""

HEADERS = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "private, max-age=31536000, immutable",
}
"""The bytes have an origin of their own, and nothing in them runs or loads anything."""

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


@dataclass(frozen=True, slots=True)
class PreviewTable:
    """The first rows of a table, as text; a missing value is None."""

    columns: list[str]
    types: list[str]
    rows: list[list[str | None]]
    total_rows: int
    total_columns: int


@dataclass(frozen=True, slots=True)
class ArtifactPreview:
    """An artifact, and what can be shown of it.

    Attributes:
        shows: how to show it. `none`: not at all, `reason` says why.
        text: for `text`, `json` and `html` (its source), at most `MOST_TEXT` characters.
        cut: whether more is stored than is shown.
        media: the media type that its bytes are sent with.
        files: for `folder`, the paths with their sizes in bytes.
    """

    artifact: Artifact
    shows: Kind
    media: str = "application/octet-stream"
    text: str | None = None
    cut: bool = False
    table: PreviewTable | None = None
    files: dict[str, int] = field(default_factory=dict)
    reason: str = ""


def read_artifact(store: Store, ref: str) -> ArtifactPreview:
    """Return a preview of an artifact.

    Raises:
        NotFoundError: there is no such artifact, or its bytes are gone.
        CorruptionError: its bytes are not what was stored.
    """
    artifact = store.records.get(Artifact, ref)
    if artifact.type == "tree":
        entries = store.objects.tree(artifact.digest)
        files = {entry.path: entry.size_bytes for entry in entries[:MOST_FILES]}
        return ArtifactPreview(artifact, "folder", files=files, cut=len(entries) > MOST_FILES)
    if artifact.type in ("pickle", "lists"):
        reason = "It contains Python objects, which are never loaded here."
        return ArtifactPreview(artifact, "none", reason=reason)
    if artifact.type == "frame" or artifact.meta.get("shows") == "table":
        return _preview_table(store, artifact)
    if artifact.size_bytes > MOST_BYTES:
        reason = f"It has more than {MOST_BYTES // 1024 // 1024} MB."
        reason += f" Read it in Python: store.objects.path('{artifact.digest}')"
        return ArtifactPreview(artifact, "none", reason=reason, cut=True)
    return _preview_bytes(artifact, store.objects.read(artifact.digest))


def read_content(store: Store, ref: str) -> tuple[bytes, str, str]:
    """Return the bytes of an artifact, their media type, and a file name of ASCII letters.

    Raises:
        NotFoundError: there is no such artifact, or it is a folder.
        DataError: it is too large to be sent by the web page's server.
    """
    artifact = store.records.get(Artifact, ref)
    if artifact.type == "tree":
        raise NotFoundError(
            f"'{artifact.name}' is a folder.", help="Read it in Python: store.objects.tree(artifact.digest)"
        )
    if artifact.size_bytes > MOST_BYTES:
        raise DataError(
            f"'{artifact.name}' has {artifact.size_bytes} bytes; at most {MOST_BYTES} are sent here.",
            help="Read it in Python: store.objects.path(artifact.digest)",
        )
    data = store.objects.read(artifact.digest)
    # Header values must be ASCII, and a quote would end the name.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", artifact.name)[:100]
    return data, media_type(data, artifact), name


def media_type(data: bytes, artifact: Artifact) -> str:
    """Return a media type that a browser may be given: by the bytes themselves, and only then by what was declared."""
    for start, media in _IMAGES:
        if data.startswith(start):
            return media
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if not _is_text(data):
        return "application/octet-stream"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    declared = str(artifact.meta.get("media", "")).split(";")[0].strip().lower()
    name = str(artifact.meta.get("file") or artifact.name).lower()
    if head.startswith((b"<svg", b"<?xml")) and b"<svg" in head:
        return "image/svg+xml"
    if declared == "text/html" or name.endswith((".html", ".htm")) or head.startswith((b"<!doctype html", b"<html")):
        return "text/html; charset=utf-8"
    if artifact.type == "json" or declared == "application/json" or name.endswith(".json"):
        return "application/json"
    return "text/plain; charset=utf-8"


def _preview_bytes(artifact: Artifact, data: bytes) -> ArtifactPreview:
    media = media_type(data, artifact)
    if media.startswith("image/"):
        return ArtifactPreview(artifact, "image", media)
    if media == "application/octet-stream":
        return ArtifactPreview(artifact, "none", media, reason="It is not a text, a picture or a table.")
    text = data.decode("utf-8", "replace")
    shows: Kind = "html" if media.startswith("text/html") else "text"
    if media == "application/json":
        shows = "json"
        try:
            # Only laid out: numbers keep the digits that are stored.
            text = msgspec.json.format(text, indent=2)
        except (msgspec.MsgspecError, RecursionError):
            shows = "text"
    return ArtifactPreview(artifact, shows, media, text[:MOST_TEXT], len(text) > MOST_TEXT)


def _preview_table(store: Store, artifact: Artifact) -> ArtifactPreview:
    import polars as pl

    try:
        scan = pl.scan_parquet(store.objects.path(artifact.digest), glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        names = schema.names()[:_COLUMNS]
        total = int(scan.select(pl.len()).collect().item())
        head = scan.select(names).head(_ROWS).collect() if names else pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        return ArtifactPreview(artifact, "none", reason=f"Its rows cannot be read: {str(error)[:200]}")
    table = PreviewTable(
        columns=names,
        types=[str(schema[name]) for name in names],
        rows=[[_cell(value) for value in row] for row in head.rows()],
        total_rows=total,
        total_columns=len(schema),
    )
    return ArtifactPreview(artifact, "table", table=table, cut=total > _ROWS or len(schema) > _COLUMNS)


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    return str(value)[:_CELL]


def _is_text(data: bytes) -> bool:
    head = data[:_TEXT_BYTES]
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character that is cut at the end is not an error.
        return len(data) > len(head) and error.start >= len(head) - 3
    return True


def json_value(store: Store, artifact: Artifact) -> Json:
    """Return what a JSON artifact holds.

    Raises:
        DataError: it is too large, or not JSON.
    """
    if artifact.size_bytes > MOST_BYTES:
        raise DataError(f"'{artifact.name}' has {artifact.size_bytes} bytes; at most {MOST_BYTES} are read here.")
    try:
        return msgspec.json.decode(store.objects.read(artifact.digest))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"'{artifact.name}' is not JSON: {error}.") from error
