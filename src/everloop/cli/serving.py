"""`everloop serve` and `everloop predict`: answer requests, and score files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from everloop.cli.output import AsJson, Home, count, emit, opened, say
from everloop.cli.table_options import options_advised, print_notes, reads_tables
from everloop.errors import UsageError

_CSV_TYPES = {"string": "string", "float": "float64"}


def serve(
    endpoint: Annotated[
        str | None, typer.Argument(help="Name of an endpoint, or MODEL@VERSION or MODEL@ALIAS.")
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            help="Port to listen on; 0 picks a free one.",
            envvar=["AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT"],
        ),
    ] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback requires an endpoint token.")
    ] = "127.0.0.1",
    workers: Annotated[
        int, typer.Option(min=0, help="Number of processes that share the port; 0 means one per core.")
    ] = 1,
    grpc_port: Annotated[
        int | None,
        typer.Option(help="Also serve the Open Inference Protocol over gRPC on this port; 0 picks a free one."),
    ] = None,
    log_requests: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Log each request to standard error, in this format.")
    ] = None,
    all: Annotated[
        bool,
        typer.Option("--all", help="Serve every endpoint at /endpoints/NAME/…; each is loaded at its first request."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", "--allowed-hosts", help="Further host name to accept; repeatable."),
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --all: memory limit for loaded models, in MB. The least recently used are unloaded first.",
        ),
    ] = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Serve an endpoint over HTTP until Ctrl-C.

    A version or alias is served by the endpoint that routes all traffic to it. If there is none, a new endpoint is
    created. The URL is printed on standard error as soon as requests are answered, or as JSON with --json.
    """
    from everloop.errors import UsageError
    from everloop.serving import serve_endpoint, serve_endpoints
    from everloop.serving.observability.telemetry import write_requests
    from everloop.serving.resolve_endpoint import find_endpoint

    if all == (endpoint is not None):
        given = "both an endpoint and --all" if all else "neither an endpoint nor --all"
        raise UsageError(
            f"The command got {given}.", help="Name one endpoint, version or alias, or give --all for every endpoint."
        )
    if all or endpoint is None:
        if workers > 1 or grpc_port is not None:
            raise UsageError(
                "--all serves every endpoint from one process, over HTTP only.",
                help="Leave out --workers and --grpc-port.",
            )
        with opened(home) as store:
            folder, project = store.home, store.project
        serve_endpoints(
            folder,
            host,
            port,
            project=project,
            memory_bytes=None if memory_mb is None else memory_mb << 20,
            allowed_hosts=allowed_host or (),
            on_ready=lambda url: _announce(None, url, json),
        )
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
        on_ready=lambda url: _announce(name, url, json),
    )


def _announce(name: str | None, url: str, json: bool) -> None:
    served = f"Endpoint '{name}' is ready" if name is not None else "All endpoints are ready"
    address = url if name is not None else f"{url}/endpoints/NAME"
    emit(
        {"endpoint": name, "url": url},
        json,
        lambda: say(f"{served} at {address} (Ctrl-C stops it)", err=True),
    )
    sys.stdout.flush()


@reads_tables
def predict(
    model: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@ALIAS.")],
    file: Annotated[
        str | None,
        typer.Argument(help="File or glob to score: CSV, Parquet, JSON lines or Arrow.", show_default=False),
    ] = None,
    input: Annotated[str | None, typer.Option("--input", "-i", help="The same as FILE.")] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .parquet, .csv or .jsonl. Without a suffix: a folder of Parquet files.",
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Number of processes that score.")] = 1,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="Score on an executor instead: pool, ray or ray://HOST:PORT. The rows and answers pass through the "
            "store.",
        ),
    ] = None,
    piece_rows: Annotated[
        int, typer.Option(min=1, help="Rows per part. A crash loses at most the part that is being scored.")
    ] = 250_000,
    log: Annotated[
        str | None, typer.Option(help="Endpoint whose log receives the predictions. Default: batch-MODEL.")
    ] = None,
    no_log: Annotated[bool, typer.Option("--no-log", help="Do not log the predictions.")] = False,
    prefix: Annotated[str, typer.Option(help="Prefix for the names of the columns that are added.")] = "",
    reading: dict[str, Any],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Score the rows of files with a model.

    The output holds the input's columns, followed by `score` (with several classes: the best score, then one column
    per class) and, for classifiers, `label`. Files are read with the types of the model's signature: text stays text.
    No column of a file is overwritten. Repeat an interrupted command to resume it. The job is recorded as a run, with
    the version, the files and the number of rows.
    """
    from everloop.data import read
    from everloop.registry import get_version
    from everloop.serving.batch.batch_runs import score_as_run
    from everloop.serving.batch.batch_scoring import check_output

    if on is not None:
        from everloop.pipeline.executors.executor_choice import check_executor

        check_executor(on, "--on")
    check_output(output)
    given = [one for one in (file, input) if one is not None]
    if len(given) != 1:
        raise UsageError(
            f"FILE is '{file}', and --input is '{input}'." if given else "No file to score was named.",
            help=f"Name one: everloop predict {quote(model)} FILE -o {quote(str(output))}",
        )
    source = given[0]
    pattern = str(Path(source).absolute())
    with opened(home) as store, options_advised() as notes:
        version = get_version(store, model)
        if reading.get("format") == "csv" or ".csv" in Path(source).name:
            # The signature knows the types better than the text does: "1.10", "007" and "True" may be names.
            types = {item["name"]: _CSV_TYPES.get(item["type"]) for item in version.signature.get("inputs", ())}
            columns = read(pattern, **reading).collect_schema().names()
            expected = {name: kind for name, kind in types.items() if kind is not None and name in columns}
            reading = {**reading, "schema_overrides": {**expected, **reading.get("schema_overrides", {})}}
            notes.clear()
        scored, run = score_as_run(
            store,
            version.key,
            read(pattern, **reading),
            pattern,
            output,
            workers=workers,
            piece_rows=piece_rows,
            log=log,
            no_log=no_log,
            prefix=prefix,
            executor=on,
        )
    print_notes(notes)
    result = {"model": scored.version, "rows": scored.rows, "output": output, "log": scored.log, "run": run.id}
    result |= {"parts": scored.parts, "resumed": scored.resumed}
    resumed = f" ({scored.resumed} of {count(scored.parts, 'part')} existed already)" if scored.resumed else ""
    emit(result, json, lambda: say(f"Scored {count(scored.rows, 'row')} with {scored.version} → {output}{resumed}"))
