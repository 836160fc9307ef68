"""Wrappers for readers and writers of Polars, pandas and Arrow that open files in native code.

Native code raises no audit events. So a wrapper records the paths that are passed to a reader, and calls it. Outside of
a running step it only calls the reader.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everloop.pipeline.code.object_inspection import TRACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Use = Literal["reads", "writes"]

_POLARS_READERS = (
    "read_avro", "read_csv", "read_csv_batched", "read_delta", "read_excel", "read_ipc", "read_ipc_schema",
    "read_ipc_stream", "read_json", "read_lines", "read_ndjson", "read_ods", "read_parquet", "read_parquet_metadata",
    "read_parquet_schema", "scan_csv", "scan_delta", "scan_ipc", "scan_lines", "scan_ndjson", "scan_parquet",
)  # fmt: skip
_POLARS_WRITERS = (
    "DataFrame.write_avro", "DataFrame.write_csv", "DataFrame.write_delta", "DataFrame.write_excel",
    "DataFrame.write_ipc", "DataFrame.write_ipc_stream", "DataFrame.write_json", "DataFrame.write_ndjson",
    "DataFrame.write_parquet", "LazyFrame.sink_csv", "LazyFrame.sink_ipc", "LazyFrame.sink_ndjson",
    "LazyFrame.sink_parquet",
)  # fmt: skip
_TABLE: dict[str, dict[str, Use]] = {
    "polars": {**dict.fromkeys(_POLARS_READERS, "reads"), **dict.fromkeys(_POLARS_WRITERS, "writes")},
    "pandas": {
        "read_parquet": "reads",
        "read_feather": "reads",
        "read_orc": "reads",
        "read_hdf": "reads",
        "DataFrame.to_parquet": "writes",
        "DataFrame.to_feather": "writes",
        "DataFrame.to_orc": "writes",
        "DataFrame.to_hdf": "writes",
    },
    "pyarrow": {"memory_map": "reads"},
    "pyarrow.parquet": {
        "read_table": "reads",
        "read_schema": "reads",
        "read_metadata": "reads",
        "ParquetFile.__init__": "reads",
        "ParquetDataset.__init__": "reads",
        "ParquetWriter.__init__": "writes",
    },
    "pyarrow.csv": {"read_csv": "reads", "open_csv": "reads", "write_csv": "writes"},
    "pyarrow.json": {"read_json": "reads"},
    "pyarrow.feather": {"read_table": "reads", "read_feather": "reads", "write_feather": "writes"},
    "pyarrow.dataset": {"dataset": "reads", "write_dataset": "writes"},
    "pyarrow.orc": {"read_table": "reads", "write_table": "writes"},
}
# Functions that take a path as their second argument.
_PATH_IS_SECOND = frozenset(
    {"pyarrow.csv.write_csv", "pyarrow.feather.write_feather", "pyarrow.dataset.write_dataset"}
    | {"pyarrow.orc.write_table"}
)
_NAMES = ("source", "path", "input_file", "where", "file", "dest", "path_or_buf", "output_file", "base_dir", "workbook")
_wrapped_modules: set[str] = set()


@dataclass(frozen=True, slots=True)
class Recorder:
    """Functions to which the wrappers report what the running step reads and writes."""

    is_tracking: Callable[[], bool]
    read: Callable[..., None]
    unseen: Callable[[str], None]
    written: Callable[[object], None]


def wrap_readers(packages: Collection[str], recorder: Recorder) -> None:
    """Wrap the readers of modules that are already imported, and of the modules of a step's packages."""
    for module, names in _TABLE.items():
        if module in _wrapped_modules:
            continue
        if module not in sys.modules:
            top = module.partition(".")[0]
            if top not in packages or (top != module and top == "pyarrow" and module == "pyarrow.orc"):
                continue
            try:
                importlib.import_module(module)
            except ImportError:
                continue
        _wrapped_modules.add(module)
        for name, use in names.items():
            _wrap(sys.modules[module], f"{module}.{name}", name, use, recorder)


def _wrap(module: Any, full: str, name: str, use: Use, recorder: Recorder) -> None:
    holder = module
    *holders, last = name.split(".")
    for one in holders:
        holder = getattr(holder, one, None)
    plain = getattr(holder, last, None)
    if holder is None or plain is None or hasattr(plain, TRACKED):
        return
    # The first argument of a method is `self`.
    index = int(bool(holders)) + int(full in _PATH_IS_SECOND)
    tracked = _tracked(plain, index, use, recorder)
    setattr(holder, last, tracked)
    home = sys.modules.get(getattr(plain, "__module__", ""))
    if not holders and home is not None and getattr(home, last, None) is plain:
        # Pickle looks for the function in its defining module.
        setattr(home, last, tracked)


def _tracked(plain: Callable[..., Any], index: int, use: Use, recorder: Recorder) -> Callable[..., Any]:
    @functools.wraps(plain)
    def tracked(*args: Any, **options: Any) -> Any:
        if recorder.is_tracking():
            source = args[index] if len(args) > index else next((options[n] for n in _NAMES if n in options), None)
            _record(source, use, recorder)
        return plain(*args, **options)

    setattr(tracked, TRACKED, True)
    return tracked


def _record(source: Any, use: Use, recorder: Recorder) -> None:
    if isinstance(source, list | tuple):
        for one in source:
            _record(one, use, recorder)
        return
    if not isinstance(source, str | bytes | os.PathLike):
        return  # data, or an open file, which was tracked when it was opened
    path = os.fsdecode(source)
    if "\n" in path:
        return  # not a path but the content itself
    if "://" in path and not path.startswith("file://"):
        if use == "reads":
            recorder.unseen(f"what {path.partition('://')[0]}://{path.partition('://')[2].partition('/')[0]} holds")
        return
    path = path.removeprefix("file://")
    if use == "writes":
        recorder.written(path)
    elif Path(path).is_dir():
        recorder.read(str(Path(path) / "**" / "*"), kind="pattern")
    elif any(character in path for character in "*?[") and not Path(path).exists():
        recorder.read(path, kind="pattern")
    else:
        recorder.read(Path(path).expanduser())


__all__ = ["Recorder", "wrap_readers"]
