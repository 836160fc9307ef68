"""Judge monitoring: how often it disturbs people while nothing happens, and how soon it sees what does happen.

    python benchmarks/judgement.py [--quick] [--only TEXT …] [--tables quiet honest peers power harm] [--json FILE]

Five tables, with fixed seeds:

- quiet: incidents opened in streams in which nothing happens, per month and in units of the budget. If the reference
  shows what the stream is like, the ratio must be between 0.5 and 1.5. If it cannot, for instance because it is shorter
  than the season, no seed may have more than three a month. The rule counts all incidents that are opened, alarms and
  notices. `open` is the share of time with an open incident, so that nobody meets the budget with one that never ends.
- honest: incidents must not depend on rows that come later, nor on the order of rows.
- peers: what the peers report in quiet streams with their default thresholds.
- power: a known drift begins four weeks after the reference. The probability that an incident opens within 14 days, and
  that one opens that names a column that has drifted; the median delay in days. Peers are given the threshold at which
  they disturb people as often as everloop does in the same stream without the drift. The column `by chance` is how
  often everloop opens an incident in those 14 days if there is no drift. An incident that was open before the drift
  never counts, whoever opened it; the column `or joined` counts one of everloop's that names a drifted column later.
- harm and estimated performance: printed by `benchmarks/estimation.py`.

An incident of a peer is a run of alarmed windows. It
ends after three windows without an alarm.

The standard error of a rate is the larger of that between seeds and that of a Poisson number. With the full number of
seeds, streams are at least 45 months of budgeted incidents long, which gives 0.15 of the budget for independent
incidents; very large streams are shorter. The table shows the error in each case.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Two streams are judged at the same time, each by one thread. This must be set before Polars is imported.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import polars as pl
from judgement_peers import METHODS, PACKAGES, environment, versions
from judgement_power import peer_scores, power_rows, print_power, run_power
from judgement_streams import POWER, QUIET, TIME, Made, Stream, make
from judgement_subject import Opened, everloop_incidents, runs, subject_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MONTH = timedelta(days=365.25 / 12)
LEAST, MOST, NEVER = 0.5, 1.5, 3.0
OFTEN_OPEN = 0.33
"""A quiet stream should not have an open incident for a larger share of the time. The rule itself ignores this."""
QUICK = (
    "independent",
    "independent, 200 rows",
    "level 0.5",
    "level 0.8",
    "level 0.95",
    "level 0.8, common",
    "weekly season",
    "heavy tails, t2",
    "heavy tails, t2, level 0.8",
    "lognormal, level 0.5",
    "rare categories",
    "rows of customers, 20 each",
    "flights, weeks shuffled",
)
QUICK_SEEDS = 8
PEERS_QUIET = (
    "independent",
    "independent, 200 rows",
    "level 0.8",
    "weekly season",
    "heavy tails, t2",
    "rare categories",
    "flights, weeks shuffled",
)
HONEST = ("independent, 200 rows", "level 0.8", "growing volume", "weekly season, quiet weekends, level 0.5")
TABLES = ("quiet", "honest", "peers", "power", "harm")
QUICK_DRIFTS = ("mean 0.25", "category mix, 10 points", "creeping nulls, 0.3 % a day")


# Quiet streams


@dataclass(frozen=True)
class QuietRun:
    """What happened in one quiet stream with one seed. `error`: monitoring stopped with this."""

    opened: int
    alarms: int
    months: float
    open_share: float
    subjects: int
    seconds: float
    error: str | None = None


def run_quiet(job: tuple[Stream, int]) -> tuple[str, int, QuietRun]:
    stream, seed = job
    made = make(stream, seed)
    months = (made.live_until - made.live_from) / MONTH
    began = time.perf_counter()
    try:
        found = everloop_incidents(made.reference, made.current, TIME, stream.every, stream.budget, stream.seasons)
    except Exception as error:
        return stream.name, seed, QuietRun(0, 0, months, 0.0, 0, time.perf_counter() - began, repr(error)[:300])
    return (
        stream.name,
        seed,
        QuietRun(
            len(found),
            sum(item.severity == "alarm" for item in found),
            months,
            _open_share(found, made),
            max((len(item.subjects) for item in found), default=0),
            time.perf_counter() - began,
        ),
    )


def _open_share(found: Sequence[Opened], made: Made) -> float:
    """Return the share of the live time in which at least one incident is open."""
    spans = sorted((item.opened_at, min(item.resolved_at or made.live_until, made.live_until)) for item in found)
    total, reached = timedelta(0), made.live_from
    for start, end in spans:
        total += max(timedelta(0), end - max(start, reached))
        reached = max(reached, end)
    return total / (made.live_until - made.live_from)


def seeds_of(stream: Stream, quick: bool) -> range:
    """Return the seeds of a quiet stream: enough for 45 months of budgeted incidents, fewer if it is very large."""
    if stream.real in ("flights", "weather"):
        return range(1)
    months = timedelta(days=stream.live_days) / MONTH
    values = stream.features * stream.rows * stream.per_day * (stream.reference_days + stream.live_days)
    most = 24 if values < 3e7 else 8
    return range(QUICK_SEEDS if quick else max(4, min(most, math.ceil(45 / (stream.budget * months)))))


@dataclass(frozen=True)
class Rate:
    """A rate in units of the budget, with its standard error, and the largest of the seeds."""

    ratio: float
    error: float
    worst: float

    @classmethod
    def of(cls, counts: Sequence[int], months: Sequence[float], budget: float) -> Rate:
        rates = [count / span / budget for count, span in zip(counts, months, strict=True)]
        total = sum(months) * budget
        ratio = sum(counts) / total
        size = len(rates)
        between = math.sqrt(sum((rate - ratio) ** 2 for rate in rates) / (size - 1) / size) if size > 1 else 0.0
        return cls(ratio, max(between, math.sqrt(max(1, sum(counts))) / total), max(rates))


def verdict_on(stream: Stream, rate: Rate, failed: bool) -> str:
    """Return whether the incidents of a quiet stream are within the rule."""
    if failed:
        return "NOT ok (error)"
    if stream.real == "flights":
        return "ok" if rate.ratio <= 2 else "NOT ok"
    if not stream.shown:
        return "ok" if rate.worst <= NEVER else "NOT ok"
    if LEAST <= rate.ratio <= MOST:
        return "ok"
    near = LEAST - rate.error <= rate.ratio <= MOST + rate.error
    return ("NOT ok (shy" if rate.ratio < LEAST else "NOT ok (loud") + (", within its error)" if near else ")")


def quiet_row(stream: Stream, seen: Sequence[QuietRun]) -> dict[str, object]:
    """Print and return the row of a quiet stream, from the runs of all its seeds."""
    rate = Rate.of([run.opened for run in seen], [run.months for run in seen], stream.budget)
    failed = [run.error for run in seen if run.error]
    row: dict[str, object] = {
        "stream": stream.name,
        "seeds": len(seen),
        "months": sum(run.months for run in seen),
        "budget": stream.budget,
        "shown": stream.shown,
        "a_month": rate.ratio * stream.budget,
        "ratio": rate.ratio,
        "standard_error": rate.error,
        "worst_seed": rate.worst,
        "alarms_a_month": sum(run.alarms for run in seen) / sum(run.months for run in seen),
        "open_share": sum(run.open_share for run in seen) / len(seen),
        "often_open": stream.shown and sum(run.open_share for run in seen) / len(seen) > OFTEN_OPEN,
        "most_subjects": max(run.subjects for run in seen),
        "opened_by_seed": [run.opened for run in seen],
        "seconds": sum(run.seconds for run in seen) / len(seen),
        "errors": failed,
        "verdict": verdict_on(stream, rate, bool(failed)),
    }
    print(
        f"{stream.name:45} {row['seeds']:5} {row['months']:6.0f} {row['a_month']:7.2f} {rate.ratio:6.2f} "
        f"{rate.error:5.2f} {rate.worst:6.2f} {row['alarms_a_month']:6.2f} {row['open_share']:5.0%} "
        f"{row['seconds']:6.1f}  {row['verdict']}{'' if stream.shown else ' (reference cannot show it)'}"
        f"{', but often open' if row['often_open'] else ''}",
        flush=True,
    )
    if failed:
        print(f"    {failed[0]}", flush=True)
    return row


def quiet_table(
    streams: Sequence[Stream], quick: bool, processes: int, done: Callable[[list[dict[str, object]]], None]
) -> list[dict[str, object]]:
    jobs = [(stream, seed) for stream in streams for seed in seeds_of(stream, quick)]
    print(f"\nQuiet streams. Judged: {subject_name()}\n")
    header = (
        f"{'stream':45} {'seeds':>5} {'months':>6} {'a month':>7} {'ratio':>6} {'± se':>5} {'worst':>6} {'alarms':>6}"
    )
    print(f"{header} {'open':>5} {'s/run':>6}  verdict", flush=True)
    found: dict[str, dict[int, QuietRun]] = {stream.name: {} for stream in streams}
    known = {stream.name: stream for stream in streams}
    table: list[dict[str, object]] = []
    for name, seed, run in work(run_quiet, jobs, processes):
        found[name][seed] = run
        # A row is printed as soon as it is complete, so that a run that is stopped has shown what it found.
        if len(found[name]) == len(seeds_of(known[name], quick)):
            table.append(quiet_row(known[name], [run for _, run in sorted(found[name].items())]))
            done(table)
    good = sum(str(row["verdict"]) == "ok" for row in table)
    print(f"\n{good} of {len(table)} quiet streams ok", flush=True)
    return table


# Nothing from the future


def run_honest(job: tuple[Stream, int]) -> tuple[str, int, list[str]]:
    """Return what is wrong if a stream is cut off in its middle, or its rows come in another order."""
    stream, seed = job
    made = make(stream, seed)
    middle = made.live_from + (made.live_until - made.live_from) / 2
    past = made.current.filter(pl.col(TIME) < middle)
    mixed = made.current.sample(fraction=1.0, shuffle=True, seed=seed)
    wrong: list[str] = []
    try:
        whole, cut, shuffled = (
            everloop_incidents(made.reference, part, TIME, stream.every, stream.budget, stream.seasons)
            for part in (made.current, past, mixed)
        )
    except Exception as error:
        return stream.name, seed, [repr(error)[:300]]
    if [item.opened_at for item in whole if item.opened_at <= middle] != [item.opened_at for item in cut]:
        wrong.append("incidents depend on what comes after them")
    if [item.opened_at for item in whole] != [item.opened_at for item in shuffled]:
        wrong.append("incidents depend on the order of the rows")
    return stream.name, seed, wrong


def honest_table(streams: Sequence[Stream], seeds: int, processes: int) -> list[dict[str, object]]:
    jobs = [(stream, seed) for stream in streams for seed in range(seeds)]
    print(f"\nIncidents may depend on the past only, and not on the order of rows, {seeds} seeds\n")
    table: list[dict[str, object]] = []
    for name, seed, wrong in work(run_honest, jobs, processes):
        table.append({"stream": name, "seed": seed, "wrong": wrong})
        print(f"{name:45} seed {seed}  {'NOT ok: ' + '; '.join(wrong) if wrong else 'ok'}", flush=True)
    return table


# Peers with their own thresholds


def run_defaults(job: tuple[Stream, int, Sequence[str]]) -> tuple[str, dict[str, tuple[int, int, float]]]:
    """Return, for each method with its defaults: incidents, flagged windows, and the months of the stream."""
    stream, seed, peers = job
    made = make(stream, seed)
    ends = [made.live_from + stream.window * (1 + window) for window in range(stream.live_days * stream.per_day)]
    months = (made.live_until - made.live_from) / MONTH
    found: dict[str, tuple[int, int, float]] = {}
    for method, scores in peer_scores(stream, made, peers).items():
        flagged = [sum(flags) for flags in scores["flags"]]
        rules = {method: [["x"] if count else [] for count in flagged]}
        if method == "evidently":
            half = len(scores["columns"]) / 2
            rules["evidently data set"] = [["x"] if count >= half else [] for count in flagged]
        for rule, flags in rules.items():
            found[rule] = len(runs(ends[: len(flags)], flags)), sum(map(len, flags)), months
    return stream.name, found


def peers_table(streams: Sequence[Stream], peers: Sequence[str], seeds: int, processes: int) -> list[dict[str, object]]:
    jobs = [(stream, seed, peers) for stream in streams for seed in range(seeds)]
    total: dict[str, dict[str, tuple[int, int, float]]] = {stream.name: {} for stream in streams}
    for name, found in work(run_defaults, jobs, processes):
        for rule, counts in found.items():
            before = total[name].get(rule, (0, 0, 0.0))
            total[name][rule] = before[0] + counts[0], before[1] + counts[1], before[2] + counts[2]
    rules = list(total[streams[0].name])
    print(
        f"\nPeers with their default thresholds in quiet streams, {seeds} seeds: incidents / flagged windows a month\n"
    )
    print(f"{'':45}" + " ".join(f"{rule:>18}" for rule in rules))
    table: list[dict[str, object]] = []
    for stream in streams:
        cells = []
        for rule in rules:
            incidents, flagged, months = total[stream.name][rule]
            cells.append(f"{incidents / months:.2f} / {flagged / months:.1f}".rjust(18))
            table.append(
                {
                    "stream": stream.name,
                    "method": rule,
                    "incidents_a_month": incidents / months,
                    "flagged_windows_a_month": flagged / months,
                }
            )
        print(f"{stream.name:45}" + " ".join(cells), flush=True)
    return table


def power_table(
    only: Sequence[str], quick: bool, peers: Sequence[str], seeds: int, processes: int
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for stream, drifts in POWER[:1] if quick and not only else POWER:
        wanted = chosen(drifts, only, QUICK_DRIFTS if quick else None)
        if not wanted and any(text in stream.name for text in only):
            wanted = drifts
        if wanted:
            jobs = [(stream, wanted, seed, peers) for seed in range(seeds)]
            found = sorted(work(run_power, jobs, processes), key=lambda run: run.seed)
            rows += power_rows(stream, wanted, found, peers)
            print_power(rows[-len(wanted) :])
    print(
        f"\n{sum(not row['behind'] for row in rows)} of {len(rows)} drifts seen at least as well as by every peer",
        flush=True,
    )
    return rows


# Running


def work(function: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> Iterator[Any]:
    """Run jobs in processes of their own, as they are ready, and show progress on a terminal's standard error."""
    began = time.perf_counter()
    shown = sys.stderr.isatty()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, result in enumerate(pool.imap_unordered(function, jobs), start=1):
            if shown:
                print(f"\r{done} of {len(jobs)} runs, {time.perf_counter() - began:.0f} s", end="", file=sys.stderr)
            yield result
    print(f"{len(jobs)} runs in {time.perf_counter() - began:.0f} s", file=sys.stderr)


