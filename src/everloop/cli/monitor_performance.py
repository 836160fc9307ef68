"""`everloop monitor performance|coverage|compare|fairness|attribution`: what labels say about an endpoint's models."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from everloop.cli.monitor_incidents import app as app
from everloop.cli.output import AsJson, EndpointName, Home, count, emit, facts, opened, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    import polars as pl

    from everloop.stores import Store

Every = Annotated[str, typer.Option(help="Length of a period: 1d, 1w, 1mo or 1q.")]
OfVersion = Annotated[
    str | None,
    typer.Option("--version", help="Only predictions of this MODEL@VERSION, in any role. Default: all answers."),
]
Since = Annotated[str | None, typer.Option(help="Only predictions from this day or time (UTC) on.")]
Until = Annotated[str | None, typer.Option(help="Only predictions before this day or time (UTC).")]
Metric = Annotated[
    str | None, typer.Option(help="Metric, such as roc_auc or rmse. Default: the usual one for the model's task.")
]
LabelsAfter = Annotated[
    str, typer.Option(help="Leave out predictions younger than this, such as 1d, whose labels may still arrive.")
]


class Period(TypedDict):
    """The period of a command, as arguments of the functions of monitoring."""

    since: datetime | None
    until: datetime | None


@app.command()
def performance(
    endpoint: EndpointName,
    metric: Metric = None,
    every: Every = "1mo",
    by: Annotated[
        list[str] | None, typer.Option(help="Divide each period by this input, or by 'version'. May be repeated.")
    ] = None,
    version: OfVersion = None,
    as_if: Annotated[
        str | None,
        typer.Option(help="Rescore the logged inputs with this MODEL@VERSION instead of using the logged predictions."),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Estimate the metric also where labels are missing, and compare with labels."),
    ] = False,
    learn_until: Annotated[
        str | None,
        typer.Option(
            help="With --estimate: learn from labelled predictions before this day or time (UTC), and estimate those"
            " after it. Default: the first half of the labelled ones."
        ),
    ] = None,
    labels_after: LabelsAfter = "0s",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show an endpoint's live metric by period, with 95 % intervals.

    With --by, also by slice or version. With --as-if, what another version would have scored. With --estimate, what the
    metric probably is before labels arrive.
    """
    from everloop.errors import UsageError
    from everloop.monitoring import performance_by, performance_over_time, usual_metric
    from everloop.monitoring.performance.learned_estimates import learned_estimates

    chosen = [name for name, given in (("--by", by), ("--as-if", as_if), ("--estimate", estimate)) if given]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} cannot be combined.", help="Pass one of them.")
    if learn_until is not None and not estimate:
        raise UsageError("--learn-until needs --estimate.", help="Add --estimate, or leave out --learn-until.")
    split = _moment(learn_until, "--learn-until")
    with _asked(endpoint, since, until, home) as (store, period):
        metric = metric if metric is not None else usual_metric(store, endpoint, version=version)
        if estimate:
            found = learned_estimates(store, endpoint, metric, every, version=version, learn_until=split, **period)
        elif by:
            found = performance_over_time(
                store, endpoint, metric, every, by=by, version=version, labels_after=labels_after, **period
            )
        else:
            found = performance_by(
                store, endpoint, metric, every, as_if=as_if, version=version, labels_after=labels_after, **period
            )
    title = f"{metric} of '{endpoint}'" + (f", rescored with {as_if}" if as_if else "")
    if estimate:
        names = ("predictions", "estimate", "low", "high", "labelled", "realised", "reason")
        _show(found, json, f"Estimated {title}", names)
    elif by:
        _show(found, json, title, (*by, "predictions", "labelled", "value", "low", "high"))
    else:
        _show(found, json, title, ("version", "predictions", "labelled", "value", "low", "high"), {"value": metric})


