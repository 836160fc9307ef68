"""Scores the parts of a table as the elements of one step, which any executor can run: on other machines, too.

The rows of a part and its answers pass through the object store, so the machines need not see the files. The answers
come back one part after the other. Both stay in the store until garbage collection finds that no run refers to them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.pipeline import step
from everloop.serving.batch.batch_scoring import (
    BatchPart,
    log_answers,
    predictor_of,
    read_part,
    score_piece,
    write_part,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from everloop.records import Run
    from everloop.stores import Store

# Where a part's rows and answers are on the machine that has the files. No other machine needs it.
_OWN_PATHS = ("path", "output", "home", "offset")


@step
def score_rows(part: dict[str, Any]) -> pl.DataFrame:
    """Score a part, and log its answers.

    Args:
        part: a `BatchPart` without paths, and `digest`, the digest of its rows in an Arrow file.
    """
    import polars as pl

    from everloop.pipeline import current_step

    running = current_step()
    assert running is not None  # noqa: S101 - steps are called by an executor
    fields = {name: value for name, value in part.items() if name != "digest"}
    found = BatchPart(**fields, path="", output="", home="", offset=None)
    piece = pl.read_ipc(running.store.objects.read(part["digest"]))
    predictor = predictor_of(running.store, found.version)
    scored = score_piece(predictor, piece, found.prefix, found.first)
    if found.log is not None:
        log_answers(running.store, predictor, found, piece, scored)
    return scored


def score_on(
    executor: str, store: Store, parts: Iterator[BatchPart], *, parent: Run | None = None
) -> Iterator[tuple[BatchPart, bool]]:
    """Yield each part once its answers are in its file, and whether it was scored now.

    Args:
        executor: `pool`, `ray`, `ray://HOST:PORT`, …
        parent: the run of the whole job.

    Raises:
        EverloopError: the model cannot score a row, or the executor cannot run the step.
    """
    import polars as pl

    from everloop.pipeline import run_graph, trace
    from everloop.pipeline.artifacts import Stored, load_value
    from everloop.pipeline.artifacts.lists import load_elements
    from everloop.tracking import start_run

    waiting: list[tuple[BatchPart, dict[str, Any]]] = []
    for part in parts:
        if Path(part.output).exists():
            yield part, False
            continue
        plain = {name: value for name, value in asdict(part).items() if name not in _OWN_PATHS}
        waiting.append((part, {**plain, "digest": store.objects.add(_packed(read_part(part)))}))
    if not waiting:
        return
    with trace() as graph:
        score_rows.map([element for _, element in waiting])
    with start_run(f"score {waiting[0][0].version}", store=store, parent=parent, tags={"kind": "batch"}) as run:
        result = run_graph(graph, store, run=run, executor=executor)
    elements = load_elements(Stored.of(result.artifact("score_rows")), store.objects)
    for (part, _), element in zip(waiting, elements, strict=True):
        write_part(part, load_value(element, store.objects, pl.DataFrame))
        yield part, True


def _packed(piece: pl.DataFrame) -> bytes:
    import io

    import polars as pl

    buffer = io.BytesIO()
    piece.write_ipc(buffer, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return buffer.getvalue()
