"""What an endpoint counts, as Prometheus text (exposition format 0.0.4).

Plain integers behind names, because the way of a request has no room for a client library: a count is one addition
and everything else happens when `/metrics` is asked for. Written by the event loop's thread only, the shadows' counts
by theirs; worker threads hand their results over. Where several processes share a port, each leaves its counts in a
file (`gathering`), and whichever is asked tells the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.prediction_log.log_sinks import LogSink

BUCKETS_S = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "fallbacks": ("everloop_route_fallbacks_total", "Rows answered by another version than their key leads to."),
    "unasked": ("everloop_unasked_total", "Rows that a version does not understand, because its inputs are others."),
    "shadow_unasked": ("everloop_shadow_unasked_total", "Rows that a shadow does not understand, likewise."),
    "shadow_failures": ("everloop_shadow_failures_total", "Requests that a shadow could not score."),
    "shadow_skipped": ("everloop_shadow_skipped_total", "Requests that no shadow saw, because too many waited."),
    "refused": ("everloop_refused_total", "Requests told to come back, because too many were on their way."),
    "limited": ("everloop_limited_total", "Requests of clients that asked too often."),
    "unlogged": ("everloop_unlogged_total", "Rows answered that are not in the log, because the disk was full."),
    "log_segments": ("everloop_log_segments_total", "Segments of the log that its store has confirmed."),
    "log_failures": ("everloop_log_failures_total", "Attempts to ship the log that failed."),
}


class Metrics:
    """The counters of one endpoint's process."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.responses: dict[tuple[str, int], int] = {}
        self.predictions: dict[tuple[str, str], int] = {}
        self.fallbacks = 0
        self.unasked = 0
        self.shadow_unasked = 0
        self.shadow_failures = 0
        self.shadow_skipped = 0
        self.refused = 0
        self.limited = 0
        self.unlogged = 0
        self.log = "journal"
        """Where answers are written: journal, store or none."""
        self.log_segments = 0
        self.log_failures = 0
        self.log_backlog = 0
        self.sinks: Sequence[LogSink] = ()
        """What the log's numbers are read from; empty in a sum."""
        self.in_flight = 0
        self.reloads = {"done": 0, "failed": 0}
        self.revision = 0
        self.ready = False
        self._latency = [0] * (len(BUCKETS_S) + 1)
        self._latency_sum = 0.0

    def count_response(self, path: str, status: int) -> None:
        key = (path, status)
        self.responses[key] = self.responses.get(key, 0) + 1

    def count_predictions(self, version: str, role: str, rows: int) -> None:
        key = (version, role)
        self.predictions[key] = self.predictions.get(key, 0) + rows

    def time_request(self, seconds: float) -> None:
        self._latency[bisect_left(BUCKETS_S, seconds)] += 1
        self._latency_sum += seconds

    def totals(self) -> dict[str, Any]:
        """Everything as plain JSON, for another process to add; see `add`."""
        self._look_at_log()
        return {
            "responses": [[*key, count] for key, count in list(self.responses.items())],
            "predictions": [[*key, count] for key, count in list(self.predictions.items())],
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "reloads": dict(self.reloads),
            "latency": list(self._latency),
            "latency_sum": self._latency_sum,
            "gauges": {
                "in_flight": self.in_flight,
                "revision": self.revision,
                "ready": int(self.ready),
                "log_backlog": self.log_backlog,
            },
        }

    def sum_with(self, others: Sequence[dict[str, Any]]) -> Metrics:
        """The counts of this process and of others; those of a process that is gone have no `gauges`."""
        whole = Metrics(self.endpoint)
        whole.revision = self.revision
        whole.ready = self.ready
        whole.log = self.log
        for one in (self.totals(), *others):
            for path, status, count in one["responses"]:
                whole.responses[path, status] = whole.responses.get((path, status), 0) + count
            for version, role, count in one["predictions"]:
                whole.count_predictions(version, role, count)
            for name, count in one["counters"].items():
                setattr(whole, name, getattr(whole, name) + count)
            for outcome, count in one["reloads"].items():
                whole.reloads[outcome] += count
            whole._latency = [mine + its for mine, its in zip(whole._latency, one["latency"], strict=True)]
            whole._latency_sum += one["latency_sum"]
            gauges = one["gauges"]
            if gauges:
                whole.in_flight += gauges["in_flight"]
                whole.log_backlog += gauges.get("log_backlog", 0)
                whole.revision = min(whole.revision, gauges["revision"])
        return whole

    def text(self, workers: int = 1) -> bytes:
        """Every counter, in the format that Prometheus reads."""
        self._look_at_log()
        name = _escape(self.endpoint)
        own = f'endpoint="{name}"'
        lines: list[str] = []
        _family(
            lines,
            "everloop_responses_total",
            "counter",
            "Responses by path and status.",
            (
                (f'{own},path="{_escape(path)}",status="{status}"', count)
                for (path, status), count in sorted(self.responses.items())
            ),
        )
        _family(
            lines,
            "everloop_predictions_total",
            "counter",
            "Rows scored, by version and role.",
            (
                (f'{own},version="{_escape(version)}",role="{role}"', count)
                for (version, role), count in sorted(self.predictions.items())
            ),
        )
        lines += [
            "# HELP everloop_request_seconds Time from a whole request to its answer, predictions only.",
            "# TYPE everloop_request_seconds histogram",
        ]
        running = 0
        for edge, count in zip((*map(repr, BUCKETS_S), "+Inf"), self._latency, strict=True):
            running += count
            lines.append(f'everloop_request_seconds_bucket{{{own},le="{edge}"}} {running}')
        lines.append(f"everloop_request_seconds_sum{{{own}}} {self._latency_sum!r}")
        lines.append(f"everloop_request_seconds_count{{{own}}} {running}")
        for counter, (metric, meaning) in _COUNTERS.items():
            _family(lines, metric, "counter", meaning, [(own, getattr(self, counter))])
        _family(
            lines,
            "everloop_reloads_total",
            "counter",
            "Changes of the endpoint's routes.",
            ((f'{own},outcome="{outcome}"', count) for outcome, count in self.reloads.items()),
        )
        _family(lines, "everloop_in_flight", "gauge", "Requests on their way.", [(own, self.in_flight)])
        _family(lines, "everloop_revision", "gauge", "Revision of the routes in use.", [(own, self.revision)])
        _family(lines, "everloop_ready", "gauge", "1 while the endpoint answers.", [(own, int(self.ready))])
        meaning = "Where answers are written down: journal (this host), store (shipped) or none."
        _family(lines, "everloop_log_info", "gauge", meaning, [(f'{own},log="{self.log}"', 1)])
        meaning = "Bytes of the log that are on this host's disk only."
        _family(lines, "everloop_log_backlog_bytes", "gauge", meaning, [(own, self.log_backlog)])
        _family(lines, "everloop_workers", "gauge", "Processes that answer.", [(own, workers)])
        return ("\n".join(lines) + "\n").encode()

    def _look_at_log(self) -> None:
        if not self.sinks:
            return
        states = [sink.state() for sink in self.sinks]
        self.log_segments = sum(state.shipped for state in states)
        self.log_failures = sum(state.failures for state in states)
        self.log_backlog = sum(state.backlog_bytes for state in states)


def _family(lines: list[str], name: str, kind: str, help: str, samples: Iterable[tuple[str, int]]) -> None:
    lines.append(f"# HELP {name} {help}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{{{labels}}} {value}" for labels, value in samples)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
