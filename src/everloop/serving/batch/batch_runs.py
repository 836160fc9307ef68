"""Records batch scoring as a run: the version, the input files, the rows, the output, the log and the time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from everloop.data.sources.file_states import match_files
from everloop.errors import AlreadyExistsError
from everloop.records import EndpointRecord, Run
from everloop.registry.model_versions import get_version
from everloop.registry.version_packages import load_model
from everloop.serving.batch.batch_scoring import PIECE_ROWS, BatchResult, check_columns, score_files
from everloop.serving.batch.batch_steps import score_on

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store


def score_as_run(
    store: Store,
    model: str,
    table: pl.LazyFrame,
    pattern: str,
    output: Path,
    *,
    workers: int = 1,
    piece_rows: int = PIECE_ROWS,
    log: str | None = None,
    no_log: bool = False,
    prefix: str = "",
    executor: str | None = None,
) -> tuple[BatchResult, Run]:
    """Score the files that a pattern matches; see `score_files`.

    Args:
        model: a version or an alias. An alias is resolved once, so a resumed job uses the version that it states.
        log: an endpoint's name; None: `batch-<model>`, which is created if missing.

        executor: where parts are scored, such as `ray://HOST:PORT`; None: in `workers` processes of this machine.

    Raises:
        EverloopError: as `score_files`; the run is stored as failed.
    """
    version = get_version(store, model)
    log_endpoint = None if no_log else _log_endpoint(store, log, version.model)
    inputs = [Path(path) for path in match_files(pattern)]
    began = perf_counter()
    params = {"input": pattern, "output": str(output), "version": version.key, "workers": workers, "log": log_endpoint}
    run = store.new(
        Run,
        name=f"predict {version.key}",
        started_at=store.now(),
        params=params,
        tags={"kind": "batch"},
        inputs=({"kind": "model", "version": version.key, "package": version.package},),
    )
    store.records.put(run)
    try:
        check_columns(load_model(store, version.key), table.collect_schema().names(), prefix)
        scored = score_files(
            store,
            version.key,
            table,
            inputs,
            output,
            piece_rows=piece_rows,
            workers=workers,
            log=log_endpoint,
            prefix=prefix,
            scorer=None if executor is None else partial(score_on, executor, store, parent=run),
        )
    except BaseException as error:
        _end(store, run, began, state="failed", error=f"{type(error).__name__}: {error}")
        raise
    metrics = {"rows": float(scored.rows), "parts": float(scored.parts), "resumed": float(scored.resumed)}
    return scored, _end(store, run, began, state="finished", metrics=metrics)


def _end(store: Store, run: Run, began: float, **changes: object) -> Run:
    ended = replace(run, ended_at=store.now(), seconds=perf_counter() - began, **changes)  # type: ignore[arg-type]
    return store.records.update(ended)[0]


def _log_endpoint(store: Store, log: str | None, model: str) -> str:
    """The name of the endpoint whose log receives the answers."""
    if log is not None:
        return store.records.get(EndpointRecord, log).name
    name = f"batch-{model}"[:64]
    if not store.records.find(EndpointRecord, ("name", "=", name), limit=1):
        try:
            store.records.put(store.new(EndpointRecord, name=name, model=model))
        except AlreadyExistsError:
            return name
    return name


__all__ = ["score_as_run"]
