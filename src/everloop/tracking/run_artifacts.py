"""What a run keeps beside its numbers: files, tables, figures, models, and which data it read.

Each becomes one `Artifact`, its bytes kept once by their digest. `meta` says how to show it: `shows` is `text`,
`json`, `table`, `figure`, `image`, `histogram`, `dataset` or `model`, `media` the media type and `file` a name.
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
    """The part of a run that keeps artifacts. Unlike numbers they need the store: its errors are raised.

    A name may be used again, for another step or a better version; every one is kept.
    """

    store: Store

    @property
    def id(self) -> str:
        # The run that this class is a part of has one.
        raise NotImplementedError

    def _check_open(self) -> None:
        """Raise UsageError if the run has ended."""
        raise NotImplementedError

    def log_artifact(
        self, name: str, value: bytes | Path | Json, *, meta: Mapping[str, Json] | None = None
    ) -> Artifact:
        """Keep bytes, a file or folder (given as `Path`), or any value that JSON can hold.

        Raises:
            NotFoundError: the path is neither a file nor a folder.
            UsageError: JSON cannot hold the value, or the run has ended.
            StoreError: the bytes could not be kept.
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
                raise NotFoundError(f"There is no file or folder '{value}' to keep as '{name}'.")
            case _:
                try:
                    content = msgspec.json.encode(value, order="deterministic")
                except (TypeError, msgspec.MsgspecError) as error:
                    raise UsageError(
                        f"JSON cannot hold '{name}': {error}.", help="Give bytes, or the Path of a file or folder."
                    ) from error
                form, digest, size = "json", objects.add(content), len(content)
        extra = {"file": value.name} if isinstance(value, Path) else {}
        return self._put(name, form, digest, size, {**extra, **(meta or {})})

    def log_text(self, name: str, text: str, *, step: int | None = None) -> Artifact:
        meta = _meta("text", "text/plain; charset=utf-8", _file(name, ".txt"), step)
        return self.log_artifact(name, str(text).encode("utf-8", "backslashreplace"), meta=meta)

    def log_json(self, name: str, value: Json, *, step: int | None = None) -> Artifact:
        """Keep a dict, a list, or whatever else JSON can hold.

        Raises:
            UsageError: JSON cannot hold it.
        """
        if isinstance(value, bytes | bytearray | memoryview | Path):
            raise UsageError(f"JSON cannot hold '{name}', a {type(value).__name__}.", help="Use log_artifact.")
        return self.log_artifact(name, value, meta=_meta("json", "application/json", _file(name, ".json"), step))

    log_dict = log_json

    def log_table(self, name: str, table: Any, *, step: int | None = None) -> Artifact:
        """Keep a table of polars, pandas, Arrow or DuckDB, a dict of columns or a list of rows, as Parquet.

        Raises:
            UsageError: it is no table.
        """
        return self._rendered(name, "table", media.render_table(table), step)

    def log_figure(self, name: str, figure: Any, *, step: int | None = None) -> Artifact:
        """Keep a figure: matplotlib's as PNG, plotly's and altair's as the JSON that draws them again.

        Raises:
            UsageError: it is no figure.
        """
        return self._rendered(name, "figure", media.render_figure(figure), step)

    def log_image(self, name: str, image: Any, *, step: int | None = None) -> Artifact:
        """Keep an image of PIL, or an array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), as PNG.

        Raises:
            UsageError: it is no image.
        """
        return self._rendered(name, "image", media.render_image(image), step)

    def log_histogram(self, name: str, values: Any, *, step: int | None = None, bins: int = media.BINS) -> Artifact:
        """Keep how numbers are spread: counts in bins of equal width, a kilobyte of JSON however many they are.

        Raises:
            UsageError: the values are no numbers.
        """
        meta = _meta("histogram", "application/json", _file(name, ".json"), step)
        return self.log_artifact(name, media.count_values(values, bins), meta=meta)

    def log_file(self, path: Path | str, name: str | None = None) -> Artifact:
        """Keep a file under its own name, or another.

        Raises:
            NotFoundError: there is no such file.
        """
        if not Path(path).is_file():
            raise NotFoundError(f"There is no file '{path}' to keep.")
        return self.log_artifact(name or Path(path).name, Path(path))

    def log_folder(self, path: Path | str, name: str | None = None) -> Artifact:
        """Keep a folder with all that is in it; equal files are kept once.

        Raises:
            NotFoundError: there is no such folder.
        """
        if not Path(path).is_dir():
            raise NotFoundError(f"There is no folder '{path}' to keep.")
        return self.log_artifact(name or Path(path).absolute().name, Path(path))

    def log_dataset(self, data: Any, *, context: str = "training", name: str | None = None) -> Artifact:
        """Say which data the run read: a snapshot (or its key), or a table, of which the digest is kept, not the rows.

        Args:
            context: what they were for: `training`, `validation`, `test`, …

        Raises:
            NotFoundError: no snapshot has this key.
            UsageError: it is no table.
        """
        if isinstance(data, str):
            data = self.store.records.get(Snapshot, data)
        if isinstance(data, Snapshot):
            said = {"snapshot": data.key, "digest": data.digest, "rows": data.rows, "columns": data.columns}
            name = name or data.dataset
        else:
            frame = media.frame_of(data)
            columns = {column: str(kind) for column, kind in frame.schema.items()}
            said = {"digest": digest_rows(frame), "rows": frame.height, "columns": columns}
        meta = {**_meta("dataset", "application/json", None, None), "context": context}
        meta["digest"] = said["digest"]
        return self.log_artifact(name or context, said, meta=meta)

    def log_model(self, model: Any, name: str = "model", *, meta: Mapping[str, Json] | None = None) -> Artifact:
        """Keep a fitted model as a signed pickle, which loads only where this machine's key is trusted.

        For a model that shall serve, build a package: `everloop.packages`.

        Raises:
            UsageError: it cannot be pickled, or the run has ended.
        """
        self._check_open()
        kept = plugins.load("artifact", "pickle")()
        try:
            stored = kept.keep(model, self.store.objects)
        except Exception as error:
            # Models of any library: what pickling them may raise is theirs.
            raise UsageError(f"The model '{name}' cannot be kept: {error}.", help="Use log_file.") from error
        said = {**stored.meta, **_meta("model", "application/octet-stream", _file(name, ".pkl"), None), **(meta or {})}
        return self._put(name, stored.type, stored.digest, stored.size_bytes, said, signature=stored.signature)

    def _rendered(self, name: str, shows: Shown, made: media.Rendered, step: int | None) -> Artifact:
        meta = {**_meta(shows, made.media, _file(name, made.suffix), step), **made.meta}
        return self.log_artifact(name, made.data, meta=meta)

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
            raise UsageError(f"An artifact cannot be called {name!r}.", help="Give it a short name, such as 'plot'.")
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


class _Hashing:
    """A file that only remembers the digest of what is written to it."""

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
    """`arrow:` and 64 hex digits over names, types and rows of a polars frame, in their order.

    The bytes of Arrow's IPC stream in one batch: how the frame is cut into chunks makes no difference.
    """
    import polars as pl

    made = _Hashing()
    # Gathering writes every column anew: slices and joined pieces may carry bytes that are none of theirs.
    whole = frame.select(pl.all().gather(pl.int_range(pl.len()))).rechunk()
    try:
        whole.write_ipc_stream(made, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
    except Exception as error:
        # Arrow has no form for columns of Python objects.
        raise UsageError(f"The rows have no digest: {error}.") from error
    return f"arrow:{made.hexdigest()}"


def _meta(shows: Shown, media_type: str, file: str | None, step: int | None) -> dict[str, Json]:
    meta: dict[str, Json] = {"shows": shows, "media": media_type}
    if file is not None:
        meta["file"] = file
    return meta if step is None else {**meta, "step": int(step)}


def _file(name: str, suffix: str) -> str:
    last = str(name).replace("\\", "/").rpartition("/")[2] or "artifact"
    return last if last.endswith(suffix) else last + suffix
