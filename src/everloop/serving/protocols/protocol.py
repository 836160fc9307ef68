"""What a protocol is written against: a request, a response, and the service behind them.

A protocol is one module with a table `ROUTES`: (method, path) to a function `(service, request) -> Response`. A
path may have parts in braces, `/v2/models/{model}/infer`; what stood there is in `request.params`. The functions
are plain, they compute and do not wait; what they raise becomes the status of its class. Each protocol has one line
in the plugin table, kind `protocol`.
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
"""How tables begin. They may become much larger than they are, and what reads them is loaded with the first."""


@dataclass(slots=True)
class Request:
    """One whole request. `began`: `perf_counter()` when its body had come in."""

    method: str
    path: str
    body: bytes
    began: float
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Names in lower case."""
    query: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)
    client: str | None = None
    """The name of the token with which it came; None where the endpoint asks for none."""
    deadline: float | None = None
    """`perf_counter()` until which the client waits."""
    handle: Handle | None = None
    """The protocol's function for it, once it has been found; then it has been let in, too."""
    decided: dict[str, str] | None = None
    """How it ends where a thread scores it: whoever writes first, the thread or the deadline, decides. See `claim`."""

    def claim(self) -> None:
        """Decide that the request is answered, before anything is written down for it.

        Raises:
            DeadlineError: its time has run out, and its client has been told so or will be.
        """
        if self.decided is not None:
            # A dict's `setdefault` is one step for all threads.
            if self.decided.setdefault("by", "answer") != "answer":
                raise late()
        elif self.deadline is not None and perf_counter() > self.deadline:
            raise late()

    def header(self, name: bytes) -> bytes | None:
        # A loop, because a generator costs more than everything that it would look at.
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(slots=True)
class Response:
    """What is sent. `answer`: set where rows were scored, so that they are counted and shadows asked."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: Sequence[tuple[bytes, bytes]] = ()
    result: ScoreResult | None = None
    version: str | None = None
    """The key of the version that answered; of several, with commas between. Sent as `X-Everloop-Version`."""


def late() -> DeadlineError:
    """What a request gets whose time ran out; nothing was logged for it."""
    return DeadlineError(
        "The time of this request ran out before it was answered.",
        help="Wait longer (X-Request-Timeout-Ms), or send fewer rows at once.",
    )


class Service(Protocol):
    """The endpoint as a protocol sees it. Its functions may be called from any thread."""

    endpoint: str
    metrics: Metrics
    settings: EndpointSettings

    @property
    def ready(self) -> bool:
        """Whether requests for predictions are answered."""
        ...

    @property
    def log_kind(self) -> str:
        """Where answers are written down: journal, store or none."""
        ...

    def loaded_endpoint(self, request: Request | None = None) -> LoadedEndpoint:
        """The versions in use for this request. Ask once per request: the next call may give others.

        A request with `X-Everloop-Version` is answered by that version, if its client may choose.

        Raises:
            UnavailableError: there are none yet.
            TrustError: the request chooses a version, and its client may not.
            NotFoundError: it chooses one that is not in use.
        """
        ...

    def score(self, loaded: LoadedEndpoint, score_request: ScoreRequest) -> ScoreResult:
        """Score and log rows; see `scoring.score_and_log`."""
        ...

    def label(self, labels: Sequence[GivenLabel]) -> list[str] | None:
        """Log labels, see `LabelLog.append`, and return the keys of those that are about no prediction so far.

        None: they are logged, but the predictions cannot be looked up now.
        """
        ...


Handle = Callable[[Service, Request], Response]
Routes = Mapping[tuple[str, str], Handle]
