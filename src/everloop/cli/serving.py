"""`everloop serve` and `everloop predict`: one endpoint, and batch scoring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from everloop.cli.output import AsJson, Home, emit, opened


def serve(
    endpoint: Annotated[str, typer.Argument(help="An endpoint's name, or MODEL@VERSION or MODEL@ALIAS.")],
    port: Annotated[
        int, typer.Option(help="0 takes a free one.", envvar=["AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT"])
    ] = 8080,
    host: Annotated[str, typer.Option(help="Other than loopback only with a token.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(help="Processes that answer, on one port.")] = 1,
    grpc_port: Annotated[
        int | None, typer.Option(help="Speak the Open Inference Protocol over gRPC here, too; 0 takes a free port.")
    ] = None,
    log_requests: Annotated[
        Literal["json", "text"] | None, typer.Option(help="Write a line for each request to the error stream.")
    ] = None,
    home: Home = None,
) -> None:
    """Answer requests until Ctrl-C. A version that no endpoint routes to gets an endpoint of its own."""
    from everloop.loop.serving_place import find_place
    from everloop.serving import serve_endpoint
    from everloop.serving.observing import write_requests

    with opened(home) as store:
        name = find_place(store, endpoint)
        folder, project = store.home, store.project
    if log_requests is not None:
        write_requests(log_requests)
    serve_endpoint(name, folder, host, port, project=project, workers=workers, grpc_port=grpc_port)


def predict(
    model: Annotated[str, typer.Argument(help="MODEL, MODEL@VERSION or MODEL@ALIAS.")],
    input: Annotated[Path, typer.Option("--input", "-i", help="csv, parquet, json lines or arrow.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet, csv or json lines, by its ending.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Score a file: its rows with `score` behind (of several classes: the best, and one column each), and `label`."""
    from everloop.data import read
    from everloop.models import load_model
    from everloop.serving.batch import check_output, score_table

    check_output(output)
    with opened(home) as store:
        predictor = load_model(store, model)
    rows = score_table(predictor, read(input.absolute()), output)
    result = {"model": predictor.version, "rows": rows, "output": output}
    emit(result, json, lambda: typer.echo(f"{rows:,} rows scored by {predictor.version} → {output}"))
