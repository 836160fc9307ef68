"""`everloop replay`: run a loop, or a plain table, over history with several retraining policies."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.output import AsJson, ProjectFolder, console, emit, messages, table
from everloop.cli.table_options import options_advised, print_notes, read_table, reads_tables
from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.replay import ReplayResult


@reads_tables
def replay(
    source: Annotated[
        str | None,
        typer.Argument(metavar="LOOP or DATA", help="A loop of the project, or with --target a table: file or URL."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="For a table: column to predict.")] = None,
    time: Annotated[str | None, typer.Option(help="For a table: column with the time of each row's event.")] = None,
    key: Annotated[str | None, typer.Option(help="For a table: column that identifies a row.")] = None,
    exclude: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="For a table: columns that a model must not use.")
    ] = None,
    include: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="For a table: columns to use although they seem to know the target."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="For a table: metric to compare by. Default: by the task.")] = None,
    labels_after: Annotated[
        str | None, typer.Option(help="How long after its event a label arrives, such as 7d. Default: as declared.")
    ] = None,
    labels_arrive: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="For a table: column with the time at which a row's label arrived."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="First day. Default: after a quarter of the history.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="Day of the end. Default: the end of the history.")] = None,
    every: Annotated[str, typer.Option(help="Length of a period, such as 1d or 1w.")] = "1w",
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…", help="Policies to compare: never, weekly, monthly, drift, performance, declared."
        ),
    ] = None,
    windows: Annotated[bool, typer.Option("--windows/--no-windows", help="Also try other training windows.")] = True,
    watch_all: Annotated[
        bool,
        typer.Option("--watch-all", help="List incidents of all policies, also of those that ignore them. Slower."),
    ] = False,
    rows: Annotated[int, typer.Option(min=100, help="At most this many rows per period, sampled.")] = 20_000,
    training_rows: Annotated[
        int, typer.Option(min=100, help="At most this many rows per training, sampled.")
    ] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of trainings and intervals.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Policies replayed at once. Default: one per core.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="HTML report to write.")] = None,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Print the lines of loop.py for the recommended policy.")
    ] = False,
    *,
    reading: dict[str, Any],
    project: ProjectFolder = None,
    json: AsJson = False,
) -> None:
    """Run a loop over history, and compare when to retrain.

    A virtual clock moves through history. Each policy sees only what had arrived, and its labels come late. Its
    watches, trainings, gates and rollouts are the real ones. The result compares live metrics and costs, and
    recommends a policy.

    With --target and --time, DATA is a table and no project is needed. The result for a loop is kept in the project's
    store, and the web page shows it.
    """
    from everloop.replay import replay as run_replay
    from everloop.replay.replay_records import keep_replay

    kept: str | None = None
    names = [name.strip() for name in policies.split(",") if name.strip()] if policies is not None else None
    if policies is not None and not names:
        raise UsageError("--policies names no policy.", help="For example: --policies never,weekly,drift")
    options: dict[str, Any] = {
        "labels_after": labels_after,
        "start": _moment("--from", start),
        "end": _moment("--to", end),
        "every": every,
        "policies": names,
        "windows": windows,
        "watch_all": watch_all,
        "rows_per_period": rows,
        "training_rows": training_rows,
        "seed": seed,
        "processes": processes,
        "progress": _Progress(),
    }
    if target is None and time is None and not _names_table(source):
        unused = {
            "--key": key,
            "--exclude": exclude,
            "--include": include,
            "--metric": metric,
            "--labels-arrive": labels_arrive,
            "How to read a table": reading,
        }
        if option := next((name for name, value in unused.items() if value), None):
            raise UsageError(f"{option} needs --target and --time.", help="Name them, or leave it out.")
        from everloop.cli.loop import store_of
        from everloop.loop import load_project

        found = load_project(project)
        loop = found.loop(source)
        result = run_replay(loop, project=found.folder, title=loop.name, **options)
        with store_of(found.folder, None) as store:
            kept = keep_replay(store, result).id
    else:
        if source is None or target is None or time is None:
            needed = {"DATA": source, "--target": target, "--time": time}
            missing = [name for name, value in needed.items() if value is None]
            raise UsageError(
                f"To replay a table, {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed as well.",
                help=f"everloop replay {'DATA' if source is None else quote(source)} --target COLUMN --time COLUMN",
            )
        with options_advised() as notes:
            data = read_table(source, reading)
            print_notes(notes)
            result = run_replay(
                data,
                target=target,
                time=time,
                key=key,
                exclude=_names(exclude),
                include=_names(include),
                metric=metric,
                labels_arrive=labels_arrive,
                title=Path(source).name,
                **options,
            )
    if html is not None:
        _write(html, result)
    more = {"html": str(html) if html is not None else None, "replay": kept}
    shown = {**result.to_json(), **{name: value for name, value in more.items() if value is not None}}
    emit(shown, json, lambda: _draw(result, html, suggest, kept))
    if result.interrupted:
        # Not typer.Exit: that would add that finished work is kept, but a repeated replay begins again.
        raise SystemExit(130)


def _names_table(source: str | None) -> bool:
    """Whether the argument names a file or a URL. The name of a loop has neither a dot nor a slash."""
    return source is not None and ("." in source or "/" in source)


class _Progress:
    """Prints on standard error how far each policy is, about ten times."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def __call__(self, policy: str, done: int, periods: int) -> None:
        tenth = 10 * done // max(1, periods)
        if tenth > self._shown.get(policy, 0):
            self._shown[policy] = tenth
            messages().print(f"  {policy}: {min(done, periods)} of {periods} periods", markup=False)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _moment(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} is '{text}', which is not a date.", help=f"For example: {option} 2013-04-01"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _write(path: Path, result: ReplayResult) -> None:
    from everloop.replay.replay_page import replay_page

    try:
        path.write_text(replay_page(result), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' cannot be written: {error}.", help="Choose another file with --html.") from error


def _draw(result: ReplayResult, html: Path | None, suggest: bool, kept: str | None) -> None:
    from everloop.replay.replay_page import NOT_MEASURED, advice_title, month_rows, months_note, policy_rows

    out = console()
    out.print(
        f"{result.title}: {result.start:%Y-%m-%d} to {result.end:%Y-%m-%d}, every {result.every}, labels after"
        f" {result.labels_after}. {result.seconds:.0f} s.",
        markup=False,
        soft_wrap=True,
    )
    columns, rows = policy_rows(result)
    table("Policies", columns, rows, empty="No policy.")
    columns, rows = month_rows(result)
    if len(rows) > 1:
        table(f"By month. {months_note(result)}", columns, rows, empty="")
    for one in result.policies:
        if one.error is not None:
            out.print(f"'{one.policy.name}' ended early: {one.error}", markup=False, soft_wrap=True)
    for remark in result.remarks:
        out.print(remark, markup=False, soft_wrap=True)
    if result.interrupted:
        out.print("Interrupted: this is what is known so far.", markup=False)
    advice = result.recommendation
    if advice is None:
        out.print(f"No recommendation. {NOT_MEASURED}", markup=False, soft_wrap=True)
    else:
        chosen = result.outcome(advice.name).policy
        title = advice_title(result)
        out.print(f"\n{title}: {advice.name} ({chosen.rule}). {advice.why}", markup=False, soft_wrap=True)
        if suggest:
            out.print("\nIn loop.py:\n" + "\n".join(f"    {line}" for line in result.suggestion), markup=False)
        elif len(result.policies) > 1:
            out.print("The lines for loop.py: add --suggest", markup=False)
        else:
            pair = "never,weekly" if advice.name == "never" else f"never,{advice.name}"
            out.print(f"To compare policies: --policies {pair}", markup=False)
    if html is not None:
        out.print(f"Report: {html}", markup=False)
    if kept is not None:
        out.print("Kept. On the web page of everloop up, it is under Replay.", markup=False)
