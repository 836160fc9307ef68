"""`everloop predictions` and `everloop labels`: logged predictions, and the labels that arrive for them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.output import AsJson, EndpointName, Home, count, emit, facts, opened, say, table

if TYPE_CHECKING:
    import polars as pl

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect and export the logged predictions.")
labels_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Add labels for logged predictions.")

Hours = Annotated[float | None, typer.Option(help="Only predictions of the last HOURS hours. Default: all.")]


@app.command()
def ls(
    endpoint: EndpointName,
    hours: Hours = None,
    version: Annotated[str | None, typer.Option(help="Only predictions of this MODEL@VERSION. Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of predictions to show.")] = 20,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """List an endpoint's predictions, newest first."""
    from everloop.prediction_log import read_predictions

    with opened(home) as store:
        since = None if hours is None else store.now() - timedelta(hours=hours)
        frame = read_predictions(store, endpoint, since, version=version).sort("event_at", descending=True)
        rows = frame.head(limit).collect().to_dicts()
    columns = ("id", "event_at", "version", "role", "entity", "score", "label")
    emit(
        rows,
        json,
        lambda: table(
            f"Predictions of '{endpoint}'",
            columns,
            [tuple(row[name] for name in columns) for row in rows],
            empty=f"No predictions of '{endpoint}' match.",
        ),
    )


@app.command()
def show(
    id: Annotated[str, typer.Argument(help="Id of the prediction, as the endpoint's response contained it.")],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show a prediction with its inputs and outputs."""
    from everloop.errors import NotFoundError
    from everloop.prediction_log import find_prediction

    with opened(home) as store:
        found = find_prediction(store, id)
    if found is None:
        raise NotFoundError(f"No prediction '{id}'.", help="See: everloop predictions ls ENDPOINT")
    pairs = [
        ("endpoint", found.endpoint),
        ("version", found.version),
        ("role", found.role),
        ("package", found.package),
        ("instance", found.instance),
        ("event at", found.event_at),
        ("entity", found.entity),
        *((f"input {name}", value) for name, value in found.inputs.items()),
        *found.outputs.items(),
    ]
    emit(found, json, lambda: facts(found.id, pairs))


@app.command()
def export(
    endpoint: EndpointName,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet, .csv or .jsonl.")],
    hours: Hours = None,
    labelled: Annotated[bool, typer.Option(help="Only predictions whose label has arrived, with the label.")] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Export an endpoint's predictions to a file. They are streamed and need not fit into memory."""
    from everloop.errors import UsageError
    from everloop.prediction_log import read_labelled, read_predictions

    sinks = {".parquet": "sink_parquet", ".csv": "sink_csv", ".jsonl": "sink_ndjson", ".ndjson": "sink_ndjson"}
    if output.suffix not in sinks:
        raise UsageError(
            f"Cannot write '{output}': the format '{output.suffix}' is unknown.",
            help=f"Use a file name that ends in one of: {', '.join(sinks)}",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    with opened(home) as store:
        since = None if hours is None else store.now() - timedelta(hours=hours)
        frame = (read_labelled if labelled else read_predictions)(store, endpoint, since)
        if output.suffix == ".csv":
            import polars as pl
            import polars.selectors as cs

            # CSV has no lists, so the probabilities of several classes are joined into one text.
            frame = frame.with_columns(cs.list().cast(pl.List(pl.String)).list.join(";"))
        getattr(frame, sinks[output.suffix])(part)
    part.replace(output)
    emit(
        {"endpoint": endpoint, "output": output}, json, lambda: say(f"Exported predictions of '{endpoint}' → {output}")
    )


@labels_app.command("add")
def add(
    endpoint: EndpointName,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV, Parquet, JSON lines or Arrow file with the columns entity (or key) and value, and event_at if"
            " labels have times."
        ),
    ],
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Add labels from a file. Reports how many match no prediction."""
    from everloop.errors import DataError
    from everloop.prediction_log import add_labels
    from everloop.prediction_log.labels import find_unmatched_labels, shape_labels, unmatched_notice
    from everloop.records import EndpointRecord

    frame = _read_labels(file)
    if str(frame.schema.get("event_at")) == "String":
        import polars as pl

        times = frame["event_at"].str.to_datetime("%+", time_zone="UTC", strict=False)
        unreadable = frame.filter(times.is_null() & pl.col("event_at").is_not_null())
        if unreadable.height:
            raise DataError(
                f"event_at: {unreadable['event_at'][0]!r} is not a time.", help="Write it as 2030-01-31T12:00:00Z."
            )
        frame = frame.with_columns(times)
    with opened(home) as store:
        store.records.get(EndpointRecord, endpoint)
        shaped = shape_labels(store, frame)
        add_labels(store, endpoint, frame)
        unmatched = find_unmatched_labels(store, endpoint, shaped)
    result = {"endpoint": endpoint, "labels": shaped.height, "unmatched": len(unmatched)}

    def draw() -> None:
        say(f"Added {count(shaped.height, 'label')} to '{endpoint}'.")
        if unmatched:
            say(unmatched_notice(unmatched), err=True)

    emit(result, json, draw)


def _read_labels(file: Path) -> pl.DataFrame:
    """Read a table of labels.

    In CSV, `none` and `NA` are null among other values; if a file has no other values, they are names of classes.
    """
    from everloop.data import read

    frame = read(file.absolute()).collect()
    in_csv = any(suffix in (".csv", ".tsv") for suffix in file.suffixes)
    if in_csv and "value" in frame.columns and frame["value"].null_count() == frame.height:
        return read(file.absolute(), null_values=[]).collect()
    return frame
