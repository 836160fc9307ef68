"""Counts what an endpoint does and writes the metrics as Prometheus text (exposition format 0.0.4).

Counters are plain integers behind names, because a client library would cost too much per request: counting is one
addition, and everything else happens when `/metrics` is requested. Only the event loop's thread writes them, except
that the shadows' thread writes the shadows' counters; worker threads hand their results over. If several processes
share a port, each keeps its counters in a mapped file, and the process that answers `/metrics` returns the sum; see
`metrics_aggregation`.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from everloop.serving.observability.counter_cells import CounterCells

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.serving.observability.counter_cells import Counter, Name

BUCKETS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "fallbacks": (
        "everloop_route_fallbacks_total",
        "Rows answered by another version than the one their key is routed to.",
    ),
    "unasked": ("everloop_unasked_total", "Rows that a version could not score because its inputs differ."),
    "shadow_unasked": (
        "everloop_shadow_unasked_total",
        "Rows that a shadow could not score because its inputs differ.",
    ),
    "shadow_failures": ("everloop_shadow_failures_total", "Requests that a shadow failed to score."),
    "shadow_skipped": ("everloop_shadow_skipped_total", "Requests that no shadow scored because too many were queued."),
    "refused": ("everloop_refused_total", "Requests refused with 503 because too many were in flight."),
    "limited": ("everloop_limited_total", "Requests refused with 429 because the client exceeded its rate limit."),
    "unlogged": ("everloop_unlogged_total", "Rows answered but not logged because the disk was full."),
    "log_segments": ("everloop_log_segments_total", "Log segments that the store has confirmed."),
    "log_failures": ("everloop_log_failures_total", "Failed attempts to ship the log."),
}
_GAUGES = {
    "in_flight": ("everloop_in_flight", "Requests in flight."),
    "revision": ("everloop_revision", "Revision of the routes in use."),
    "ready": ("everloop_ready", "1 if the endpoint can answer predictions, else 0."),
}


class Metrics:
    """The counters of one endpoint's process.

    Attributes:
        log: where answers are logged: journal, store or none.
        sinks: the log's sinks, from which its counters are read.
    """

    def __init__(self, endpoint: str, cells: CounterCells | None = None) -> None:
        """Create the counters.

        Args:
            cells: where they are stored; None: in this process's memory.
        """
        self.endpoint = endpoint
        self.log = "journal"
        self.sinks: Sequence[LogSink] = ()
        self._cells = CounterCells() if cells is None else cells
        self.fallbacks = self._cells.counter("counter", "fallbacks")
        self.unasked = self._cells.counter("counter", "unasked")
        self.shadow_unasked = self._cells.counter("counter", "shadow_unasked")
        self.shadow_failures = self._cells.counter("counter", "shadow_failures")
        self.shadow_skipped = self._cells.counter("counter", "shadow_skipped")
        self.refused = self._cells.counter("counter", "refused")
        self.limited = self._cells.counter("counter", "limited")
        self.unlogged = self._cells.counter("counter", "unlogged")
        self.reloads_done = self._cells.counter("reload", "done")
        self.reloads_failed = self._cells.counter("reload", "failed")
        self.in_flight = self._cells.counter("gauge", "in_flight")
        self.revision = self._cells.counter("gauge", "revision")
        self.ready = self._cells.counter("gauge", "ready")
        self._log_segments = self._cells.counter("counter", "log_segments")
        self._log_failures = self._cells.counter("counter", "log_failures")
        self._log_backlog = self._cells.counter("gauge", "log_backlog")
        self._responses: dict[tuple[str, int], Counter] = {}
        self._predictions: dict[tuple[str, str], Counter] = {}
        self._failures: dict[tuple[str, str, int], int] = {}
        self._latency = [self._cells.counter("latency", str(number)) for number in range(len(BUCKETS_S) + 1)]
        self._latency_ns = self._cells.counter("latency_ns")

    def count_response(self, path: str, status: int) -> None:
        counter = self._responses.get((path, status))
        if counter is None:
            counter = self._responses[path, status] = self._cells.counter("response", path, str(status))
        counter.add()

    def failed_responses(self) -> dict[int, int]:
        """The responses of this process with a status of 400 or more, by status. May be called from any thread."""
        failed: dict[int, int] = {}
        for (_, status), counter in list(self._responses.items()):
            if status >= 400:
                failed[status] = failed.get(status, 0) + counter.value
        return failed

    def count_failure(self, version: str, role: str, status: int) -> None:
        """Count a request that a version failed to score. Each role is counted by one thread only."""
        key = (version, role, status)
        self._failures[key] = self._failures.get(key, 0) + 1

    def failed_versions(self) -> dict[tuple[str, str, int], int]:
        """The requests that a version of this process failed to score, by version, role and status of the response.

        May be called from any thread.
        """
        return self._failures.copy()

    def count_predictions(self, version: str, role: str, rows: int) -> None:
        counter = self._predictions.get((version, role))
        if counter is None:
            counter = self._predictions[version, role] = self._cells.counter("prediction", version, role)
        counter.add(rows)

    def time_request(self, seconds: float) -> None:
        self._latency[bisect_left(BUCKETS_S, seconds)].add()
        self._latency_ns.add(int(seconds * 1e9))

    def read_log_state(self) -> None:
        """Take over the counters of the log's sinks. Other processes see them as of the last call."""
        if not self.sinks:
            return
        states = [sink.state() for sink in self.sinks]
        self._log_segments.set(sum(state.shipped for state in states))
        self._log_failures.set(sum(state.failures for state in states))
        self._log_backlog.set(sum(state.backlog_bytes for state in states))

    def text(self, others: Sequence[tuple[Mapping[Name, int], bool]] = ()) -> bytes:
        """Every counter in the format that Prometheus reads.

        Args:
            others: the counters of other processes to add, each with whether the process is alive; gauges of an ended
                one are left out.
        """
        self.read_log_state()
        totals = self._cells.totals()
        for counters, alive in others:
            for name, value in counters.items():
                if name[0] != "gauge":
                    totals[name] = totals.get(name, 0) + value
                elif alive and name[1] == "revision":
                    totals[name] = min(totals[name], value)
                elif alive and name[1] != "ready":
                    totals[name] += value
        return _exposition(self.endpoint, totals, self.log, 1 + sum(alive for _, alive in others))