def chosen(items: Sequence[Any], only: Sequence[str], quick_names: Sequence[str] | None) -> list[Any]:
    """Return the items with one of the texts in their name; otherwise those of the quick selection, or all."""
    if only:
        return [item for item in items if any(text in item.name for text in only)]
    return [item for item in items if quick_names is None or item.name in quick_names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a selection with few seeds on one core; its first three tables take 5 minutes of it",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="streams with this text in their name")
    parser.add_argument("--tables", nargs="+", default=[*TABLES], choices=TABLES)
    parser.add_argument(
        "--peers", nargs="*", default=None, choices=[*METHODS], help="default: all; with --quick, ks ewma"
    )
    parser.add_argument("--seeds", type=int, help="of each world in the power table; default 24, with --quick 8")
    parser.add_argument("--processes", type=int, help="default: 2; with --quick, 1")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    peers = options.peers if options.peers is not None else ["ks", "ewma"] if options.quick else [*METHODS]
    options.processes = options.processes or (1 if options.quick else 2)
    result: dict[str, object] = {"judged": subject_name(), "quick": options.quick}
    if "quiet" in options.tables:
        streams = chosen(QUIET, options.only, QUICK if options.quick else None)
        result["quiet"] = []
        if streams:
            result["quiet"] = quiet_table(
                streams, options.quick, options.processes, lambda table: keep(options.json, {**result, "quiet": table})
            )
            keep(options.json, result)
    if "honest" in options.tables:
        streams = chosen(QUIET, options.only, HONEST)
        result["honest"] = honest_table(streams, 1 if options.quick else 3, options.processes) if streams else []
        keep(options.json, result)
    if "peers" in options.tables and peers:
        streams = chosen(QUIET, options.only, PEERS_QUIET[:3] if options.quick else PEERS_QUIET)
        seeds = 1 if options.quick else 2
        result["peers"] = peers_table(streams, peers, seeds, options.processes) if streams else []
        # Environments of peers that do not take part need not exist.
        used = [name for name in PACKAGES if name in peers]
        result["versions"] = versions(used)
    if "power" in options.tables:
        seeds = options.seeds or (8 if options.quick else 24)
        result["power"] = power_table(options.only, options.quick, peers, seeds, options.processes)
    estimation = Path(__file__).with_name("estimation.py")
    if "harm" in options.tables and not options.only and estimation.exists():
        print("\nHarm and estimated performance", flush=True)
        command = [sys.executable, str(estimation), "--seeds", "1" if options.quick else "2"]
        if "nannyml" in peers:
            command += ["--peer", str(environment("nannyml") / "bin" / "python")]
        subprocess.run(command, check=True)
    keep(options.json, result)


def keep(path: Path | None, result: dict[str, object]) -> None:
    """Write what has been found so far, because a full run takes hours."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
