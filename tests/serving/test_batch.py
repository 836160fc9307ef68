"""Batch scoring: in parts, the answers are those of the whole; what was cut off goes on; each answer is logged once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import ConflictError, NotFoundError, RequestError, UsageError
from everloop.loop.lineage import trace_lineage
from everloop.prediction_log import find_prediction, read_predictions
from everloop.records import EndpointRecord, Run
from everloop.registry import load_model
from everloop.serving.batch import batch_scoring
from everloop.serving.batch.batch_runs import score_as_run
from everloop.serving.batch.batch_scoring import (
    BatchPart,
    BatchResult,
    describe,
    score_files,
    score_part,
    score_piece,
)
from everloop.serving.endpoint_state import set_options
from everloop.stores import clock, new_id
from everloop.testing.models import sample_table

if TYPE_CHECKING:
    from everloop.stores import Store

READERS: dict[str, Any] = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}


def scored(
    store: Store, version: str, table: pl.DataFrame, output: Path, inputs: list[Path] | None = None, **options: Any
) -> BatchResult:
    return score_files(store, version, table.lazy(), inputs or [], output, **options)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_parts_make_the_whole(store: Store, release: Any, tmp_path: Path, task: str, ending: str) -> None:
    version = release(task=task).key
    predictor = load_model(store, version)
    table = sample_table(250, seed=3)
    output = tmp_path / f"scored{ending}"
    told = scored(store, version, table, output, piece_rows=40)
    assert (told.rows, told.parts, told.resumed) == (250, 7, 0)
    found, expected = READERS[ending](output), score_piece(predictor, table)
    assert found.columns == expected.columns
    assert found["flight_id"].to_list() == table["flight_id"].to_list()
    assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), rel=1e-12)
    if task != "regression":
        assert found["label"].to_list() == expected["label"].to_list()
        assert expected["label"].to_list() == predictor.labels(predictor.predict(table))
    assert list(tmp_path.glob(".scored*")) == []


def test_an_empty_table_keeps_its_columns(store: Store, release: Any, tmp_path: Path) -> None:
    output = tmp_path / "scored.parquet"
    assert scored(store, release(task="multiclass").key, sample_table(5).clear(), output).rows == 0
    assert pl.read_parquet(output).columns[-5:] == ["score", "score_long", "score_none", "score_short", "label"]


def test_what_fails_leaves_no_output(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    output = tmp_path / "scored.parquet"
    with pytest.raises(RequestError, match="distance"):
        scored(store, version, sample_table(5).drop("distance"), output)
    with pytest.raises(UsageError, match="xls"):
        scored(store, version, sample_table(5), tmp_path / "scored.xls")
    assert not output.exists()
    with (
        store.lock(f"batch-{batch_scoring._digest(str(output.resolve()))}"),
        pytest.raises(ConflictError, match="Another"),
    ):
        scored(store, version, sample_table(5), output)


@pytest.mark.slow
def test_what_was_cut_off_goes_on(store: Store, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = release().key
    store.records.put(store.new(EndpointRecord, name="nightly", model="delays"))
    path, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = sample_table(100, seed=5)
    table.write_parquet(path)
    real, taken = batch_scoring.score_part, []

    def dies_at_the_fourth(part: BatchPart) -> int:
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(part.number)
        return real(part)

    monkeypatch.setattr(batch_scoring, "score_part", dies_at_the_fourth)
    options: dict[str, Any] = {"piece_rows": 10, "log": "nightly"}
    with pytest.raises(KeyboardInterrupt):
        scored(store, version, table, output, [path], **options)
    assert not output.exists()
    monkeypatch.setattr(batch_scoring, "score_part", real)
    told = scored(store, version, table, output, [path], **options)
    assert (told.rows, told.parts, told.resumed) == (100, 10, 3)
    answers = pl.read_parquet(output)
    assert answers["score"].to_list() == load_model(store, version).predict(table).tolist()
    logged = read_predictions(store, "nightly").collect()
    assert logged["id"].n_unique() == logged.height == 100
    assert set(logged["role"]) == {"batch"}
    assert sorted(logged["score"]) == sorted(answers["score"])
    one = find_prediction(store, logged["id"][0])
    assert one is not None
    assert one.version == version
    # Another version or other files are another job.
    sample_table(100, seed=6).write_parquet(path)
    assert scored(store, version, table, output, [path], **options).resumed == 0


@pytest.mark.slow
def test_the_answers_of_a_job_that_took_long_are_found_by_id(
    store: Store, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = release().key
    store.records.put(store.new(EndpointRecord, name="nightly", model="delays"))
    # The ids contain the time when the job began, and its rows arrive now.
    began = new_id(store.now() - timedelta(days=3))
    monkeypatch.setattr(clock, "new_id", lambda moment: began)
    scored(store, version, sample_table(20, seed=5), tmp_path / "out.csv", piece_rows=10, log="nightly")
    for answer in read_predictions(store, "nightly").collect()["id"]:
        one = find_prediction(store, answer)
        assert one is not None
        assert (one.id, one.version, one.role) == (answer, version, "batch")
        assert trace_lineage(store, answer).prediction == one
    assert find_prediction(store, f"{began}-20") is None


@pytest.mark.slow
def test_a_folder_of_parts(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    path, output = tmp_path / "in.parquet", tmp_path / "scored"
    table = sample_table(100, seed=5)
    table.write_parquet(path)
    assert scored(store, version, table, output, [path], piece_rows=30, workers=2).rows == 100
    assert [file.name for file in sorted(output.iterdir())] == [f"part-00000{number}.parquet" for number in range(4)]
    found = pl.read_parquet(output / "*.parquet")
    assert found["score"].to_list() == load_model(store, version).predict(table).tolist()
    with pytest.raises(UsageError, match="there already"):
        scored(store, version, table, output, [path])
    assert scored(store, version, table.clear(), tmp_path / "none", []).rows == 0
    assert pl.read_parquet(tmp_path / "none" / "*.parquet").columns[-1] == "label"


@pytest.mark.slow
def test_a_jobs_log_hides_what_an_endpoints_does(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    store.records.put(store.new(EndpointRecord, name="nightly", model="delays"))
    set_options(store, "nightly", {"log_drop": "distance", "log_hash": "carrier,seats"})
    table = sample_table(30, seed=5)
    scored(store, version, table, tmp_path / "out.csv", log="nightly")
    kept = read_predictions(store, "nightly").collect()
    assert "input_distance" not in kept.columns
    assert kept["input_carrier"].n_unique() == table["carrier"].n_unique()
    assert not set(kept["input_carrier"].drop_nulls()) & set(table["carrier"].drop_nulls())
    assert kept.schema["input_seats"] == pl.String


@pytest.mark.slow
def test_a_part_may_be_scored_anywhere_and_again(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    store.records.put(store.new(EndpointRecord, name="nightly", model="delays"))
    table = sample_table(50, seed=5)
    table.write_parquet(tmp_path / "in.parquet")
    part = BatchPart(
        number=0,
        path=str(tmp_path / "in.parquet"),
        offset=10,
        rows=20,
        output=str(tmp_path / "part.arrow"),
        home=str(store.home),
        project=store.project,
        version=version,
        request="0190a000-0000-7000-8000-000000000000",
        log="nightly",
    )
    sent = json.loads(json.dumps(describe(part)))
    code = (
        "import json, sys; from everloop.serving.batch.batch_scoring import *; "
        "print(score_part(BatchPart(**json.loads(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(sent)], capture_output=True, text=True, check=False)
    assert done.stdout == "20\n", done.stderr
    assert score_part(replace(part)) == 20
    found = pl.read_ipc(part.output)
    assert found["flight_id"].to_list() == table["flight_id"].to_list()[10:30]
    assert read_predictions(store, "nightly").collect().height == 20


def children_of(process: int) -> list[int]:
    """The processes that a process has started, where the system says so."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def runs(process: int) -> bool:
    """Whether a process is there and has not ended; one that nothing waits for stays in the list as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_killed_job_is_resumed_by_the_same_command(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table = sample_table(400, seed=5)
    table.write_csv(path)
    command = [
        sys.executable,
        "-c",
        "from everloop.cli import main; main()",
        "predict",
        version,
        "--home",
        str(store.home),
    ]
    command += ["--input", str(path), "--output", str(output), "--piece-rows", "20", "--workers", "2", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        folder = tmp_path / ".out.csv.everloop"
        for _ in range(3000):
            if len(list(folder.glob("part-*"))) >= 3 or job.poll() is not None:
                break
            sleep(0.005)
        workers = children_of(job.pid)
        job.send_signal(signal.SIGKILL)
    assert not output.exists()
    for _ in range(600):
        if not any(map(runs, workers)):
            break
        sleep(0.1)
    assert not any(map(runs, workers)), "the killed job's pool lives on"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["parts"], told["log"]) == (400, 20, "batch-delays")
    assert told["resumed"] >= 3
    assert pl.read_csv(output)["flight_id"].to_list() == table["flight_id"].to_list()
    logged = read_predictions(store, "batch-delays").collect()
    assert logged["id"].n_unique() == logged.height == 400
    run = store.records.get(Run, told["run"])
    assert (run.state, run.params["version"], run.metrics["rows"]) == ("finished", version, 400.0)


@pytest.mark.slow
def test_a_job_is_a_run_also_when_it_fails(store: Store, release: Any, tmp_path: Path) -> None:
    release()
    path = tmp_path / "in.csv"
    sample_table(20).drop("distance").write_csv(path)
    with pytest.raises(RequestError, match="distance"):
        score_as_run(store, "delays@1", pl.scan_csv(path), str(path), tmp_path / "out.csv")
    (run,) = store.records.find(Run)
    assert run.state == "failed"
    assert "distance" in str(run.error)
    with pytest.raises(NotFoundError):
        score_as_run(store, "delays@1", pl.scan_csv(path), str(path), tmp_path / "out.csv", log="nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_an_executor_scores_as_this_process_does_and_logs_once(
    store: Store, release: Any, tmp_path: Path, ending: str
) -> None:
    version = release(task="multiclass").key
    table = sample_table(90, seed=5)
    source = tmp_path / f"rows{ending}"
    table.write_parquet(source) if ending == ".parquet" else table.write_csv(source)
    read = pl.scan_parquet(source) if ending == ".parquet" else pl.scan_csv(source, schema=table.schema)
    here, _ = score_as_run(store, version, read, str(source), tmp_path / "here.parquet", piece_rows=40, no_log=True)
    there, run = score_as_run(
        store, version, read, str(source), tmp_path / "there.parquet", piece_rows=40, executor="pool"
    )
    assert (there.rows, there.parts, there.resumed) == (here.rows, here.parts, here.resumed) == (90, 3, 0)
    assert pl.read_parquet(tmp_path / "there.parquet").equals(pl.read_parquet(tmp_path / "here.parquet"))
    assert there.log is not None
    assert read_predictions(store, there.log).collect().height == 90
    (child,) = store.records.find(Run, ("parent", "=", run.id))
    assert child.state == "finished"
    # The same job once more is another job, with a log of its own.
    score_as_run(store, version, read, str(source), tmp_path / "again.parquet", piece_rows=40, executor="local")
    assert read_predictions(store, there.log).collect().height == 180


@pytest.mark.slow
def test_a_job_on_an_executor_is_resumed(store: Store, release: Any, tmp_path: Path) -> None:
    version = release().key
    source = tmp_path / "rows.parquet"
    sample_table(90, seed=5).write_parquet(source)
    output = tmp_path / "scored.parquet"
    done: list[int] = []

    def stop_after_one(rows: int) -> None:
        done.append(rows)
        raise KeyboardInterrupt

    from everloop.serving.batch.batch_steps import score_on

    options: dict[str, Any] = {"piece_rows": 40, "scorer": lambda parts: score_on("local", store, parts)}
    with pytest.raises(KeyboardInterrupt):
        score_files(store, version, pl.scan_parquet(source), [source], output, progress=stop_after_one, **options)
    result = score_files(store, version, pl.scan_parquet(source), [source], output, **options)
    assert (done, result.rows, result.parts, result.resumed) == ([40], 90, 3, 1)
    assert pl.read_parquet(output).height == 90