def _exposition(endpoint: str, totals: Mapping[Name, int], log: str, workers: int) -> bytes:
    base = f'endpoint="{_escape(endpoint)}"'
    lines: list[str] = []
    responses = sorted((name[1], int(name[2]), count) for name, count in totals.items() if name[0] == "response")
    _add_family(
        lines,
        "everloop_responses_total",
        "counter",
        "Responses by path and status.",
        ((f'{base},path="{_escape(path)}",status="{status}"', count) for path, status, count in responses),
    )
    predictions = sorted((name[1], name[2], count) for name, count in totals.items() if name[0] == "prediction")
    _add_family(
        lines,
        "everloop_predictions_total",
        "counter",
        "Rows scored, by version and role.",
        ((f'{base},version="{_escape(version)}",role="{role}"', count) for version, role, count in predictions),
    )
    lines += [
        "# HELP everloop_request_seconds Time from a complete request to its response, predictions only.",
        "# TYPE everloop_request_seconds histogram",
    ]
    below = 0
    for number, edge in enumerate((*map(repr, BUCKETS_S), "+Inf")):
        below += totals["latency", str(number)]
        lines.append(f'everloop_request_seconds_bucket{{{base},le="{edge}"}} {below}')
    lines.append(f"everloop_request_seconds_sum{{{base}}} {totals['latency_ns',] / 1e9!r}")
    lines.append(f"everloop_request_seconds_count{{{base}}} {below}")
    for counter, (metric, meaning) in _COUNTERS.items():
        _add_family(lines, metric, "counter", meaning, [(base, totals["counter", counter])])
    reloads = ((f'{base},outcome="{outcome}"', totals["reload", outcome]) for outcome in ("done", "failed"))
    _add_family(lines, "everloop_reloads_total", "counter", "Changes of the endpoint's routes.", reloads)
    for gauge, (metric, meaning) in _GAUGES.items():
        _add_family(lines, metric, "gauge", meaning, [(base, totals["gauge", gauge])])
    meaning = "Where answers are logged: journal (this host), store (shipped) or none."
    _add_family(lines, "everloop_log_info", "gauge", meaning, [(f'{base},log="{log}"', 1)])
    meaning = "Bytes of the log that are only on this host's disk."
    _add_family(lines, "everloop_log_backlog_bytes", "gauge", meaning, [(base, totals["gauge", "log_backlog"])])
    _add_family(lines, "everloop_workers", "gauge", "Processes that answer.", [(base, workers)])
    return ("\n".join(lines) + "\n").encode()


def _add_family(lines: list[str], name: str, kind: str, help: str, samples: Iterable[tuple[str, int]]) -> None:
    lines.append(f"# HELP {name} {help}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{{{labels}}} {value}" for labels, value in samples)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
