"""Run by itself: reads changed copies of one kind of file, and writes down what became of each.

A process of its own, because a reader in native code that crashes on a damaged file takes its process along, and
because its memory is limited here.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from everloop.errors import EverloopError
from everloop.stores import open_store

Maker = Callable[[Path], None]
Reader = Callable[[Path], object]

MOST_BYTES = 2 * 2**30
"""Of address space, beyond what is mapped when the reading begins."""
FRAME = pl.DataFrame(
    {
        "id": range(40),
        "amount": [number / 7 for number in range(40)],
        "name": [f"n{number % 5}" for number in range(40)],
        "at": [datetime(2026, 1, 1, number % 24, tzinfo=UTC) for number in range(40)],
    }
)


def _read(path: Path) -> object:
    from everloop.data import add_table

    with open_store(path.parent / "home", create=True) as store:
        return add_table(path, "t", store)


def _gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(FRAME.write_csv().encode()))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("table.csv", FRAME.write_csv())


def _package(path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from everloop.registry import export_package, save_model

    example = FRAME.select("id", "amount").to_pandas()
    model = LogisticRegression().fit(example, [0, 1] * 20)
    with open_store(path.parent / "made", create=True) as store:
        save_model(model, "m", example=example, store=store, proof_s=0)
        export_package(store, "m@1", path)


def _import_package(path: Path) -> object:
    from everloop.packages.archive import open_archive

    return open_archive(path)


def _runs(path: Path) -> None:
    from everloop.tracking import start_run
    from everloop.tracking.run_archive import export_runs

    with open_store(path.parent / "made", create=True) as store:
        with start_run("r", params={"a": 1}, store=store) as run:
            run.log({"loss": 0.5}, step=1)
            run.log_artifact("script", Path(__file__))
        export_runs(store, None, path)


def _import_runs(path: Path) -> object:
    from everloop.tracking.run_archive import import_runs

    with open_store(path.parent / "home", create=True) as store:
        return import_runs(store, path)


def _backup(path: Path) -> None:
    from everloop.stores.backup import backup

    with open_store(path.parent / "made", create=True) as store:
        store.objects.add(b"kept")
        store.tables.append("t", FRAME.rename({"at": "event_at"}))
        backup(store, path)


def _restore(path: Path) -> object:
    from everloop.stores.backup import restore

    home = path.with_name(f"restored-{path.stem}")
    try:
        return restore(path, home)
    finally:
        left = [one.name for one in path.parent.iterdir() if one.name.startswith(".everloop-restore-")]
        if left:
            raise AssertionError(f"left behind: {left}")


def _mlflow_file(path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE experiments (experiment_id, name, artifact_location);"
        "CREATE TABLE runs (run_uuid, name, status, start_time, end_time, user_id, lifecycle_stage, experiment_id,"
        " artifact_uri);"
        "CREATE TABLE params (run_uuid, key, value); CREATE TABLE tags (run_uuid, key, value);"
        "CREATE TABLE metrics (run_uuid, key, value, step, timestamp, is_nan);"
    )
    rows = {
        "experiments": (1, "e", ""),
        "runs": ("a" * 32, "r", "FINISHED", 1_700_000_000_000, 1_700_000_001_000, "u", "active", 1, ""),
        "params": ("a" * 32, "lr", "0.1"),
        "metrics": ("a" * 32, "loss", 0.5, 1, 1_700_000_000_500, 0),
    }
    for table, row in rows.items():
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
    connection.commit()
    connection.close()


def _import_mlflow(path: Path) -> object:
    from everloop.integrations.mlflow.run_import import import_mlflow

    with open_store(path.parent / "home", create=True) as store:
        return import_mlflow(store, path)


def _model_folder(path: Path) -> None:
    path.write_text(
        "artifact_path: model\nflavors:\n  python_function:\n    loader_module: mlflow.onnx\n    data: model.onnx\n"
        '  onnx:\n    data: model.onnx\nsignature:\n  inputs: \'[{"type": "double", "name": "a"}]\'\n'
    )


def _import_folder(path: Path) -> object:
    from everloop.integrations.mlflow.model_folders.mlmodel_file import read_description

    folder = path.with_name(f"folder-{path.stem}")
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_bytes(path.read_bytes())
    return read_description(folder)


def _contract(path: Path) -> None:
    from everloop.data import contract_to_toml, infer_contract

    with open_store(path.parent / "made", create=True) as store:
        path.write_text(contract_to_toml(infer_contract(FRAME, "t", store)))


def _read_contract(path: Path) -> object:
    from everloop.data.contracts.contract_toml import load_contract

    return load_contract(path)


def _journal(path: Path) -> None:
    from everloop.stores import Journal

    journal = Journal.create(path.parent / "journals", "s")
    for number in range(5):
        journal.append(b"frame %d" % number)
    journal.close()
    path.write_bytes(journal.path.read_bytes())


def _read_journal(path: Path) -> object:
    from everloop.stores import read_journal

    return list(read_journal(path))


READERS: dict[str, tuple[str, Maker, Reader]] = {
    "csv": ("t.csv", lambda path: FRAME.write_csv(path), _read),
    "tsv": ("t.tsv", lambda path: FRAME.write_csv(path, separator="\t"), _read),
    "csv, gzip": ("t.csv.gz", _gzip, _read),
    "csv, zip": ("t.csv.zip", _zip, _read),
    "json": ("t.json", lambda path: FRAME.with_columns(pl.col("at").cast(str)).write_json(path), _read),
    "jsonl": ("t.jsonl", lambda path: FRAME.with_columns(pl.col("at").cast(str)).write_ndjson(path), _read),
    "parquet": ("t.parquet", lambda path: FRAME.write_parquet(path), _read),
    "arrow": ("t.arrow", lambda path: FRAME.write_ipc(path), _read),
    "package": ("m.tar.zst", _package, _import_package),
    "runs": ("r.zip", _runs, _import_runs),
    "backup": ("b.tar.zst", _backup, _restore),
    "backup, plain": ("b.tar", _backup, _restore),
    "mlflow file": ("mlflow.db", _mlflow_file, _import_mlflow),
    "mlflow model": ("MLmodel", _model_folder, _import_folder),
    "contract": ("t.toml", _contract, _read_contract),
    "journal": ("s.journal", _journal, _read_journal),
}
"""Each kind of file that can come from somebody else: its name, how to make a sound one, and how it is read."""


def changed(data: bytes, seed: int) -> bytes:
    """A damaged or hostile copy."""
    chance = random.Random(seed)
    size = len(data)
    match seed % 8:
        case 0:
            return data[: chance.randrange(size)]
        case 1:
            flipped = bytearray(data)
            flipped[chance.randrange(size)] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 2:
            at = chance.randrange(size)
            return data[:at] + chance.choice([b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff"]) + data[at + 8 :]
        case 3:
            return chance.randbytes(chance.randrange(1, 5_000))
        case 4:
            at = chance.randrange(size)
            return data[:at] + data
        case 5:
            at, length = chance.randrange(size), chance.randrange(1, 200)
            return data[:at] + chance.randbytes(length) + data[at + length :]
        case 6:
            at = chance.randrange(size)
            return data[:at] + b"\xed\xa0\x80\x00" + b"9" * 5_000 + data[at:]
        case _:
            flipped = bytearray(data)
            for _ in range(20):
                flipped[chance.randrange(size)] = chance.randrange(256)
            return bytes(flipped)


def main(kind: str, folder: Path, out: Path, count: int) -> None:
    name, make, read = READERS[kind]
    sound = folder / name
    make(sound)
    data = sound.read_bytes()
    read(sound)
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_BYTES, resource.RLIM_INFINITY))
    outcomes: list[dict[str, Any]] = []
    for seed in range(count):
        copy = folder / f"{seed}-{name}"
        copy.write_bytes(changed(data, seed))
        outcomes.append({"seed": seed, "ended": None})
        out.write_text(json.dumps(outcomes))
        try:
            read(copy)
            outcomes[-1]["ended"] = "read"
        except EverloopError as error:
            outcomes[-1] |= {"ended": "refused", "message": error.message[:2000]}
        except BaseException as error:
            outcomes[-1] |= {"ended": "raised", "message": f"{type(error).__name__}: {error}"[:2000]}
        copy.unlink()
    out.write_text(json.dumps(outcomes))
    # A library's threads may fail when the interpreter ends; what was to be seen has been written.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