@app.command()
def coverage(
    endpoint: EndpointName,
    every: Every = "1mo",
    by_age: Annotated[
        bool, typer.Option("--by-age", help="Show which share has its label within an hour, a day and so on.")
    ] = False,
    version: OfVersion = None,
    since: Since = None,
    until: Until = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show the share of predictions with labels, and how many seconds labels take to arrive."""
    from everloop.monitoring import label_coverage, label_coverage_by_age

    with _asked(endpoint, since, until, home) as (store, period):
        if by_age:
            found = label_coverage_by_age(store, endpoint, version=version, **period)
        else:
            found = label_coverage(store, endpoint, every, version=version, **period)
    names = [name for name in found.columns if name not in ("to", "age_s")]
    _show(found, json, f"Labels of '{endpoint}'", names)


@app.command()
def compare(
    endpoint: EndpointName,
    champion: Annotated[str, typer.Argument(help="MODEL@VERSION that is compared with.")],
    challenger: Annotated[str, typer.Argument(help="MODEL@VERSION that may be better.")],
    metric: Metric = None,
    labels_after: LabelsAfter = "0s",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Compare two versions on an endpoint's labelled predictions.

    If the challenger is a shadow, both have scored the same requests, and they are compared row by row. Otherwise each
    has its own share of the traffic.
    """
    from everloop.monitoring import compare_versions

    with _asked(endpoint, since, until, home) as (store, period):
        found = compare_versions(store, endpoint, champion, challenger, metric, labels_after=labels_after, **period)
    rows = "the same rows" if found.paired else "their own shares of the traffic"
    pairs = [
        (f"{found.metric} of {champion}", f"{found.champion_value:.4g} ({count(found.champion_rows, 'row')})"),
        (f"{found.metric} of {challenger}", f"{found.challenger_value:.4g} ({count(found.challenger_rows, 'row')})"),
        ("gain of the challenger", f"{found.gain:+.4g} ({found.low:+.4g} to {found.high:+.4g})"),
        ("probability that it is worse", f"{found.p_worse:.3g}"),
    ]
    emit(found, json, lambda: facts(f"{challenger} compared with {champion} on {rows}", pairs))


@app.command()
def fairness(
    endpoint: EndpointName,
    by: Annotated[str, typer.Option(help="Input whose values are the groups, or 'version'.")],
    every: Every = "1mo",
    version: OfVersion = None,
    labels_after: LabelsAfter = "0s",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show how differently a model of two classes treats groups, by period."""
    from everloop.monitoring import fairness_over_time

    with _asked(endpoint, since, until, home) as (store, period):
        found = fairness_over_time(store, endpoint, by, every, version=version, labels_after=labels_after, **period)
    names = (by, "measure", "rows", "value", "rest", "gap", "gap_low", "gap_high")
    _show(found, json, f"Fairness of '{endpoint}' by {by}", names)


@app.command()
def attribution(
    endpoint: EndpointName,
    version: Annotated[str, typer.Argument(help="MODEL@VERSION whose inputs are shuffled.")],
    metric: Annotated[
        str | None,
        typer.Option(help="Show how much this metric suffers. Default: how much the scores change, without labels."),
    ] = None,
    every: Every = "1mo",
    since: Since = None,
    until: Until = None,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Show how important each input of a version is, by period."""
    from everloop.monitoring import attribution_over_time

    with _asked(endpoint, since, until, home) as (store, period):
        found = attribution_over_time(store, endpoint, version, every, metric=metric, **period)
    title = f"Importance of the inputs of {version}" + (f" for {metric}" if metric else "")
    _show(found, json, title, ("feature", "rows", "importance", "low", "high", "share"))


@contextmanager
def _asked(endpoint: str, since: str | None, until: str | None, home: Path | None) -> Iterator[tuple[Store, Period]]:
    """Open the store of an existing endpoint, and read the period as the arguments `since` and `until`."""
    from everloop.records import EndpointRecord

    period = Period(since=_moment(since, "--since"), until=_moment(until, "--until"))
    with opened(home) as store:
        store.records.get(EndpointRecord, endpoint)
        yield store, period


def _moment(text: str | None, option: str) -> datetime | None:
    """Read a day or a time; without a zone it is UTC."""
    from datetime import UTC, datetime

    from everloop.errors import UsageError

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"{option} '{text}' is not a day or a time.", help="Write 2026-03-01 or 2026-03-01T12:00."
        ) from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _show(
    found: pl.DataFrame, json: bool, title: str, names: Sequence[str], renamed: dict[str, str] | None = None
) -> None:
    """Print a frame: all of it as JSON, or its periods and some columns as a table."""
    rows: list[dict[str, Any]] = found.to_dicts()
    shown = [name for name in dict.fromkeys(("from", *names)) if name in found.columns]
    lines = [[_day(row[name]) if name == "from" else row[name] for name in shown] for row in rows]
    header = [(renamed or {}).get(name, name) for name in shown]
    emit(rows, json, lambda: table(title, header, lines, empty="No predictions yet."))


def _day(moment: datetime) -> str:
    """Shorten midnight to its day."""
    return f"{moment:%Y-%m-%d %H:%M}".removesuffix(" 00:00")
