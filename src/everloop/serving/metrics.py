"""What an endpoint counts, as Prometheus text (exposition format 0.0.4).

Plain integers behind names, because the way of a request has no room for a client library: a count is one addition
and everything else happens when `/metrics` is asked for. Written by the event loop's thread only; worker threads
hand their results to it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one endpoint's process."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.responses: dict[tuple[str, int], int] = {}
        self.predictions: dict[tuple[str, str], int] = {}
        self.fallbacks = 0
        self.shadow_failures = 0
        self.in_flight = 0
        self.refused = 0
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

    def text(self) -> bytes:
        """Every counter, in the format that Prometheus reads."""
        name = _escape(self.endpoint)
        lines: list[str] = []
        _family(
            lines,
            "everloop_responses_total",
            "counter",
            "Responses by path and status.",
            (
                (f'endpoint="{name}",path="{_escape(path)}",status="{status}"', count)
                for (path, status), count in sorted(self.responses.items())
            ),
        )
        _family(
            lines,
            "everloop_predictions_total",
            "counter",
            "Rows scored, by version and role.",
            (
                (f'endpoint="{name}",version="{_escape(version)}",role="{role}"', count)
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
            lines.append(f'everloop_request_seconds_bucket{{endpoint="{name}",le="{edge}"}} {running}')
        lines.append(f'everloop_request_seconds_sum{{endpoint="{name}"}} {self._latency_sum!r}')
        lines.append(f'everloop_request_seconds_count{{endpoint="{name}"}} {running}')
        own = f'endpoint="{name}"'
        _family(
            lines,
            "everloop_route_fallbacks_total",
            "counter",
            "Rows that the champion answered because a canary does not take them.",
            [(own, self.fallbacks)],
        )
        _family(
            lines,
            "everloop_shadow_failures_total",
            "counter",
            "Requests that a shadow could not score.",
            [(own, self.shadow_failures)],
        )
        _family(
            lines,
            "everloop_reloads_total",
            "counter",
            "Changes of the endpoint's routes.",
            ((f'{own},outcome="{outcome}"', count) for outcome, count in self.reloads.items()),
        )
        _family(lines, "everloop_in_flight", "gauge", "Requests on their way.", [(own, self.in_flight)])
        _family(
            lines,
            "everloop_refused_total",
            "counter",
            "Requests told to come back, because too many were on their way.",
            [(own, self.refused)],
        )
        _family(lines, "everloop_revision", "gauge", "Revision of the routes in use.", [(own, self.revision)])
        _family(lines, "everloop_ready", "gauge", "1 while the endpoint answers.", [(own, int(self.ready))])
        return ("\n".join(lines) + "\n").encode()


def _family(lines: list[str], name: str, kind: str, help: str, samples: Iterable[tuple[str, int]]) -> None:
    lines.append(f"# HELP {name} {help}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{{{labels}}} {value}" for labels, value in samples)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
