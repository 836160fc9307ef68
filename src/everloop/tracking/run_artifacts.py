"""Artifacts of a run: files, tables, figures, models, and which data it read.

Each becomes one `Artifact`; equal bytes are stored once. `meta` describes how to show it: `shows` is `text`, `json`,
`table`, `figure`, `image`, `histogram`, `dataset` or `model`, `media` is the media type and `file` a file name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from everloop import plugins
from everloop.errors import NotFoundError, UsageError
from everloop.records import Artifact, Json, Snapshot
from everloop.tracking import media

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

Shown = Literal["text", "json", "table", "figure", "image", "histogram", "dataset", "model"]


class ArtifactLog:
    """The methods of a run that log artifacts. Unlike metrics, artifacts need the store, and its errors are raised.

    A name may be used again, for another step or a better version; all of them are stored.
    """

    store: Store

    @property
    def id(self) -> str:
        # `ActiveRun` implements this.
        raise NotImplementedError

    def _check_open(self) -> None:
        """Raise UsageError if the run has ended."""
        # `ActiveRun` implements this, too.
        raise NotImplementedError

    def log_artifact(
        self, name: str, value: bytes | Path | Json, *, meta: Mapping[str, Json] | None = None
    ) -> Artifact:
        """Log bytes, a file or folder (as a `Path`), or any value that JSON can hold.

        Raises:
            NotFoundError: the path is neither a file nor a folder.
            UsageError: JSON cannot hold the value, or the run has ended.
            StoreError: the bytes could not be stored.
        """
        self._check_open()
        objects = self.store.objects
        match value:
            case bytes() | bytearray() | memoryview():
                content = bytes(value)
                form, digest, size = "bytes", objects.add(content), len(content)
            case Path() if value.is_file():
                form, digest, size = "file", objects.add_file(value), value.stat().st_size
            case Path() if value.is_dir():
                files = (entry for entry in value.rglob("*") if entry.is_file())
                form, digest, size = "tree", objects.add_tree(value), sum(file.stat().st_size for file in files)
            case Path():
                raise NotFoundError(f"There is no file or folder '{value}' to log as '{name}'.")
            case _:
                try:
                    content = msgspec.json.encode(value, order="deterministic")
                except (TypeError, msgspec.MsgspecError) as error:
                    raise UsageError(
                        f"JSON cannot hold '{name}': {error}.", help="Pass bytes, or the Path of a file or folder."
                    ) from error
                form, digest, size = "json", objects.add(content), len(content)
        extra = {"file": value.name} if isinstance(value, Path) else {}
        return self._put(name, form, digest, size, {**extra, **(meta or {})})

    def log_text(self, name: str, text: str, *, step: int | None = None) -> Artifact:
        meta = _meta("text", "text/plain; charset=utf-8", _file(name, ".txt"), step)
        return self.log_artifact(name, str(text).encode("utf-8", "backslashreplace"), meta=meta)

    def log_json(self, name: str, value: Json, *, step: int | None = None) -> Artifact:
        """Log a dict, a list, or any other value that JSON can hold.

        Raises:
            UsageError: JSON cannot hold the value.
        """
        if isinstance(value, bytes | bytearray | memoryview | Path):
            raise UsageError(f"JSON cannot hold '{name}', a {type(value).__name__}.", help="Use log_artifact.")
        return self.log_artifact(name, value, meta=_meta("json", "application/json", _file(name, ".json"), step))

    log_dict = log_json

    def log_table(self, name: str, table: Any, *, step: int | None = None) -> Artifact:
        """Log a table as Parquet: one of polars, pandas, Arrow or DuckDB, a dict of columns, or a list of rows.

        Raises:
            UsageError: the value is not a table.
        """
        return self._log_rendered(name, "table", media.render_table(table), step)

    def log_figure(self, name: str, figure: Any, *, step: int | None = None) -> Artifact:
        """Log a figure: of matplotlib as PNG, of plotly and altair as JSON that can be drawn again.

        Raises:
            UsageError: the value is not a figure.
        """
        return self._log_rendered(name, "figure", media.render_figure(figure), step)

    def log_image(self, name: str, image: Any, *, step: int | None = None) -> Artifact:
        """Log an image as PNG: a PIL image, or an array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).

        Raises:
            UsageError: the value is not an image.
        """
        return self._log_rendered(name, "image", media.render_image(image), step)

    def log_histogram(self, name: str, values: Any, *, step: int | None = None, bins: int = media.BINS) -> Artifact:
        """Log a histogram of numbers: counts in bins of equal width. Takes about a kilobyte for any number of values.

        Raises:
            UsageError: the values are not numbers.
        """
        meta = _meta("histogram", "application/json", _file(name, ".json"), step)
        return self.log_artifact(name, media.count_values(values, bins), meta=meta)

    def log_file(self, path: Path | str, name: str | None = None) -> Artifact:
        """Log a file under its own name, or another.

        Raises:
            NotFoundError: the file does not exist.
        """
        if not Path(path).is_file():
            raise NotFoundError(f"There is no file '{path}'.")
        return self.log_artifact(name or Path(path).name, Path(path))

    def log_folder(self, path: Path | str, name: str | None = None) -> Artifact:
        """Log a folder with all of its files; equal files are stored once.

        Raises:
            NotFoundError: the folder does not exist.
        """
        if not Path(path).is_dir():
            raise NotFoundError(f"There is no folder '{path}'.")
        return self.log_artifact(name or Path(path).absolute().name, Path(path))

    def log_dataset(self, data: Any, *, context: str = "training", name: str | None = None) -> Artifact:
        """Log which data the run read: a snapshot (or its key), or a table. Of a table, only the digest is stored.

        Args:
            context: what the data was used for: `training`, `validation`, `test`, …

        Raises:
            NotFoundError: no snapshot has this key.
            UsageError: the data is not a table.
        """
        if isinstance(data, str):
            data = self.store.records.get(Snapshot, data)
        if isinstance(data, Snapshot):
            description = {"snapshot": data.key, "digest": data.digest, "rows": data.rows, "columns": data.columns}
            name = name or data.dataset
        else:
            frame = media.frame_of(data)
            columns = {column: str(kind) for column, kind in frame.schema.items()}
            description = {"digest": digest_rows(frame), "rows": frame.height, "columns": columns}
        meta = {**_meta("dataset", "application/json", None, None), "context": context}
        meta["digest"] = description["digest"]
        return self.log_artifact(name or context, description, meta=meta)

    def log_model(self, model: Any, name: str = "model", *, meta: Mapping[str, Json] | None = None) -> Artifact:
        """Log a fitted model as a signed pickle, which can be loaded only where this machine's key is trusted.

        To serve a model, build a package: `everloop.packages`.

        Raises:
            UsageError: the model cannot be pickled, or the run has ended.
        """
        self._check_open()
        pickle_format = plugins.load("artifact", "pickle")()
        try:
            stored = pickle_format.keep(model, self.store.objects)
        except Exception as error:
            # Models of any library may raise any error when they are pickled.
            raise UsageError(
                f"The model '{name}' cannot be pickled: {error}.",
                help="Save it with its own library, and log the file: run.log_file(path)",
            ) from error
        all_meta = {
            **stored.meta,
            **_meta("model", "application/octet-stream", _file(name, ".pkl"), None),
            **(meta or {}),
        }
        return self._put(name, stored.type, stored.digest, stored.size_bytes, all_meta, signature=stored.signature)

    def _log_rendered(self, name: str, shows: Shown, rendered: media.Rendered, step: int | None) -> Artifact:
        meta = {**_meta(shows, rendered.media, _file(name, rendered.suffix), step), **rendered.meta}
        return self.log_artifact(name, rendered.data, meta=meta)

    def _put(
        self,
        name: str,
        form: str,
        digest: str,
        size: int,
        meta: dict[str, Json],
        *,
        signature: dict[str, str] | None = None,
    ) -> Artifact:
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise UsageError(
                f"{name!r} is not a valid name of an artifact.", help="Pass a short name, such as name='plot'."
            )
        artifact = self.store.new(
            Artifact,
            run=self.id,
            name=name,
            type=form,
            digest=digest,
            size_bytes=size,
            meta=meta,
            signature=signature,
        )
        self.store.records.put(artifact)
        return artifact


class _HashingFile:
    """A file object that only computes the digest of what is written to it."""

    def __init__(self) -> None:
        from hashlib import sha256

        self._hash = sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_rows(frame: Any) -> str:
    """`arrow:` and 64 hex digits over the names, types and rows of a polars frame, in their order.

    This is the SHA-256 of Arrow's IPC stream in one batch, so the frame's chunks make no difference.
    """
    import polars as pl

    file = _HashingFile()
    # `gather` copies every column: a slice or a concatenated frame may contain bytes outside of its rows.
    copy = frame.select(pl.all().gather(pl.int_range(pl.len()))).rechunk()
    try:
        copy.write_ipc_stream(file, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
    except Exception as error:
        # Arrow cannot hold columns of Python objects.
        raise UsageError(f"The digest of the rows cannot be computed: {error}.") from error
    return f"arrow:{file.hexdigest()}"


def _meta(shows: Shown, media_type: str, file: str | None, step: int | None) -> dict[str, Json]:
    meta: dict[str, Json] = {"shows": shows, "media": media_type}
    if file is not None:
        meta["file"] = file
    return meta if step is None else {**meta, "step": int(step)}


def _file(name: str, suffix: str) -> str:
    last = str(name).replace("\\", "/").rpartition("/")[2] or "artifact"
    return last if last.endswith(suffix) else last + suffix
