"""The interface of protocols: a request, a response, and the service that answers.

A protocol is one module with a table `ROUTES` from (method, path) to a function `(service, request) -> Response`. A
path may have parameters in braces, `/v2/models/{model}/infer`; their values are in `request.params`. The functions are
plain: they compute and do not wait. An exception becomes the status of its class. Each protocol has one line in the
plugin table, kind `protocol`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from everloop.errors import DeadlineError

if TYPE_CHECKING:
    from everloop.prediction_log.labels import GivenLabel
    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.observability.endpoint_metrics import Metrics
    from everloop.serving.score_request import ScoreRequest, ScoreResult

JSON = b"application/json"
TABLE_MARKS = (b"\xff\xff\xff\xff", b"ARRO", b"PAR1")
"""The first bytes of tables. A table may decompress to much more, and its reader is imported with the first one."""


@dataclass(slots=True)
class Request:
    """One complete request. `began`: `perf_counter()` when its body had arrived."""

    method: str
    path: str
    body: bytes
    began: float
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Names in lower case."""
    query: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)
    client: str | None = None
    """The name of its token; None if the endpoint needs none."""
    deadline: float | None = None
    """`perf_counter()` until which the client waits."""
    handle: Handle | None = None
    """The protocol's function for it, once found. The request has been authorized then."""
    decided: dict[str, str] | None = None
    """How it ends if a thread scores it: the thread or the deadline, whichever writes first. See `claim`."""
    scored_by: tuple[str, str] | None = None
    """The version that is scoring it, and its role; if the request fails now, it is the version's failure."""

    def claim(self) -> None:
        """Decide that the request will be answered, before anything is logged for it.

        Raises:
            DeadlineError: its deadline has passed. The client gets that error, or has got it already.
        """
        if self.decided is not None:
            # A dict's `setdefault` is atomic.
            if self.decided.setdefault("by", "answer") != "answer":
                raise late()
        elif self.deadline is not None and perf_counter() > self.deadline:
            raise late()

    def header(self, name: bytes) -> bytes | None:
        # A loop, because a generator expression costs more than the comparisons.
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(slots=True)
class Response:
    """A response. `result` is set if rows were scored; they are then counted, and shadows score them."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()
    result: ScoreResult | None = None
    version: str | None = None
    """The key of the version that answered; if several did, comma-separated. Sent as `X-Everloop-Version`."""


def late() -> DeadlineError:
    """The error of a request whose deadline has passed. Nothing was logged for it."""
    return DeadlineError(
        "The deadline of this request passed before it was answered.",
        help="Allow more time (X-Request-Timeout-Ms), or send fewer rows at once.",
    )


class Service(Protocol):
    """The endpoint as protocols see it. Thread-safe."""

    endpoint: str
    metrics: Metrics
    settings: EndpointSettings

    @property
    def ready(self) -> bool:
        """Whether requests for predictions are answered."""
        ...

    @property
    def log_kind(self) -> str:
        """Where answers are logged: journal, store or none."""
        ...

    def loaded_endpoint(self, request: Request | None = None) -> LoadedEndpoint:
        """The versions in use for this request. Call it once per request, because the next call may return others.

        With the header `X-Everloop-Version`, that version answers everything, if the client may choose.

        Raises:
            UnavailableError: there are none yet.
            TrustError: the request chooses a version, but its client may not.
            NotFoundError: the chosen version is not in use.
        """
        ...

    def score(self, loaded: LoadedEndpoint, score_request: ScoreRequest) -> ScoreResult:
        """Score and log rows; see `scoring.score_and_log`."""
        ...

    def label(self, labels: Sequence[GivenLabel]) -> list[str] | None:
        """Log labels (see `LabelLog.append`) and return the keys of those that match no prediction so far.

        None: they are logged, but the predictions cannot be looked up.
        """
        ...


Handle = Callable[[Service, Request], Response]
Routes = Mapping[tuple[str, str], Handle]
