"""Sending journals to a server: what is logged here arrives there, each point once, whatever the network does.

A shipper only reads: the run goes on whether a server answers or not. It keeps no notes; the server says how far it
has come with each journal. From its first start on, journals that have been folded here wait in `outbox/` until the
server has them whole; `ship_all` sends what a machine without a network has gathered. Numbers, parameters, tags and
ends are shipped; artifacts stay in the store in which they were kept.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, NotFoundError, StoreVersionError, UnavailableError, UsageError
from everloop.stores.journals import HEADER, list_journals, read_journal, stream_of, writer_alive
from everloop.tracking.journal.run_folding import OUTBOX, STREAM_PREFIX

if TYPE_CHECKING:
    from types import TracebackType

    import httpx

_log = logging.getLogger("everloop.tracking")

PATH = "/api/v1/journals"
BATCH_BYTES = 256 << 10
_PAUSE_S = (0.5, 60.0)
_BUSY = (408, 425, 429)


class Shipper:
    """Sends what is new in the journals of a home.

    With `start` it does so in a daemon thread until `stop`; without, at each `ship`. Several may work on one folder.

    Args:
        journals: the folder `journals` of a home.
        url: of the server, such as `https://host:8100`.
        token: with the right to write runs there.
        timeout_s: how long one batch may take.

    Raises:
        UsageError: the address is none of a server.
    """

    def __init__(self, journals: Path | str, url: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        import httpx

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"'{url}' is no address of a server.", help="Give one such as https://host:8100")
        self.journals = Path(journals)
        self.outbox = self.journals / OUTBOX
        self.outbox.mkdir(parents=True, exist_ok=True)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)
        self._url = url
        self._offsets: dict[str, int] = {}
        self._refused: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def ship(self) -> int:
        """Send everything that is new once; returns how many bytes the server has taken.

        Raises:
            UnavailableError: the server does not answer, or says that it cannot now.
        """
        sent = 0
        for path in [*list_journals(self.outbox), *list_journals(self.journals)]:
            if stream_of(path).startswith(STREAM_PREFIX) and path.stem not in self._refused:
                sent += self._ship_one(path)
        return sent

    def start(self, every_s: float = 5.0) -> Shipper:
        """Ship every few seconds, less often while the server does not answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, args=(every_s,), name="everloop-shipper", daemon=True)
            self._thread.start()
        return self

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Ship once more, and end. What the server did not take stays for the next time."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._client.close()

    def __enter__(self) -> Shipper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _go(self, every_s: float) -> None:
        pause = _PAUSE_S[0]
        while True:
            last = self._done.is_set()
            wait = every_s
            try:
                self.ship()
                pause = _PAUSE_S[0]
            except UnavailableError as error:
                _log.info("Nothing can be shipped now: %s", error)
                # Many that lost the same server should not come back to it at once.
                wait = pause * (0.5 + random.random())  # noqa: S311 - no secret hangs on it
                pause = min(2 * pause, _PAUSE_S[1])
            except OSError as error:
                _log.warning("Journals cannot be read to be shipped: %s", error)
            if last:
                return
            self._done.wait(wait)

    def _ship_one(self, path: Path) -> int:
        writer = path.stem
        finished = path.parent == self.outbox and not writer_alive(path)
        offset = self._offsets.get(writer)
        if offset is None:
            offset = self._post(writer, 0, b"")
            if offset is None or offset > _size(path):
                return 0  # refused, gone meanwhile, or another's of the same name
        sent = 0
        try:
            while batch := _batch(path, offset):
                taken = self._post(writer, offset, batch)
                if taken is None or taken == offset or taken > offset + len(batch):
                    return sent  # not what we have sent: nothing is given up for such an answer
                # A server that was restored from an older backup asks for what it has lost.
                sent += max(0, taken - offset)
                offset = self._offsets[writer] = taken
        except NotFoundError:
            return sent  # folded and moved meanwhile: it is in the outbox at the next look
        except (CorruptionError, StoreVersionError) as error:
            _log.error("The journal '%s' cannot be shipped any further: %s", path, error)
            self._refused.add(writer)
            return sent
        self._offsets[writer] = offset
        if finished:
            path.unlink(missing_ok=True)
        return sent

    def _post(self, writer: str, offset: int, body: bytes) -> int | None:
        """The offset that the server wants next; None where it will never take this journal."""
        import httpx

        params: dict[str, str | int] = {"writer": writer, "offset": offset}
        headers = {"content-type": "application/octet-stream"}
        try:
            answer = self._client.post(PATH, params=params, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"The server '{self._url}' does not answer: {error or type(error).__name__}."
            ) from error
        if answer.status_code >= 500 or answer.status_code in _BUSY:
            raise UnavailableError(f"The server '{self._url}' answered {answer.status_code}.")
        if answer.status_code in (401, 403, 404):
            raise UnavailableError(
                f"The server '{self._url}' answered {answer.status_code} to journals.",
                help="Check its address, and the token's rights.",
            )
        taken = _offset_of(answer)
        if taken is None:
            _log.error("The server does not take the journal '%s': %s", writer, answer.text[:300])
            self._refused.add(writer)
        return taken


def ship_all(
    journals: Path | str, url: str, token: str | None = None, *, patience_s: float = 60.0, timeout_s: float = 30.0
) -> int:
    """Send everything that a home's journals hold; returns how many bytes the server has taken.

    Args:
        patience_s: how long to try again while the server does not answer.

    Raises:
        UnavailableError: it did not answer for that long. What has arrived stays; the next call goes on from there.
    """
    deadline = time.monotonic() + patience_s
    pause = _PAUSE_S[0]
    with Shipper(journals, url, token, timeout_s=timeout_s) as shipper:
        sent = 0
        while True:
            try:
                sent += shipper.ship()
                return sent
            except UnavailableError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S[1])


def _batch(path: Path, offset: int) -> bytes:
    """Whole frames from an offset on, up to the size of a batch; at least one, if there is one."""
    begin = end = max(offset, len(HEADER))
    for _, behind in read_journal(path, begin):
        if behind - begin > BATCH_BYTES and end > begin:
            break
        end = behind
        if end - begin >= BATCH_BYTES:
            break
    if end == begin:
        return b""
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _offset_of(answer: httpx.Response) -> int | None:
    if answer.status_code >= 300:
        return None
    try:
        taken = answer.json().get("next_offset")
    except (ValueError, AttributeError):
        return None
    return taken if type(taken) is int and taken >= len(HEADER) else None
