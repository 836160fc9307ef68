"""`everloop serve` and `everloop predict`: one endpoint, and batch scoring."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from everloop.cli.output import AsJson, Home, emit, opened, say
from everloop.cli.table_options import (
    CommentPrefix,
    DecimalComma,
    DropUnnamed,
    Encoding,
    Format,
    NullValues,
    Schema,
    Separator,
    SkipRows,
    options_advised,
    print_notes,
    reading_options,
)

_CSV_TYPES = {"string": "string", "float": "float64"}


def serve(
    endpoint: Annotated[str | None, typer.Argument(help="An endpoint's name, or MODEL@VERSION or MODEL@ALIAS.")] = None,
    port: Annotated[
        int, typer.Option(help="0 takes a free one.", envvar=["AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT"])
    ] = 8080,
    host: Annotated[str, typer.Option(help="Other than loopback only with a token.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=0, help="Processes that answer, on one port; 0: one a core.")] = 1,
    grpc_port: Annotated[
        int | None, typer.Option(help="Speak the Open Inference Protocol over gRPC here, too; 0 takes a free port.")
    ] = None,
    log_requests: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Write a line for each request to the error stream.")
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Every endpoint, each loaded when it is first asked, at /endpoints/NAME/….")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", "--allowed-hosts", help="A further name to be addressed by; may stand more than once."
        ),
    ] = None,
    memory_mb: Annotated[
        int | None, typer.Option(min=1, help="With --all: what loaded models may take; the longest unused leave.")
    ] = None,
    home: Home = None,
) -> None:
    """Answer requests until Ctrl-C. A version that no endpoint routes to gets an endpoint of its own."""
    from everloop.errors import UsageError
    from everloop.serving import serve_endpoint, serve_endpoints
    from everloop.serving.observability.telemetry import write_requests
    from everloop.serving.resolve_endpoint import find_endpoint

    if all == (endpoint is not None):
        raise UsageError("Serve what?", help="Name an endpoint, a version or an alias; or give --all.")
    if all or endpoint is None:
        if workers > 1 or grpc_port is not None:
            raise UsageError("--all serves with one process over HTTP.", help="Leave out --workers and --grpc-port.")
        with opened(home) as store:
            folder, project = store.home, store.project
        memory = None if memory_mb is None else memory_mb << 20
        serve_endpoints(folder, host, port, project=project, memory_bytes=memory, allowed_hosts=allowed_host or ())
        return
    with opened(home) as store:
        name = find_endpoint(store, endpoint)
        folder, project = store.home, store.project
    workers = workers or os.cpu_count() or 1
    if log_requests is not None:
        write_requests(log_requests)
    serve_endpoint(
        name,
        folder,
        host,
        port,
        project=project,
        workers=workers,
        grpc_port=grpc_port,
        allowed_hosts=allowed_host or (),
    )


def predict(
    model: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@ALIAS.")],
    input: Annotated[str, typer.Option("--input", "-i", help="csv, parquet, json lines or arrow; a file or a glob.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Parquet, csv or json lines, by its ending; without one a folder of Parquet files."
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that score.")] = 1,
    piece_rows: Annotated[int, typer.Option(min=1, help="Rows of a part; what a crash loses at most.")] = 250_000,
    log: Annotated[
        str | None, typer.Option(help="The endpoint in whose log the answers are; default: batch-MODEL.")
    ] = None,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not log the answers.")] = False,
    prefix: Annotated[str, typer.Option(help="What stands before the names of the columns that are added.")] = "",
    separator: Separator = None,
    encoding: Encoding = None,
    null_values: NullValues = None,
    format: Format = None,
    schema: Schema = None,
    skip_rows: SkipRows = None,
    comment_prefix: CommentPrefix = None,
    decimal_comma: DecimalComma = False,
    drop_unnamed: DropUnnamed = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Score files: their rows with `score` behind (of several classes: the best, and one column each), and `label`.

    Files are read by the model's signature: what it takes as text stays text. No column of a file is overwritten.
    What was cut off is resumed by the same command. The job is a run, with the version, the files and the rows.
    """
    from everloop.data import read
    from everloop.registry import get_version
    from everloop.serving.batch.batch_runs import score_as_run
    from everloop.serving.batch.batch_scoring import check_output

    check_output(output)
    pattern = str(Path(input).absolute())
    options = reading_options(
        separator=separator,
        encoding=encoding,
        null_values=null_values,
        format=format,
        schema=schema,
        skip_rows=skip_rows,
        comment_prefix=comment_prefix,
        decimal_comma=decimal_comma,
        drop_unnamed=drop_unnamed,
    )
    with opened(home) as store, options_advised() as notes:
        version = get_version(store, model)
        if format == "csv" or ".csv" in Path(input).name:
            # The model knows its types better than the text does: "1.10", "007" and "True" may be names.
            kinds = {item["name"]: _CSV_TYPES.get(item["type"]) for item in version.signature.get("inputs", ())}
            there = read(pattern, **options).collect_schema().names()
            own = {name: kind for name, kind in kinds.items() if kind is not None and name in there}
            options["schema_overrides"] = {**own, **options.get("schema_overrides", {})}
            notes.clear()
        scored, run = score_as_run(
            store,
            version.key,
            read(pattern, **options),
            pattern,
            output,
            workers=workers,
            piece_rows=piece_rows,
            log=log,
            no_log=no_log,
            prefix=prefix,
        )
    print_notes(notes)
    told = {"model": scored.version, "rows": scored.rows, "output": output, "log": scored.log, "run": run.id}
    told |= {"parts": scored.parts, "resumed": scored.resumed}
    again = f" ({scored.resumed} of {scored.parts} parts were there)" if scored.resumed else ""
    emit(told, json, lambda: say(f"{scored.rows:,} rows scored by {scored.version} → {output}{again}"))
